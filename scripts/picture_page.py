"""Make docs/images/page.png, the page of a service in Chromium, from a run:
`corrkd run --preset synthetic --seeds 1 --out runs/picture`, then
`python scripts/picture_page.py runs/picture`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "page.png"
STATE = "#sample=10&missing=25&off=language"  # what the page shows
WIDTH, HEIGHT = 1240, 1180  # pixels


def main(run: Path) -> None:
    """Serve a run and write the picture of its page."""
    program = Path(sys.executable).with_name("corrkd")
    words = [str(program), "serve", str(run), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as service:
        try:
            photograph(address_of(service))
        finally:
            service.terminate()


def address_of(service: subprocess.Popen[str]) -> str:
    """Return the address that a service names once it runs. Raises SystemExit where it ends."""
    assert service.stderr is not None
    for line in service.stderr:
        if match := re.search(r"running on (http://\S+)", line):
            return match[1]
    raise SystemExit("the service did not start")


def photograph(address: str) -> None:
    """Write the picture of the page at an address."""
    with TemporaryDirectory() as profile:
        flags = [
            f"--screenshot={PICTURE}",
            f"--window-size={WIDTH},{HEIGHT}",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=20000",  # milliseconds, in which the page has loaded
        ]
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        subprocess.run(["chromium", *options, *flags, f"{address}/{STATE}"], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
