"""Mutations of valid files by a seeded generator, for the fuzz targets of all readers."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

HOSTILE_NUMBERS = (
    *(
        b"0",
        b"-1",
        b"-0.0",
        b"1e308",
        b"1e309",
        b"-1e309",
        b"NaN",
        b"nan",
        b".nan",
        b"Infinity",
        b"-.inf",
        b"1_0",
        b"0x10",
    ),
    *(
        b"1000000",
        b"2147483648",
        b"4294967296",
        b"9223372036854775808",
        b"1" + b"0" * 30,
        b"9" * 5000,
        b"null",
        b'"1"',
    ),
)
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
LARGEST_RUN = 64  # bytes that a mutation touches at once


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Return `data` after one to four mutations.

    Args:
        data: a valid file.
        rng: a seeded generator; the same state gives the same bytes.
        others: valid files from which `splice` takes pieces; default: `data` itself.
    """
    for _ in range(rng.randint(1, 4)):
        data = rng.choice(MUTATIONS)(data, rng, others)
    return data


def flip(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Flip one bit."""
    if not data:
        return data
    out = bytearray(data)
    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def insert(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Insert random bytes."""
    at = rng.randint(0, len(data))
    return data[:at] + rng.randbytes(rng.randint(1, LARGEST_RUN)) + data[at:]


def delete(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Delete a run of bytes, or cut the file off."""
    start, stop = _run(data, rng)
    return data[:start] if rng.random() < 0.2 else data[:start] + data[stop:]


def duplicate(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Repeat a run of bytes, twice to 100 times."""
    start, stop = _run(data, rng)
    return data[:stop] + data[start:stop] * rng.choice((1, 2, 10, 100)) + data[stop:]


def splice(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Overwrite a run of bytes with a run of another valid file."""
    other = rng.choice(others) if others else data
    start, stop = _run(data, rng)
    source_start, source_stop = _run(other, rng)
    return data[:start] + other[source_start:source_stop] + data[stop:]


def replace_number(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Replace a number written in text by a hostile number."""
    numbers = list(NUMBER.finditer(data))
    if not numbers:
        return data
    number = rng.choice(numbers)
    return data[: number.start()] + rng.choice(HOSTILE_NUMBERS) + data[number.end() :]


MUTATIONS: tuple[Callable[[bytes, random.Random, Sequence[bytes]], bytes], ...] = (
    *(flip, insert, delete, duplicate, splice),
    *(replace_number, replace_number),  # files that parse get furthest
)


def _run(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    return start, min(len(data), start + rng.randint(1, LARGEST_RUN))
