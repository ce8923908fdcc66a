"""The files of the Hazumi set: where they are published, and the SHA-256 digests of their
contents.
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from corrkd.errors import CorrKDError
from corrkd.files import replacing

COMMITS = {
    "Hazumi2010": "a81b91527e109ec7d9e6657aefcd8491eb29acff",
    "Hazumi2012": "5785cb482e7469919020d71354c9f4e28e123c39",
    "Hazumi2105": "e429c113a1124ce0d442613ad54a27010642a83a",
}
ADDRESS = "https://raw.githubusercontent.com/ouktlab/{repository}/{commit}/{path}"
MOST_BYTES = 4_000_000  # the largest file has 2.2 MB
SECONDS = 60.0  # without a response

Fetch = Callable[[str, int], bytes]
"""(address, largest number of bytes) -> contents of the address."""


@dataclass(frozen=True)
class SourceFile:
    """A published file.

    Attributes:
        name: "<repository>/<path>".
        sha256: of its contents.
    """

    name: str
    sha256: str

    @property
    def address(self) -> str:
        """Address of the file, at a commit that does not change."""
        repository, _, path = self.name.partition("/")
        return ADDRESS.format(repository=repository, commit=COMMITS[repository], path=path)


def source_files() -> list[SourceFile]:
    """Return the files of the set, in order."""
    lines = (resources.files(__package__) / "files.sha256").read_text("utf-8").splitlines()
    return [SourceFile(name, sha256) for sha256, name in (line.split(maxsplit=1) for line in lines)]


def download(file: SourceFile, folder: Path, *, fetch: Fetch | None = None) -> bool:
    """Download a file to a folder atomically, unless it exists.

    Args:
        file: file to download.
        folder: the file is written to "<repository>/<path>" in it.
        fetch: function that downloads; default: over HTTPS.

    Returns:
        Whether it was downloaded.

    Raises:
        CorrKDError: if the file cannot be downloaded or written, or differs from the published one.
    """
    path = folder / file.name
    if path.is_file() and _sha256(path.read_bytes()) == file.sha256:
        return False
    content = (fetch or https)(file.address, MOST_BYTES)
    _check(content, file, file.address)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return True


def read_source(file: SourceFile, folder: Path) -> bytes:
    """Return the contents of a file in a folder. Raises CorrKDError if the file does not exist or
    differs from the published one.
    """
    path = folder / file.name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorrKDError(
            f"{path}: {error.strerror}; the folder needs clones of Hazumi2010, Hazumi2012 and "
            f"Hazumi2105"
        ) from None
    _check(content, file, str(path))
    return content


def https(address: str, most_bytes: int) -> bytes:
    """Return the contents of an address. Raises CorrKDError if they cannot be downloaded or are
    larger than `most_bytes`.
    """
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as response:
            content: bytes = response.read(most_bytes + 1)
    except (OSError, http.client.HTTPException) as error:  # errors of urllib are OSErrors
        reason = str(getattr(error, "reason", error)).strip()
        raise CorrKDError(
            f"{address}: cannot be downloaded: {reason}; run the command again to continue, or "
            f"give clones with --from"
        ) from None
    if len(content) > most_bytes:
        raise CorrKDError(
            f"{address}: is larger than {most_bytes:,} bytes, so it is not the published file"
        )
    return content


def _check(content: bytes, file: SourceFile, where: str) -> None:
    if (digest := _sha256(content)) != file.sha256:
        repository = file.name.partition("/")[0]
        raise CorrKDError(
            f"{where}: SHA-256 is {digest[:12]}..., expected {file.sha256[:12]}...; use commit "
            f"{COMMITS[repository][:12]} of {repository}"
        )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
