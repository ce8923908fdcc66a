"""The figure of an explanation: the contribution of each modality and frame to one prediction."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from corrkd.evaluation.explain import Explanation

# Blue and orange of Okabe and Ito: distinguishable with every kind of colour vision and as greys.
FOR, AGAINST, INK, FAINT = "#0072B2", "#E69F00", "#444444", "#888888"
GONE: dict[str, Any] = {
    "facecolor": "#EFEFEF",
    "edgecolor": "#BDBDBD",
    "hatch": "////",
    "linewidth": 0.0,
}
WIDTH = 8.4  # inches, like the figures of a report
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8.5,
    "font.size": 8.5,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "hatch.color": "#BDBDBD",
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be called "$"
    "xtick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.color": INK,
    "ytick.major.width": 0.6,
}


def draw(explanation: Explanation) -> Figure:
    """Return the explanation as a figure: on the left a bar for each modality, on the right a row
    for each modality with a bar for each frame.

    The first axes show the modalities, the others the frames of one modality each, on a common
    symmetric scale. Evidence for the class (or a higher score) is blue and points right or up,
    evidence against it is orange, and missing frames are hatched.
    """
    count = len(explanation.modalities)
    height = 1.55 + 0.95 * max(count, 1.7)
    limit = (
        1.12 * max((abs(a) for row in explanation.frames.values() for a in row), default=0.0) or 1.0
    )
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        # space for two lines above and the legend below, in inches
        figure.get_layout_engine().set(rect=(0.004, 0.3 / height, 0.984, 1.0 - 0.85 / height))  # type: ignore[union-attr,call-arg]
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.55))[0]
        left.suptitle(
            "What each modality adds, compared with leaving it out", x=0.02, ha="left", fontsize=9
        )
        right.suptitle(
            "What each frame adds, by integrated gradients", x=0.03, ha="left", fontsize=9
        )
        _draw_modalities(left.subplots(), explanation)
        one_length = len(set(explanation.exists.values())) == 1
        rows = right.subplots(count, 1, squeeze=False, sharex=one_length, sharey=True)[:, 0]
        for axes, m in zip(rows, explanation.modalities, strict=True):
            _draw_frames(axes, explanation, m, limit)
        right.supxlabel("frame", fontsize=8.5)
        right.supylabel(explanation.quantity, fontsize=8.5)
        figure.text(
            0.012,
            1.0 - 0.1 / height,
            _headline(explanation),
            va="top",
            fontsize=11,
            fontweight="bold",
        )
        figure.text(
            0.012, 1.0 - 0.34 / height, _facts(explanation), va="top", fontsize=8.5, color=INK
        )
        score = explanation.probability is None
        sides = ("raises it", "lowers it") if score else ("speaks for it", "speaks against it")
        patches = [Patch(color=FOR), Patch(color=AGAINST), Patch(**GONE)]
        figure.legend(
            patches,
            [*sides, "missing"],
            loc="lower right",
            ncols=3,
            handlelength=1.2,
            borderaxespad=0.3,
        )
        figure.draw_without_rendering()  # creates the ticks while the style applies
    return figure


def _draw_modalities(axes: Axes, explanation: Explanation) -> None:
    """Draw a bar for each modality, the first on top, with its numbers on the right."""
    effects = explanation.modalities
    values = [effect.value for effect in effects.values()]
    thick = min(0.5, 0.25 * len(effects))
    axes.barh(range(len(effects)), values, height=thick, color=[_colour(value) for value in values])
    axes.axvline(0.0, color=FAINT, linewidth=0.8)
    axes.set_yticks(range(len(effects)), [_wrapped(m, 18) for m in effects])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set(ylim=(len(effects) - 0.5, -0.5), xlabel=explanation.quantity)
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.06 * (high - low) or 1.0
    axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    for index, (m, effect) in enumerate(effects.items()):
        lines = [_signed(effect.value)] if any(explanation.visible[m]) else ["missing"]
        if effect.probability is not None and lines != ["missing"]:
            lines.append(f"{_signed(100 * effect.probability, '+.1f')} points")
        axes.annotate(
            "\n".join(lines),
            (1.03, index),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=INK,
        )


def _draw_frames(axes: Axes, explanation: Explanation, modality: str, limit: float) -> None:
    """Draw a bar for each frame of a modality, with missing frames hatched and without padding."""
    rows = explanation.frames[modality], explanation.exists[modality], explanation.visible[modality]
    bars = [
        (index, value, present)
        for index, (value, real, present) in enumerate(zip(*rows, strict=True))
        if real
    ]
    absent = [index for index, _, present in bars if not present]
    axes.bar(absent, [2 * limit] * len(absent), width=1.0, bottom=-limit, **GONE)
    positions, values = [index for index, _, _ in bars], [value for _, value, _ in bars]
    axes.bar(
        positions,
        values,
        width=min(0.8, 0.1 * len(bars)),
        color=[_colour(value) for value in values],
    )
    axes.axhline(0.0, color=FAINT, linewidth=0.8)
    first, last = (bars[0][0], bars[-1][0]) if bars else (0, 0)
    axes.set(xlim=(first - 0.5, last + 0.5), ylim=(-limit, limit))
    missing = (
        f", {len(absent)} of {len(bars)} frames missing" if 0 < len(absent) < len(bars) else ""
    )
    axes.set_title(_short(modality, 34) + missing, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    tick = _round_number(limit)
    axes.set_yticks([-tick, 0.0, tick], [_signed(-tick, "g"), "0", _signed(tick, "+g")])
    if len(absent) == len(bars):
        box = {"facecolor": "white", "edgecolor": "none", "pad": 2.0}
        axes.text(
            0.5,
            0.5,
            "missing",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=INK,
            bbox=box,
        )


def _colour(value: float) -> str:
    return AGAINST if value < 0 else FOR


def _wrapped(text: str, width: int) -> str:
    """Return a label in lines of at most `width` characters, which may break after underscores."""
    lines = textwrap.wrap(_short(text, 3 * width).replace("_", "_\0 "), width)
    return "\n".join(line.replace("\0 ", "").rstrip("\0") for line in lines)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"


def _round_number(limit: float) -> float:
    """Return the largest number up to a limit above 0 that is 1 to 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(limit))
    return next((n * power for n in (5.0, 4.0, 3.0, 2.0) if n * power <= limit), power)


def _headline(explanation: Explanation) -> str:
    if explanation.probability is None:
        return f"Score {_signed(explanation.value, '.2f')}"
    question = "" if explanation.question is None else f"{explanation.question}: "
    return (
        f"{_short(f'{question}{explanation.label}', 60)}, probability "
        f"{_percent(explanation.probability)}"
    )


def _percent(share: float) -> str:
    if min(share, 1.0 - share) < 0.0005:
        return "below 0.1 %" if share < 0.5 else "above 99.9 %"
    return f"{100 * share:.1f} %"


def _facts(explanation: Explanation) -> str:
    """Return a sentence on the output with all frames and with blank ones, and on the error of the
    sum of attributions if it is large.
    """
    value, baseline, gap = explanation.value, explanation.baseline, explanation.gap
    facts = (
        f"{explanation.quantity.capitalize()} {_signed(value)}, from {_signed(baseline)} where "
        f"every frame is blank"
    )
    if abs(gap) > max(0.05 * abs(value - baseline), 0.005):
        facts += f"; the sum over frames deviates by {_signed(gap)}: use more steps"
    return facts


def _signed(value: float, form: str = "+.2f") -> str:
    return format(value, form).replace("-", "\u2212")
