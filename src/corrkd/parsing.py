"""Reading JSON and YAML from untrusted files: size, depth and numbers are bounded, repeated keys
refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from corrkd.errors import CorrKDError
from corrkd.escape import is_unicode

LARGEST_JSON = 256 * 2**20  # bytes
LARGEST_YAML = 2**20
DEEPEST = 40  # levels of nesting
MOST_NODES = 200_000  # of a YAML document; an alias counts each time it is used
LARGEST_INTEGER = 2**64
DIGEST = "digest"  # key of the digest in a JSON object
_YAML_DIGEST = "# sha256 of what follows: "

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 3

CONTENT_ERRORS = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, ArithmeticError),
    *(MemoryError, RecursionError, AssertionError, EOFError, NotImplementedError, RuntimeError),
)
"""Exceptions that may be raised when a file with unexpected contents is read."""


def quoted(value: Any) -> str:
    """Return the shortened `repr` of a value, for an error message."""
    if isinstance(value, int) and abs(value) >= LARGEST_INTEGER:  # Python cannot print huge ones
        return f"an integer of {value.bit_length()} bits"
    return _short.repr(value)


def repeated(values: Iterable[Any]) -> Any:
    """Return the most frequent value, which is a repeated one if any value is repeated."""
    return Counter(values).most_common(1)[0][0]


@contextmanager
def refusing(where: object, advice: str = "damaged") -> Iterator[None]:
    """Turn any exception on unexpected contents into a CorrKDError.

    Args:
        where: the file; prefix of the message.
        advice: what is wrong with the file and what to do about it.
    """
    try:
        yield
    except CONTENT_ERRORS as error:
        if isinstance(error, ValidationError):
            raise CorrKDError(f"{where}: {advice} ({first_fault(error)})") from None
        lines = str(error).splitlines()
        text = f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
        raise CorrKDError(f"{where}: {advice} ({text})") from None


def first_fault(error: ValidationError) -> str:
    """Return the first validation error as "where: what is wrong (given: value)"."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))[:120] or "the file"
    value = first["input"]
    suffix = "" if isinstance(value, Mapping | BaseModel) else f" (given: {quoted(value)})"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}{suffix}"


def read_text(path: Path, largest: int) -> str:
    """Return the text of a file of at most `largest` bytes. Raises CorrKDError if the file cannot
    be read, is larger, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(largest + 1)
    except OSError as error:
        raise CorrKDError(f"{path}: {error.strerror or error}") from None
    if len(data) > largest:
        raise CorrKDError(f"{path}: larger than the {largest:,} bytes allowed")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorrKDError(f"{path}: not UTF-8 text (byte {error.start})") from None


# --------------------------------------------------------------------------------------------------
# JSON


def read_json(path: Path, advice: str = "") -> Any:
    """Return the value of a JSON file. Raises CorrKDError like `read_text` and `parse_json`."""
    return parse_json(read_text(path, LARGEST_JSON), path, advice)


def parse_json(text: str | bytes, where: object, advice: str = "") -> Any:
    """Return the value of a JSON text.

    Args:
        text: the text; bytes are UTF-8.
        where: prefix of the error message.
        advice: suffix of the error message.

    Raises:
        CorrKDError: if the text is not JSON, is nested too deep, repeats a key, or contains an
            integer above 2**64, a number that is not finite or a lone surrogate.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_not_finite,
            parse_int=_integer,
            parse_float=_float,
        )
        check_tree(value)
    except RecursionError:
        reason = "nested too deep"
    except ValueError as error:  # including UnicodeDecodeError and JSONDecodeError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    else:
        return value
    raise CorrKDError("; ".join(filter(None, (f"{where}: invalid JSON: {reason[:160]}", advice))))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        raise ValueError(f"key {quoted(repeated(key for key, _ in pairs))} appears twice")
    return out


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large")
    return value


def check_tree(tree: Any, *, deepest: int = DEEPEST) -> None:
    """Raise ValueError if values are nested deeper than `deepest` levels, are not text, numbers,
    booleans or None, or include an integer above 2**64. The check does not recurse.
    """
    level, depth = [tree], 0
    while level:
        if depth > deepest:
            raise ValueError(f"nested deeper than {deepest} levels")
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list | tuple):
                below += value
            elif isinstance(value, str):
                if not is_unicode(value):
                    raise ValueError("text with lone surrogates")
            elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
                raise ValueError(quoted(value))
            elif value is not None and not isinstance(value, int | float):
                raise ValueError(f"a value of type {type(value).__name__}")
        level, depth = below, depth + 1


def json_text(tree: Any) -> str:
    """Return a value as indented JSON, the format of the files of a run."""
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def with_digest(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the SHA-256 of its other keys under `digest`."""
    rest = {key: value for key, value in tree.items() if key != DIGEST}
    return {**rest, DIGEST: _digest_of(rest)}


def check_digest(
    tree: Mapping[str, Any], where: object, advice: str, *, needed: bool = True
) -> None:
    """Raise CorrKDError if the digest does not match the object, or is missing and `needed`.
    `advice` is the suffix of the message.
    """
    if DIGEST not in tree and not needed:
        return
    if tree.get(DIGEST) != _digest_of({key: value for key, value in tree.items() if key != DIGEST}):
        raise CorrKDError(
            f"{where}: changed since it was written: its digest does not match its contents; "
            f"{advice}"
        )


def _digest_of(tree: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an object, independent of indentation and key order."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------
# YAML


class _Loader(yaml.SafeLoader):
    """The safe loader of PyYAML with limits on depth and on the number of nodes with aliases
    expanded. Keys are text and unique. Dates stay text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  (as in PyYAML)
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth, self._nodes = 0, 0
        self._sizes: dict[int, int] = {}  # number of nodes below an anchor, by id of the node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node and count nodes, so that nothing too large is built."""
        is_alias = self.check_event(yaml.AliasEvent)
        before = self._nodes
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.YAMLError(f"nested deeper than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            if id(node) not in self._sizes:
                raise yaml.YAMLError("an alias inside the value that it refers to")
            self._nodes += self._sizes[id(node)]
        else:
            self._nodes += 1
            self._sizes[id(node)] = self._nodes - before
        if self._nodes > MOST_NODES:
            raise yaml.YAMLError(f"more than {MOST_NODES:,} values, aliases expanded")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping without repeated keys; a merged key (<<) may be overridden."""
        keys = [
            self.construct_object(key, deep=True)
            for key, _ in node.value
            if key.tag != "tag:yaml.org,2002:merge"
        ]
        for key in keys:
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key {quoted(key)} is not text; put it in quotes")
        if len(set(keys)) < len(keys):
            raise yaml.YAMLError(f"key {quoted(repeated(keys))} appears twice")
        return super().construct_mapping(node, deep)


def read_yaml_file(path: Path) -> Any:
    """Return the value of a YAML file. Raises CorrKDError like `read_text` and `parse_yaml`."""
    return parse_yaml(read_text(path, LARGEST_YAML), path)


def parse_yaml(text: str, where: object) -> Any:
    """Return the value of a YAML text. Keys are text, values have plain types, and dates stay text.

    Raises:
        CorrKDError: if the text is not YAML, is nested too deep, is too large with aliases
            expanded, repeats a key, or contains a value of another type. `where` is the prefix of
            the message.
    """
    try:
        tree = yaml.load(text, _Loader)  # a SafeLoader
        check_tree(tree)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = "" if mark is None else f" in line {mark.line + 1}"
        raise CorrKDError(
            f"{where}: invalid YAML{line}: {str(error.problem or error.context)[:160]}"
        ) from None
    except (yaml.YAMLError, *CONTENT_ERRORS) as error:
        raise CorrKDError(f"{where}: invalid YAML: {' '.join(str(error)[:300].split())}") from None
    return tree


def yaml_with_digest(text: str) -> str:
    """Return a YAML text preceded by a comment with its SHA-256."""
    return f"{_YAML_DIGEST}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def check_yaml_digest(path: Path, advice: str) -> None:
    """Raise CorrKDError if a YAML file does not match the digest in its first line
    (`yaml_with_digest`). `advice` is the suffix of the message.
    """
    first, _, text = read_text(path, LARGEST_YAML).partition("\n")
    if first != f"{_YAML_DIGEST}{hashlib.sha256(text.encode()).hexdigest()}":
        raise CorrKDError(
            f"{path}: changed since it was written: its digest does not match its contents; "
            f"{advice}"
        )
