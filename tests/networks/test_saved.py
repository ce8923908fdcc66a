from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from corrkd.data.inputs import Inputs
from corrkd.data.modalities import usual_missing
from corrkd.data.normalise import canonical_lengths, fit_normalisation
from corrkd.errors import CorrKDError
from corrkd.networks.evaluated import Evaluated, EvaluatedCondition
from corrkd.networks.saved import (
    SavedNetwork,
    add_evaluated,
    build_network,
    load_network,
    load_student,
    save_network,
)
from corrkd.settings import NetworkSettings
from corrkd.targets.registry import make_target
from tests.conftest import make_dataset

SMALL = NetworkSettings(width=8, heads=2, feedforward=16, layers=1, classifier=(6,), fill="learned")


def saved(target: str = "classes") -> SavedNetwork:
    dataset = make_dataset()
    fitted = make_target(target, dataset)
    frames = {"language": 6, "audio": 6, "vision": 6}
    torch.manual_seed(1)
    network = build_network(fitted, dataset.widths, frames, SMALL)
    return SavedNetwork(
        network=network.eval(),
        normalisation=fit_normalisation(dataset.split("train")),
        target=fitted,
        frames=frames,
        about={"seed": 3, "note": "é"},
    )


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    save_network(tmp_path / "student", saved())
    return tmp_path / "student"


def change_card(stem: Path, **changes: Any) -> None:
    """Change the card's values and remove its digest."""
    card = json.loads(stem.with_suffix(".json").read_text())
    card.pop("digest", None)
    stem.with_suffix(".json").write_text(json.dumps({**card, **changes}))


@pytest.mark.parametrize("target", ["classes", "score", "tertiles"])
def test_round_trip(tmp_path: Path, target: str) -> None:
    before = saved(target)
    save_network(tmp_path / "deep" / "student", before)
    after = load_network(tmp_path / "deep" / "student.safetensors")
    assert after.target == before.target
    assert (after.frames, after.widths, after.modalities) == (
        before.frames,
        before.widths,
        before.modalities,
    )
    assert after.normalisation.lengths == before.normalisation.lengths
    assert after.about == before.about
    assert after.network.settings == before.network.settings
    assert not after.network.training
    frames = {m: torch.randn(4, 6, width) for m, width in before.widths.items()}
    exists = {m: torch.ones(4, 6, dtype=torch.bool) for m in frames}
    inputs = Inputs(frames, exists, exists)
    assert torch.equal(after.network(inputs).logits, before.network(inputs).logits)
    for m, x in frames.items():
        assert torch.equal(after.normalisation.apply(m, x), before.normalisation.apply(m, x))


def test_loading_leaves_the_callers_random_state(stem: Path) -> None:
    state = torch.get_rng_state()
    load_network(stem)
    assert torch.equal(torch.get_rng_state(), state)


def test_where_students_are_loaded_from(stem: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = out / "run"
    for seed in (10, 9):
        save_network(run / f"seed-{seed}" / "corrkd" / "corrkd", saved())
        change_card(run / f"seed-{seed}" / "corrkd" / "corrkd", about={"seed": seed})
    (run / "run.json").write_text('{"reference": "corrkd"}')
    assert load_student(run).about["seed"] == 9  # by number, not by text
    assert load_student(str(run / "seed-10")).about["seed"] == 10
    assert load_student(run / "seed-10" / "corrkd").about["seed"] == 10
    assert load_student(out).about["seed"] == 9  # of its only dataset
    (run / "run.json").write_text('{"reference": "../corrkd"}')
    with pytest.raises(CorrKDError, match="names no reference arm"):
        load_student(run)
    (out / "other").mkdir()
    (out / "other" / "run.json").write_text("{}")
    with pytest.raises(
        CorrKDError, match="has several datasets; give the folder of one: other, run"
    ):
        load_student(out)
    for path in (stem, stem.with_suffix(".json"), stem.with_suffix(".safetensors")):
        assert load_student(path).about["seed"] == 3
    with pytest.raises(CorrKDError, match="no trained student"):
        load_student(tmp_path / "nowhere")


def assert_refused(stem: Path, message: str) -> None:
    with pytest.raises(CorrKDError, match=message) as caught:
        load_network(stem)
    assert "\n" not in str(caught.value)


def test_damaged_parameters(stem: Path) -> None:
    path = stem.with_suffix(".safetensors")
    intact = path.read_bytes()
    for damaged in (
        intact[:-1],
        intact[: len(intact) // 2],
        b"",
        intact[:-4] + b"\0\0\0\1",
        pickle.dumps({}),
    ):
        path.write_bytes(damaged)
        assert_refused(stem, "damaged: its SHA-256 is not the one in student.json")
    path.unlink()
    assert_refused(stem, "No such file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid JSON"),
        ("{", "invalid JSON"),
        ("[" * 100_000, "invalid JSON"),
        ("[]", "not a model card"),
        ('{"format": 99}', "not a model card"),
        ('{"format": 1}', "the card lacks about"),
    ],
)
def test_damaged_cards(stem: Path, text: str, message: str) -> None:
    stem.with_suffix(".json").write_text(text)
    assert_refused(stem, message)


def test_a_binary_card(stem: Path) -> None:
    stem.with_suffix(".json").write_bytes(b"\xff\xfe\x00")
    assert_refused(stem, "not UTF-8 text")


@pytest.mark.parametrize(
    "changes",
    [
        {"modalities": {"language": {"width": 9, "frames": 6}}},
        {"modalities": {"smell": {"width": 5, "frames": 6}}},
        {"modalities": []},
        {"modalities": {"language": 3}},
        {"modalities": {"language": {"width": "wide", "frames": 6}}},
        {"modalities": {"language": {"width": -1, "frames": 6}}},
        {"modalities": {"language": {"width": 5, "frames": 10**9}}},
        {"modalities": {"language": {"width": 5, "frames": 6, "usual": 0}}},
        {"network": {**SMALL.model_dump(mode="json"), "width": 16}},
        {"network": {**SMALL.model_dump(mode="json"), "layers": 2}},
        {"network": {**SMALL.model_dump(mode="json"), "heads": 3}},
        {"network": {"unknown": 1}},
        {"network": None},
        {"target": {}},
        {"target": None},
        {
            "target": {
                "name": "classes",
                "kind": "dance",
                "classes": ["a"],
                "questions": [],
                "cuts": [],
                "upward": True,
            }
        },
        {
            "target": {
                "name": "x",
                "kind": "classes",
                "classes": ["a"],
                "questions": [],
                "cuts": [],
                "upward": True,
            }
        },
        {"clip": "far"},
        {"clip": 10**400},
        {"modalities": {"language": {"width": float("inf"), "frames": 6}}},
        {"sha256": 3},
        {"about": None},
    ],
)
def test_inconsistent_cards(stem: Path, changes: dict[str, Any]) -> None:
    change_card(stem, **changes)
    assert_refused(stem, "student")


def test_other_shapes_and_missing_tensors(stem: Path) -> None:
    import hashlib

    path = stem.with_suffix(".safetensors")
    tensors = load_file(path)
    without = {name: x for name, x in tensors.items() if name != "center.audio"}
    wider = {**tensors, "scale.audio": torch.ones(99)}
    nan = {**tensors, "center.audio": torch.full_like(tensors["center.audio"], float("nan"))}
    extra = {**tensors, "network.more": torch.ones(1)}
    for changed in (without, wider, nan, extra):
        save_file(changed, path)
        change_card(stem, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        assert_refused(stem, "student")


def test_no_code_in_the_files(stem: Path) -> None:
    """The files are safetensors and JSON; no unpickler accepts them."""
    tensors = load_file(stem.with_suffix(".safetensors"))
    assert {name.split(".")[0] for name in tensors} == {"network", "center", "scale"}
    json.loads(stem.with_suffix(".json").read_text())
    for ending in (".safetensors", ".json"):
        with pytest.raises((pickle.UnpicklingError, ValueError)):
            pickle.loads(stem.with_suffix(ending).read_bytes())


def test_a_failed_save_keeps_the_older_model(stem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in stem.parent.iterdir()}

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(CorrKDError, match="No space left on device"):
        save_network(stem, saved("score"))
    assert {p.name: p.read_bytes() for p in stem.parent.iterdir()} == before


def test_a_models_name_may_contain_dots(tmp_path: Path) -> None:
    for name, target in (("m.v1", "classes"), ("m.v2", "score")):
        save_network(tmp_path / name, saved(target))
    for name, target in (("m.v1", "classes"), ("m.v2", "score")):
        assert load_network(tmp_path / name).target.name == target
        assert load_student(tmp_path / f"{name}.json").target.name == target


def test_samples_beyond_learned_positions_are_refused() -> None:
    base = saved()
    settings = base.network.settings.model_copy(update={"positions": "learned"})
    model = replace(base, network=build_network(base.target, base.widths, base.frames, settings))
    assert model.fit(make_dataset()).modalities == model.modalities
    with pytest.raises(CorrKDError, match="reads no more than 6"):
        model.fit(make_dataset(frames=7))


def test_usual_missing_is_the_95th_percentile_of_training_samples() -> None:
    """Of each modality, over the samples that have it, and of all together."""
    split = make_dataset().split("train")
    rng = np.random.default_rng(0)
    present = {
        m: split.exists(m) & (rng.random(split.present[m].shape) > 0.2) for m in split.present
    }
    present["audio"][:5] = False
    for x in present.values():
        x[7] = False
    missing = {
        m: {
            row: 1 - present[m][row].sum() / split.lengths[m][row]
            for row in range(len(split))
            if present[m][row].any()
        }
        for m in present
    }
    usual = usual_missing(replace(split, present=present))
    by_sample = [
        [by_row[row] for by_row in missing.values() if row in by_row] for row in range(len(split))
    ]
    together = [sum(shares) / len(shares) for shares in by_sample if shares]
    for share, shares in [
        (usual.together, together),
        *((usual.by_modality[m], list(missing[m].values())) for m in missing),
    ]:
        assert np.isclose(shares, share).any()
        assert sum(x <= share + 1e-9 for x in shares) >= 0.95 * len(shares)
        assert sum(x < share - 1e-9 for x in shares) < 0.95 * len(shares)
    assert usual_missing(split) == (dict.fromkeys(split.present, 0.0), 0.0)
    nothing = replace(split, present={m: np.zeros_like(x) for m, x in split.present.items()})
    assert usual_missing(nothing) == (dict.fromkeys(split.present, 0.0), 0.0)


def test_missing_shares_on_a_card_are_validated(tmp_path: Path) -> None:
    split = make_dataset().split("train")
    save_network(tmp_path / "student", replace(saved(), missing=usual_missing(split)))
    assert load_network(tmp_path / "student").missing == usual_missing(split)
    before = json.loads((tmp_path / "student.json").read_text())
    for value, message in (
        (1.5, r"missing: .*less than or equal to 1 \(given: 1.5\)"),
        (float("nan"), "NaN"),
        ("x", "number"),
    ):
        change_card(tmp_path / "student", missing=value)
        assert_refused(tmp_path / "student", message)
    sizes = {m: {**size, "missing": -0.5} for m, size in before["modalities"].items()}
    change_card(tmp_path / "student", missing=0.0, modalities=sizes)
    assert_refused(tmp_path / "student", r"modalities.language.missing: .*\(given: -0.5\)")


def test_an_oversized_card_is_refused_before_memory_is_allocated(stem: Path) -> None:
    """Parameters of these sizes would be 400 GB, and the table of positions 52 GB."""
    small = SMALL.model_dump(mode="json")
    change_card(stem, network={**small, "width": 16_384, "feedforward": 16_384, "layers": 64})
    assert_refused(stem, "the tensors are not those of the network that it describes")
    modalities = {m: {"width": 5, "frames": 100_000} for m in ("language", "audio", "vision")}
    change_card(stem, network={**small, "width": 16_384}, modalities=modalities)
    assert_refused(stem, "beyond all bounds")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"layers": 10**6}}, "network.layers"),
        ({"network": {"width": 10**9, "heads": 1}}, "network.width"),
        ({"clip": 0}, "clip: .*greater than 0"),
        ({"clip": -1.0}, "clip"),
        ({"clip": True}, "clip"),
        ({"target": {"kind": "classes", "classes": ["a", "b", "a"]}}, "'a' appears twice"),
        ({"target": {"kind": "classes", "classes": "ab"}}, "target.classes"),
        (
            {"target": {"kind": "classes", "classes": [str(k) for k in range(10_000)]}},
            "target.classes",
        ),
        ({"about": {"seed": 10**30}}, "an integer of 31 digits"),
        ({"about": {"x": "\ud800"}}, "surrogates"),
        ({"modalities": {"": {"width": 5, "frames": 6}}}, "modalities"),
        ({"sha256": "0" * 63}, "sha256"),
        ({"more": 1}, "more"),
    ],
)
def test_bounds_of_a_card(stem: Path, changes: dict[str, Any], message: str) -> None:
    target = {"name": "x", "questions": [], "cuts": [], "upward": True}
    changes = {
        key: {**target, **value} if key == "target" else value for key, value in changes.items()
    }
    change_card(stem, **changes)
    assert_refused(stem, message)


def test_a_duplicate_key(stem: Path) -> None:
    path = stem.with_suffix(".json")
    path.write_text(path.read_text().replace('"clip"', '"clip": 1.0,\n "clip"'))
    assert_refused(stem, "key 'clip' appears twice")


def test_every_flipped_bit_of_a_card_is_detected(stem: Path) -> None:
    path = stem.with_suffix(".json")
    intact = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        changed = bytearray(intact)
        changed[rng.integers(len(intact))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(changed))
        if json_or_none(bytes(changed)) != json.loads(intact):  # white space does not count
            assert_refused(stem, "student")


def json_or_none(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def test_a_single_model_and_a_run(stem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths work, and a foreign config.json in a run's folder does not hide the run."""
    folder = stem.parent
    monkeypatch.chdir(folder)
    for path in (".", "student", "student.json"):
        assert load_student(path).about == saved().about
    (folder / "run.json").write_text('{"reference": "student"}')
    (folder / "config.json").write_text("{}")
    assert load_student(folder).about == saved().about
    (folder / "run.json").unlink()
    with pytest.raises(CorrKDError, match=r"config\.json: not a model card"):
        load_student(folder)


def test_evaluation_results_are_saved_with_the_model(stem: Path) -> None:
    before = load_network(stem)
    assert before.evaluated is None
    condition = EvaluatedCondition(
        name="audio", kind="modalities", available=("audio",), temperature=1.5, threshold=0.8
    )
    tested = Evaluated(split="test", samples=7, data="tiny", level=0.9, conditions=(condition,))
    add_evaluated(stem, tested)
    after = load_network(stem)
    assert after.evaluated == tested
    assert replace(
        after, network=before.network, normalisation=before.normalisation, evaluated=None
    ) == replace(before, normalisation=before.normalisation)
    save_network(stem.with_name("again"), after)
    assert load_network(stem.with_name("again")).evaluated == tested


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0},
        {"temperature": 1e-310},
        {"temperature": "hot"},
        {"ratio": 2.0},
        {"name": None},
    ],
)
def test_a_card_with_a_wrong_condition(stem: Path, wrong: dict[str, Any]) -> None:
    condition = {"name": "audio", "kind": "modalities", "available": ["audio"]} | wrong
    change_card(stem, evaluated={"split": "test", "samples": 7, "conditions": [condition]})
    assert_refused(stem, f"student.json: evaluated.conditions.0.{next(iter(wrong))}: ")


def test_canonical_lengths_are_training_medians() -> None:
    split = make_dataset().split("train")
    assert canonical_lengths(split) == {m: int(np.median(x)) for m, x in split.lengths.items()}
