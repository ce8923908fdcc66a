from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import corrkd
from corrkd.data.modalities import UsualMissing
from corrkd.errors import CorrKDError
from corrkd.evaluation.judge import samples_of
from corrkd.evaluation.sweep import sweep
from corrkd.missing.conditions import standard_conditions, subsets
from corrkd.networks.registry import BUILT_IN
from corrkd.networks.saved import build_network, load_network, save_network
from corrkd.serve import predictor as predictor_module
from corrkd.serve.predictor import Predictor
from corrkd.serve.standalone import Prediction, predictions
from corrkd.settings import EvaluationSettings
from corrkd.targets.calibration import tempered
from tests.serve.conftest import baseline, dataset_for, sample_of, student

WIDTHS = {"language": 5, "audio": 3, "vision": 4}


def response_of(prediction: Prediction) -> np.ndarray:
    if prediction.score is not None:
        return np.array([prediction.score])
    assert prediction.probabilities is not None
    values = prediction.probabilities.values()
    return np.array([list(v.values()) if isinstance(v, dict) else v for v in values])


@pytest.mark.parametrize("target", ["classes", "questions", "score"])
def test_matches_the_evaluation(target: str) -> None:
    """Under every condition, with the dropped frames marked and the condition's temperature."""
    saved, dataset = student(target), dataset_for(target)
    split, predictor = dataset.split("test"), Predictor(student(target))
    samples = samples_of(saved, dataset, "test", device=torch.device("cpu"))
    conditions = standard_conditions(
        dataset.modalities,
        EvaluationSettings(draws=1, conditions={"ratio": [0.5, 1.0]}),
        incomplete=np.array([False]),
    )
    assert saved.evaluated is not None
    temperatures = {c.name: c.temperature for c in saved.evaluated.conditions}
    for result in sweep(saved.network, samples, conditions):
        dropped = result.condition.dropped(samples.without_frames(), seed=2024, draw=0)
        inputs = []
        for row in range(len(split)):
            sample = sample_of(split, row)
            masks = {f"{m}_present": ~dropped[m][row, : len(x)].numpy() for m, x in sample.items()}
            inputs.append(sample | masks)
        results = predictor.predict(inputs, batch_size=7)
        assert len(results) == len(split)
        for row, prediction in enumerate(results):
            reliability = prediction.reliability
            expected = result.response[row]
            if target != "score":
                expected = tempered(
                    expected, temperatures[reliability.condition] if reliability else 1.0
                )
            np.testing.assert_allclose(response_of(prediction), expected, atol=2e-6)
            if result.condition.kind == "modalities":
                assert reliability is not None
                assert (reliability.condition, reliability.harder) == (result.condition.name, False)
                assert {m for m, share in prediction.used.items() if share} == set(
                    result.condition.available
                )


def test_one_sample_alone_and_among_others() -> None:
    predictor, split = Predictor(student()), dataset_for("classes").split("test")
    samples = [sample_of(split, row) for row in range(10)]
    together = predictor.predict(samples)
    for sample, among in zip(samples, together, strict=True):
        alone = predictor.predict(sample)
        assert alone.label == among.label
        np.testing.assert_allclose(response_of(alone), response_of(among), atol=1e-6)
    assert predictor.predict([]) == []


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_network_matches_the_evaluation(name: str) -> None:
    """For any batch size, with the same frames dropped as in the evaluation."""
    saved, dataset = baseline(name), dataset_for("classes")
    if saved.network.reads_conversations:
        with pytest.raises(
            CorrKDError, match="in the context of its conversation and cannot predict single"
        ):
            Predictor(saved)
        return
    predictor, split = Predictor(saved), dataset.split("test")
    tested = samples_of(saved, dataset, "test", device=torch.device("cpu"))
    for result in sweep(saved.network, tested, subsets(dataset.modalities)):
        dropped = result.condition.dropped(tested.without_frames(), seed=2024, draw=0)
        inputs = []
        for row in range(len(split)):
            sample = sample_of(split, row)
            inputs.append(
                sample
                | {f"{m}_present": ~dropped[m][row, : len(x)].numpy() for m, x in sample.items()}
            )
        for size, count in ((1, 6), (7, len(inputs))):
            responses = np.stack(
                [response_of(p) for p in predictor.predict(inputs[:count], batch_size=size)]
            )
            np.testing.assert_allclose(responses, result.response[:count], atol=1e-5)


def test_missing_frames_may_be_marked_in_several_ways() -> None:
    predictor, split = Predictor(student()), dataset_for("classes").split("test")
    row = int(split.lengths["language"].argmax())
    sample = sample_of(split, row)
    frames = sample["language"]
    others = {"audio": sample["audio"], "vision": sample["vision"]}
    assert predictor.predict(others) == predictor.predict({**others, "language": None})
    listed = [None if i % 2 else frame.tolist() for i, frame in enumerate(frames)]
    masked = frames.copy()
    masked[1::2] = np.nan  # the values of missing frames are ignored
    present = np.arange(len(frames)) % 2 == 0
    prediction = predictor.predict({**others, "language": listed})
    assert prediction == predictor.predict(
        {**others, "language": masked, "language_present": present}
    )
    assert prediction.used == {"language": present.mean(), "audio": 1.0, "vision": 1.0}
    assert prediction.reliability is not None
    assert prediction.reliability.harder is (prediction.reliability.condition == "ratio-0.0")
    vector = predictor.predict({"audio": sample["audio"][0]})
    assert vector == predictor.predict({"audio": sample["audio"][:1]})


@pytest.mark.parametrize(
    "extra", [{}, {"vision": None}, {"vision": [None]}, {"vision": [None] * 6}]
)
def test_a_missing_modality_is_as_long_as_usual(extra: dict[str, Any]) -> None:
    from corrkd.serve.standalone import collate, read_sample

    predictor = Predictor(student())
    rows = {"language": np.ones((2, 5)), "audio": np.ones((4, 3)), **extra}
    arrays = collate([read_sample(rows, predictor.card)], predictor.card)
    usual = predictor.saved.normalisation.lengths["vision"]
    assert usual not in (1, 2, 4, 6)
    assert arrays["vision"].exists.sum() == predictor.inputs(arrays).exists["vision"].sum() == usual
    assert not arrays["vision"].visible.any()


def test_a_missing_modality_is_no_longer_than_the_model_reads(tmp_path: Path) -> None:
    saved = student(positions="learned")
    assert saved.normalisation.lengths["vision"] > 2
    frames = {"language": 6, "audio": 6, "vision": 2}
    network = build_network(saved.target, saved.widths, frames, saved.network.settings)
    save_network(tmp_path / "student", replace(saved, network=network.eval(), frames=frames))
    predictor = Predictor(load_network(tmp_path / "student"))
    assert predictor.predict({"language": np.ones((5, 5))}).used == {
        "language": 1.0,
        "audio": 0.0,
        "vision": 0.0,
    }
    with pytest.raises(
        CorrKDError, match="sample, vision: 3 frames, but the model reads no more than 2"
    ):
        predictor.predict({"vision": np.ones((3, 4))})


@pytest.mark.parametrize("target", ["classes", "questions", "score"])
def test_sets_contain_what_cannot_be_ruled_out(target: str) -> None:
    saved = student(target, level=0.9)
    assert saved.evaluated is not None
    thresholds = {c.name: c.threshold for c in saved.evaluated.conditions}
    predictor, split = Predictor(saved), dataset_for(target).split("test")
    for row in range(12):
        sample = sample_of(split, row)
        for visible, name in ((sample, "complete"), ({"audio": sample["audio"]}, "audio")):
            prediction, threshold = predictor.predict(visible), thresholds[name]
            assert threshold is not None
            if target == "score":
                assert prediction.interval == (
                    pytest.approx(prediction.score - threshold),
                    pytest.approx(prediction.score + threshold),
                )
                continue
            assert prediction.interval is None
            nested = (
                prediction.probabilities
                if target == "questions"
                else {"": prediction.probabilities}
            )
            sets = (
                prediction.prediction_set
                if target == "questions"
                else {"": prediction.prediction_set}
            )
            assert sets == {
                q: [c for c, p in shares.items() if 1 - p <= threshold]
                for q, shares in nested.items()
            }
    assert Predictor(student(target)).predict(sample).prediction_set is None


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_any_lengths_any_subset(data: st.DataObject) -> None:
    """Probabilities sum to one, shares match the masks, and the prediction is valid JSON."""
    predictor = Predictor(student())
    modalities = data.draw(st.sets(st.sampled_from(sorted(WIDTHS)), min_size=1))
    sample: dict[str, Any] = {}
    for m in sorted(modalities):
        length = data.draw(st.integers(1, 9))
        sample[m] = np.random.default_rng(length).normal(size=(length, WIDTHS[m])) * data.draw(
            st.sampled_from([1, 1e4])
        )
        sample[f"{m}_present"] = data.draw(
            st.lists(st.booleans(), min_size=length, max_size=length)
        )
    prediction = predictor.predict(sample)
    assert prediction.probabilities is not None
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.probabilities[prediction.label] == max(prediction.probabilities.values())
    for m in WIDTHS:
        assert prediction.used[m] == (np.mean(sample[f"{m}_present"]) if m in modalities else 0.0)
    assert json.loads(json.dumps(prediction.to_json()))["label"] == prediction.label


BAD: list[tuple[Any, str]] = [
    ({}, "sample: no modality is given; give at least one of language, audio, vision"),
    ({"language": None}, "no modality is given"),
    ({"smell": [[1.0]]}, "'smell' is not a modality of this model; it has language, audio, vision"),
    ({"language": np.zeros((2, 4))}, r"language: shape \(2, 4\), expected \(frames, 5\)"),
    ({"language": np.zeros((1, 2, 5))}, r"language: shape \(1, 2, 5\)"),
    ({"language": np.zeros((0, 5))}, "language: no frames; for a missing modality use null"),
    ({"language": []}, "language: no frames"),
    ({"audio": [[1.0, 2.0, math.nan]]}, "audio: NaN or infinite values in frame 0"),
    ({"audio": [[0.0, 0.0, 0.0], [1e300, 0.0, 0.0]]}, "audio: NaN or infinite values in frame 1"),
    ({"audio": [[10**400, 0, 0]]}, "audio: not numbers"),
    ({"audio": [[1.0, 2.0], [1.0]]}, "audio: not numbers of shape"),
    ({"audio": "loud"}, "audio: not numbers of shape"),
    ({"audio": [["1", "2", "3"]]}, "audio: not numbers of shape"),
    ({"audio": {"frames": 1}}, "audio: not numbers of shape"),
    (
        {"audio": [[1.0, 2.0, 3.0]], "audio_present": [1, 0]},
        r"audio: the mask must be 1 booleans, found shape \(2,\)",
    ),
    ({"audio": [[1.0, 2.0, 3.0]], "audio_present": ["yes"]}, "the mask must be 1 booleans"),
    ({"audio_present": [True]}, "audio: audio_present without audio"),
    (7, "sample 0: expected a mapping from modality to frames, found int"),
]


@pytest.mark.parametrize(("sample", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_samples_are_refused_in_one_line(sample: Any, message: str) -> None:
    predictor = Predictor(student())
    good = {"audio": np.zeros((2, 3))}
    with pytest.raises(CorrKDError, match=message) as caught:
        predictor.predict(sample if isinstance(sample, dict) else [sample, good])
    assert "\n" not in str(caught.value)
    with pytest.raises(CorrKDError, match=r"^sample 1"):
        predictor.predict([good, sample])


def test_a_sample_longer_than_learned_positions() -> None:
    predictor = Predictor(student(positions="learned"))
    predictor.predict({"audio": np.zeros((6, 3))})
    with pytest.raises(
        CorrKDError, match="sample, audio: 7 frames, but the model reads no more than 6"
    ):
        predictor.predict({"audio": np.zeros((7, 3))})


def test_untested_conditions_have_no_reliability() -> None:
    saved = student(level=0.9)
    for tested in (None, replace_conditions(saved, ("complete",))):
        prediction = Predictor(replace(saved, evaluated=tested)).predict(
            {"audio": np.zeros((2, 3))}
        )
        assert prediction.reliability is None
        assert prediction.prediction_set is None


def replace_conditions(saved: Any, names: tuple[str, ...]) -> Any:
    conditions = tuple(c for c in saved.evaluated.conditions if c.name in names)
    return saved.evaluated.model_copy(update={"conditions": conditions})


def test_the_nearest_share_of_missing_frames() -> None:
    predictor = Predictor(student())
    frames = {m: np.zeros((20, width)) for m, width in WIDTHS.items()}
    for share, expected in (
        (0.1, "ratio-0.0"),
        (0.25, "ratio-0.5"),
        (0.6, "ratio-0.5"),
        (0.8, "ratio-1.0"),
    ):
        masks = {f"{m}_present": np.arange(20) >= round(20 * share) for m in WIDTHS}
        reliability = predictor.predict(frames | masks).reliability
        assert reliability is not None
        assert reliability.condition == expected
        assert reliability.harder is (float(expected[-3:]) < share)
    nothing = predictor.predict(
        frames | {f"{m}_present": np.zeros(20, bool) for m in WIDTHS}
    ).reliability
    assert nothing is not None
    assert nothing.condition == "ratio-1.0"


def test_usually_missing_frames_are_not_harder() -> None:
    missing = UsualMissing({"language": 0.3, "audio": 0.1, "vision": 0.0}, 0.15)
    saved = replace(student(level=0.9), missing=missing)
    predictor = Predictor(saved)
    frames = {m: np.zeros((20, width)) for m, width in WIDTHS.items()}
    for language, others, expected in (
        (0.3, {}, ("complete", False)),
        (0.35, {}, ("ratio-0.0", True)),
        (0.0, {"audio": 0.1}, ("complete", False)),
        (0.0, {"audio": 0.15}, ("ratio-0.0", True)),
        (0.3, {"audio": 0.1}, ("complete", False)),
        (0.3, {"audio": 1.0}, ("language+vision", False)),
        (0.3, {"audio": 0.1, "vision": 1.0}, ("language+audio", True)),  # too much together
        (0.35, {"audio": 1.0}, ("language+vision", True)),
        (0.0, {"audio": 1.0, "vision": 0.05}, ("language+vision", True)),
    ):
        shares = {"language": language, **others}
        masks = {f"{m}_present": np.arange(20) >= round(20 * share) for m, share in shares.items()}
        prediction = predictor.predict(frames | masks)
        assert prediction.reliability is not None
        assert (prediction.reliability.condition, prediction.reliability.harder) == expected
        assert (prediction.prediction_set is None) == expected[1]


@pytest.mark.parametrize("target", ["classes", "questions", "score"])
def test_explains_what_it_predicts(target: str) -> None:
    """The explained probability or score is the prediction's."""
    predictor, split = Predictor(student(target)), dataset_for(target).split("test")
    sample = sample_of(split, 1)
    question = "sad" if target == "questions" else None
    for visible in (sample, {"audio": sample["audio"]}):
        prediction = predictor.predict(visible)
        explanation = predictor.explain(visible, question=question)
        if target == "score":
            assert explanation.value == pytest.approx(prediction.score, abs=1e-5)
            continue
        assert prediction.probabilities is not None
        shares = prediction.probabilities[question] if question else prediction.probabilities
        assert explanation.label == max(shares, key=lambda name: shares[name])
        assert explanation.probability == pytest.approx(shares[explanation.label], abs=1e-5)
        other = predictor.explain(
            visible, question=question, label=predictor.saved.target.classes[0]
        )
        assert other.probability == pytest.approx(
            shares[predictor.saved.target.classes[0]], abs=1e-5
        )
        if len(visible) == 1:
            assert {m for m, effect in explanation.modalities.items() if effect.value} == {"audio"}


def test_explaining_unknown_outputs_is_refused() -> None:
    sample = {"audio": np.zeros((2, 3))}
    with pytest.raises(CorrKDError, match="class 'purple' is not in this model, which has 0, 1, 2"):
        Predictor(student()).explain(sample, label="purple")
    with pytest.raises(
        CorrKDError, match="question 'sad' is not in this model, which has no question"
    ):
        Predictor(student()).explain(sample, question="sad")
    with pytest.raises(CorrKDError, match="class 'high' is not in this model, which has no class"):
        Predictor(student("score")).explain(sample, label="high")
    with pytest.raises(CorrKDError, match="no modality is given"):
        Predictor(student()).explain({})


# --------------------------------------------------------------------------------------------------
# on disk


def test_save_and_load(tmp_path: Path) -> None:
    before = Predictor(student(level=0.9))
    before.save_pretrained(tmp_path / "model")
    assert {p.name for p in (tmp_path / "model").iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    after = corrkd.Predictor.from_pretrained(tmp_path / "model")
    sample = sample_of(dataset_for("classes").split("test"), 0)
    assert after.predict(sample) == before.predict(sample)
    for name in (
        "",
        "model.safetensors",
        "config.json",
    ):  # as a network alone, for `corrkd evaluate`
        assert corrkd.load_student(tmp_path / "model" / name).about == before.saved.about
    for name in ("model.safetensors", "config.json"):
        assert Predictor.from_pretrained(tmp_path / "model" / name).predict(
            sample
        ) == before.predict(sample)
    with pytest.raises(CorrKDError, match="no trained student there"):
        corrkd.load_student(tmp_path / "model" / "other")
    after.save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_a_failed_save_keeps_the_older_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Predictor(student()).save_pretrained(tmp_path / "model")
    files = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}
    other = Predictor(student("score"))
    with pytest.raises(
        CorrKDError,
        match=r"already contains model\.safetensors; choose another folder, or pass overwrite=True",
    ):
        other.save_pretrained(tmp_path / "model")
    with monkeypatch.context() as patch:

        def disk_full(*_: Any) -> None:
            raise CorrKDError("the disk is full")

        patch.setattr(predictor_module, "write_card", disk_full)
        with pytest.raises(CorrKDError, match="full"):
            other.save_pretrained(tmp_path / "model", overwrite=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()} == files
    other.save_pretrained(tmp_path / "model", overwrite=True)
    assert Predictor.from_pretrained(tmp_path / "model").card["target"]["kind"] == "score"
    assert "output is a score" in (tmp_path / "model" / "README.md").read_text()


def test_from_a_run_with_its_tables(served: Path, tmp_path: Path) -> None:
    dataset = served / "synthetic"
    arm = dataset / "seed-0" / "student"
    for path in (served, dataset, dataset / "seed-0", arm, arm / "student.json", arm / "student"):
        predictor = Predictor.from_pretrained(path)
        assert predictor.run == dataset
    predictor.save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: corrkd\n")
    report = (served / "report.md").read_text()
    row = next(line for line in report.splitlines() if line.startswith("| CorrKD student |"))
    assert row in card
    tested = predictor.saved.evaluated
    assert tested is not None
    assert {c.name for c in tested.conditions} > {"complete", "language", "ratio-0.5", "burst-0.5"}
    complete = next(c for c in tested.conditions if c.name == "complete")
    assert f"| complete | {100 * complete.measured['weighted_f1']:.2f} |" in card


def test_the_reliability_matches_the_runs_results(served: Path) -> None:
    import pandas as pd

    table = pd.read_csv(served / "results.csv")
    results = table[
        (table["method"] == "student") & (table["condition"] == "language+audio")
    ].set_index("metric")["value"]
    sample = {"language": np.zeros((4, 8)), "audio": np.zeros((4, 8))}
    reliability = Predictor.from_pretrained(served).predict(sample).reliability
    assert reliability is not None
    assert reliability.measured == {m: pytest.approx(results[m]) for m in reliability.measured}
    assert {
        "weighted_f1",
        "accuracy",
        "unweighted_accuracy",
        "ece",
        "ece_calibrated",
        "coverage",
        "set_size",
    } == set(reliability.measured)


def test_a_model_without_a_run(tmp_path: Path) -> None:
    save_network(tmp_path / "student", student())
    predictor = Predictor.from_pretrained(tmp_path / "student.safetensors")
    assert predictor.run is None
    predictor.save_pretrained(tmp_path / "model")
    assert "Comparison with its teacher" not in (tmp_path / "model" / "README.md").read_text()


def test_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Predictor(student()).save_pretrained(tmp_path / "snapshot")
    calls: list[tuple[str, dict[str, Any]]] = []

    def download(name: str, **options: Any) -> str:
        calls.append((name, options))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(predictor_module, "snapshot_download", download)
    predictor = Predictor.from_pretrained("somebody/students", revision="v1")
    assert predictor.card["about"]["seed"] == 3
    (name, options), *others = calls
    assert (name, options["revision"], others) == ("somebody/students", "v1", [])
    assert options["allow_patterns"] == ["model.safetensors", "config.json", "README.md"]


@pytest.mark.parametrize("text", [b"no JSON", b"[1]", b"\xff\xfe", b'{"format": 1}'])
def test_damaged_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    Predictor(student()).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(text)
    monkeypatch.setattr(predictor_module, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(
        CorrKDError, match=r"config\.json: (invalid JSON|not UTF-8|not a model card|the card lacks)"
    ):
        Predictor.from_pretrained("somebody/students")


def test_the_hub_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the proxy says no\nand more")

    monkeypatch.setattr(predictor_module, "snapshot_download", broken)
    with pytest.raises(
        CorrKDError, match=r"could not be downloaded from the hub \(the proxy says no\)$"
    ):
        Predictor.from_pretrained("somebody/students")


def test_a_model_saved_inside_a_run_does_not_belong_to_it(served: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(served, tmp_path / "run"))
    Predictor(student("score")).save_pretrained(run / "other")
    for path in (run / "other", run / "other" / "config.json"):
        predictor = Predictor.from_pretrained(path)
        assert predictor.run is None
        assert predictor.card["target"]["kind"] == "score"
    predictor.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_bytes() == (
        run / "other" / "README.md"
    ).read_bytes()


def test_an_existing_readme_is_kept(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(CorrKDError, match=r"already contains README\.md; choose another folder"):
        Predictor(student()).save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


def test_a_readme_of_any_bytes(tmp_path: Path) -> None:
    Predictor(student()).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_bytes(b"caf\xe9")
    Predictor.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text().endswith("caf\ufffd")


def test_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, bytes] = {}

    class Api:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, folder_path: Path, **_: Any) -> str:
            pushed.update({p.name: p.read_bytes() for p in Path(folder_path).iterdir()})
            return "done"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert Predictor(student()).push_to_hub("somebody/students") == "done"
    assert set(pushed) == {"model.safetensors", "config.json", "README.md"}


def test_a_path_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        CorrKDError, match="no such file or folder, and not the name of a model on the hub"
    ):
        Predictor.from_pretrained(tmp_path / "nowhere" / "else")
    with pytest.raises(CorrKDError, match="no trained student there"):
        Predictor.from_pretrained(tmp_path)


def test_an_unavailable_device() -> None:
    for name in ("gpu", "xpu", "cuda:99"):
        with pytest.raises(CorrKDError, match=f"device '{name}' cannot be used: .") as caught:
            Predictor(student(), device=name)
        assert "\n" not in str(caught.value)


def test_invalid_samples() -> None:
    for wrong in (None, 5, np.zeros((4, 3))):
        with pytest.raises(
            CorrKDError, match=r"expected a mapping(, or several,| from modality to frames,) found "
        ):
            Predictor(student()).predict(wrong)  # type: ignore[call-overload]


def test_networks_of_conversations_are_refused() -> None:
    saved = student()
    type(saved.network).reads_conversations = True
    try:
        with pytest.raises(CorrKDError, match="in the context of its conversation"):
            Predictor(saved)
    finally:
        type(saved.network).reads_conversations = False


def test_a_single_remaining_frame_is_harder_and_has_no_set() -> None:
    saved = student(level=0.9)
    frames = {m: np.zeros((12, width)) for m, width in WIDTHS.items()}
    alone = np.arange(12) == 0
    little = Predictor(saved).predict(frames | {"language_present": alone})
    assert little.reliability is not None
    assert little.reliability.harder
    assert little.prediction_set is None
    evenly = {f"{m}_present": np.arange(12) % 2 == 0 for m in WIDTHS}
    half = Predictor(saved).predict(frames | evenly)
    assert half.reliability is not None
    assert (half.reliability.condition, half.reliability.harder) == ("ratio-0.5", False)
    assert half.prediction_set is not None


def test_long_samples_are_predicted_in_small_batches() -> None:
    """Attention's memory grows with the square of the longest sample."""
    predictor = Predictor(student())
    inputs = [{"audio": np.zeros((length, 3))} for length in (900, 2, 1100, 3, 700, 700, 2)]
    shapes: list[tuple[int, int]] = []

    def run(arrays: Any) -> Any:
        shapes.append((len(arrays["audio"].frames), arrays["audio"].frames.shape[1]))
        return predictor.logits(arrays)

    results = predictions(inputs, predictor.card, run)
    assert sum(rows for rows, _ in shapes) == 7
    assert all(rows == 1 or rows * longest**2 <= 1 << 20 for rows, longest in shapes)
    assert max(rows for rows, _ in shapes) >= 3
    for sample, prediction in zip(inputs, results, strict=True):
        np.testing.assert_allclose(
            response_of(prediction), response_of(predictor.predict(sample)), atol=1e-6
        )
