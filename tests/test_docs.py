"""Names, files and settings in the documentation exist, and its code runs."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import typer
import yaml
from pydantic import BaseModel

from corrkd.cli import app
from corrkd.data.batches import sample_key
from corrkd.data.synthetic import SyntheticSpec
from corrkd.errors import CorrKDError
from corrkd.experiment import run
from corrkd.experiment.arm import GROUPS
from corrkd.experiment.choices import Choice
from corrkd.experiment.plan import arms_of, load_plan
from corrkd.experiment.scaling import scaled_epochs
from corrkd.experiment.settings import Settings, load_settings
from corrkd.media.extractors import registry as extractors
from corrkd.methods import registry as methods
from corrkd.methods.corrkd import CorrKDOptions
from corrkd.missing.conditions import registry as conditions
from corrkd.missing.masks import uniform
from corrkd.networks import registry as networks
from corrkd.presets import preset_names
from corrkd.settings import TARGET_GROUP

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
RUNNABLE = [
    "README.md",
    "docs/distilling.md",
    "docs/extending.md",
    "docs/metrics.md",
    "docs/missingness.md",
    "docs/running.md",
    "docs/synthetic.md",
    "docs/tables.md",
    "docs/using.md",
    "docs/zoo.md",
]
FILE_ENDINGS = {"safetensors", "json", "ckpt", "yaml", "csv"}
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """Return the text without its fenced and indented blocks."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)


def inline_code(text: str) -> list[str]:
    """Return the code between single backticks, each on one line."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(
        r"^#+ (.+)$",
        re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL),
        re.MULTILINE,
    )
    named = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return named | set(re.findall(r'<a id="([\w-]+)">', text))


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page.read_text("utf-8"))):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target}"
        assert ROOT in linked.parents, f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(linked.read_text("utf-8")), f"{page.name}: {target}"


@pages
def test_names_and_files_exist(page: Path) -> None:
    text, group = page.read_text("utf-8"), r'entry-points\."([\w.]+)"'
    assert set(re.findall(group, text)) <= {
        conditions.GROUP,
        methods.GROUP,
        networks.GROUP,
        extractors.GROUP,
        TARGET_GROUP,
    }
    text = re.sub(group, "", text)  # groups need not be modules
    for name in set(re.findall(r"(?<![\w/.])corrkd(?:\.[A-Za-z_]\w*)+", text)):
        assert resolve(name) is not None, f"{page.name}: {name}"
    for code in inline_code(text):
        if re.fullmatch(r"(src|docs|examples|tests|benchmarks)/[\w./-]*", code):
            assert (ROOT / code).exists(), f"{page.name}: {code}"


def resolve(name: str) -> Any:
    """Return the module, class, function or attribute of a dotted name, or raise AttributeError."""
    names = name.split(".")
    target: Any = importlib.import_module(names[0])
    for length, attribute in enumerate(names[1:], 2):
        try:
            target = importlib.import_module(".".join(names[:length]))
        except ModuleNotFoundError:
            target = getattr(target, attribute)
    return target


@pages
def test_settings_exist(page: Path) -> None:
    groups = "|".join(
        name for name, field in Settings.model_fields.items() if is_model(field.annotation)
    )
    for code in inline_code(page.read_text("utf-8")):
        match = re.fullmatch(rf"((?:{groups})(?:\.\w+)+)(?:=(.*))?", code)
        if (
            not match
            or match[1].rsplit(".")[-1] in FILE_ENDINGS
            or match[1].startswith("data.synthetic.")
        ):
            continue
        assert match[1] in dict(leaves(Settings())), f"{page.name}: {code}"
        if match[2] is not None:
            load_settings(overrides=[code])


def is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def leaves(model: BaseModel, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting by its dotted key; options of a choice are beside its name."""
    if isinstance(model, Choice):
        yield f"{above}name", model.name
        model = model.options
    for name, value in model:
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def test_every_setting_is_listed_with_its_default() -> None:
    text = (ROOT / "docs" / "running.md").read_text("utf-8")
    listed = {
        key: yaml.safe_load(value)
        for key, value in re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \|", text, re.MULTILINE)
    }
    defaults = yaml.safe_load(Settings().to_yaml())
    keys = {key for key, _ in leaves(Settings())}
    expected = {}
    for key in keys:
        value: Any = defaults
        for name in key.split("."):
            value = value[name]
        of_teacher = key.replace("student.", "teacher.", 1)
        if key != of_teacher and of_teacher in keys:
            assert value == listed[of_teacher]
        else:
            expected[key] = value
    assert listed == expected


def test_the_table_of_scaled_epochs() -> None:
    text = (ROOT / "docs" / "running.md").read_text("utf-8")
    section = text[text.index("### Settings scaled to the data") :]
    rows = re.findall(
        r"^\| (?:[\d,]+ to |up to )([\d,]+) \| (\d+) \| (\d+) \|", section, re.MULTILINE
    )
    assert len(rows) == 3
    for most, teacher, student in rows:
        count = int(most.replace(",", ""))
        assert scaled_epochs(count) == (int(teacher), int(student)) != scaled_epochs(count + 1)


def test_every_form_of_a_loss_term_is_listed() -> None:
    text = (ROOT / "docs" / "running.md").read_text("utf-8")
    row = r"^\| `(\w+): \{form: (\w+)\}` \| `(\w+)` \| `([^`]+)` \|"
    listed = {
        (*cells[:3], yaml.safe_load(cells[3])) for cells in re.findall(row, text, re.MULTILINE)
    }
    expected = set()
    for term, field in CorrKDOptions.model_fields.items():
        for form in {*get_args(field.annotation)} - {type(field.default)}:
            expected |= {
                (term, form().form, *option)
                for option in form()
                if option[0] not in ("weight", "form")
            }
    assert listed == expected != set()


@pages
def test_commands_are_valid(page: Path) -> None:
    for line in commands(page.read_text("utf-8")):
        check_command(line)


def commands(text: str) -> list[str]:
    """Return every `corrkd ...` of a page, in blocks, their comments, and inline code."""
    lines = [
        line.strip().removeprefix("# ") for line in text.splitlines() if line.startswith("    ")
    ]
    lines += [line.strip() for block in blocks(text, r"\w*") for line in block.splitlines()]
    lines += re.findall(r"# (corrkd .*)$", "\n".join(blocks(text, "python")), re.MULTILINE)
    inline = [code for code in inline_code(text) if not re.search(r"\.\.\.|\|", code)]
    return [
        line[line.index("corrkd ") :]
        for line in [*lines, *inline]
        if line.startswith("corrkd ") or "--no-python corrkd " in line
    ]


def check_command(line: str) -> None:
    """Parse a command line as the program would, with its settings."""
    arguments = shlex.split(line, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    while arguments and hasattr(command, "commands"):
        if arguments[0].startswith("-"):
            break
        assert arguments[0] in command.commands, f"{line}: no such command"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if hasattr(command, "commands") or not arguments:
        return  # a group, or a command named in passing
    try:
        parameters = command.make_context(command.name, arguments).params
    except Exception as error:
        pytest.fail(f"{line}: {error}")
    presets = extractors.PRESETS if command.name == "features" else preset_names()
    for preset in (parameters.get("preset"), parameters.get("name")):
        assert preset in (None, "NAME", *presets), line
    if command.name != "features" and "KEY=VALUE" not in (parameters.get("changes") or ()):
        load_settings(preset=parameters.get("preset"), overrides=parameters.get("changes") or ())


@pytest.mark.parametrize(
    "line",
    [
        "corrkd rum",
        "corrkd run --presets mosi",
        "corrkd run --preset nope",
        "corrkd run --set student.eta=1",
        "corrkd data look x",
    ],
)
def test_an_invalid_command_is_detected(line: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, CorrKDError)):
        check_command(line)


def test_presets_and_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in PAGES:
        text = page.read_text("utf-8")
        assert set(re.findall(r'preset="([\w-]+)"', text)) <= set(preset_names())
        assert set(re.findall(r"(?:`|^    )make ([\w-]+)", text, re.MULTILINE)) <= targets
    running = (ROOT / "docs" / "running.md").read_text("utf-8")
    assert all(f"`{name}`" in running for name in preset_names())


@pages
def test_yaml_is_settings_or_a_plan(page: Path, tmp_path: Path) -> None:
    for block in blocks(page.read_text("utf-8"), "yaml"):
        (tmp_path / "settings.yaml").write_text(block)
        read = load_plan if "arms:" in block else load_settings
        read(tmp_path / "settings.yaml")


def test_the_plan_of_the_ablation_of_hrlf_is_valid() -> None:
    plan = load_plan(ROOT / "benchmarks" / "ablation-hrlf.yaml")
    for dataset in plan.datasets.values():
        arms = {arm.name: arm for arm in arms_of(dataset)}
        assert dataset.reference_arm == "hrlf"
        assert {arm.network.name for arm in arms.values()} == {"hrlf"}
        for term in ("frf", "hmi", "hal"):
            weights = arms[f"hrlf-without-{term}"].method.model_dump()
            assert [t for t in ("frf", "hmi", "hal", "kl") if not weights[t]["weight"]] == [term]


def test_the_plans_of_our_results_are_valid() -> None:
    (built_in,) = load_plan(ROOT / "benchmarks" / "comparison.yaml").datasets.values()
    assert set(built_in.arms) == set(GROUPS["all"])
    real = load_plan(ROOT / "benchmarks" / "comparison-real.yaml").datasets
    assert set(real) == {"hazumi-small", "mosi", "pom"}
    for dataset in real.values():
        assert set(dataset.arms) == {*GROUPS["paper"], *GROUPS["controls"], "hrlf-teacher"}


@pages
def test_python_compiles(page: Path) -> None:
    for block in blocks(page.read_text("utf-8"), "python"):
        compile(block, str(page), "exec")


def run_blocks(name: str) -> dict[str, Any]:
    """Run a page's Python from top to bottom, and return what it defines."""
    scope: dict[str, Any] = {"__name__": "page"}
    for block in blocks((ROOT / name).read_text("utf-8"), "python"):
        exec(compile(block, name, "exec", dont_inherit=True), scope)
    return scope


def run_serially(run_jobs: Any, *args: Any, **options: Any) -> Any:
    return run_jobs(*args, **{**options, "at_once": 1})


SLOW = {"docs/running.md": [pytest.mark.slow]}  # README.md has the same calls


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=SLOW.get(name, ()))
        for name in RUNNABLE
        if name != "docs/missingness.md"
    ],
)
def test_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "write_report", lambda folder: folder)  # takes longer than these runs
    serial = partial(run_serially, run.run_jobs)  # another process would have to import torch
    monkeypatch.setattr(run, "run_jobs", serial)
    for split, size in {
        "train": 240,
        "valid": 120,
        "test": 120,
    }.items():  # of the built-in dataset, a sixth
        monkeypatch.setitem(SyntheticSpec.__init__.__kwdefaults__, split, size)
    run_blocks(name)


def test_masks_can_be_made_and_read_without_this_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scope = run_blocks("docs/missingness.md")
    samples = scope["samples"]
    assert set(scope["row"]) == set(samples.ids)
    for sample_id in samples.ids[:20]:
        keys = torch.tensor([sample_key(str(sample_id))])
        ours = uniform(keys, 12, seed=2024, purpose="frame", modality="audio")[0].numpy()
        theirs = scope["numbers"](str(sample_id), "audio", 12)
        assert np.array_equal(ours, theirs)
        assert np.array_equal(scope["row"][str(sample_id)], theirs < 0.3)
