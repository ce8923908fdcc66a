"""The model card in Markdown: what a model predicts, and how it was trained and tested."""

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
    """Return the text of README.md, including tables of the run unless `run` is None."""
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
        "## Inputs and outputs",
        _shapes(saved),
        "## Training",
        _training(about),
    ]
    if saved.evaluated is not None:
        sections += ["## Evaluation", _tested(saved.evaluated)]
    if run is not None:
        sections += ["## Comparison with its teacher and control", *_run_tables(run)]
    sections += [
        "## Limits",
        "The model was trained only on the people, language and recording conditions of its data, "
        "and on features extracted in the same way. On other data, measure its metrics with "
        "`corrkd evaluate`.",
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
    rows = ["| modality | features per frame | most frames in the data |", "| --- | ---: | ---: |"]
    rows += [f"| {text(m)} | {saved.widths[m]} | {saved.frames[m]} |" for m in saved.modalities]
    target = saved.target
    also = ", probabilities included" if target.has_classes else ""
    return (
        "\n".join(rows)
        + f"\n\nIts output is {text(target.description)} (target {text(target.name)}){also}."
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
    rows = [f"| condition | {headings} |", f"| --- |{' ---: |' * len(names)}"]
    for c in tested.conditions:
        cells = [metric_of(m).format(c.measured[m]) if m in c.measured else "undef." for m in names]
        rows.append(f"| {text(c.name)} | {' | '.join(cells)} |")
    data = f" of {text(tested.data)}" if tested.data else ""
    lines = [
        f"This model on the {text(tested.split)} split{data} ({tested.samples} samples), in "
        "percent except sizes, scores and correlations; `ratio-R`: a share R of every modality's "
        "frames was missing, `burst-R`: a gap of that share.",
        "\n".join(rows),
    ]
    if tested.level is not None:
        lines.append(
            f"Prediction sets are calibrated to contain the true value in {100 * tested.level:g} % "
            "of cases for new people, on average over people; this assumes that new people "
            "resemble those held out for calibration."
        )
    return "\n\n".join(lines)


def _run_tables(run: RunFolder) -> list[str]:
    sections: list[str] = []
    with suppress(AbsentError):
        for table in (tables.with_difference(run, "weighted_f1"), tables.by_ratio(run)):
            sections += [text(table.caption), tables.to_markdown(table)]
    return sections or ["The run has no results yet."]
