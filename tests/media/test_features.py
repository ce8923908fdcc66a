"""A folder of recordings to a dataset file, a model trained on it, and predictions of
recordings.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import corrkd as package
from corrkd.data.convert import convert
from corrkd.errors import CorrKDError
from corrkd.experiment.card import missing_frames
from corrkd.media import folder as folder_module
from corrkd.media.features import FeatureSettings, describe, extract, settings_of
from corrkd.media.folder import FolderExtraction, _extract_on_cluster
from corrkd.media.labels import ClipList, ClipRow, list_clips
from corrkd.workers import KILLED
from tests.command import Ended, corrkd, ends_at
from tests.media.clips import plain, rotated, tone, with_face, write_clip

LABELS = """file,text,label,person,split
face.mp4,I love this,positive,p1,train
turned.mp4,so very good,positive,p2,train
silent.mp4,I hate this,negative,p3,train
mute.mkv,it was bad,negative,p4,train
voice.wav,,negative,p5,valid
note.txt,,positive,p6,test
,only a text,positive,p7,valid
vfr.mkv,,negative,p8,test
corrupt.mp4,oh,negative,p9,test
absent.mp4,oh,negative,p9,test
../outside.mp4,oh,negative,p9,test
"""
KEPT = ["face", "turned", "silent", "mute", "voice", "note", "row-6", "vfr"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media") / "clips"
    folder.mkdir()
    moving = [with_face(0.4 + 0.02 * i) for i in range(8)]
    face = write_clip(folder / "face.mp4", moving, tone(0.8))
    rotated(face, folder / "turned.mp4", 90)
    write_clip(folder / "silent.mp4", moving, np.zeros(12_800, np.float32))
    write_clip(folder / "mute.mkv", [*moving[:4], *[plain(100)] * 4])
    write_clip(folder / "voice.wav", sound=tone(0.9, 130))
    (folder / "voice.vtt").write_text("WEBVTT\n\n00:00.100 --> 00:00.500\ngo away\n", "utf-8")
    (folder / "note.txt").write_text("a fine day", "utf-8")
    write_clip(folder / "vfr.mkv", [with_face(), with_face(0.3)], times=[0, 0.5])
    (folder / "corrupt.mp4").write_bytes(face.read_bytes()[:5000])
    shutil.copy(face, folder.parent / "outside.mp4")
    (folder / "labels.csv").write_text(LABELS, "utf-8")
    assert max(file.stat().st_size for file in folder.iterdir()) < 300_000
    return folder


def features(clips: Path, out: Path, *arguments: object, **options: Any) -> Ended:
    return corrkd("features", clips, "--out", out, *arguments, **options)


@pytest.fixture(scope="module")
def made(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    out = tmp_path_factory.mktemp("made") / "own.h5"
    return out, features(clips, out)


def rows_of(path: Path) -> dict[str, tuple[package.Split, int]]:
    dataset = package.load_dataset(path)
    return {
        name: (split, row)
        for split in dataset.splits.values()
        for row, name in enumerate(split.ids.tolist())
    }


def present(path: Path, clip: str, modality: str) -> list[bool]:
    split, row = rows_of(path)[clip]
    return split.present[modality][row, : split.lengths[modality][row]].tolist()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_unusual_clips_are_extracted_or_named(made: tuple[Path, Ended]) -> None:
    out, done = made
    assert done.code == 1, done.err
    failures = pd.read_csv(f"{out}.failures.csv")
    assert failures["file"].tolist() == ["corrupt.mp4", "absent.mp4", "../outside.mp4"]
    for name in failures["file"]:
        assert f"left out: {name}: " in done.err
    assert "left out: ../outside.mp4: leads out of the folder" in done.err
    assert "clips left out: 3" in done.out
    assert sorted(rows_of(out)) == sorted(KEPT)
    assert "audio: prosody 1, 54 wide" in done.out
    assert "silence 8" in done.out


def test_missing_frames_are_marked(made: tuple[Path, Ended]) -> None:
    out, _ = made
    assert present(out, "face", "vision") == present(out, "face", "audio") == [True] * 8
    assert present(out, "turned", "vision") == [True] * 8
    assert present(out, "silent", "audio") == [False] * 8
    assert present(out, "mute", "audio") == [False] * 8
    assert present(out, "mute", "vision") == [True] * 4 + [False] * 4
    assert present(out, "voice", "vision") == [False] * 9
    assert present(out, "voice", "language") == [True] * 2
    assert present(out, "note", "vision") == present(out, "row-6", "audio") == [False]
    assert present(out, "note", "language") == [True] * 3
    assert present(out, "vfr", "language") == [False]
    assert present(out, "vfr", "vision") == [True] * 6
    dataset = package.load_dataset(out)
    assert dataset.class_names == ("negative", "positive")
    assert dataset.missing_rule["vision"] == "array vision_present"
    assert {len(split) for split in dataset.splits.values()} == {4, 2}
    assert "person" in dataset.split("train").groups


def test_a_rotated_recording_has_the_same_distances_and_another_roll(
    made: tuple[Path, Ended],
) -> None:
    rows = rows_of(made[0])
    (split, upright), (_, on_side) = rows["face"], rows["turned"]
    vision = split.frames["vision"]
    assert np.abs(vision[upright, :8, :34] - vision[on_side, :8, :34]).mean() < 0.25  # centimetres
    roll = vision[on_side, :8, 36] - vision[upright, :8, 36]
    np.testing.assert_allclose(np.degrees(roll), -90, atol=2.5)


def test_runs_are_reproducible_and_new_labels_extract_nothing(
    clips: Path, made: tuple[Path, Ended], tmp_path: Path
) -> None:
    out = tmp_path / "own.h5"
    assert features(clips, out, "--jobs", 2).code == 1
    assert digest(out) == digest(made[0])
    assert "already exists" in features(clips, out).line
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / ".own.h5.clips").glob("*.npz")}
    assert len(files) == len(KEPT)
    labels = tmp_path / "other.csv"
    labels.write_text(LABELS.replace("positive", "fine").replace("p1,train", "p1,test"), "utf-8")
    done = features(clips, out, "--labels", labels, "--overwrite")
    assert done.code == 1, done.err
    assert {
        file: file.stat().st_mtime_ns for file in (tmp_path / ".own.h5.clips").glob("*.npz")
    } == files
    assert f"{len(KEPT)} clips done before" in done.out
    assert package.load_dataset(out).class_names == ("fine", "negative")
    assert "face" in package.load_dataset(out).split("test").ids


def test_a_killed_run_resumes(clips: Path, made: tuple[Path, Ended], tmp_path: Path) -> None:
    out = tmp_path / "own.h5"
    killed = features(clips, out, first=ends_at("corrkd.media.folder", "write_with", 4))
    assert killed.code == -9
    assert not out.exists()
    assert len(list((tmp_path / ".own.h5.clips").glob("*.npz"))) == 3
    done = features(clips, out)
    assert done.code == 1, done.err
    assert "3 clips done before" in done.out
    assert digest(out) == digest(made[0])
    damaged = next((tmp_path / ".own.h5.clips").glob("*.npz"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert (
        "damaged; delete it, so that its clip is extracted again"
        in features(clips, out, "--overwrite").line
    )


def kill_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillingClip(ClipRow):
    """A clip that kills the process that extracts it, as a crashing decoder does."""

    def __reduce__(self) -> Any:
        return kill_process, ()


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_and_leaves_out_only_a_killing_clip(
    clips: Path, made: tuple[Path, Ended], tmp_path: Path
) -> None:
    """On a real Ray of this machine, in workers whose current folder is another."""
    done = features(clips, tmp_path / "own.h5", "--backend", "ray", "--jobs", 2)
    assert done.code == 1, done.err
    assert digest(tmp_path / "own.h5") == digest(made[0])
    assert "left out: corrupt.mp4: cannot be decoded" in done.err
    assert (
        f"{len(KEPT)} clips done before"
        in features(clips, tmp_path / "own.h5", "--backend", "ray", "--overwrite").out
    )
    rows = list(list_clips(clips).rows)
    rows[0] = KillingClip(rows[0].id, rows[0].name, rows[0].path, rows[0].text, rows[0].facts)
    work = FolderExtraction(
        clips, ClipList(tuple(rows), ()), tmp_path / "other.h5", FeatureSettings()
    )
    extracted = work.run(jobs=2, backend="ray")
    assert extracted.failures["face.mp4"] == f"face.mp4: {KILLED}"
    assert extracted.clips == len(KEPT) - 1


def test_a_killing_clip_does_not_affect_its_batch(
    clips: Path, made: tuple[Path, Ended], tmp_path: Path
) -> None:
    listed = list_clips(clips)
    first, *others = listed.rows
    killing = KillingClip(first.id, first.name, first.path, first.text, first.facts)
    listed = replace(listed, rows=(killing, *others))
    work = FolderExtraction(clips, listed, tmp_path / "own.h5", FeatureSettings())
    extracted = work.run(jobs=2, batch=4)
    assert extracted.failures["face.mp4"] == f"face.mp4: {KILLED}"
    assert extracted.clips == len(KEPT) - 1
    everything = rows_of(made[0])
    for name, (split, row) in rows_of(tmp_path / "own.h5").items():
        other, other_row = everything[name]
        for m, lengths in split.lengths.items():
            np.testing.assert_array_equal(
                split.frames[m][row, : lengths[row]], other.frames[m][other_row, : lengths[row]]
            )


def test_a_machine_of_a_cluster_with_other_versions_is_named(clips: Path, tmp_path: Path) -> None:
    work = FolderExtraction(clips, list_clips(clips), tmp_path / "own.h5", FeatureSettings())
    task = work._task(0)
    description = task.description.model_copy(
        update={"libraries": {**task.description.libraries, "av": "0.1"}}
    )
    (error,) = _extract_on_cluster([replace(task, description=description)])
    assert error is not None
    assert re.fullmatch(
        r"face.mp4: the machine .* of the cluster has av [\d.]+, not 0.1; install the same .*",
        error,
    )
    assert not task.file.exists()


def test_features_that_another_machine_wrote_elsewhere_are_a_failure(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "FILE_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(folder_module, "save_clip", lambda path, features: None)
    (tmp_path / "in").mkdir()
    shutil.copy(clips / "note.txt", tmp_path / "in")
    work = FolderExtraction(
        tmp_path / "in", list_clips(tmp_path / "in"), tmp_path / "own.h5", FeatureSettings()
    )
    with pytest.raises(CorrKDError, match="none of 1 clips could be read"):
        work.run()
    assert "give an --out that all machines share" in (tmp_path / "own.h5.failures.csv").read_text(
        "utf-8"
    )


def test_frames_by_word(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "words.h5"
    assert features(clips, out, "--align", "words").code == 1
    for split, row in rows_of(out).values():
        assert len({int(lengths[row]) for lengths in split.lengths.values()}) == 1
    assert present(out, "face", "audio") == [True] * 3
    assert present(out, "vfr", "vision") == [True]
    assert present(out, "voice", "audio") == [True] * 2


def test_excluded_and_absent_modalities_are_left_out(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sound"
    folder.mkdir()
    shutil.copy(clips / "voice.wav", folder)
    done = features(folder, tmp_path / "a.h5", "--extractor", "language=none")
    assert done.code == 0, done.err
    assert "so it is left out of the file" in done.out
    assert not (tmp_path / "a.h5.failures.csv").exists()
    assert package.load_dataset(tmp_path / "a.h5", targets=False).modalities == ("audio",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "own.npz"), "must end in .h5"),
        (("--out", "own.h5", "--preset", "big"), "unknown preset of extractors 'big'"),
        (("--out", "own.h5", "--extractor", "audio=nope"), "unknown extractor 'nope'"),
        (("--out", "own.h5", "--align", "letters"), "settings of features"),
        (("--out", "own.h5", "--labels", "absent.csv"), "absent.csv: no such labels file"),
        (("--out", "own.h5", "--backend", "dask"), "--backend 'dask': expected joblib or ray"),
    ],
)
def test_errors_are_one_line(
    clips: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert message in corrkd("features", clips, *arguments, cwd=tmp_path).line


def test_a_folder_without_readable_clips_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "bad.mp4").write_bytes(b"bad")
    assert "none of 1 clips could be read; " in features(folder, tmp_path / "own.h5").line
    assert not (tmp_path / "own.h5").exists()
    assert (tmp_path / "own.h5.failures.csv").exists()


# -------------------------------------------------------------------------------------------------
# from the file to predictions


def test_extractors_are_saved_with_the_dataset(made: tuple[Path, Ended], tmp_path: Path) -> None:
    dataset = package.load_dataset(made[0])
    assert dataset.extractors == describe(FeatureSettings()).model_dump(mode="json")
    assert dataset.extractors["modalities"]["vision"]["weights"]
    convert(dataset, tmp_path / "own.safetensors")
    assert package.load_dataset(tmp_path / "own.safetensors").extractors == dataset.extractors


def test_reasons_of_missing_frames_are_saved_with_the_dataset(
    made: tuple[Path, Ended], tmp_path: Path
) -> None:
    split, row = rows_of(made[0])["mute"]
    assert {m: texts[row] for m, texts in split.missing_reasons.items()} == {
        "language": "",
        "audio": "no audio stream 8",
        "vision": "no face 4",
    }
    dataset = package.load_dataset(made[0])
    convert(dataset, tmp_path / "own.safetensors")
    expected = missing_frames(dataset)
    assert missing_frames(package.load_dataset(tmp_path / "own.safetensors")) == expected
    for m in dataset.modalities:
        for name, each in dataset.splits.items():
            count = expected[m][name]
            assert (
                sum(count["reasons"].values())
                == count["missing"]
                == int((each.exists(m) & ~each.present[m]).sum())
            )
    assert expected["vision"]["train"] == {"frames": 32, "missing": 4, "reasons": {"no face": 4}}


def test_another_extractor_is_refused_by_name() -> None:
    settings = FeatureSettings(align="words")
    described: dict[str, Any] = describe(settings).model_dump(mode="json")
    assert settings_of(described, "x") == (settings, [])
    described["libraries"]["av"] = "0.1"
    (note,) = settings_of(described, "x")[1]
    assert note.startswith("av ")
    assert note.endswith("extracted with 0.1")
    language_only = {"language": described["modalities"]["language"]}
    assert settings_of({**described, "modalities": language_only}, "x")[1] == []
    described["modalities"]["vision"]["weights"] = {"face_mesh.safetensors": "0" * 64}
    with pytest.raises(
        CorrKDError, match=r"its vision was extracted by 'facemesh', which differs.*weights"
    ):
        settings_of(described, "x")
    described["modalities"]["audio"]["version"] = 0
    with pytest.raises(
        CorrKDError, match=r"extracted by 'prosody', which differs .*version 0, installed 1"
    ):
        settings_of(described, "x")
    with pytest.raises(CorrKDError, match="x: the description of its extractors is damaged"):
        settings_of({"modalities": 3}, "x")


@pytest.fixture(scope="module")
def model(made: tuple[Path, Ended], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    stage: dict[str, Any] = {"epochs": 1, "batch_size": 4}
    network = {"width": 8, "heads": 2, "layers": 1, "feedforward": 16, "classifier": [8]}
    tree = {
        "teacher": {**stage, "network": network},
        "student": stage,
        "device": "cpu",
        "seeds": [0],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree), "utf-8")
    done = corrkd(
        "train", "--settings", folder / "tiny.yaml", "--data", made[0], "--out", folder / "run"
    )
    assert done.code == 0, done.err
    return folder / "run"


def test_a_recording_and_its_features_get_the_same_prediction(
    clips: Path, made: tuple[Path, Ended], model: Path, tmp_path: Path
) -> None:
    predictor = package.Predictor.from_pretrained(model)
    assert predictor.card["about"]["extractors"] == package.load_dataset(made[0]).extractors
    out = tmp_path / "file.jsonl"
    assert corrkd("predict", model, "--data", made[0], "--out", out).code == 0
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    by_id = {line["id"]: line for line in lines}
    texts = {"face.mp4": "I love this", "mute.mkv": "it was bad"}
    for name in ("face.mp4", "mute.mkv", "voice.wav", "note.txt", "vfr.mkv"):
        prediction = predictor.predict_media(clips / name, text=texts.get(name, ""))
        expected = by_id[Path(name).stem]
        assert prediction.label == expected["label"]
        assert prediction.probabilities is not None
        assert prediction.probabilities == pytest.approx(expected["probabilities"], abs=1e-6)
        assert prediction.used == pytest.approx(expected["used"])


def test_predict_takes_recordings(clips: Path, model: Path, tmp_path: Path) -> None:
    done = corrkd("predict", model, clips / "face.mp4", clips / "corrupt.mp4", clips / "note.txt")
    assert done.code == 1
    assert [line.split(":")[0] for line in done.out.splitlines()] == [
        str(clips / "face.mp4"),
        str(clips / "note.txt"),
    ]
    assert "left out: corrupt.mp4: cannot be decoded" in done.err
    out = tmp_path / "p.csv"
    done = corrkd("predict", model, clips / "voice.wav", "--out", out)
    assert done.code == 0, done.err
    table = pd.read_csv(out)
    assert table.loc[0, "id"] == str(clips / "voice.wav")
    assert table.loc[0, ["used_language", "used_audio", "used_vision"]].tolist() == [1, 1, 0]
    assert "give either recordings or --data" in corrkd("predict", model).line
    assert "give the output file with --out" in corrkd("predict", model, "--data", "synthetic").line


def test_a_model_without_extractors_is_refused(clips: Path, model: Path, tmp_path: Path) -> None:
    predictor = package.Predictor.from_pretrained(model)
    predictor.card["about"] = {}
    with pytest.raises(CorrKDError, match="lists no extractors"):
        predictor.predict_media(clips / "face.mp4")
    (tmp_path / "empty.txt").write_text(" ", "utf-8")
    with pytest.raises(CorrKDError, match=r"empty.txt: has none of language, audio, vision"):
        package.Predictor.from_pretrained(model).predict_media(tmp_path / "empty.txt")


def test_a_file_without_a_modality_can_be_predicted(
    clips: Path, model: Path, tmp_path: Path
) -> None:
    folder, data = tmp_path / "sound", tmp_path / "sound.h5"
    folder.mkdir()
    shutil.copy(clips / "voice.wav", folder)
    shutil.copy(clips / "voice.wav", folder / "again.wav")
    assert features(folder, data).code == 0
    done = corrkd("predict", model, "--data", data, "--out", tmp_path / "p.csv")
    assert done.code == 0, done.err
    import h5py

    with h5py.File(data, "a") as file:  # another file may have it, with nothing present
        file["vision"] = np.zeros((2, 3, 40), np.float32)
        file["vision_present"] = np.zeros((2, 3), bool)
    done = corrkd("predict", model, "--data", data, "--out", tmp_path / "q.csv")
    assert done.code == 0, done.err
    assert pd.read_csv(tmp_path / "q.csv")["used_vision"].tolist() == [0, 0]


# --------------------------------------------------------------------------------------------------
# a real clip


@pytest.mark.realdata
def test_a_real_review(real_data: Path) -> None:
    done = extract(
        real_data / "real" / "clip_101_movies.mp4", FeatureSettings(), "I really loved it"
    )
    assert done.seconds == pytest.approx(33.3, abs=0.1)
    vision, audio = done.frames["vision"], done.frames["audio"]
    assert len(vision.present) == len(audio.present) == 334
    assert vision.present.mean() > 0.98
    assert audio.present.mean() > 0.9
    assert (
        0.15 < vision.values[vision.present][:, 37].mean() < 0.35
    )  # the head is a fifth of the picture
