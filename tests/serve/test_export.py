from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corrkd.data.dataset import MultimodalDataset
from corrkd.data.inputs import Inputs
from corrkd.data.normalise import fit_normalisation
from corrkd.errors import CorrKDError
from corrkd.missing.conditions import standard_conditions
from corrkd.networks.base import Output
from corrkd.networks.registry import BUILT_IN
from corrkd.networks.saved import SavedNetwork, build_network, save_network
from corrkd.serve import export as export_module
from corrkd.serve import standalone
from corrkd.serve.export import ExportReport, check_folder, export
from corrkd.serve.predictor import Predictor
from corrkd.serve.standalone import Arrays, ExportedStudent, InputError
from corrkd.settings import EvaluationSettings, NetworkSettings
from corrkd.targets.registry import make_target
from tests.conftest import make_dataset
from tests.serve.conftest import baseline, dataset_for, sample_of, student

ROOT = Path(__file__).parents[2]
WIDTHS = {"language": 5, "audio": 3, "vision": 4}
FILES = {"model.onnx", "card.json", "predict.py"}
OTHERS = {
    "numpy",
    "onnxruntime",
    "flatbuffers",
    "google",
    "packaging",
    "sympy",
    "mpmath",
    "coloredlogs",
    "humanfriendly",
}
# Targets and every option that changes the graph, in as few exports as possible.
STUDENTS: dict[str, dict[str, Any]] = {
    "plain": {"target": "classes", "level": 0.9},
    "other": {
        "target": "questions",
        "level": 0.9,
        "positions": "none",
        "fill": "learned",
        "norm": "post",
        "exclude_missing": True,
    },
    "learned": {
        "target": "score",
        "level": 0.9,
        "positions": "learned",
        "fill": "mean",
        "kernel": 1,
        "layers": 2,
    },
}


@dataclass(frozen=True)
class Exported:
    name: str
    predictor: Predictor
    dataset: MultimodalDataset
    report: ExportReport
    student: ExportedStudent

    @property
    def folder(self) -> Path:
        return self.report.folder


def saved_as(name: str) -> SavedNetwork:
    saved = student(**STUDENTS[name])
    if saved.network.settings.fill == "mean":
        saved.network.set_fill(
            {m: np.linspace(-1, 1, width).tolist() for m, width in WIDTHS.items()}
        )
    with torch.no_grad():
        for encoder in saved.network.encoders if saved.network.settings.fill == "learned" else ():
            encoder.fill.uniform_(-1.0, 1.0)
    return saved


def exported_as(name: str, factory: pytest.TempPathFactory) -> Exported:
    predictor, dataset = Predictor(saved_as(name)), dataset_for(STUDENTS[name]["target"])
    folder = factory.mktemp(name) / "model"
    report = export(predictor, folder, dataset=dataset, max_frames=40 if name == "plain" else None)
    return Exported(name, predictor, dataset, report, ExportedStudent(folder, threads=1))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported_as("plain", tmp_path_factory)


@pytest.fixture(
    scope="module",
    params=[
        "plain",
        pytest.param("other", marks=pytest.mark.slow),
        pytest.param("learned", marks=pytest.mark.slow),
    ],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    if request.param == "plain":
        return request.getfixturevalue("plain")
    return exported_as(request.param, tmp_path_factory)


@pytest.fixture
def quick(plain: Exported, monkeypatch: pytest.MonkeyPatch) -> Exported:
    """Make the exporter return the plain student's file at once."""
    model = (plain.folder / "model.onnx").read_bytes()
    monkeypatch.setattr(export_module, "_exported", lambda saved, longest: (model, 18))
    return plain


def same(actual: Any, expected: Any) -> bool:
    """Compare recursively, numbers approximately."""
    if isinstance(expected, Mapping):
        return set(actual) == set(expected) and all(
            same(actual[key], value) for key, value in expected.items()
        )
    if isinstance(expected, list | tuple):
        return len(actual) == len(expected) and all(map(same, actual, expected))
    if isinstance(expected, float):
        return actual == pytest.approx(expected, abs=2e-5)
    return bool(actual == expected)


def predictions_match(
    exported: Exported, samples: list[dict[str, Any]], batch_size: int = 256
) -> bool:
    actual = exported.student.predict(samples, batch_size=batch_size)
    expected = exported.predictor.predict(samples, batch_size=batch_size)
    return len(actual) == len(samples) and same(
        [p.to_json() for p in actual], [p.to_json() for p in expected]
    )


def random_sample(seed: int, lengths: Mapping[str, int], scale: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        m: (rng.normal(size=(count, WIDTHS[m])) * scale).astype(np.float32)
        for m, count in lengths.items()
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


# --------------------------------------------------------------------------------------------------
# the same predictions


def test_matches_the_predictor(exported: Exported) -> None:
    """For every sample, each with other modalities and frames missing, in batches and alone."""
    split, rng = exported.dataset.split("test"), np.random.default_rng(0)
    samples = []
    for row in range(len(split)):
        sample = sample_of(split, row)
        visible = {m: x for i, (m, x) in enumerate(sample.items()) if (row % 7 + 1) >> i & 1}
        if row % 2:
            visible |= {f"{m}_present": rng.random(len(x)) < 0.6 for m, x in visible.items()}
        samples.append(visible)
    assert predictions_match(exported, samples)
    assert predictions_match(exported, samples, batch_size=5)
    single = exported.student.predict(samples[0])
    assert same(single.to_json(), exported.predictor.predict(samples[0]).to_json())
    kinds = {type(p.label) for p in exported.student.predict(samples)}
    assert kinds == {dict if exported.name == "other" else str}


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_any_lengths_any_subset_any_number(plain: Exported, data: st.DataObject) -> None:
    samples = []
    for _ in range(data.draw(st.integers(1, 4))):
        modalities = data.draw(st.sets(st.sampled_from(sorted(WIDTHS)), min_size=1))
        lengths = {m: data.draw(st.integers(1, 40)) for m in sorted(modalities)}
        sample = random_sample(len(samples), lengths, data.draw(st.sampled_from([0.0, 1.0, 1e4])))
        for m, count in lengths.items():
            if data.draw(st.booleans()):
                sample[f"{m}_present"] = data.draw(
                    st.lists(st.booleans(), min_size=count, max_size=count)
                )
        samples.append(sample)
    assert predictions_match(plain, samples)


def test_one_sample_of_one_frame(exported: Exported) -> None:
    for m, width in WIDTHS.items():
        assert predictions_match(exported, [{m: np.linspace(-2, 2, width)}])
        assert predictions_match(exported, [{m: [None]}])
    assert predictions_match(exported, [random_sample(0, dict.fromkeys(WIDTHS, 1))])


def test_samples_may_be_as_long_as_the_card_says(exported: Exported) -> None:
    expected = {"plain": 40, "other": 1024, "learned": 6}[exported.name]
    assert (
        exported.report.longest
        == dict.fromkeys(WIDTHS, expected)
        == exported.student.card["longest"]
    )
    long = random_sample(1, dict.fromkeys(WIDTHS, expected))
    assert predictions_match(exported, [long])
    for frames, others in ((expected + 1, []), (10 * expected, [long, long])):
        where = "sample 2" if others else "sample"
        with pytest.raises(InputError) as caught:
            exported.student.predict([*others, {"audio": np.zeros((frames, 3))}])
        assert (
            str(caught.value)
            == f"{where}, audio: {frames} frames, but the model reads no more than {expected}"
        )


def test_a_missing_modality_respects_the_maximum_length() -> None:
    card = {"modalities": {m: {"width": w, "frames": 6} for m, w in WIDTHS.items()}}
    read = standalone.read_sample({"audio": np.zeros((6, 3))}, card)
    for longest, expected in (({}, 6), ({"vision": 4, "audio": 6}, 4)):
        arrays = standalone.collate([read], {**card, "longest": longest})
        assert arrays["vision"].exists.sum() == expected
        assert arrays["audio"].exists.sum() == arrays["language"].exists.sum() == 6


@pytest.mark.slow
def test_single_vectors_of_modalities_with_any_name_are_exported_silently(tmp_path: Path) -> None:
    """Learned positions of one frame leave the graph no length. A separate process, since pytest
    would catch the output.
    """
    dataset = make_dataset({"face.v2/x": 4, "声 δ": 3}, frames=1)
    target = make_target("classes", dataset)
    sizes = NetworkSettings(width=8, heads=2, feedforward=16, layers=1, positions="learned")
    frames = dict.fromkeys(dataset.modalities, 1)
    saved = SavedNetwork(
        network=build_network(target, dataset.widths, frames, sizes).eval(),
        normalisation=fit_normalisation(dataset.split("train")),
        target=target,
        frames=frames,
    )
    save_network(tmp_path / "student", saved)
    code = f"""
from tests.conftest import make_dataset
from corrkd.serve.export import export
from corrkd.serve.predictor import Predictor

dataset = make_dataset({dataset.widths}, frames=1)
predictor = Predictor.from_pretrained({str(tmp_path / "student")!r})
export(predictor, {str(tmp_path / "model")!r}, dataset=dataset)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    samples = [sample_of(dataset.split("test"), row) for row in range(4)]
    samples += [{"声 δ": samples[0]["声 δ"][0]}]
    actual, expected = (
        ExportedStudent(tmp_path / "model").predict(samples),
        Predictor(saved).predict(samples),
    )
    assert same([p.to_json() for p in actual], [p.to_json() for p in expected])


def test_the_graphs_inputs_match_the_predictors(plain: Exported) -> None:
    """Exactly, also in the padding, beyond the bound and where a modality is missing."""

    class Recorder(torch.nn.Module):
        modalities = tuple(WIDTHS)

        def forward(self, inputs: Inputs) -> Output:
            self.inputs = inputs
            return Output(*[torch.zeros(1)] * 2)

    recorder, saved = Recorder(), plain.predictor.saved
    rng = np.random.default_rng(0)
    arrays = {}
    for m, width in WIDTHS.items():
        exists = np.arange(6) < np.array([5, 2, 1, saved.normalisation.lengths[m]])[:, None]
        raw = (rng.normal(size=(4, 6, width)) * 10).astype(np.float32)
        visible = exists & (rng.random((4, 6)) < 0.5)
        visible[:, 0] = True
        visible[3] = False  # as long as `collate` makes it
        arrays[m] = Arrays(raw, exists, visible)
    flat = [torch.from_numpy(x) for a in arrays.values() for x in (a.frames, a.exists, a.visible)]
    export_module._Graph(recorder, saved.normalisation)(*flat)  # type: ignore[arg-type]
    for actual, expected in zip(recorder.inputs, plain.predictor.inputs(arrays), strict=True):
        assert all(torch.equal(actual[m], expected[m]) for m in WIDTHS)
    assert recorder.inputs.shown(tuple(WIDTHS)).tolist() == [[True] * 3] * 3 + [[False] * 3]
    assert recorder.inputs.frames["audio"].abs().max() == saved.normalisation.clip


# --------------------------------------------------------------------------------------------------
# the three files


def test_the_file_is_self_contained(exported: Exported) -> None:
    assert {p.name for p in exported.folder.iterdir()} == FILES
    data = (exported.folder / "model.onnx").read_bytes()
    model = onnx.load_from_string(data)  # weights in another file could not be found
    onnx.checker.check_model(model)
    shapes = {
        i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim]
        for i in model.graph.input
    }
    for index, width in enumerate(WIDTHS.values()):
        batch, length, *rest = shapes[f"frames_{index}"]
        assert (rest, isinstance(batch, str), isinstance(length, str)) == ([width], True, True)
        assert shapes[f"exists_{index}"] == shapes[f"visible_{index}"] == [batch, length]
    assert len({shapes[f"frames_{index}"][1] for index in range(3)}) == 3
    assert [o.name for o in model.graph.output] == ["logits"]
    assert len(shapes) == 9
    for path in (Path(export_module.__file__).parent, torch.__path__[0]):
        assert str(path).encode() not in data
    assert b"stack_trace" not in data
    assert (exported.folder / "predict.py").read_bytes() == Path(standalone.__file__).read_bytes()


def test_the_card(exported: Exported) -> None:
    card = json.loads((exported.folder / "card.json").read_text("utf-8"))
    facts = card["exported"]
    predictor_card = {k: v for k, v in exported.predictor.card.items() if k != "longest"}
    assert {k: v for k, v in card.items() if k not in ("longest", "exported")} == predictor_card
    assert facts["opset"] == exported.report.opset == 18
    assert facts["samples"] == exported.report.samples == len(exported.dataset.split("test"))
    assert facts["differences"] == exported.report.differences
    assert (
        facts["largest_difference"]
        == exported.report.largest
        == max(exported.report.differences.values())
    )
    assert 0.0 < exported.report.largest < 1e-5
    standard = standard_conditions(
        tuple(WIDTHS), EvaluationSettings(), incomplete=np.array([False])
    )
    longer = {"plain": 12, "other": 12, "learned": 6}[exported.name]
    named = {c.name for c in standard} | {"complete, one frame", f"complete, {longer} frames"}
    assert set(exported.report.differences) == named


def test_a_card_is_valid_json_whatever_was_measured(quick: Exported, tmp_path: Path) -> None:
    saved = replace(
        quick.predictor.saved,
        about={"valid": {"corr": float("nan")}, "losses": [1.0, float("inf")]},
    )
    export(Predictor(saved), tmp_path / "model", dataset=quick.dataset, max_frames=40)

    def refuse(name: str) -> NoReturn:
        raise AssertionError(name)

    card = json.loads((tmp_path / "model" / "card.json").read_text("utf-8"), parse_constant=refuse)
    assert card["about"] == {"valid": {"corr": None}, "losses": [1.0, None]}


def test_exporting_leaves_the_predictor_unchanged(
    plain: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays in training mode, and longer positions are made in a copy."""

    def fails(*args: Any, **options: Any) -> NoReturn:
        raise KeyError

    monkeypatch.setattr(torch.onnx, "export", fails)  # after the graph was made
    predictor = Predictor(saved_as("plain"))
    network = predictor.saved.network.train()
    before = deepcopy(network)
    with pytest.raises(CorrKDError, match="network 'corrkd' cannot be exported: KeyError"):
        export(predictor, tmp_path / "model", dataset=plain.dataset, max_frames=40)
    assert all(module.training for module in network.modules())
    tensors, old = (dict(n.named_parameters()) | dict(n.named_buffers()) for n in (network, before))
    assert tensors.keys() == old.keys()
    assert all(torch.equal(tensors[name], old[name]) for name in old)
    assert {len(encoder.positions) for encoder in network.encoders} == {6}
    assert predictor.card["longest"] == {}
    assert not any(tmp_path.iterdir())


def test_in_training_mode_it_is_exported_without_dropout(quick: Exported, tmp_path: Path) -> None:
    predictor = Predictor(saved_as("plain"))
    predictor.saved.network.train()
    assert (
        export(predictor, tmp_path / "model", dataset=quick.dataset, max_frames=40).largest < 1e-5
    )


def test_naturally_incomplete_samples_are_compared(quick: Exported, tmp_path: Path) -> None:
    dataset = make_dataset()
    split = dataset.split("test")
    present = {m: np.array(mask) for m, mask in split.present.items()}
    present["audio"][[3, 30]] = False
    dataset = replace(dataset, splits={**dataset.splits, "test": replace(split, present=present)})
    report = export(quick.predictor, tmp_path / "model", dataset=dataset, max_frames=40, samples=4)
    assert report.differences["natural"] < 1e-5
    assert report.samples == 4 + 2 - len({3, 30} & {0, 12, 23, 35})


def test_targets_are_not_needed(quick: Exported, tmp_path: Path) -> None:
    split = replace(quick.dataset.split("test"), labels=None, scores=None)
    report = export(
        quick.predictor,
        tmp_path / "model",
        dataset=replace(quick.dataset, splits={"test": split}),
        max_frames=40,
        samples=3,
    )
    assert report.samples == 3


# --------------------------------------------------------------------------------------------------
# differences are refused

WRONG: dict[str, tuple[Callable[[Mapping[str, Arrays]], bool], str]] = {
    "only audio": (
        lambda a: [m for m in a if a[m].visible.any()] == ["audio"] and len(a["audio"].frames) > 4,
        "'audio'",
    ),
    "some frames": (
        lambda a: all(0 < x.visible.sum() < x.exists.sum() for x in a.values()),
        "'(ratio|burst)-0",
    ),
    "one sample": (
        lambda a: len(a["audio"].frames) == 1 and 1 < a["audio"].frames.shape[1] <= 6,
        "'[^,]+'",
    ),
    "one frame": (
        lambda a: a["audio"].frames.shape[1] == 1 and len(a["audio"].frames) > 1,
        "'complete, one frame'",
    ),
    "longer": (lambda a: a["audio"].frames.shape[1] > 6, "'complete, 12 frames'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_different_output_is_refused_and_nothing_is_written(
    case: str, quick: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    affected, condition = WRONG[case]
    original = ExportedStudent.run

    def wrong(self: ExportedStudent, arrays: Mapping[str, Arrays]) -> Any:
        return original(self, arrays) + (0.5 if affected(arrays) else 0.0)

    monkeypatch.setattr(ExportedStudent, "run", wrong)
    with pytest.raises(
        CorrKDError,
        match=f"nothing written: under condition {condition}.* differ from PyTorch's by 0.",
    ) as c:
        export(quick.predictor, tmp_path / "model", dataset=quick.dataset, max_frames=40)
    assert "\n" not in str(c.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        (lambda x: x + 5e-5, False),
        (lambda x: x + 3e-4 * np.maximum(1.0, np.abs(x)), True),
        (lambda x: x * (1 - 9e-5), False),
        (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 1, np.nan, x), True),
        (lambda x: x[:, :2], True),
        (lambda x: x[..., None], True),
    ],
)
def test_tolerance_of_differences(
    change: Callable[[Any], Any],
    fails: bool,
    quick: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = ExportedStudent.run
    monkeypatch.setattr(ExportedStudent, "run", lambda self, arrays: change(original(self, arrays)))
    options: dict[str, Any] = {"dataset": quick.dataset, "max_frames": 40, "samples": 8}
    if fails:
        with pytest.raises(CorrKDError, match="logits differ from PyTorch's"):
            export(quick.predictor, tmp_path / "model", **options)
        assert not any(tmp_path.iterdir())
    else:
        assert 4e-5 < export(quick.predictor, tmp_path / "model", **options).largest <= 1e-4


def test_a_network_that_cannot_be_exported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saved = baseline("self-mm")
    with pytest.raises(CorrKDError, match=r"^network 'self-mm' cannot be exported: ") as caught:
        export(Predictor(saved), tmp_path / "model", dataset=make_dataset())
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_network_is_exported_correctly_or_not_at_all(name: str, tmp_path: Path) -> None:
    result: ExportReport | str
    try:
        result = export(Predictor(baseline(name)), tmp_path / "model", dataset=make_dataset())
    except CorrKDError as error:
        result = str(error)
    if name in ("corrkd", "dmd", "hrlf", "transm", "smil", "mlp", "perceiver"):
        assert isinstance(result, ExportReport)
    if isinstance(result, ExportReport):
        assert result.largest <= 1e-4
        assert {p.name for p in (tmp_path / "model").iterdir()} == FILES
        return
    assert re.match(r"network '[\w-]+' (cannot be exported: \S|reads a sample in )", result)
    assert "\n" not in result
    assert str(tmp_path) not in result
    assert not any(tmp_path.iterdir())


def test_bad_arguments_are_refused_before_any_work(
    plain: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worked(*args: Any) -> NoReturn:
        raise AssertionError

    monkeypatch.setattr(export_module, "_exported", worked)
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    file.write_text("mine")
    (before := tmp_path / "before").mkdir()
    (before / "model.onnx").write_text("mine")
    unlike = make_dataset({"language": 5, "audio": 3, "vision": 9})
    longer = make_dataset(frames=50)
    for folder, options, message in (
        (full, {}, "full: is not empty and has no exported model; choose another folder"),
        (
            full,
            {"overwrite": True},
            "full: is not empty and has no exported model; choose another folder",
        ),
        (
            before,
            {},
            "before: contains an exported model; choose another folder, or replace it with "
            "--overwrite",
        ),
        (file, {}, "file: is a file; name a folder"),
        (file / "model", {}, "cannot create the folder"),
        (tmp_path / "new", {"samples": 0}, "samples = 0: the comparison needs at least one"),
        (tmp_path / "new", {"split": "dev"}, "has no split 'dev'"),
        (
            tmp_path / "new",
            {"dataset": unlike},
            "modality vision is 9 wide, but the model was trained on 4",
        ),
        (
            tmp_path / "new",
            {"max_frames": 5},
            "max_frames = 5: the training data or .* has 6 frames of language; give as",
        ),
        (
            tmp_path / "new",
            {"dataset": longer, "max_frames": 40},
            r"dataset tiny, test has \d\d frames of language",
        ),
    ):
        with pytest.raises(CorrKDError, match=message) as caught:
            export(plain.predictor, folder, **{"dataset": plain.dataset, **options})
        assert "\n" not in str(caught.value)
    assert contents(tmp_path) == {
        "full/notes.txt": b"mine",
        "file": b"mine",
        "before/model.onnx": b"mine",
    }
    (tmp_path / "killed" / ".writing-x").mkdir(parents=True)  # left by a killed export
    check_folder(tmp_path / "killed", overwrite=False)


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_not_installed(
    name: str, plain: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        CorrKDError, match=rf"^{name} is not installed; pip install 'corrkd\[export\]'$"
    ):
        export(plain.predictor, tmp_path / "model", dataset=plain.dataset)
    assert not any(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------
# what is replaced


def test_an_empty_folder_is_filled(quick: Exported, tmp_path: Path) -> None:
    export(quick.predictor, str(tmp_path), dataset=quick.dataset, max_frames=40)
    assert {p.name for p in tmp_path.iterdir()} == FILES
    export(quick.predictor, tmp_path / "new", dataset=quick.dataset, max_frames=40)
    tmp_path.joinpath("usual").mkdir()
    assert (tmp_path / "new").stat().st_mode == (
        tmp_path / "usual"
    ).stat().st_mode  # others may read it


def test_overwriting_replaces_the_three_files_or_nothing(
    quick: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"model.onnx": b"old", "card.json": b"{}", "predict.py": b"old", "notes.txt": b"mine"}
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    options: dict[str, Any] = {
        "dataset": quick.dataset,
        "max_frames": 40,
        "overwrite": True,
        "samples": 8,
    }
    with monkeypatch.context() as patch:
        patch.setattr(export_module, "TOLERANCE", 0.0)
        with pytest.raises(CorrKDError, match="differ from PyTorch's"):
            export(quick.predictor, tmp_path, **options)
    assert contents(tmp_path) == before
    with monkeypatch.context() as patch:

        def no_space(path: Path, data: bytes) -> NoReturn:
            raise CorrKDError(f"{path}: cannot be written: No space left on device")

        patch.setattr(export_module, "write_bytes", no_space)
        with pytest.raises(CorrKDError, match="No space left"):
            export(quick.predictor, tmp_path, **options)
    assert contents(tmp_path) == before
    export(quick.predictor, tmp_path, **options)
    after = contents(tmp_path)
    assert set(after) == set(before)
    assert after["notes.txt"] == b"mine"
    assert predictions_match(
        replace(quick, student=ExportedStudent(tmp_path)), [random_sample(0, {"audio": 3})]
    )


def test_a_mix_of_two_exports_is_detected(
    plain: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a power failure between the moves."""
    for name, data in contents(plain.folder).items():
        (tmp_path / name).write_bytes(data)
    moves: list[str] = []

    move = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if target.parent == tmp_path:
            moves.append(target.name)
        if len(moves) == 2:
            raise OSError(28, "No space left on device")
        move(source, target)

    other = onnx.load_from_string((plain.folder / "model.onnx").read_bytes())
    other.doc_string = "another"
    monkeypatch.setattr(
        export_module, "_exported", lambda saved, longest: (other.SerializeToString(), 18)
    )
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(CorrKDError, match="cannot be written: No space left on device"):
            export(plain.predictor, tmp_path, dataset=plain.dataset, max_frames=40, overwrite=True)
    assert moves[0] == "model.onnx"
    assert {p.name for p in tmp_path.iterdir()} == FILES
    with pytest.raises(
        InputError, match=r"not an exported model \(model.onnx is damaged or does not belong"
    ):
        ExportedStudent(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("card.json", None, "not an exported model"),
        ("card.json", b"{", "not an exported model"),
        ("card.json", b"[]", "not an exported model"),
        ("card.json", b"{}", "not an exported model"),
        ("model.onnx", None, "not an exported model"),
        ("model.onnx", b"", "damaged"),
    ],
)
def test_no_exported_model(
    name: str, data: bytes | None, message: str, plain: Exported, tmp_path: Path
) -> None:
    for other, old in contents(plain.folder).items():
        (tmp_path / other).write_bytes(old)
    (tmp_path / name).unlink()
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        ExportedStudent(tmp_path)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------
# without PyTorch

WITHOUT = f"""
import runpy, sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {OTHERS} | set(sys.stdlib_module_names):
            raise ImportError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Nothing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def written_samples(folder: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """Return samples, and files with them: two as JSON, one as npz."""
    samples = [random_sample(n, {"language": 3, "audio": 6 - n, "vision": 5}) for n in range(3)]
    samples[0] |= {
        "vision": None,
        "language": [samples[0]["language"][0].tolist(), None, [0.5] * 5],
    }
    samples[2]["audio_present"] = np.array([True, False, True, True])
    plain = [
        {m: x.tolist() if isinstance(x, np.ndarray) else x for m, x in s.items()}
        for s in samples[:2]
    ]
    files = [folder / "two.json", folder / "one.npz"]
    files[0].write_text(json.dumps(plain))
    np.savez(files[1], **samples[2])
    return samples, files


def test_without_pytorch_and_corrkd(exported: Exported, tmp_path: Path) -> None:
    samples, files = written_samples(tmp_path)

    def start(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-c", WITHOUT, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = start(exported.folder / "predict.py", *files)
    assert (done.returncode, done.stderr) == (0, "")
    actual = [json.loads(line) for line in done.stdout.splitlines()]
    expected = json.loads(json.dumps([p.to_json() for p in exported.predictor.predict(samples)]))
    assert same(actual, expected)
    (tmp_path / "bad.json").write_text('{"audio": [[1, 2]]}')
    done = start(exported.folder / "predict.py", tmp_path / "bad.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: sample, audio: shape (1, 2), expected (frames, 3)\n"
    for module in ("torch", "corrkd", "pandas"):
        (tmp_path / "asks.py").write_text(f"import {module}")
        assert f"ImportError: {module} is not installed here" in start(tmp_path / "asks.py").stderr


@pytest.mark.slow
def test_in_a_fresh_environment(plain: Exported, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / "bin" / "python"
    requirements = [
        f"{name}=={importlib.metadata.version(name)}" for name in ("numpy", "onnxruntime")
    ]
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *requirements], check=True, cwd=tmp_path
    )
    for module in ("torch", "corrkd"):
        assert (
            subprocess.run(
                [python, "-c", f"import {module}"], capture_output=True, cwd=tmp_path
            ).returncode
            == 1
        )
    samples, files = written_samples(tmp_path)
    done = subprocess.run(
        [python, plain.folder / "predict.py", *files],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    actual = [json.loads(line) for line in done.stdout.splitlines()]
    assert same(
        actual, json.loads(json.dumps([p.to_json() for p in plain.predictor.predict(samples)]))
    )
