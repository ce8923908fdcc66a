"""JSON and YAML from files that somebody else may have made: bounded in size, depth and numbers,
each key once.
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
MOST_NODES = 200_000  # of a YAML document, aliases counted as often as they are used
LARGEST_INTEGER = 2**64
DIGEST = "digest"  # key of a JSON object's own sum
_YAML_DIGEST = "# sha256 of what follows: "

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 3

CONTENT_ERRORS = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, ArithmeticError),
    *(MemoryError, RecursionError, AssertionError, EOFError, NotImplementedError, RuntimeError),
)
"""What code raises on a file whose contents are not what it was written for."""


def quoted(value: Any) -> str:
    """Return a value as Python writes it, shortened, for an error."""
    if isinstance(value, int) and abs(value) >= LARGEST_INTEGER:  # Python refuses to write some
        return f"an integer of {value.bit_length()} bits"
    return _short.repr(value)


def repeated(values: Iterable[Any]) -> Any:
    """Return the commonest of several values: one that appears twice, where any is."""
    return Counter(values).most_common(1)[0][0]


@contextmanager
def refusing(where: object, advice: str = "damaged") -> Iterator[None]:
    """Turn what goes wrong on contents nobody foresaw into one line.

    Args:
        where: the file.
        advice: what it is, and what to do.
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
    """Return a validation's first error: where, what is wrong, and the value."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))[:120] or "the file"
    given = first["input"]
    value = "" if isinstance(given, Mapping | BaseModel) else f" (given: {quoted(given)})"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}{value}"


def read_text(path: Path, largest: int) -> str:
    """Return a file's text. Raises CorrKDError where it cannot be read, is too large or not
    UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(largest + 1)
    except OSError as error:
        raise CorrKDError(f"{path}: {error.strerror or error}") from None
    if len(data) > largest:
        raise CorrKDError(f"{path}: more than {largest:,} bytes, which no such file has")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorrKDError(f"{path}: not UTF-8 text (byte {error.start})") from None


# --------------------------------------------------------------------------------------------------
# JSON


def read_json(path: Path, advice: str = "") -> Any:
    """Return a JSON file's value. Raises CorrKDError as `read_text` and `parse_json`."""
    return parse_json(read_text(path, LARGEST_JSON), path, advice)


def parse_json(text: str | bytes, where: object, advice: str = "") -> Any:
    """Return the value of a JSON text.

    Args:
        text: the text; bytes are UTF-8.
        where: opens the error.
        advice: ends it.

    Raises:
        CorrKDError: where it is not JSON, nests too deep, has a key twice, a number beyond 64 bits
            or not finite, or text that is no text.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_once,
            parse_constant=_no_number,
            parse_int=_integer,
            parse_float=_float,
        )
        check_tree(value)
    except RecursionError:
        reason = "nested too deep"
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError and those below
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    else:
        return value
    raise CorrKDError(
        "; ".join(filter(None, (f"{where}: not JSON that can be read: {reason[:160]}", advice)))
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        raise ValueError(f"key {quoted(repeated(key for key, _ in pairs))} appears twice")
    return out


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond any number")
    return value


def check_tree(tree: Any, *, deepest: int = DEEPEST) -> None:
    """Raise ValueError where nested values are too deep, or hold other than text and numbers of 64
    bits. Never recurses.
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
                raise ValueError(f"a value of kind {type(value).__name__}")
        level, depth = below, depth + 1


def json_text(tree: Any) -> str:
    """Return a value as readable JSON, as the files of a run have it."""
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def with_digest(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with a sum over all else that it holds, under `digest`."""
    rest = {key: value for key, value in tree.items() if key != DIGEST}
    return {**rest, DIGEST: _sum(rest)}


def check_digest(
    tree: Mapping[str, Any], where: object, advice: str, *, needed: bool = True
) -> None:
    """Raise CorrKDError where an object's sum is not its own; `needed`: also where it has none.
    `advice` ends the line.
    """
    if DIGEST not in tree and not needed:
        return
    if tree.get(DIGEST) != _sum({key: value for key, value in tree.items() if key != DIGEST}):
        raise CorrKDError(
            f"{where}: changed since it was written: its digest is not that of its contents; "
            f"{advice}"
        )


def _sum(tree: Mapping[str, Any]) -> str:
    """SHA-256 of an object in one spelling, so that neither indentation nor the order of keys
    counts.
    """
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------
# YAML


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, bounded: depth, nodes with aliases written out, each key once and text.
    Dates stay text.
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
        self._sizes: dict[int, int] = {}  # nodes below an anchor, by the node's identity

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Count while composing, so that nothing is built that is too large."""
        is_alias = self.check_event(yaml.AliasEvent)
        before = self._nodes
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.YAMLError(f"nested deeper than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            if id(node) not in self._sizes:
                raise yaml.YAMLError("an alias within what it stands for")
            self._nodes += self._sizes[id(node)]
        else:
            self._nodes += 1
            self._sizes[id(node)] = self._nodes - before
        if self._nodes > MOST_NODES:
            raise yaml.YAMLError(f"more than {MOST_NODES:,} values, its aliases written out")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that stands twice in one mapping; a merged one (<<) may be replaced."""
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
    """Return a YAML file's value. Raises CorrKDError as `read_text` and `parse_yaml`."""
    return parse_yaml(read_text(path, LARGEST_YAML), path)


def parse_yaml(text: str, where: object) -> Any:
    """Return the value of a YAML text: keys and values of plain kinds. Dates stay text.

    Raises:
        CorrKDError: where it is not YAML, nests too deep, is too large with its aliases written
            out, has a key twice, or holds what is no text or number.
    """
    try:
        tree = yaml.load(text, _Loader)  # a SafeLoader
        check_tree(tree)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = "" if mark is None else f" in line {mark.line + 1}"
        raise CorrKDError(
            f"{where}: not YAML{line}: {str(error.problem or error.context)[:160]}"
        ) from None
    except (yaml.YAMLError, *CONTENT_ERRORS) as error:
        raise CorrKDError(f"{where}: not YAML: {' '.join(str(error)[:300].split())}") from None
    return tree


def yaml_with_digest(text: str) -> str:
    """Return a YAML text below a comment with its SHA-256."""
    return f"{_YAML_DIGEST}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def check_yaml_digest(path: Path, advice: str) -> None:
    """Raise CorrKDError where a YAML file is not as `yaml_with_digest` made it. `advice` ends the
    line.
    """
    first, _, text = read_text(path, LARGEST_YAML).partition("\n")
    if first != f"{_YAML_DIGEST}{hashlib.sha256(text.encode()).hexdigest()}":
        raise CorrKDError(
            f"{path}: changed since it was written: its digest is not that of its contents; "
            f"{advice}"
        )
