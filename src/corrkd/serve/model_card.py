"""The model card: what a model predicts, how it was trained and tested, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import yaml

from corrkd.networks.evaluated import Evaluated
from corrkd.networks.saved import SavedNetwork
from corrkd.report import tables
from corrkd.report.run_folder import AbsentError, RunFolder
from corrkd.report.tables import markdown_text as text
from corrkd.targets.measures import METRICS, metric_of


def model_card(saved: SavedNetwork, card: Mapping[str, Any], run: RunFolder | None) -> str:
    """Return the text of README.md, with the tables of `run` if given."""
    about = saved.about
    data = about.get("data", {}).get("name", "") if isinstance(about.get("data"), Mapping) else ""
    head = {
        "library_name": "corrkd",
        "tags": ["multimodal-sentiment-analysis", "missing-modalities", "knowledge-distillation"],
        "metrics": ["f1", "accuracy"],
    }
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {text(str(about.get('role', 'model')).capitalize())} for "
        f"{text(data or 'multimodal sentiment')}",
        "Sentiment from any subset of its modalities, any of whose frames may be missing. Trained "
        "with corrkd, an open implementation of CorrKD (Li et al., CVPR 2024).",
        "## Use",
        _usage(card),
        "## What it takes and gives",
        _shapes(saved),
        "## How it was trained",
        _training(about),
    ]
    if saved.evaluated is not None:
        sections += ["## How reliable it is", _tested(saved.evaluated)]
    if run is not None:
        sections += ["## Beside its teacher and its control", *_run_tables(run)]
    sections += [
        "## Limits",
        "It knows the people, language and recording conditions of its training data alone, and "
        "features made in the same way. How reliable it is elsewhere has to be measured there: "
        "`corrkd evaluate` does.",
    ]
    return "\n\n".join(section.rstrip() for section in sections) + "\n"


def _usage(card: Mapping[str, Any]) -> str:
    modalities = card["modalities"]
    first, *remaining = modalities
    sample = ", ".join(
        [f"{json.dumps(first)}: frames", *(f"{json.dumps(m)}: None" for m in remaining)]
    )
    return (
        "```python\nimport numpy as np\nimport corrkd\n\n"
        'predictor = corrkd.Predictor.from_pretrained("this folder, or owner/name")\n'
        f"frames = np.zeros(({modalities[first].get('usual', 1)}, {modalities[first]['width']})) "
        f" # raw features of {json.dumps(first)}\n"
        f"print(predictor.predict({{{sample}}}))\n```"
    )


def _shapes(saved: SavedNetwork) -> str:
    rows = [
        "| modality | features a frame | frames in the data, at most |",
        "| --- | ---: | ---: |",
    ]
    rows += [f"| {text(m)} | {saved.widths[m]} | {saved.frames[m]} |" for m in saved.modalities]
    target = saved.target
    also = ", probabilities included" if target.has_classes else ""
    return (
        "\n".join(rows)
        + f"\n\nIt answers with {text(target.description)} (target {text(target.name)}){also}."
    )


def _training(about: Mapping[str, Any]) -> str:
    facts = {
        "Data": about.get("data"),
        "Seed": about.get("seed"),
        "Epoch": about.get("epoch"),
        "Versions": about.get("versions"),
    }
    lines = [
        f"- {name}: {text(_plain(value))}"
        for name, value in facts.items()
        if value not in (None, {}, "")
    ]
    if about.get("selection"):
        lines.append(f"- Kept: {text(str(about['selection']))}")
    return "\n".join(lines) or "Not recorded."


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(
            f"{k} {v}".removeprefix("name ") for k, v in value.items() if v not in ("", None)
        )
    return value if isinstance(value, str) else json.dumps(value)


def _tested(tested: Evaluated) -> str:
    measured = dict.fromkeys(m for c in tested.conditions for m in c.measured)
    names = [*(m for m in METRICS if m in measured), *(m for m in measured if m not in METRICS)]
    headings = " | ".join(text(metric_of(m).heading) for m in names)
    rows = [f"| what was there | {headings} |", f"| --- |{' ---: |' * len(names)}"]
    for c in tested.conditions:
        cells = [metric_of(m).format(c.measured[m]) if m in c.measured else "undef." for m in names]
        rows.append(f"| {text(c.name)} | {' | '.join(cells)} |")
    data = f" of {text(tested.data)}" if tested.data else ""
    lines = [
        f"This model on the {text(tested.split)} split{data} ({tested.samples} samples), in "
        "percent where not a size, score or correlation; `ratio-R`: a share R of every modality's "
        "frames was missing, `burst-R`: a gap of that share.",
        "\n".join(rows),
    ]
    if tested.level is not None:
        lines.append(
            f"Prediction sets were made to hold the truth in {100 * tested.level:g} % of cases for "
            "people who are new, on average over people; this assumes that they are such as those "
            "held out for it were."
        )
    return "\n\n".join(lines)


def _run_tables(run: RunFolder) -> list[str]:
    sections: list[str] = []
    with suppress(AbsentError):
        for table in (tables.with_difference(run, "weighted_f1"), tables.by_ratio(run)):
            sections += [text(table.caption), tables.to_markdown(table)]
    return sections or ["The run holds no results yet."]
