"""JSON and YAML of other users: read correctly, or refused in one short line and little memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corrkd.errors import CorrKDError
from corrkd.experiment.plan import load_plan, read_plan
from corrkd.experiment.settings import load_settings
from corrkd.parsing import (
    check_digest,
    check_yaml_digest,
    parse_json,
    parse_yaml,
    with_digest,
    yaml_with_digest,
)

LAUGHS = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

BAD_YAML = [
    (LAUGHS, "aliases expanded"),
    ("a: &a [*a]\n", "inside the value that it refers to"),
    ("[" * 100_000, "nested deeper"),
    ("{a: " * 100_000, "nested deeper"),
    ("- " * 5_000, "nested deeper"),
    ("a: !!int abc", "invalid YAML"),
    ("a: !!float abc", "invalid YAML"),
    ("a: !!bool abc", "invalid YAML"),
    ("a: !!timestamp 2026-02-30", "invalid YAML"),
    ("a: !!binary aGk=", "type bytes"),
    ("a: !!set {x}", "type set"),
    ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
    ("a: " + "9" * 5_000, "invalid YAML"),
    ("a: 0x" + "f" * 5_000, "an integer of 20000 bits"),
    ("a: " + ":".join(["59"] * 100), "an integer of"),
    ('a: "\\ud800"', "surrogates"),
    ("a: 1\na: 2", "key 'a' appears twice"),
    ("1: 2", "the key 1 is not text"),
    ("no: 2", "the key False is not text"),
    ("[a, b]: 2", "invalid YAML"),
    ("{? {a: 1} : 2}", "invalid YAML"),
    ("a: \x00", "invalid YAML"),
    ("a: &x 1\nb: *y", "undefined alias"),
    ("a" * 2**21, "larger than"),
]
BAD_JSON = [
    ("[" * 100_000, "nested too deep"),
    ("[" * 60 + "]" * 60, "nested deeper than 40"),
    ('{"a":' * 60 + "1" + "}" * 60, "nested deeper than 40"),
    ("9" * 5_000, "an integer of 5000 digits"),
    ("1" + "0" * 20, "an integer of 21 digits"),
    ("1e999", "is too large"),
    ("NaN", "NaN is not a number"),
    ("[-Infinity]", "-Infinity is not a number"),
    ('"\\ud800"', "surrogates"),
    ('{"\\udfff": 1}', "surrogates"),
    ('{"a": 1, "a": 2}', "key 'a' appears twice"),
    (b"\xff", "utf-8"),
    ("", "Expecting value"),
]


def check_short_line(call: Callable[[], object], expected: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CorrKDError) as caught:
            call()
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert expected in message
    assert message.isprintable()
    assert len(message) <= 500


@pytest.mark.parametrize(("text", "expected"), BAD_YAML)
def test_bad_yaml_is_one_short_line_for_settings_plans_and_stored_plans(
    tmp_path: Path, text: str, expected: str
) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    for read in (
        lambda: load_settings(tmp_path / "plan.yaml"),
        lambda: load_plan(tmp_path / "plan.yaml"),
    ):
        check_short_line(read, expected)
    check_short_line(lambda: read_plan(tmp_path), expected)


@pytest.mark.parametrize(("text", "expected"), BAD_JSON)
def test_bad_json_is_one_short_line(text: str | bytes, expected: str) -> None:
    check_short_line(lambda: parse_json(text, "a.json"), expected)


def test_a_value_that_an_error_quotes_is_shortened(tmp_path: Path) -> None:
    for value in (
        "x" * 10**5,
        ["x" * 100] * 1000,
        [[[[["deep"]]]]] * 500,
        {"a": ["y" * 1000] * 100},
        "\x1b[2J\u202e" * 50,
    ):
        (tmp_path / "s.yaml").write_text(
            yaml.safe_dump(
                {
                    "seeds": value,
                    "student": {"lr": value},
                    "teacher": {"network": {"classifier": value}},
                }
            )
        )
        check_short_line(lambda: load_settings(tmp_path / "s.yaml"), "settings")


def test_aliases_dates_and_merges_are_read() -> None:
    tree = parse_yaml(
        "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: *a\nd: 2026-02-30\ne: 2026-01-01", "s"
    )
    assert tree == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "c": {"x": 1, "y": 2},
        "d": "2026-02-30",
        "e": "2026-01-01",
    }


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(PLAIN)
def test_written_values_are_read_back(tree: Any) -> None:
    assert parse_json(json.dumps(tree), "x") == tree
    assert parse_yaml(yaml.safe_dump(tree), "x") == tree


@given(st.dictionaries(st.text(), PLAIN, max_size=4), st.data())
def test_a_digest_is_of_the_contents_however_they_are_written(
    tree: dict[str, Any], data: st.DataObject
) -> None:
    digested = with_digest(tree)
    check_digest(json.loads(json.dumps(digested, indent=3)), "x", "y")
    contents = {key: value for key, value in tree.items() if key != "digest"}
    if contents:
        key = data.draw(st.sampled_from(sorted(contents)))
        for changed in (
            {**digested, key: [contents[key], 1]},
            {k: v for k, v in digested.items() if k != key},
        ):
            with pytest.raises(CorrKDError, match=r"x: changed since it was written: .*; y"):
                check_digest(changed, "x", "y")


def test_flipped_bits_of_a_yaml_file_with_a_digest_are_detected(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    content = yaml_with_digest(load_settings().to_yaml()).encode()
    path.write_bytes(content)
    check_yaml_digest(path, "put it back")
    for i in range(0, len(content), 7):
        changed = bytearray(content)
        changed[i] ^= 1 << i % 8
        path.write_bytes(bytes(changed))
        with pytest.raises(CorrKDError):
            check_yaml_digest(path, "put it back")
