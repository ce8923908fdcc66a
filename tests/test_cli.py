"""Every command, as a user types it."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pytest
import typer
import yaml
from typer.testing import CliRunner

import corrkd as package
from corrkd import cli
from corrkd.presets import preset_names
from tests.command import corrkd, sketched
from tests.experiment.conftest import contents, finished, tiny, write_npz  # noqa: F401  (a fixture)

FAST = {"teacher": {"epochs": 1, "batch_size": 30}, "student": {"epochs": 1, "batch_size": 30}}
ABSENT = "cuda" if sys.platform == "darwin" else "mps"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny(**FAST)))
    return path


def test_version_and_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "corrkd", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"corrkd {package.__version__}\n"
    assert done.stderr == ""
    pages = {
        args: corrkd(*args)
        for args in ((), ("--help",), ("data",), ("data", "--help"), ("run", "--help"))
    }
    assert all(page.code == 0 and not page.err for page in pages.values())
    for command in (
        "run",
        "train",
        "evaluate",
        "compare",
        "tune",
        "report",
        "resume",
        "presets",
        "data",
    ):
        assert command in pages[()].out
    assert "inspect" in pages["data",].out
    assert "convert" in pages["data", "--help"].out
    assert "--set" in pages["run", "--help"].out


def every_command() -> dict[tuple[str, ...], Any]:
    """Return all commands by their names, from the root on."""
    out: dict[tuple[str, ...], Any] = {}
    waiting: list[tuple[tuple[str, ...], Any]] = [((), typer.main.get_command(cli.app))]
    while waiting:
        names, command = waiting.pop()
        out[names] = command
        waiting += [((*names, name), c) for name, c in getattr(command, "commands", {}).items()]
    return out


@pytest.mark.parametrize("names", every_command(), ids=" ".join)
def test_help_of_every_command(names: tuple[str, ...]) -> None:
    """Square brackets, too, as they are no markup."""
    short, long = (CliRunner().invoke(cli.app, [*names, flag]) for flag in ("-h", "--help"))
    assert (short.exit_code, short.output) == (0, long.output)
    page = "".join(long.output.split())
    for parameter in every_command()[names].params:
        assert "".join((getattr(parameter, "help", None) or "").split()) in page


def test_square_brackets_are_unchanged_in_help() -> None:
    app = typer.Typer(rich_markup_mode=cli.app.rich_markup_mode)

    @app.command()
    def command(key: Annotated[str, typer.Option(help="Needs corrkd[media].")] = "") -> None:
        """Install corrkd[serve]."""

    page = CliRunner().invoke(app, ["--help"]).output
    assert "Install corrkd[serve]." in page
    assert "Needs corrkd[media]." in page


def test_every_command_that_computes_takes_a_device() -> None:
    computing = ("run", "train", "compare", "tune", "evaluate", "predict", "serve", "features")
    for name in computing:
        options = [o for p in every_command()[name,].params for o in p.opts]
        assert "--device" in options, name


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", [0, 1, 2]), ("3,", [3]), ("0,3,7", [0, 3, 7]), ("0, 3,", [0, 3]), ("0,", [0])],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert cli.seeds_of(text) == seeds


@pytest.mark.parametrize("text", [",", "", "3,,4", "a", "3;4", "0"])
def test_invalid_seeds(text: str) -> None:
    with pytest.raises(package.CorrKDError, match="--seeds"):
        cli.seeds_of(text)


def check_loaded_modules() -> None:
    assert {"torch", "lightning_fabric"} <= set(sys.modules)
    assert not {"torchmetrics", "transformers"} & set(sys.modules)


def test_lightning_loads_no_torchmetrics() -> None:
    """torchmetrics would load transformers, which takes two seconds."""
    assert corrkd("--version", first=check_loaded_modules).code == 0


def test_run_reports_progress_in_plain_lines(settings: Path, tmp_path: Path) -> None:
    done = corrkd(
        "run",
        "--settings",
        settings,
        "--seeds",
        "1,3",
        "--set",
        "evaluation.conditions.burst=[]",
        cwd=tmp_path,
        first=sketched,
    )
    assert done.code == 0, done.err
    out = tmp_path / "runs" / "synthetic"
    stored = package.load_settings(out / "synthetic" / "settings.yaml")
    assert (stored.seeds, stored.evaluation.conditions["burst"]) == ((1, 3), [])
    assert (out / "report.html").is_file()
    assert {"seed-1", "seed-3"} <= {p.name for p in (out / "synthetic").iterdir()}
    assert "CorrKD student" in done.out
    assert "runs/synthetic/report.html" in done.out
    for line in (
        "seed 1  teacher: 1/1",
        "seed 3  student: 1/1",
        "seed 3  control: 1/1",
        "seed 1  control: evaluation: 36/36",
    ):
        assert line in done.err
    assert "\x1b" not in done.out + done.err
    assert "\r" not in done.err


@pytest.mark.slow
def test_a_terminal_shows_bars(settings: Path, tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "corrkd",
        "train",
        "--settings",
        str(settings),
        "--out",
        str(tmp_path / "run"),
    ]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        command, stderr=terminal, stdout=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(terminal)
        output = b""
        try:
            while chunk := os.read(controller, 65536):
                output += chunk
        except OSError:  # the terminal closes with the process
            pass
        os.close(controller)
    assert process.returncode == 0
    assert "seed 0  student" in output.decode()
    assert "━" in output.decode()


def test_data_alone_get_scaled_settings(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "d.npz", {"language": 5, "audio": 3})
    options = [
        option
        for line in ("student.epochs=1", "teacher.repeats=1", "device=cpu")
        for option in ("--set", line)
    ]
    done = corrkd("train", "--data", data, "--target", "tertiles", *options, cwd=tmp_path)
    assert done.code == 0, done.err
    stored = package.load_settings(tmp_path / "runs" / "d" / "d" / "settings.yaml")
    preset = package.load_settings(preset="corrkd-plus")
    assert (stored.teacher.epochs, stored.student.epochs, stored.data.target) == (64, 1, "tertiles")
    assert stored.student.method == preset.student.method
    (note,) = [line for line in done.err.splitlines() if "corrkd-plus, scaled to " in line]
    assert note.startswith("note: ")
    assert "teachers of 64 epochs, trained in 4 folds; students of 1 epochs" in note
    assert done.err.count("reading ") <= 2


def test_train_then_resume(settings: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = corrkd("train", "--settings", settings, "--out", out, "--seeds", 1)
    assert done.code == 0, done.err
    assert f"corrkd resume {out}" in done.out
    assert not (out / "results.csv").exists()
    assert corrkd("resume", out, first=sketched).code == 0
    assert (out / "results.csv").exists()
    assert (out / "report.html").exists()


def test_overwrite(settings: Path, tmp_path: Path) -> None:
    args = ("train", "--settings", settings, "--out", tmp_path / "run")
    assert corrkd(*args).code == 0
    assert "already contains a run; continue it with `corrkd resume" in corrkd(*args).line
    assert corrkd(*args, "--overwrite", "--seeds", "5").code == 0
    assert (tmp_path / "run" / "synthetic" / "seed-4").exists()


def test_target_jobs_and_preset(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "d.npz", {"language": 5, "audio": 3})
    changes = ("teacher.epochs=1", "student.epochs=1", "teacher.network.layers=1", "device=cpu")
    args = ["train", "--preset", "mosi", "--data", data, "--seeds", 1]
    args += [arg for change in changes for arg in ("--set", change)]
    done = corrkd(*args, "--target", "five", cwd=tmp_path)
    assert done.code == 2
    assert "no sample of class '-2'" in done.line
    done = corrkd(*args, "--target", "score", cwd=tmp_path)
    assert done.code == 0, done.err
    stored = package.load_settings(tmp_path / "runs" / "mosi" / "d" / "settings.yaml")
    assert (stored.data.target, stored.seeds, stored.student.epochs) == ("score", (0,), 1)
    assert stored.student.batch_size == package.load_settings(preset="mosi").student.batch_size


def test_evaluate(finished: Path, tmp_path: Path) -> None:  # noqa: F811
    inspected = package.load_settings(finished / "synthetic" / "settings.yaml").data.synthetic
    from corrkd.data.convert import convert
    from corrkd.experiment.experiment import read

    data = tmp_path / "set.safetensors"
    convert(read(package.Settings(data={"synthetic": inspected}).data), data)
    model, csv, masks = (
        finished / "synthetic" / "seed-1",
        tmp_path / "out" / "results.csv",
        tmp_path / "masks.safetensors",
    )
    names = "complete,audio,vision+audio,ratio-0.5,burst-0.5,natural"
    args = ("evaluate", model, "--data", data, "--conditions", names, "--draws", 2)
    done = corrkd(*args, "--out", csv, "--export-masks", masks)
    assert done.code == 0, done.err
    assert "weighted_f1" in done.out
    assert "audio+vision" in done.out
    table = pd.read_csv(csv)
    assert set(table["condition"]) == {
        "complete",
        "audio",
        "audio+vision",
        "ratio-0.5",
        "burst-0.5",
        "natural",
    }
    results = pd.read_csv(model / "student" / "results.csv")
    merged = table.merge(results, on=["condition", "draw", "metric"])
    assert len(merged) == len(table)
    np.testing.assert_allclose(merged["value_x"], merged["value_y"], atol=1e-6)
    # Replayed masks give the same whatever the mask seed; another seed does not.
    replayed = corrkd(*args, "--masks", masks, "--mask-seed", 5, "--out", tmp_path / "replayed.csv")
    assert replayed.code == 0, replayed.err
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "replayed.csv"), table)
    assert corrkd(*args, "--mask-seed", 5, "--out", tmp_path / "other.csv").code == 0
    assert not pd.read_csv(tmp_path / "other.csv").equals(table)
    # A model's file, a run's first seed, another split.
    on_valid = corrkd(
        "evaluate", finished, "--data", data, "--split", "valid", "--out", tmp_path / "valid.csv"
    )
    assert on_valid.code == 0, on_valid.err
    assert "average" in set(pd.read_csv(tmp_path / "valid.csv")["condition"])


def test_a_report_is_rebuilt(finished: Path, tmp_path: Path) -> None:  # noqa: F811
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    (out / "report.html").unlink()
    done = corrkd("report", out)
    assert done.code == 0
    assert done.out.strip() == str(out / "report.html")
    assert contents(out) == contents(finished)


def test_data_inspect_and_convert(tmp_path: Path) -> None:
    data, out = (
        write_npz(tmp_path / "d.npz", {"language": 5, "gaze": 3}),
        tmp_path / "new" / "d.safetensors",
    )
    inspected = corrkd("data", "inspect", data)
    assert inspected.code == 0, inspected.err
    assert "npz arrays" in inspected.out
    assert "gaze" in inspected.out
    done = corrkd("data", "convert", data, out)
    assert (done.code, done.out.strip()) == (0, str(out)), done.err
    np.testing.assert_array_equal(
        package.load_dataset(out).split("test").frames["gaze"],
        package.load_dataset(data).split("test").frames["gaze"],
    )
    assert "must end in .safetensors" in corrkd("data", "convert", data, tmp_path / "d.pkl").line
    assert "already exists; choose another file" in corrkd("data", "convert", data, out).line
    assert corrkd("data", "convert", data, out, "--overwrite").code == 0


def test_presets() -> None:
    listed = corrkd("presets")
    assert listed.code == 0
    assert [line.split()[0] for line in listed.out.splitlines()] == list(preset_names())
    preset = corrkd("presets", "paper-mosi")
    assert yaml.safe_load(preset.out)["student"]["batch_size"] == 64


@pytest.mark.parametrize(
    ("args", "messages"),
    [
        (("dance",), ["No such command 'dance'"]),
        (("run", "--fast"), ["No such option", "--fast"]),
        (("run", "--jobs", "many"), ["--jobs"]),
        (("resume",), ["Missing argument"]),
        (("evaluate", "run"), ["Missing option '--data'"]),
        (("evaluate", "run", "--data", "synthetic", "--draws", "0"), ["--draws", "1"]),
        (("run", "--set", "student.lrr=1"), ["student.lrr: unknown key", "lr"]),
        (("run", "--set", "student.lr"), ["expected key=value"]),
        (
            ("run", "--preset", "synthetic", "--set", "epochs=3"),
            ["epochs: unknown key; did you mean teacher.epochs or student.epochs?"],
        ),
        (("run", "--preset", "synthetic", "--set", "teacher.network.heads=7"), ["heads = 7"]),
        (
            ("run", "--data", "synthetic", "--set", "data.synthetic={trian: 3}"),
            ["data.synthetic.trian: unknown key", "train"],
        ),
        (("run", "--preset", "nope"), ["unknown preset 'nope'", "paper-mosi"]),
        (("presets", "nope"), ["unknown preset 'nope'"]),
        (("run", "--settings", "absent.yaml"), ["absent.yaml", "No such file"]),
        (("run", "--seeds", "x"), ["--seeds 'x'"]),
        (("run", "--seeds", "0"), ["--seeds '0'", "at least one"]),
        (("run", "--seeds", "1,1"), ["seeds", "each once"]),
        (("run", "--target", "octiles"), ["data.target", "tertiles"]),
        (
            ("run", "--data", "synthetic", "--device", ABSENT),
            [f"device '{ABSENT}' is not available"],
        ),
        (
            ("compare", "--data", "synthetic", "--device", ABSENT, "--out", "new"),
            [f"device '{ABSENT}' is not available"],
        ),
        (
            ("compare", "--data", "synthetic", "--methods", "kl", "--reference", "corrkd"),
            ["reference: is not one of the arms teacher, kl (given: 'corrkd')"],
        ),
        (
            ("run", "--data", "synthetic", "--set", f"device={ABSENT}"),
            [f"device '{ABSENT}' is not available"],
        ),
        (
            ("run", "--data", "synthetic", "--set", "evaluation.projection=smell"),
            ["unknown condition 'smell'"],
        ),
        (
            ("run", "--data", "synthetic", "--set", "data.modalities=[smell]"),
            ["no modality 'smell'", "language"],
        ),
        (("run",), ["nothing to train on: give --data FILE", "--preset NAME", "--settings FILE"]),
        (("run", "--seeds", "2", "--out", "run"), ["nothing to train on"]),
        (("train",), ["nothing to train on"]),
        (("compare",), ["nothing to train on: give --data FILE"]),
        (("compare", "--methods", "kl"), ["nothing to train on"]),
        (("tune",), ["nothing to train on"]),
        (("tune", "--methods", "kl"), ["nothing to train on"]),
        (("resume", "nowhere"), ["nowhere: no such folder"]),
        (("report", "nowhere"), ["nowhere"]),
        (("evaluate", "nowhere", "--data", "synthetic"), ["nowhere: no trained student"]),
        (("data", "inspect", "nowhere"), ["nowhere: no such file"]),
        (("data", "fetch", "hazumi", "--out", "h.csv"), ["h.csv", "must end in .pkl or .h5"]),
        (
            ("data", "fetch", "hazumi", "--from", "nowhere"),
            ["the folder needs clones of Hazumi2010"],
        ),
    ],
)
def test_errors_are_one_line(args: tuple[str, ...], messages: list[str], tmp_path: Path) -> None:
    done = corrkd(*args, cwd=tmp_path)
    for message in messages:
        assert message in done.line
    assert done.out == ""
    assert not list(tmp_path.iterdir())


def test_errors_of_evaluate_are_one_line(finished: Path, tmp_path: Path) -> None:  # noqa: F811
    args = ("evaluate", finished, "--data")
    incomplete = write_npz(tmp_path / "d.npz", {"language": 8, "audio": 8})
    assert "has no modality 'vision'; it has language, audio" in corrkd(*args, incomplete).line
    data = write_npz(tmp_path / "complete.npz", {"language": 8, "audio": 8, "vision": 8})
    assert (
        "unknown condition 'smell'; available:" in corrkd(*args, data, "--conditions", "smell").line
    )
    assert "has no split 'later'" in corrkd(*args, data, "--split", "later").line
    wide = write_npz(tmp_path / "wide.npz", {"language": 24, "audio": 8, "vision": 8})
    assert "language is 24 wide, but the model was trained on 8" in corrkd(*args, wide).line
    assert "conditions: none named" in corrkd(*args, data, "--conditions", "").line
    assert (
        "no sample is naturally incomplete" in corrkd(*args, data, "--conditions", "natural").line
    )
    assert (
        "not a manifest of masks"
        in corrkd(*args, data, "--masks", finished / "synthetic" / "run.json").line
    )
    assert (
        "give only one of them" in corrkd(*args, data, "--masks", "a", "--export-masks", "b").line
    )
    assert "device 'gpu' is not available; use " in corrkd(*args, data, "--device", "gpu").line
    assert (
        "r.parquet: the output's name must end in .csv"
        in corrkd(*args, data, "--out", tmp_path / "r.parquet").line
    )


def test_synthetic_means_the_data_of_the_run(finished: Path) -> None:  # noqa: F811
    """The run's widths differ from the default, on which the model could not be evaluated."""
    assert corrkd("evaluate", finished, "--data", "synthetic", "--conditions", "complete").code == 0


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_compare_lists_failures_and_exits_with_1(tmp_path: Path, jobs: int) -> None:
    plan = {
        "datasets": {
            "built-in": {"settings": {k: v for k, v in tiny(**FAST).items() if k != "seeds"}}
        },
        "arms": {
            "no-distillation": {},
            "late-fusion": {"lr": 1e30, "clip_norm": None, "epochs": 3},
        },
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    done = corrkd(
        "compare",
        "--settings",
        tmp_path / "plan.yaml",
        "--jobs",
        jobs,
        "--out",
        tmp_path / "out",
        first=sketched,
    )
    assert done.code == 1
    line = (
        "1/2  built-in  no-distillation  seed 0"
        if jobs == 2
        else "seed 0  no-distillation: evaluation: "
    )
    assert line in done.err
    assert "failed; start the command again to retry:" in done.err
    assert "built-in, late-fusion, seed 0: the loss is no longer finite" in done.err
    assert "No distillation" in done.out
    assert "Late fusion" not in done.out
    assert str(tmp_path / "out" / "report.html") in done.out
    (tmp_path / "paper.csv").write_text(
        "method,condition,metric,value\nTheirs,Avg.,weighted_f1,61.25\n"
    )
    again = corrkd("report", tmp_path / "out", "--reported", tmp_path / "paper.csv", first=sketched)
    assert again.code == 0, again.err
    page = (tmp_path / "out" / "report.html").read_bytes()
    assert b"61.25" in page
    assert corrkd("report", tmp_path / "out", first=sketched).code == 0
    assert (tmp_path / "out" / "report.html").read_bytes() == page  # the file is kept
    unknown = corrkd("report", tmp_path / "out", "--reference", "kl")
    assert "has no arm 'kl' to compare with; available:" in unknown.line


def test_compare_and_tune_refuse_invalid_arguments(tmp_path: Path) -> None:
    wrong = corrkd("compare", "--backend", "slurm", "--out", tmp_path / "a")
    assert wrong.line == "error: --backend 'slurm': expected joblib or ray"
    unknown = corrkd(
        "compare", "--data", "synthetic", "--methods", "corrkd,unheard-of", "--out", tmp_path / "a"
    )
    assert "unknown method 'unheard-of'; available: self-mm, " in unknown.line
    absent = corrkd("tune", "--data", tmp_path / "no.pkl", "--out", tmp_path / "b")
    assert "no.pkl" in absent.line
    assert not (tmp_path / "a").exists()


def test_tune_writes_a_plan_and_says_how_to_use_it(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny(**FAST)))
    options = (
        "--settings",
        tmp_path / "tiny.yaml",
        "--seeds",
        1,
        "--methods",
        "no-distillation",
        "--trials",
        2,
    )
    done = corrkd("tune", *options, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "no-distillation  trial 2/2: " in done.err
    assert f"corrkd compare --settings {tmp_path / 'out' / 'tuned.yaml'}" in done.out
    assert set(yaml.safe_load((tmp_path / "out" / "tuned.yaml").read_text())) == {"search", "arms"}
