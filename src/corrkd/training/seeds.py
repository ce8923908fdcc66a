"""Seeds for what a training draws."""

from __future__ import annotations

import hashlib


def derived_seed(*parts: object) -> int:
    """Return a seed for a purpose: 63 bits from the text of the parts."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
