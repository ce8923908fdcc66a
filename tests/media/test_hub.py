"""Extractors that run models of transformers, tested with tiny random ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corrkd import load_dataset
from corrkd.errors import CorrKDError
from corrkd.hub import ModelFiles, ModelName, parse_model
from corrkd.media import sound_windows
from corrkd.media.clip import Clip
from corrkd.media.decode import Recording
from corrkd.media.extractors.face_mesh import FaceMesh
from corrkd.media.extractors.image import Image, preparation
from corrkd.media.extractors.prosody import Prosody
from corrkd.media.extractors.registry import PRESETS, make_extractor, with_changes
from corrkd.media.extractors.speech import Speech, by_step
from corrkd.media.extractors.text import Text
from corrkd.media.features import (
    FeatureSettings,
    describe,
    extract,
    extract_together,
    extractors,
    settings_of,
)
from corrkd.media.sound_windows import States
from tests.command import corrkd
from tests.media.clips import plain, tone, with_face, write_clip
from tests.media.hub_models import image_encoder, text_encoder, wav2vec, whisper

transformers = pytest.importorskip("transformers")

PAUSE = np.zeros(16_000, np.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("Wav2Vec2", "Hubert", "WavLM"):
        wav2vec(folder / kind.lower(), kind)
        wav2vec(folder / f"{kind.lower()}-large", kind, large=True)
    whisper(folder / "whisper")
    for kind in ("clip", "dinov2", "vit"):
        image_encoder(folder / kind, kind)
    for kind in ("bert", "xlm-r"):
        text_encoder(folder / kind, kind)
    return folder


# --------------------------------------------------------------------------------------------------
# audio


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm", "whisper"])
def test_speech_is_averaged_and_missing_like_prosody(
    models: Path, tmp_path: Path, kind: str
) -> None:
    sound = np.concatenate([tone(1.0, 110), PAUSE, tone(4.05, 220)])
    clip = Clip(write_clip(tmp_path / "clip.wav", sound=sound))
    frames, embedded = Speech(str(models / kind)).frames(clip), Prosody().frames(clip)
    assert frames.values.shape == (61, 8)
    np.testing.assert_array_equal(frames.present, embedded.present)
    np.testing.assert_array_equal(frames.times, embedded.times)
    assert dict(frames.missing) == dict(embedded.missing) == {"silence": 10}
    assert (frames.values[10:20] == 0).all()
    assert np.isfinite(frames.values).all()
    assert (np.abs(frames.values[frames.present]).sum(1) > 0).all()
    repeated = Speech(str(models / kind)).frames(clip)
    np.testing.assert_array_equal(frames.values, repeated.values)


def test_a_single_window_matches_the_model(models: Path, tmp_path: Path) -> None:
    """The frames are the means of the model's states, computed separately."""
    path = write_clip(tmp_path / "clip.wav", sound=tone(1.0))
    samples = next(Recording(path).sound()).samples
    model = transformers.AutoModel.from_pretrained(models / "wav2vec2").eval()
    normal = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    with torch.no_grad():
        states = model(torch.from_numpy(normal)[None].float()).last_hidden_state[0].numpy()
    frames = Speech(str(models / "wav2vec2")).frames(Clip(path))
    step = ((np.arange(len(states)) + 0.5) / len(states) * 10).astype(int)
    expected = np.stack([states[step == i].mean(0) for i in range(10)])
    np.testing.assert_allclose(frames.values, expected, atol=1e-5)


@pytest.mark.parametrize("max_windows", [1, 3])
def test_windows_cover_a_long_recording_once(
    models: Path, tmp_path: Path, max_windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States keep their times across windows, however many are read together."""
    monkeypatch.setattr(sound_windows, "CORE", 10)
    monkeypatch.setattr(sound_windows, "CONTEXT", 3)
    recording = Recording(write_clip(tmp_path / "clip.wav", sound=tone(5.23)))
    windows = list(sound_windows.windows(recording, 16_000, 4_800))
    cores = [
        window.samples[window.lead : window.lead + len(window.sound.samples)] for window in windows
    ]
    np.testing.assert_array_equal(np.concatenate(cores), next(recording.sound()).samples)
    assert [len(window.samples) for window in windows] == [20_800, *[25_600] * 3, 24_480, 8_480]
    assert [
        len(batch) for batch in sound_windows.together(iter(windows), max_windows, any_length=False)
    ][1] == max_windows
    speech = sound_windows.SpeechModel(
        ModelFiles(ModelName(str(models / "wavlm"))), "AutoModel", "last_hidden_state", "cpu"
    )
    middles = np.concatenate(
        [w.start / 16_000 + s.middles for w, s in speech.states([recording], silence=True) if s]
    )
    assert (np.diff(middles) > 0).all()
    np.testing.assert_allclose(np.diff(middles), 0.02, atol=0.012)
    together = speech._read(windows[1:4])
    for window, states in zip(windows[1:4], together, strict=True):
        np.testing.assert_allclose(states.values, speech._read([window])[0].values, atol=1e-5)


def test_a_step_without_a_state_takes_the_nearest() -> None:
    states = States(np.array([[1.0], [3.0], [5.0]], np.float32), np.array([0.05, 0.08, 0.43]), 0.02)
    assert by_step(states, 5)[:, 0].tolist() == [2.0, 3.0, 3.0, 5.0, 5.0]


@pytest.mark.parametrize("seconds", [0.01, 0.1])
def test_the_shortest_sound(models: Path, tmp_path: Path, seconds: float) -> None:
    clip = Clip(write_clip(tmp_path / "clip.wav", sound=tone(seconds)))
    for kind in ("wav2vec2", "whisper"):
        assert Speech(str(models / kind)).frames(clip).values.shape == (1, 8)


# --------------------------------------------------------------------------------------------------
# vision


@pytest.mark.parametrize("kind", ["clip", "dinov2", "vit"])
def test_faces_are_read_and_missing_like_the_mesh(models: Path, tmp_path: Path, kind: str) -> None:
    pictures = [*[with_face(0.4 + 0.05 * i) for i in range(4)], *[plain(120)] * 3]
    clip = Clip(write_clip(tmp_path / "clip.mkv", pictures, tone(1.0)))
    frames, embedded = Image(str(models / kind)).frames(clip), FaceMesh().frames(clip)
    assert frames.values.shape == (10, 8)
    np.testing.assert_array_equal(frames.present, embedded.present)
    assert dict(frames.missing) == dict(embedded.missing) == {"no face": 3, "video stream over": 3}
    assert (frames.values[4:] == 0).all()
    assert np.isfinite(frames.values).all()
    assert np.ptp(frames.values[:4], axis=0).max() > 0


def test_an_unchanged_picture_is_read_once(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = Clip(write_clip(tmp_path / "clip.mkv", [with_face(), with_face(0.3)], times=[0, 2.0]))
    image, read = Image(str(models / "vit")), []
    monkeypatch.setattr(
        image, "_read", lambda batch, old=image._read: read.append(len(batch)) or old(batch)
    )
    frames = image.frames(clip)
    assert frames.present.all()
    assert len(frames.present) > 20  # more than one batch
    assert sum(read) == 2
    np.testing.assert_array_equal(frames.values[0], frames.values[19])
    assert not np.array_equal(frames.values[0], frames.values[-1])


@pytest.mark.parametrize(
    "tree", [[], {}, {"size": 10**9, "image_mean": [0] * 3, "image_std": [1] * 3}, {"size": "x"}]
)
def test_an_incomplete_preprocessor_is_refused(tree: Any) -> None:
    with pytest.raises(CorrKDError, match="has no valid size and colours"):
        preparation(tree, "x")


# --------------------------------------------------------------------------------------------------
# language


@pytest.mark.parametrize("kind", ["bert", "xlm-r"])
def test_pieces_are_averaged_over_their_word(models: Path, kind: str) -> None:
    frames = Text(str(models / kind)).frames(Clip(None, "Unlikely good films"))
    model = transformers.AutoModel.from_pretrained(models / kind).eval()
    ids = torch.tensor([[2, 9, 10, 11, 5, 6, 7, 3]])
    with torch.no_grad():
        states = model(ids).last_hidden_state[0].numpy()
    expected = np.stack([states[1:4].mean(0), states[4], states[5:7].mean(0)])
    np.testing.assert_allclose(frames.values, expected, atol=1e-5)
    assert frames.present.all()
    silent = Text(str(models / kind)).frames(Clip(None, " "))
    assert (silent.values.shape, dict(silent.missing)) == ((1, 8), {"no words": 1})


@pytest.mark.parametrize("kind", ["bert", "xlm-r"])
def test_a_long_text_is_read_in_windows(models: Path, kind: str) -> None:
    words = ["good", "unlikely", "films", "very"] * 40
    frames = Text(str(models / kind)).frames(Clip(None, " ".join([*words, "unlikely" * 30])))
    assert frames.values.shape == (161, 8)
    assert frames.present.all()
    text = Text(str(models / kind))
    first = next(iter(text._spans(words)))
    alone = text.frames(Clip(None, " ".join(words[: first[1]])))
    np.testing.assert_allclose(frames.values[: first[1]], alone.values, atol=1e-5)


def test_a_word_without_a_piece_is_missing(models: Path) -> None:
    frames = Text(str(models / "bert")).frames(Clip(None, "good \u200b film"))
    assert frames.present.tolist() == [True, False, True]
    assert dict(frames.missing) == {"no token of the word": 1}


# --------------------------------------------------------------------------------------------------
# several clips together


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return clips of unequal lengths: one without sound, one silent, one without a face, one a
    text, one longer than a window of the tiny Whisper.
    """
    folder = tmp_path_factory.mktemp("clips")
    moving = [with_face(0.4 + 0.02 * i) for i in range(8)]
    paths = [
        write_clip(folder / "face.mkv", moving, tone(0.8)),
        write_clip(folder / "mute.mkv", [*moving[:3], plain(100)]),
        write_clip(folder / "silent.mkv", [plain(100)] * 4, np.zeros(6_400, np.float32)),
        write_clip(folder / "long.wav", sound=np.concatenate([tone(4.0, 110), PAUSE, tone(1.03)])),
        folder / "note.txt",
        write_clip(folder / "voice.wav", sound=tone(0.87, 330)),
        write_clip(folder / "again.wav", sound=tone(0.87, 440)),
    ]
    texts = ["good film", "", "unlikely", "very good " * 9, "good", "film", ""]
    for path, text in zip(paths, texts, strict=True):
        path.with_suffix(".txt").write_text(text, "utf-8")
    return paths


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # of transformers
@pytest.mark.parametrize(
    ("extractor", "num_calls"),
    [
        ("language=text:bert", 1),
        ("language=text:xlm-r", 1),
        ("vision=image:clip", 1),
        ("vision=image:dinov2", 1),
        ("audio=speech:whisper", 1),
        ("audio=speech:wav2vec2-large", 1),
        ("audio=speech:hubert-large", 1),
        ("audio=speech:wavlm-large", 1),
        ("audio=speech:wav2vec2", 3),  # padding would change it: only equal lengths
        ("audio=speech:wavlm", 3),
    ],
)
def test_clips_read_together_match_single_ones(
    models: Path, clips: list[Path], extractor: str, num_calls: int
) -> None:
    modality, _, name = extractor.partition("=")
    kind, _, model = name.partition(":")
    settings = FeatureSettings(extractors={modality: f"{kind}:{models / model}"})
    alone = [extract(path, settings).frames[modality] for path in clips]
    used = extractors(settings)[modality]
    network = used._model._model if kind == "speech" else used._model  # type: ignore[attr-defined]
    calls: list[object] = []
    hook = network.register_forward_hook(lambda *_: calls.append(None))
    together = extract_together([(path, "") for path in clips], settings)
    hook.remove()
    assert len(calls) == num_calls
    for expected, features in zip(alone, together, strict=True):
        frames = features.frames[modality]
        np.testing.assert_array_equal(frames.present, expected.present)
        np.testing.assert_array_equal(frames.times, expected.times)
        assert frames.missing == expected.missing
        np.testing.assert_allclose(frames.values, expected.values, atol=2e-5)
    assert sum(frames.present.any() for frames in alone) >= 2


def test_a_folder_is_read_in_batches(models: Path, clips: list[Path], tmp_path: Path) -> None:
    """A clip that cannot be read does not affect the others of its batch."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for path in clips:
        shutil.copy(path, folder)
        shutil.copy(path.with_suffix(".txt"), folder)
    (folder / "corrupt.mkv").write_bytes(bytes(3000))
    arguments = [
        *("--extractor", f"audio=speech:{models / 'wavlm-large'}"),
        *("--extractor", f"language=text:{models / 'bert'}", "--extractor", "vision=none"),
    ]
    splits = []
    for batch, jobs in ((1, 1), (3, 1), (3, 2)):
        out = tmp_path / f"{batch}-{jobs}.h5"
        done = corrkd(
            "features", folder, "--out", out, *arguments, "--batch", batch, "--jobs", jobs
        )
        assert done.code == 1, done.err
        assert "left out: corrupt.mkv: " in done.err
        (split,) = load_dataset(out, targets=False).splits.values()
        assert sorted(split.ids) == sorted(path.stem for path in clips)
        splits.append(split)
    for m in ("audio", "language"):
        np.testing.assert_array_equal(splits[1].frames[m], splits[2].frames[m])
        np.testing.assert_allclose(splits[0].frames[m], splits[1].frames[m], atol=2e-5)


# -----------------------------------------------------------------------------------------------
# selection and refusal


def settings_for(models: Path, **changes: Any) -> FeatureSettings:
    extractors = {"language": f"text:{models / 'bert'}", "audio": f"speech:{models / 'wavlm'}"}
    return FeatureSettings(extractors=extractors, **changes)


def test_a_description_gives_the_same_extractors(models: Path, tmp_path: Path) -> None:
    settings = settings_for(models, align="words")
    described: dict[str, Any] = json.loads(describe(settings).model_dump_json())
    assert settings_of(described, "x") == (settings, [])
    assert described["libraries"]["transformers"] == transformers.__version__
    audio = described["modalities"]["audio"]
    assert audio["model"] == str(models / "wavlm")
    assert len(audio["weights"]["model.safetensors"]) == 64
    assert len(audio["columns"]) == 8
    clip = write_clip(tmp_path / "a.wav", sound=tone(1.0))
    repeated = extract(clip, settings_of(described, "x")[0], "good films")
    expected = extract(clip, settings, "good films")
    np.testing.assert_array_equal(repeated.frames["audio"].values, expected.frames["audio"].values)
    audio["weights"]["model.safetensors"] = "0" * 64
    with pytest.raises(
        CorrKDError,
        match=r"its audio was extracted by 'speech', which differs .*weights of model.safetensors",
    ):
        settings_of(described, "x")
    audio["model"] = str(models / "nowhere")
    with pytest.raises(
        CorrKDError, match=r"nowhere: no such folder, and could not be downloaded from the hub"
    ):
        settings_of(described, "x")


def test_a_commit_of_the_hub_is_recorded(
    models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetched = []
    commit = tmp_path / ("c" * 40)
    commit.symlink_to(models / "bert")

    def download(model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        fetched.append((model, revision))
        assert not any(pattern.endswith((".bin", ".py", ".pt", "*")) for pattern in allow_patterns)
        return str(commit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    settings = FeatureSettings(extractors={"language": "text:somebody/model"})
    described = describe(settings).model_dump(mode="json")
    assert described["modalities"]["language"]["revision"] == "c" * 40
    assert settings_of(described, "x")[0].extractors == {
        "language": f"text:somebody/model@{'c' * 40}"
    }
    assert fetched == [("somebody/model", None), ("somebody/model", "c" * 40)]


def test_names_of_models() -> None:
    assert parse_model("a/b@main") == ModelName("a/b", "main")
    assert parse_model("a/b") == ModelName("a/b")
    assert with_changes("hub", ["audio=speech:a/b@c"]) == {
        **PRESETS["hub"],
        "audio": "speech:a/b@c",
    }
    with pytest.raises(
        CorrKDError,
        match="extractor 'speech': add a model on the hub or a folder, as audio=speech:MODEL",
    ):
        make_extractor("speech", "audio")
    with pytest.raises(CorrKDError, match="extractor 'prosody': takes no model"):
        make_extractor("prosody:x", "audio")
    with pytest.raises(CorrKDError, match="'text': makes features of language, not of audio"):
        make_extractor("text:x", "audio")


def test_models_that_are_refused(models: Path, tmp_path: Path) -> None:
    bert = json.loads((models / "bert" / "config.json").read_text())

    def folder(name: str, **config: Any) -> Path:
        copy = tmp_path / name
        copy.mkdir()
        for file in (models / "bert").iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        (copy / "config.json").write_text(json.dumps(bert | config))
        return copy

    deeper = folder("deeper", num_hidden_layers=2)
    with pytest.raises(
        CorrKDError, match=r"its weights lack \d+ parameters of BertModel, as encoder.layer.1"
    ):
        Text(str(deeper)).load()
    code = folder(
        "code", model_type="mine", auto_map={"AutoConfig": "code.C", "AutoModel": "code.M"}
    )
    (code / "code.py").write_text("raise SystemExit('code of a model was run')")
    with pytest.raises(CorrKDError, match="cannot be read"):
        Text(str(code))
    pickled = folder("pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(CorrKDError, match="cannot be read"):
        Text(str(pickled)).load()
    with pytest.raises(CorrKDError, match="cannot be read") as error:
        Speech(str(models / "bert")).load()
    assert "\n" not in str(error.value)
    with pytest.raises(CorrKDError, match=r"has no preprocessor_config\.json"):
        Image(str(models / "bert")).load()


def test_without_transformers(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(
        CorrKDError, match=r"transformers is not installed; pip install 'corrkd\[hub\]'"
    ):
        Text(str(models / "bert"))
