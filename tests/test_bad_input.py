"""Bad input through the command line: one line, no traceback, no partial files."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import corrkd as package
from corrkd.networks.saved import load_network
from corrkd.parsing import yaml_with_digest
from tests.command import corrkd
from tests.experiment.conftest import contents, finished, tiny, write_npz  # noqa: F401  (a fixture)

WIDTHS = {"language": 5, "audio": 3}
STUDENT = Path("synthetic", "seed-0", "student")
FAST = {"teacher": {"epochs": 1, "batch_size": 30}, "student": {"epochs": 1, "batch_size": 30}}
Arrays = dict[str, Any]


def settings_file(folder: Path, **changes: Any) -> Path:
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(tiny(**{**FAST, **changes})))
    return path


def damaged_npz(path: Path, change: Callable[[Arrays], object]) -> Path:
    arrays = dict(np.load(write_npz(path, WIDTHS)))
    change(arrays)
    np.savez(path, **arrays)
    return path


def of_split(arrays: Arrays, name: str) -> Any:
    return arrays["split"] == name


def set_rows(key: str, split: str, value: Any) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[key] = arrays[key].astype(np.float64)
        arrays[key][of_split(arrays, split)] = value

    return change


@pytest.mark.parametrize(
    ("change", "target", "message"),
    [
        (
            lambda a: a.update(split=np.where(of_split(a, "valid"), "train", a["split"])),
            "classes",
            "no split 'valid'",
        ),
        (
            lambda a: a.update(split=np.where(of_split(a, "test"), "train", a["split"])),
            "classes",
            "no split 'test'",
        ),
        (
            lambda a: a.update(audio_lengths=np.full(60, 5)),
            "classes",
            "lengths run from 5 to 5, but the array holds",
        ),
        (set_rows("labels", "train", np.nan), "classes", "labels contain NaN"),
        (set_rows("scores", "test", np.nan), "score", "NaN"),
        (set_rows("labels", "test", 7), "classes", "label 7 is outside the 3 classes"),
        (set_rows("labels", "valid", -1), "classes", "labels must be"),
        (
            lambda a: a.update(labels=np.where(a["labels"] == 1, 0, a["labels"])),
            "classes",
            "no sample of class '1'",
        ),
        (set_rows("scores", "train", 1.0), "binary-nonzero", "no sample of class 'negative'"),
        (set_rows("scores", "train", 0.0), "binary-nonzero", "no sample is left"),
        (set_rows("audio", "train", 2.0), "classes", "modality audio is constant"),
        (lambda a: a.update(audio=np.full((60, 4, 3), np.nan)), "classes", "no frame is present"),
        (lambda a: a.update(audio=np.zeros((60, 4, 0))), "classes", "zero width"),
        (lambda a: a.update(audio=np.zeros((60, 4, 3))), "classes", "audio"),
        (lambda a: a.update(audio_lengths=np.arange(59)), "classes", "lengths"),
        (
            lambda a: [a.pop("labels"), a.pop("scores")],
            "classes",
            "`scores` or `labels` is required",
        ),
        (lambda a: a.pop("labels"), "classes", "needs labels"),
        (lambda a: a.pop("scores"), "tertiles", "needs scores"),
        (lambda a: a.pop("scores"), "questions", "yes/no labels"),
    ],
)
def test_data_that_cannot_be_learned_from(
    tmp_path: Path, change: Callable[[Arrays], object], target: str, message: str
) -> None:
    data, out = damaged_npz(tmp_path / "d.npz", change), tmp_path / "out" / "run"
    done = corrkd(
        "run",
        "--settings",
        settings_file(tmp_path),
        "--data",
        data,
        "--target",
        target,
        "--out",
        out,
    )
    assert message in done.line
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.npz", None, "no such file"),
        ("d.npz", b"", "d.npz"),
        ("d.pkl", b"\x80\x04 no pickle", "d.pkl"),
        ("d.csv", b"a,b\n1,2\n", "d: no modality in a, b"),
        ("d.pkl", pickle.dumps(os.system), "d.pkl"),
        ("d.pkl", pickle.dumps({"train": {"text": [1]}}), "d, train"),
    ],
)
def test_files_of_another_kind(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for command in (("run", "--out", tmp_path / "run", "--data", path), ("data", "inspect", path)):
        assert message in corrkd(*command).line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["npz", "safetensors", "converted"])
def test_truncated_files(tmp_path: Path, kind: str) -> None:
    path = write_npz(tmp_path / "d.npz", WIDTHS)
    if kind == "safetensors":
        from safetensors.numpy import save_file

        arrays = {k: np.ascontiguousarray(x) for k, x in np.load(path).items() if k != "split"}
        path = tmp_path / "d.safetensors"
        save_file(arrays, path)
    elif kind == "converted":
        from corrkd.data.convert import convert

        path = tmp_path / "c.safetensors"
        convert(package.load_dataset(tmp_path / "d.npz"), path)
    content = path.read_bytes()
    for share in (0.1, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        assert path.name in corrkd("data", "convert", path, tmp_path / "out.safetensors").line
    assert not (tmp_path / "out.safetensors").exists()


def test_unknown_modalities_and_conditions(tmp_path: Path) -> None:
    data, out = write_npz(tmp_path / "d.npz", WIDTHS), tmp_path / "run"
    args = ("run", "--settings", settings_file(tmp_path), "--data", data, "--out", out)
    line = corrkd(*args, "--set", "data.modalities=[language, vision]").line
    assert "has no modality 'vision'; it has language, audio" in line
    assert (
        "unknown condition 'vision'" in corrkd(*args, "--set", "evaluation.projection=vision").line
    )
    for none_or_twice in ("[]", "[audio, audio]"):
        assert (
            "at least one, each once"
            in corrkd(*args, "--set", f"data.modalities={none_or_twice}").line
        )
    assert not out.exists()


def trained(folder: Path, **changes: Any) -> Path:
    """Return a run that was killed while training its student."""
    from tests.command import ends_at

    out = folder / "run"
    first = ends_at("corrkd.training.checkpoint:CheckpointWriter", "write", 3)
    settings = settings_file(folder, student={"epochs": 3, "batch_size": 30}, **changes)
    assert corrkd("train", "--settings", settings, "--out", out, first=first).code == -9
    assert (out / STUDENT / "student.ckpt").exists()
    return out


def test_damaged_checkpoints(tmp_path: Path) -> None:
    out = trained(tmp_path)
    path = out / STUDENT / "student.ckpt"
    valid = path.read_bytes()
    import torch

    strange = tmp_path / "strange.ckpt"
    torch.save({"method": {}, "progress": {}, "optimizer": {}, "scheduler": {}}, strange)
    for content in (b"", valid[: len(valid) // 2], pickle.dumps(os.system), strange.read_bytes()):
        path.write_bytes(content)
        line = corrkd("resume", out, report=False).line
        assert "student.ckpt" in line
        assert "delete it to train" in line
        assert path.read_bytes() == content
    path.unlink()
    assert corrkd("resume", out, report=False).code == 0


def test_a_checkpoint_of_another_shape(tmp_path: Path) -> None:
    out = trained(tmp_path)
    digest, text = (out / "plan.yaml").read_text().split("\n", 1)
    text = text.replace("feedforward: 16", "feedforward: 24")
    (out / "plan.yaml").write_text(f"{digest}\n{text}")
    line = corrkd("resume", out, report=False).line
    assert "plan.yaml: changed since it was written" in line
    assert "put it back" in line
    (out / "plan.yaml").write_text(yaml_with_digest(text))
    assert (
        "student.ckpt: the checkpoint is of another network"
        in corrkd("resume", out, report=False).line
    )


def test_a_damaged_run(finished: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    student = out / STUDENT / "student.safetensors"
    content = student.read_bytes()
    student.write_bytes(content[:-8])
    line = corrkd("evaluate", out, "--data", "synthetic", "--out", tmp_path / "r.csv").line
    assert "student.safetensors: damaged" in line
    assert not (tmp_path / "r.csv").exists()
    (out / STUDENT / "results.csv").write_bytes(b"")
    assert "results.csv: damaged" in corrkd("resume", out, report=False).line
    (out / STUDENT / "results.csv").unlink()
    assert "student.safetensors: damaged" in corrkd("resume", out, report=False).line
    assert not (out / STUDENT / "results.csv").exists()
    (out / "synthetic" / "run.json").write_text("{")
    line = corrkd("resume", out, report=False).line
    assert "run.json: invalid JSON" in line
    assert "delete it to go on" in line
    (out / "plan.yaml").write_text("a: [")
    assert "plan.yaml: changed since it was written" in corrkd("resume", out, report=False).line


def limited(size: int) -> None:
    """Allow no file beyond this size, like a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("size", [800, 3000, 6000, 16000])
def test_a_full_disk(tmp_path: Path, size: int) -> None:
    """At any file: a one-line error, and a run that can be resumed when there is space."""
    settings, out = settings_file(tmp_path), tmp_path / "run"
    assert (
        "File too large"
        in corrkd("run", "--settings", settings, "--out", out, first=partial(limited, size)).line
    )
    assert not list(out.rglob("*.part"))
    for path in out.rglob("*.json"):
        if path.name != "run.json":
            load_network(path)
    again = (
        ("resume", out)
        if (out / "plan.yaml").exists()
        else ("run", "--settings", settings, "--out", out)
    )
    assert corrkd(*again, report=False).code == 0


def no_space_for_events() -> None:
    """Let TensorBoard's writing thread find a full disk."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    def write(*_: object) -> None:
        raise OSError(28, "No space left on device")

    RecordWriter.write = write


def test_a_full_disk_where_a_library_writes(tmp_path: Path) -> None:
    settings, out = settings_file(tmp_path), tmp_path / "run"
    done = corrkd("train", "--settings", settings, "--out", out, first=no_space_for_events)
    assert "No space left on device" in done.line
    assert corrkd("resume", out, report=False).code == 0


def test_a_full_disk_leaves_older_files_unchanged(finished: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = contents(out)
    for command, size in (("resume", 900), ("report", 5000)):
        assert "File too large" in corrkd(command, out, first=partial(limited, size)).line
    assert contents(out).keys() == before.keys()
    assert not list(out.rglob("*.part"))
    csv, masks, data = (
        tmp_path / "r.csv",
        tmp_path / "m.safetensors",
        write_npz(tmp_path / "d.npz", {"language": 8, "audio": 8, "vision": 8}),
    )
    for path in (csv, masks, tmp_path / "d.safetensors"):
        path.write_text("older")
    full = partial(limited, 800)
    args = ("evaluate", out, "--data", data, "--conditions", "complete,ratio-0.5")
    commands = (
        (*args, "--out", csv),
        (*args, "--export-masks", masks),
        ("data", "convert", data, tmp_path / "d.safetensors"),
    )
    for command in commands:
        assert (
            "already exists; choose another file, or replace it with --overwrite"
            in corrkd(*command).line
        )
        assert "File too large" in corrkd(*command, "--overwrite", first=full).line
    assert all(path.read_text() == "older" for path in (csv, masks, tmp_path / "d.safetensors"))
    assert not list(tmp_path.glob(".*"))


def test_folders_that_cannot_be_created(finished: Path, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "file"
    file.write_text("mine")
    settings = settings_file(tmp_path)
    data = write_npz(tmp_path / "d.npz", {"language": 8, "audio": 8, "vision": 8})
    for out in (file, file / "run", file / "deep" / "run"):
        assert str(out) in corrkd("run", "--settings", settings, "--out", out).line
        assert str(out) in corrkd("run", "--settings", settings, "--out", out, "--overwrite").line
    args = ("evaluate", finished, "--data", data, "--conditions", "complete,ratio-0.5")
    assert "cannot create the folder" in corrkd(*args, "--out", file / "r.csv").line
    assert (
        "cannot create the folder" in corrkd(*args, "--export-masks", file / "m.safetensors").line
    )
    assert (
        "cannot create the folder" in corrkd("data", "convert", data, file / "d.safetensors").line
    )
    assert file.read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"file", "settings.yaml", "d.npz"}


def test_a_folder_with_other_files(tmp_path: Path) -> None:
    settings, out = settings_file(tmp_path), tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    for options in ((), ("--overwrite",)):
        assert (
            "contains other files and no run"
            in corrkd("run", "--settings", settings, "--out", out, *options).line
        )
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]
