"""Commands: parse, call one function, print."""

from __future__ import annotations

import builtins
import inspect as signatures
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from corrkd._version import __version__
from corrkd.errors import CorrKDError
from corrkd.escape import one_line, terminal_text

if TYPE_CHECKING:
    from corrkd.experiment.scaling import Unscaled
    from corrkd.experiment.settings import Settings

INTERRUPTED = 130
MODEL_HELP = (
    "Run folder, a seed's or a model's folder, zoo:NAME (`corrkd zoo` lists them), or owner/name "
    "on the Hugging Face hub."
)
NOTHING_NAMED = (
    "nothing to train on: give --data FILE (`--data synthetic`: the built-in dataset), --preset "
    "NAME or --settings FILE; --help lists the options"
)

app = typer.Typer(
    help="Multimodal sentiment analysis that stays accurate when modalities go missing (CorrKD, "
    "CVPR 2024).",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # otherwise square brackets in help texts would be read as markup
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(
    help="Inspect, convert or fetch datasets.", invoke_without_command=True, rich_markup_mode=None
)
app.add_typer(data_app, name="data")
fetch_app = typer.Typer(
    help="Build a public dataset from the files that its authors publish.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
data_app.add_typer(fetch_app, name="fetch")

DataOption = Annotated[
    str | None,
    typer.Option("--data", help="Dataset file or folder, or `synthetic` for the built-in dataset."),
]
PresetOption = Annotated[
    str | None, typer.Option("--preset", help="Name of a preset; `corrkd presets` lists them.")
]
SettingsOption = Annotated[Path | None, typer.Option("--settings", help="YAML file with settings.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting, e.g. student.lr=1e-3; can be repeated.",
    ),
]
SeedsOption = Annotated[
    str | None,
    typer.Option(
        "--seeds",
        help="A number of seeds (3: seeds 0, 1 and 2) or a list with commas (0,3,7; `3,` is seed 3 "
        "alone).",
    ),
]
JobsOption = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        help="Number of trainings in parallel, each in its own process; does not change results.",
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option("--target", help="What is predicted, e.g. binary-nonzero, tertiles or score."),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Run folder; default: runs/<preset or dataset>.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing run.")]
GloveOption = Annotated[
    Path | None, typer.Option("--glove", help="GloVe text file, for layouts with words.")
]
ReportedOption = Annotated[
    Path | None,
    typer.Option(
        "--reported", help="CSV file with published numbers, shown beside yours and marked."
    ),
]
BackendOption = Annotated[
    str, typer.Option("--backend", help="joblib (this machine) or ray (a cluster).")
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="Address of the Ray cluster; default: start Ray here."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
SettingsDeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="auto, cpu, cuda or mps; default: the one in the settings."),
]
ReferenceOption = Annotated[
    str | None,
    typer.Option(
        "--reference",
        help="Arm that the report compares the others with; default: the one in the plan.",
    ),
]
ThreadsOption = Annotated[
    int, typer.Option("--threads", min=1, help="Number of CPU threads; results depend on it.")
]
FoldsOption = Annotated[
    Path | None,
    typer.Option("--folds", help="JSON file with the video ids of each split, for .csd folders."),
]
LabelOption = Annotated[
    str | None,
    typer.Option(
        "--label",
        help="Label column, e.g. happy, or several, e.g. questions:happy,sad; default: the "
        "layout's usual one.",
    ),
]


TokensOption = Annotated[
    bool,
    typer.Option("--tokens", help="Use the ids of BERT's tokens (`text_bert`) as the language."),
]


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """Options for reading a dataset."""

    glove: GloveOption = None
    folds: FoldsOption = None
    label: LabelOption = None
    tokens: TokensOption = False


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Options for the device and the number of threads."""

    threads: ThreadsOption = 1
    device: DeviceOption = "auto"


@dataclass(frozen=True, kw_only=True)
class SettingsOptions:
    """Options for settings. The command line overrides a file, and a file overrides a preset."""

    data: DataOption = None
    preset: PresetOption = None
    settings: SettingsOption = None
    seeds: SeedsOption = None
    changes: SetOption = None

    def load(self, reading: ReadingOptions | None = None, **changes: Any) -> Settings:
        """Return the settings with all `changes` that are not None. Raises CorrKDError if they are
        invalid, or if neither preset, settings file nor dataset is given.
        """
        from corrkd.experiment.settings import load_settings

        tree = self._tree(reading, changes)
        settings = load_settings(
            self.settings, preset=self.preset, overrides=self.changes or (), **tree
        )
        if self.preset is None and self.settings is None:
            _check_data_named(settings)
        return settings

    def load_for_data(self, reading: ReadingOptions, **changes: Any) -> Settings | Unscaled:
        """Return the settings or, without preset and settings file, the `corrkd-plus` settings
        before they are scaled to the data.

        Raises:
            CorrKDError: if the settings are invalid, or no dataset is given either.
        """
        from corrkd.experiment.scaling import Unscaled

        if self.preset is not None or self.settings is not None:
            return self.load(reading, **changes)
        unscaled = Unscaled(tuple(self.changes or ()), self._tree(reading, changes))
        _check_data_named(unscaled.load())
        return unscaled

    def _tree(self, reading: ReadingOptions | None, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options as nested settings; options that were not passed are absent."""
        target = changes.get("target")
        paths = {"path": self.data, "target": target, **vars(reading or ReadingOptions())}
        data = {
            key: str(value)
            for key, value in paths.items()
            if value is not None and value is not False
        }
        tree = {
            key: value for key, value in changes.items() if value is not None and key != "target"
        }
        if data:
            tree["data"] = data
        if self.seeds is not None:
            tree["seeds"] = seeds_of(self.seeds)
        return tree


def _check_data_named(settings: Settings) -> None:
    if "path" not in settings.data.model_fields_set:
        raise CorrKDError(NOTHING_NAMED)


def command(register: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command, with parameters that are dataclasses of options replaced by
    their fields.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        parameters = signatures.signature(function, eval_str=True).parameters
        groups: dict[str, Any] = {
            name: p.annotation for name, p in parameters.items() if is_dataclass(p.annotation)
        }
        flat = [
            option.replace(kind=signatures.Parameter.KEYWORD_ONLY)
            for name, parameter in parameters.items()
            for option in (
                signatures.signature(groups[name], eval_str=True).parameters.values()
                if name in groups
                else [parameter]
            )
        ]

        def call(**values: Any) -> None:
            for name, group in groups.items():
                values[name] = group(
                    **{field.name: values.pop(field.name) for field in fields(group)}
                )
            function(**values)

        call.__name__, call.__doc__ = function.__name__, function.__doc__
        call.__signature__ = signatures.Signature(flat)  # type: ignore[attr-defined]
        call.__annotations__ = {option.name: option.annotation for option in flat}
        register()(call)
        return function

    return decorate


def print(text: object, **options: Any) -> None:
    """Print text with control characters escaped, since names in it may come from files."""
    builtins.print(terminal_text(str(text)), **options)


@app.callback()
def _corrkd(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        print(f"corrkd {__version__}")
        raise typer.Exit
    _help(context)


@data_app.callback()
@fetch_app.callback()
def _help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@command(app.command)
def run(
    options: SettingsOptions,
    reading: ReadingOptions,
    target: TargetOption = None,
    device: SettingsDeviceOption = None,
    jobs: JobsOption = None,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Train, test with modalities missing, and write a report.

    Teacher, student and a control without distillation are trained. With --data alone, the
    settings are those of the preset corrkd-plus, scaled to the data.
    """
    settings = options.load_for_data(reading, target=target, device=device, jobs=jobs)
    _run(settings, _folder(out, options.preset), overwrite, evaluate=True)


@command(app.command)
def train(
    options: SettingsOptions,
    reading: ReadingOptions,
    target: TargetOption = None,
    device: SettingsDeviceOption = None,
    jobs: JobsOption = None,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Train without testing; `corrkd resume` continues with the tests."""
    settings = options.load_for_data(reading, target=target, device=device, jobs=jobs)
    _run(settings, _folder(out, options.preset), overwrite, evaluate=False)


@command(app.command)
def resume(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, a comparison or a search.")],
) -> None:
    """Continue a run, a comparison or a search that was stopped.

    The results are the same as without the interruption.
    """
    from corrkd.experiment.plan import read_plan
    from corrkd.experiment.progress import Reporter
    from corrkd.experiment.run import resume as resume_run
    from corrkd.experiment.tune import carry_on, table_text

    plan = read_plan(folder, unchanged=True)
    if plan.trials is not None:
        print(table_text(carry_on(plan, folder, Reporter())))
        return
    _announce(resume_run(folder, progress=True))


@command(app.command)
def evaluate(
    model: Annotated[
        Path, typer.Argument(help="Run folder, a seed's or a model's folder, or zoo:NAME.")
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data", help="Dataset file or folder, or `synthetic` for the built-in dataset."
        ),
    ],
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    conditions: Annotated[
        str | None,
        typer.Option(
            help="Missing conditions, e.g. complete,language,ratio-0.3; default: the standard ones."
        ),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of each random condition.")] = 3,
    mask_seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the test masks; default: 2024, as in runs.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="Use the masks in this file.")] = None,
    export_masks: Annotated[
        Path | None, typer.Option(help="Write the masks to this file, for --masks.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the results to this CSV file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    *,
    reading: ReadingOptions,
    compute: ComputeOptions,
) -> None:
    """Test a trained student with modalities or frames missing."""
    import torch

    from corrkd.csv_files import write_csv
    from corrkd.evaluation.judge import evaluate as judge
    from corrkd.evaluation.judge import masks_of
    from corrkd.experiment.experiment import dataset_of, pick_device
    from corrkd.experiment.progress import Reporter
    from corrkd.files import check_new, make_folder
    from corrkd.missing.manifest import load_manifest, save_manifest
    from corrkd.networks.saved import load_student
    from corrkd.settings import MASK_SEED
    from corrkd.targets.measures import METRICS, metric_of

    names = (
        None
        if conditions is None
        else [name.strip() for name in conditions.split(",") if name.strip()]
    )
    if masks is not None and export_masks is not None:
        raise CorrKDError(
            "--masks reads a manifest and --export-masks writes one; give only one of them"
        )
    if out is not None and out.suffix != ".csv":
        raise CorrKDError(f"{out}: the output's name must end in .csv")
    for path in (out, export_masks):
        if path is not None:  # checked before the work starts
            check_new(path, overwrite=overwrite)
            make_folder(path.parent)
    torch.set_num_threads(compute.threads)
    student = load_student(model)
    student.network.to(pick_device(compute.device))
    with Reporter().busy(f"reading {data}"):
        dataset = dataset_of(model, data, **vars(reading))
    seed = MASK_SEED if mask_seed is None else mask_seed
    manifest = None if masks is None else load_manifest(masks)
    if export_masks is not None:
        save_manifest(
            export_masks,
            masks_of(student, dataset, split=split, conditions=names, draws=draws, mask_seed=seed),
        )
    counted = student.target.of(dataset.split(split), f"dataset {dataset.name}, {split}")[1]
    with Reporter().task("evaluation", int(counted.sum())) as task:
        table = judge(
            student,
            dataset,
            split=split,
            conditions=names,
            draws=draws,
            mask_seed=seed,
            masks=manifest,
            on_batch=task.step,
        )
    if out is not None:
        write_csv(out, table)
    mean = table.groupby(["condition", "metric"], sort=False)["value"].mean().unstack()
    shown = [name for name in mean if name in METRICS or name in student.target.tabled_metrics]
    for name in shown:
        mean[name] *= metric_of(name).scale
    print(mean[shown].dropna(how="all").round(3).to_string(na_rep="undef."))


@command(app.command)
def predict(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    clips: Annotated[
        list[Path] | None,
        typer.Argument(help="Recordings, for a model trained on features of `corrkd features`."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Dataset file or folder; labels are not needed.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Output file (.csv, .parquet or .jsonl); with --data, an incomplete one is "
            "continued.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="train, valid, test or all.")] = "all",
    condition: Annotated[
        str | None,
        typer.Option(
            help="Also hide what is missing under this condition, e.g. language+audio or ratio-0.3."
        ),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1, help="Samples per batch; affects memory, and rounding in the last bits."
        ),
    ] = 256,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
    *,
    reading: ReadingOptions,
    compute: ComputeOptions,
) -> None:
    """Predict recordings, or every sample of a dataset file.

    If interrupted with --data, the same command continues.
    """
    import torch

    from corrkd.experiment.experiment import dataset_of, pick_device
    from corrkd.experiment.progress import Reporter
    from corrkd.serve.predict_file import check_output, chosen, differences, predict_file
    from corrkd.serve.predictor import Predictor

    if bool(clips) == (data is not None):
        raise CorrKDError("predict: give either recordings or --data with a dataset file")
    if out is not None:
        check_output(out, overwrite=overwrite)  # before the work starts
    torch.set_num_threads(compute.threads)
    reporter = Reporter()
    predictor = Predictor.from_pretrained(model, device=pick_device(compute.device))
    if data is None:
        _predict_clips(predictor, clips or [], out, reporter)
        return
    if out is None:
        raise CorrKDError("predict: give the output file with --out")
    with reporter.busy(f"reading {data}"):
        dataset = dataset_of(Path(model), data, **vars(reading), targets=False)
    for note in (*dataset.notes, *differences(predictor.saved, dataset)):
        reporter.say(f"note: {note}")
    count = sum(map(len, chosen(dataset, split).values()))
    with reporter.task("prediction", count) as task:
        predict_file(
            predictor,
            dataset,
            out,
            split=split,
            condition=condition,
            batch_size=batch_size,
            overwrite=overwrite,
            on_batch=task.step,
        )
    print(f"{out}: {count} samples")


def _predict_clips(predictor: Any, clips: list[Path], out: Path | None, reporter: Any) -> None:
    from corrkd.serve.predict_clips import predict_clips, prediction_text, write_predictions

    for note in predictor.media_settings[1]:
        reporter.say(f"note: {note}")
    with reporter.task("prediction", len(clips)) as task:

        def on_clip(clip: Path, error: str) -> None:
            if error:
                reporter.say(f"left out: {error}")
            task.step(note=clip.name)

        predictions, errors = predict_clips(predictor.predict_media, clips, on_clip)
    if out is not None:
        write_predictions(out, predictions, predictor.card)
        print(f"{out}: {len(predictions)} clips")
    else:
        for clip, prediction in predictions.items():
            print(prediction_text(clip, prediction))
    if errors:
        raise typer.Exit(1)


@command(app.command)
def serve(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: all addresses of this machine.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")
    ] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name that clients may use, besides localhost, --host and IP addresses; can "
            "be repeated. `*`: any."
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token that clients must send; default: the environment variable "
            "CORRKD_TOKEN, or no token."
        ),
    ] = None,
    max_body: Annotated[
        float, typer.Option(min=0.001, help="Largest request, in megabytes.")
    ] = 16.0,
    max_frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Maximum number of frames per modality; default: as in training, but at least "
            "1024.",
        ),
    ] = None,
    max_samples: Annotated[
        int, typer.Option(min=1, help="Maximum number of samples per request.")
    ] = 256,
    max_cost: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Maximum cost of a request, in millions: the sum of frames x (width + frames) "
            "over samples and modalities; default: 8, or enough for one sample.",
        ),
    ] = None,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Maximum number of requests in progress.")
    ] = 64,
    max_connections: Annotated[
        int,
        typer.Option(
            min=1,
            help="Maximum number of open connections; never more than half of the process's limit "
            "on open files.",
        ),
    ] = 512,
    body_seconds: Annotated[
        float,
        typer.Option(
            min=0.1, help="Seconds for a request to arrive, and for the client to read the answer."
        ),
    ] = 10.0,
    max_clip: Annotated[
        float, typer.Option(min=0.001, help="Largest recording, in megabytes.")
    ] = 64.0,
    max_clip_seconds: Annotated[
        float, typer.Option(min=0.1, help="Longest recording, in seconds.")
    ] = 120.0,
    max_clips: Annotated[
        int,
        typer.Option(
            min=1, help="Maximum number of recordings read at once, each in its own process."
        ),
    ] = 1,
    clip_memory: Annotated[
        float, typer.Option(min=1.0, help="Memory limit for reading a recording, in gigabytes.")
    ] = 3.0,
    clip_work_seconds: Annotated[
        float, typer.Option(min=1.0, help="Time limit for reading a recording, in seconds.")
    ] = 120.0,
    wait: Annotated[
        float,
        typer.Option(min=0.0, help="Milliseconds that a request waits to be batched with others."),
    ] = 4.0,
    batch: Annotated[
        int, typer.Option(min=1, help="Maximum number of samples in a batch of the network.")
    ] = 64,
    samples: Annotated[
        bool, typer.Option(help="Offer samples of the tested split on the web page.")
    ] = True,
    *,
    compute: ComputeOptions,
) -> None:
    """Serve a trained student over HTTP, with a web page to try it."""
    import torch

    from corrkd.experiment.exhibit import exhibit_of
    from corrkd.experiment.experiment import pick_device
    from corrkd.experiment.progress import Reporter

    try:
        from corrkd.serve.app import Service
        from corrkd.serve.server import bound
        from corrkd.serve.server import run as run_server
    except ModuleNotFoundError as error:
        raise CorrKDError(f"{error.name} is not installed; pip install 'corrkd[serve]'") from None
    from corrkd.serve.access import read_token
    from corrkd.serve.limits import ClipLimits, Limits

    torch.set_num_threads(compute.threads)
    reporter = Reporter()
    token = read_token(token_file)
    listener = bound(host, port)  # before the work starts
    with reporter.busy(f"reading {model}"):
        exhibit, notes = exhibit_of(model, samples=samples, device=pick_device(compute.device))
    for note in notes:
        reporter.say(f"note: {note}")
    if token is None and host not in ("127.0.0.1", "::1", "localhost"):
        reporter.say(
            f"note: no token is required, so anybody who can reach {host} can use the service; "
            f"see --token-file"
        )
    limits = Limits(
        body=int(max_body * 1e6),
        seconds=body_seconds,
        requests=max_requests,
        samples=max_samples,
        frames=max_frames,
        cost=None if max_cost is None else int(max_cost * 1e6),
        connections=max_connections,
        clips=ClipLimits(
            body=int(max_clip * 1e6),
            seconds=max_clip_seconds,
            work_seconds=clip_work_seconds,
            memory=int(clip_memory * 1e9),
            processes=max_clips,
        ),
    )
    hosts = [host, *(allow_host or [])]
    run_server(
        Service(exhibit, limits=limits, token=token, hosts=hosts, wait=wait / 1000, batch=batch),
        listener,
    )


@command(app.command)
def export(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    folder: Annotated[
        Path, typer.Argument(help="New folder for model.onnx, card.json and predict.py.")
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Dataset file or folder on which the exported model is compared with PyTorch, or "
            "`synthetic` for the built-in dataset.",
        ),
    ],
    split: Annotated[
        str, typer.Option(help="train, valid or test; all for a file without splits.")
    ] = "test",
    samples: Annotated[
        int, typer.Option(min=1, help="Samples compared under each condition, drawn anew for each.")
    ] = 64,
    max_frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Maximum number of frames per modality; default: four times as many as in "
            "training, but at least 1024.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing exported model.")
    ] = False,
    *,
    reading: ReadingOptions,
) -> None:
    """Export a trained student to ONNX, for use without PyTorch.

    The outputs of the exported model are compared with PyTorch's.
    """
    from corrkd.experiment.experiment import dataset_of
    from corrkd.experiment.progress import Reporter
    from corrkd.serve.export import check_folder
    from corrkd.serve.export import export as write
    from corrkd.serve.predictor import Predictor

    check_folder(folder, overwrite=overwrite)  # before the work starts
    reporter = Reporter()
    with reporter.busy(f"reading {model}"):
        predictor = Predictor.from_pretrained(model)
    with reporter.busy(f"reading {data}"):
        dataset = dataset_of(Path(model), data, **vars(reading), targets=False)
    with reporter.busy("exporting, and comparing with PyTorch"):
        done = write(
            predictor,
            folder,
            dataset=dataset,
            split=split,
            max_frames=max_frames,
            samples=samples,
            overwrite=overwrite,
        )
    print(
        f"{done.folder}: {done.samples} samples under {len(done.differences)} conditions; logits "
        f"differ from PyTorch's by {done.largest:.1e} at most"
    )


@command(app.command)
def compare(
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Dataset file or folder, or `synthetic`; can be repeated."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Names, e.g. corrkd,self-mm, and groups: paper, controls, ablation, all. Default: "
            "all, or those in the file."
        ),
    ] = None,
    preset: PresetOption = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            "--settings", help="YAML file with datasets, arms and seeds (docs/comparing.md)."
        ),
    ] = None,
    seeds: SeedsOption = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Number of runs in parallel, each in its own process."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="doubling: double a method's epochs until its validation score gains little; "
            "fixed: the epochs in the settings. Default: doubling, or as in the file."
        ),
    ] = None,
    changes: SetOption = None,
    device: SettingsDeviceOption = None,
    reference: ReferenceOption = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the comparison; an existing one is continued.")
    ] = Path("runs/compare"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing comparison.")
    ] = False,
    reported: ReportedOption = None,
    backend: BackendOption = "joblib",
    address: AddressOption = None,
) -> None:
    """Train and test methods on datasets under one protocol.

    If it was stopped, the same command continues it.
    """
    from corrkd.experiment.plan import load_plan
    from corrkd.experiment.run import compare as run_comparison
    from corrkd.workers import check_backend

    check_backend(backend)
    names = (
        None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    )
    if not (data or preset or settings):
        raise CorrKDError(NOTHING_NAMED)
    plan = load_plan(
        settings,
        data=data or (),
        preset=preset,
        arms=["all"] if names is None and settings is None else names,
        seeds=None if seeds is None else seeds_of(seeds),
        jobs=jobs,
        overrides=[*(changes or ()), *([f"device={device}"] if device else [])],
        budget=budget,
        reference=reference,
    )
    done = run_comparison(
        plan,
        out,
        overwrite=overwrite,
        backend=check_backend(backend),
        address=address,
        reported=reported,
        progress=True,
    )
    _announce(done)
    if done.failures:
        lines = "\n".join(
            f"  {f.job.dataset.name}, {f.job.arm}, seed {f.job.seed}: {f.error}"
            for f in done.failures
        )
        print(f"failed; start the command again to retry:\n{lines}", file=sys.stderr)
        raise typer.Exit(1)


@command(app.command)
def tune(
    options: SettingsOptions,
    methods: Annotated[
        str,
        typer.Option(
            help="Names, e.g. corrkd,self-mm, and groups: paper, controls, ablation, all."
        ),
    ] = "corrkd",
    trials: Annotated[
        int, typer.Option(min=1, help="Trials per method; the first has its defaults.")
    ] = 8,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Trainings in parallel, each in its own process.")
    ] = 1,
    device: SettingsDeviceOption = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the search; an existing one is continued.")
    ] = Path("runs/tune"),
) -> None:
    """Search hyper-parameters on the validation split.

    Each method gets the same number of trials. The result is a plan for `corrkd compare`. Requires
    `pip install 'corrkd[tune]'`.
    """
    from corrkd.experiment.plan import expanded
    from corrkd.experiment.tune import TUNED, named, table_text
    from corrkd.experiment.tune import tune as search

    names = [name for name in expanded(name.strip() for name in methods.split(",")) if name]
    print(
        table_text(
            search(
                options.load(device=device),
                named(names),
                out,
                trials=trials,
                jobs=jobs,
                progress=True,
            )
        )
    )
    print(f"\n`corrkd compare --settings {out / TUNED} --data FILE` uses the best trials")


@command(app.command)
def features(
    folder: Annotated[Path, typer.Argument(help="Folder of recordings.")],
    out: Annotated[
        Path, typer.Option("--out", help="Output file (.h5); an incomplete one is continued.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="CSV file with one row per clip; default: labels.csv or label.csv in the folder, "
            "if any.",
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            "--preset", help="Extractors: embedded, or hub for models of the Hugging Face hub."
        ),
    ] = "embedded",
    extractor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY=NAME",
            help="Extractor of a modality, e.g. audio=speech:MODEL, or none to leave the modality "
            "out; can be repeated.",
        ),
    ] = None,
    align: Annotated[
        str, typer.Option("--align", help="none, or words for one frame per word.")
    ] = "none",
    align_model: Annotated[
        str,
        typer.Option(
            "--align-model",
            help="With --align words: CTC speech model that finds the times of the words.",
        ),
    ] = "",
    transcribe: Annotated[
        str,
        typer.Option(
            "--transcribe",
            help="faster-whisper model, e.g. base, for recordings without a transcript.",
        ),
    ] = "",
    device: Annotated[
        str, typer.Option("--device", help="Device of hub models: auto, cpu or cuda.")
    ] = "auto",
    jobs: Annotated[
        int,
        typer.Option("--jobs", min=1, help="Number of worker processes; does not change results."),
    ] = 1,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=1,
            max=1000,
            help="Clips that pass through hub models together; changes results by rounding alone. "
            "Default: 16 on a GPU, 1 on a CPU.",
        ),
    ] = None,
    backend: BackendOption = "joblib",
    address: AddressOption = None,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Longest recording, in seconds.")] = 4
    * 3600.0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
) -> None:
    """Extract features from recordings into a dataset file."""
    from corrkd.experiment.experiment import pick_device
    from corrkd.experiment.progress import Reporter
    from corrkd.media.extractors.registry import with_changes
    from corrkd.media.features import FeatureSettings, load_models
    from corrkd.media.folder import FolderExtraction, check_output, summary
    from corrkd.media.labels import ClipRow, list_clips
    from corrkd.parsing import refusing
    from corrkd.workers import check_backend

    check_backend(backend)
    check_output(out, overwrite=overwrite)
    with refusing("settings of features", "not what is allowed"):
        settings = FeatureSettings(
            extractors=with_changes(preset, extractor or ()),
            align=align,
            align_model=align_model,
            transcribe=transcribe,
            device=str(pick_device(device)),
            longest_seconds=max_seconds,
        )
    reporter = Reporter()
    with reporter.busy(f"reading {folder}"):
        work = FolderExtraction(folder, list_clips(folder, labels), out, settings)
        total, waiting = len(work.clips.rows), len(work.waiting)
        if waiting:
            load_models(settings)
    for line in (
        *(f"note: {note}" for note in work.clips.notes),
        *(f"left out: {e}" for e in work.failures.values()),
    ):
        reporter.say(line)
    with reporter.task("features", total, total - waiting) as task:

        def on_clip(clip: ClipRow, error: str | None) -> None:
            if error is not None:
                reporter.say(f"left out: {error}")
            task.step(note=clip.title)

        done = work.run(
            jobs=jobs, batch=batch, backend=check_backend(backend), address=address, on_clip=on_clip
        )
    print(f"{out}: {summary(done, work.description)}")
    if done.failures:
        raise typer.Exit(1)


@command(app.command)
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run or a comparison.")],
    reported: ReportedOption = None,
    reference: ReferenceOption = None,
) -> None:
    """Rebuild the report of a run or a comparison."""
    from corrkd.experiment.progress import Reporter
    from corrkd.experiment.run import keep_reported
    from corrkd.report.report import write_report

    if reported is not None:
        keep_reported(folder, reported)
    with Reporter().busy("writing the report"):
        page = write_report(folder, reference=reference)
    print(page)


@command(app.command)
def presets(name: Annotated[str | None, typer.Argument(help="Preset to print.")] = None) -> None:
    """List the presets, or print one."""
    from corrkd.presets import preset_names, preset_text

    if name is not None:
        print(preset_text(name), end="")
        return
    for names in preset_names():
        first = next(
            (line for line in preset_text(names).splitlines() if line.startswith("#")), "#"
        )
        print(f"{names:16}{first.lstrip('# ')}")


@command(app.command)
def zoo(
    name: Annotated[str | None, typer.Argument(help="Show the details of this student.")] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder", help="Folder of a zoo; default: the one in CORRKD_ZOO, and the package's."
        ),
    ] = None,
) -> None:
    """List released students, or show one.

    Other commands accept `zoo:NAME` as a model.
    """
    from corrkd.zoo import card_text, students, table_text

    if name is None:
        print(table_text(students(folder)))
    else:
        print(card_text(name if folder is None else f"{folder}/{name}"))


@command(data_app.command)
def inspect(
    file: Annotated[str, typer.Argument(help="Dataset file or folder.")], *, reading: ReadingOptions
) -> None:
    """Describe a dataset: shapes, labels, missing data.

    Also prints how the layout was interpreted, and suspicious values.
    """
    from corrkd.data.inspect import describe
    from corrkd.data.inspect import inspect as look
    from corrkd.data.load import load_dataset
    from corrkd.experiment.progress import Reporter

    with Reporter().busy(f"reading {file}"):
        report = look(load_dataset(file, **vars(reading), targets=False))
    print(describe(report))


@command(data_app.command)
def convert(
    file: Annotated[str, typer.Argument(help="Dataset file or folder.")],
    out: Annotated[Path, typer.Argument(help="Output file (.safetensors).")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
    *,
    reading: ReadingOptions,
) -> None:
    """Convert a dataset to one file without code.

    The file (.safetensors) is memory-mapped when read.
    """
    from corrkd.data.convert import convert as write
    from corrkd.data.load import load_dataset
    from corrkd.experiment.progress import Reporter
    from corrkd.files import check_new

    check_new(out, overwrite=overwrite)
    with Reporter().busy(f"converting {file}"):
        write(load_dataset(file, **vars(reading), targets=False), out)
    print(out)


@command(fetch_app.command)
def hazumi(
    out: Annotated[Path, typer.Option("--out", help="Output file (.pkl or .h5).")] = Path(
        "hazumi.pkl"
    ),
    clones: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Folder with clones of the three repositories, instead of downloading."
        ),
    ] = None,
    cache: Annotated[
        Path,
        typer.Option(
            "--cache", help="Folder for the downloads; existing files are not downloaded again."
        ),
    ] = Path("hazumi-sources"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
) -> None:
    """Build the Hazumi set: dialogues, as features.

    Downloads about 155 MB from the public repositories ouktlab/Hazumi2010, Hazumi2012 and
    Hazumi2105 of Osaka University and checks each file's SHA-256. The repositories have no licence
    file: the features are published for research; ask the authors about any other use, and cite
    Komatani and Okada (ACII 2021).
    """
    from corrkd.data.hazumi.build import check_ending, dataset_of, read_sessions, write_dataset
    from corrkd.data.hazumi.sources import download, source_files
    from corrkd.experiment.progress import Reporter
    from corrkd.files import check_new

    check_ending(out)
    check_new(out, overwrite=overwrite)
    reporter, files = Reporter(), source_files()
    if clones is None:
        with reporter.task("download", len(files)) as task:
            for file in files:
                download(file, cache)
                task.step(note=file.name)
    with reporter.task("sessions", len(files)) as task:
        sessions = read_sessions(
            cache if clones is None else clones, files=files, on_file=task.step
        )
    with reporter.busy(f"writing {out}"):
        splits = dataset_of(sessions)
        write_dataset(out, splits)
    print(f"{out}: " + ", ".join(f"{name} {len(arrays['id'])}" for name, arrays in splits.items()))


def seeds_of(text: str) -> list[int]:
    """Return the seeds in the option --seeds. Raises CorrKDError if the text is invalid."""
    is_list = "," in text
    try:
        numbers = [int(item) for item in text.removesuffix(",").split(",")]
    except ValueError:
        raise CorrKDError(
            f"--seeds {text!r}: expected a number of seeds (3: seeds 0, 1 and 2) or a list with "
            f"commas (0,3,7; `3,` is seed 3 alone)"
        ) from None
    if not is_list and numbers[0] < 1:
        raise CorrKDError(f"--seeds {text!r}: at least one seed is needed")
    return numbers if is_list else list(range(numbers[0]))


def _folder(out: Path | None, preset: str | None) -> Path | None:
    return out if out is not None or preset is None else Path("runs") / preset


def _run(settings: Any, out: Path | None, overwrite: bool, *, evaluate: bool) -> None:
    from corrkd.experiment.run import run as run_experiment

    done = run_experiment(settings, out, overwrite=overwrite, evaluate=evaluate, progress=True)
    if evaluate:
        _announce(done)
    else:
        print(f"trained: {done.folder}; `corrkd resume {done.folder}` continues with the tests")


def _announce(done: Any) -> None:
    from corrkd.report.report import plain_report

    if done.results.empty:  # one of several processes; the first has the results
        return
    print(plain_report(done.folder))
    print(f"\nreport: {done.folder / 'report.html'}")


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Ignore OSError in a thread, since TensorBoard raises an error of a full disk again later."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def main() -> None:
    """Run the command line. An error of the user is one line with exit code 2; Ctrl-C gives 130."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    threading.excepthook = _thread_failed
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        message = str(error)
        if hasattr(error, "format_message"):  # a usage error of click, which typer may vendor
            message = f"{error.format_message().rstrip('.')}; see `corrkd --help`"
        elif isinstance(error, OSError):  # such as a full disk while a library writes
            message = f"{error.filename or 'a file'}: {error.strerror or error}"
        elif not isinstance(error, CorrKDError):
            raise
        errors.print(f"[bold red]error:[/] {escape(one_line(message))}")
        code = 2
    if code == INTERRUPTED:
        errors.print(
            "interrupted; `corrkd resume FOLDER` continues a run; compare, tune, features and "
            "predict continue when started again"
        )
    sys.exit(code)
