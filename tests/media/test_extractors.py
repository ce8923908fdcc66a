"""The embedded extractors: their measurements, and how they mark what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from corrkd.errors import CorrKDError
from corrkd.media.align import by_word
from corrkd.media.clip import Clip
from corrkd.media.extractors import prosody
from corrkd.media.extractors.base import Frames, middles
from corrkd.media.extractors.face_mesh import DISTANCES, FaceMesh, laid_on_canonical, measured
from corrkd.media.extractors.face_networks import NUM_POINTS, faces, networks
from corrkd.media.extractors.hash_words import HashWords
from corrkd.media.extractors.prosody import Prosody
from corrkd.media.extractors.registry import extractor_class, with_changes
from corrkd.media.transcripts import Word
from tests.media.clips import plain, tone, with_face, write_clip

ROOT = Path(__file__).parents[2]
WEIGHTS_SUM = "391882805613eed7cf0e7198cdf0eaaaeae081339b4c8517e397d6a0a5449aea"
PITCH, VOICING = (Prosody.columns.index(f"{name}_mean") for name in ("pitch_semitones", "voicing"))
PAUSE = np.zeros(16_000, np.float32)


# --------------------------------------------------------------------------------------------------
# language


def test_words_are_hashed_alike_at_any_position() -> None:
    frames = HashWords().frames(Clip(None, "good film good Film"))
    assert frames.values.shape == (4, 256)
    assert frames.present.all()
    np.testing.assert_array_equal(frames.values[0], frames.values[2])
    np.testing.assert_array_equal(frames.values[1], frames.values[3])
    assert not np.array_equal(frames.values[0], frames.values[1])
    np.testing.assert_allclose(np.linalg.norm(frames.values, axis=1), 1, rtol=1e-6)
    silent = HashWords().frames(Clip(None, " "))
    assert (silent.values.shape, silent.present.tolist(), dict(silent.missing)) == (
        (1, 256),
        [False],
        {"no words": 1},
    )


# --------------------------------------------------------------------------------------------------
# audio


def test_a_tone_has_its_pitch_and_a_pause_is_missing(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "clip.wav", sound=np.concatenate([tone(1.0, 110), PAUSE, tone(1.0, 220)])
    )
    frames = Prosody().frames(Clip(path))
    assert frames.values.shape == (30, 54)
    assert frames.present.tolist() == [True] * 10 + [False] * 10 + [True] * 10
    assert dict(frames.missing) == {"silence": 10}
    np.testing.assert_allclose(frames.values[2:8, PITCH], 12, atol=0.2)  # an octave above 55 Hz
    np.testing.assert_allclose(frames.values[22:28, PITCH], 24, atol=0.3)
    assert (frames.values[2:8, VOICING] > 0.9).all()
    assert (frames.values[10:20] == 0).all()
    np.testing.assert_allclose(frames.times[:3], [0.05, 0.15, 0.25])


def test_sound_below_70_decibels_is_missing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=8000).astype(np.float32)
    levels = np.concatenate([noise * 10 ** (-60 / 20), noise * 10 ** (-76 / 20)])
    frames = Prosody().frames(Clip(write_clip(tmp_path / "clip.flac", sound=levels)))
    assert frames.present.tolist() == [True] * 5 + [False] * 5


def test_descriptors_do_not_depend_on_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    clip = Clip(
        write_clip(tmp_path / "clip.wav", sound=tone(1.73, 150) + 0.05 * rng.normal(size=27_680))
    )
    one_block = Prosody().frames(clip)
    monkeypatch.setattr(prosody, "BLOCK", 3 * 1600)
    several_blocks = Prosody().frames(clip)
    np.testing.assert_allclose(several_blocks.values, one_block.values, atol=1e-4)
    assert np.isfinite(one_block.values).all()
    assert len(one_block.present) == 18


# --------------------------------------------------------------------------------------------------
# vision


def reference_input(size: int) -> torch.Tensor:
    """Return the picture that scripts/convert_face_mesh.py gives to the original networks, (1, 3,
    size, size).
    """
    y, x, channel = np.meshgrid(np.arange(size), np.arange(size), np.arange(3), indexing="ij")
    picture = (0.5 + 0.5 * np.sin(0.11 * x + 0.07 * y * (channel + 1) + channel)).astype(np.float32)
    return torch.from_numpy(picture).permute(2, 0, 1)[None]


def test_networks_match_the_originals() -> None:
    """The reference is LiteRT's output for the original files."""
    expected = load_file(Path(__file__).parent / "face_mesh_reference.safetensors")
    boxes, scores = networks().detector(reference_input(128) * 2 - 1)
    np.testing.assert_allclose(boxes[0, ::8].numpy(), expected["detector.0"], atol=1e-3)
    np.testing.assert_allclose(scores[0, ::8].numpy(), expected["detector.1"], atol=1e-3)
    points, flag = networks().mesh(reference_input(192))
    np.testing.assert_allclose(points.reshape(-1).numpy(), expected["mesh.0"], atol=1e-3)
    np.testing.assert_allclose(flag.reshape(-1).numpy(), expected["mesh.1"], atol=1e-4)


def test_the_weights_are_the_converted_ones() -> None:
    assert FaceMesh().weights() == {"face_mesh.safetensors": WEIGHTS_SUM}
    assert "@mediapipe/face_mesh" in (ROOT / "NOTICE").read_text("utf-8")
    assert networks().vertices.shape == (NUM_POINTS, 3)


def test_a_face_is_located() -> None:
    left, right, none = list(faces([with_face(0.35), with_face(0.65), plain(120)]))
    assert none is None
    assert left is not None
    assert right is not None
    shift = (right.points - left.points)[:, :2].mean(0)
    np.testing.assert_allclose(shift, [0.3 * 320, 0], atol=2)
    nose, chin, brow = (left.points[i] for i in (4, 152, 10))
    assert brow[1] < nose[1] < chin[1]
    right_eye, left_eye, mouth = left.points[33], left.points[263], left.points[13]
    assert right_eye[0] < mouth[0] < left_eye[0]


def test_distances_do_not_change_when_the_head_moves_and_tilts() -> None:
    pictures = [with_face(), with_face(0.4, 0.45), with_face(side=160), with_face(angle=20)]
    rows = []
    for face in faces(pictures):
        assert face is not None
        rows.append(dict(zip(FaceMesh.columns, measured(face), strict=True)))
    first, moved, smaller, tilted = rows
    for row in (moved, smaller, tilted):
        difference = [abs(row[name] - first[name]) for name in DISTANCES]
        assert np.mean(difference) < 0.15  # centimetres
    assert moved["x"] < first["x"] - 0.1
    assert smaller["size"] == pytest.approx(0.8 * first["size"], rel=0.05)
    assert np.degrees(tilted["roll"] - first["roll"]) == pytest.approx(20, abs=4)
    assert abs(np.degrees(first["yaw"])) < 15


@pytest.mark.parametrize("angle", [-90, -80, 45, 90])
def test_roll_is_measured_even_of_a_face_on_its_side(angle: int) -> None:
    upright, turned = faces([with_face(), with_face(angle=angle)])
    assert upright is not None
    assert turned is not None
    first, second = (
        dict(zip(FaceMesh.columns, measured(face), strict=True)) for face in (upright, turned)
    )
    assert np.degrees(second["roll"] - first["roll"]) == pytest.approx(angle, abs=2)
    assert np.degrees(second["pitch"] - first["pitch"]) == pytest.approx(0, abs=4)
    assert abs(np.degrees(turned.square.angle) + angle - np.degrees(upright.square.angle)) < 8


def test_procrustes_recovers_the_rotation_of_a_face() -> None:
    vertices = networks().vertices
    angle = np.radians(25)
    turn = np.array(
        [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    )
    pixels = (7 * vertices @ turn.T + (100, -80, 3)) * (1, -1, -1)
    rotation, scale, canonical = laid_on_canonical(pixels)
    np.testing.assert_allclose(rotation, turn, atol=1e-9)
    assert scale == pytest.approx(1 / 7)
    np.testing.assert_allclose(
        canonical - canonical.mean(0), vertices - vertices.mean(0), atol=1e-9
    )


def test_steps_without_a_face_are_missing(tmp_path: Path) -> None:
    pictures = [*[with_face()] * 4, *[plain(120)] * 4]
    frames = FaceMesh().frames(Clip(write_clip(tmp_path / "clip.mkv", pictures, tone(1.0))))
    assert frames.present.tolist() == [True] * 4 + [False] * 6
    assert dict(frames.missing) == {"no face": 4, "video stream over": 2}
    assert (frames.values[4:] == 0).all()
    assert frames.values.shape == (10, 40)


# --------------------------------------------------------------------------------------------------
# all of them


def test_missing_streams_have_a_reason(tmp_path: Path) -> None:
    audio, video = (
        write_clip(tmp_path / "a.wav", sound=tone(0.4)),
        write_clip(tmp_path / "v.mp4", [plain(3)] * 4),
    )
    for extractor, clip, reason in (
        (FaceMesh(), Clip(audio), "no video stream"),
        (Prosody(), Clip(video), "no audio stream"),
    ):
        frames = extractor.frames(clip)
        assert not frames.present.any()
        assert dict(frames.missing) == {reason: 4}
    for extractor in (FaceMesh(), Prosody()):
        assert dict(extractor.frames(Clip(None, "words")).missing) == {"no recording": 1}


def test_frames_by_word() -> None:
    values = np.arange(10, dtype=np.float32)[:, None]
    present = np.arange(10) != 4
    frames = Frames(values, present, middles(10, 0.1), {"silence": 1})
    words = [
        Word("a", 0.0, 0.2),
        Word("b", 0.25, 0.45),
        Word("c", 0.41, 0.49),
        Word("d", 0.9, 3.0),
        Word("e", 5.0, 6.0),
    ]
    aligned = by_word(frames, words)
    assert aligned.values[:, 0].tolist() == [0.5, 2.5, 0.0, 9.0, 0.0]
    assert aligned.present.tolist() == [True, True, False, True, False]
    assert dict(aligned.missing) == {"silence": 2}


def test_registry() -> None:
    for name, modality in {
        "hash-words": "language",
        "prosody": "audio",
        "facemesh": "vision",
    }.items():
        kind = extractor_class(name, modality)
        assert len(set(kind.columns)) == len(kind.columns) == kind().width
    assert (len(Prosody.columns), len(FaceMesh.columns), len(HashWords.columns)) == (54, 40, 256)
    with pytest.raises(CorrKDError, match="unknown extractor 'nope'; available: hash-words"):
        extractor_class("nope", "audio")
    with pytest.raises(CorrKDError, match="'prosody': makes features of audio, not of vision"):
        extractor_class("prosody", "vision")
    assert with_changes("embedded", ["vision=none"]) == {
        "language": "hash-words",
        "audio": "prosody",
    }
    with pytest.raises(CorrKDError, match="expected MODALITY=NAME"):
        with_changes("embedded", ["prosody"])
    with pytest.raises(CorrKDError, match="unknown preset of extractors 'big'"):
        with_changes("big")
