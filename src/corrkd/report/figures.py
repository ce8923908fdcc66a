"""The figures of a report, as SVG and PNG. The same run folder gives the same bytes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from corrkd.escape import terminal_text
from corrkd.missing.conditions import COMPLETE, missing_subsets
from corrkd.report import tables
from corrkd.report.run_folder import FEW_ARMS, TEACHER, AbsentError, RunFolder

# Palette of Okabe and Ito, for every kind of colour vision. Lines and markers differ as well.
BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#56B4E9",
    "#CC79A7",
    "#6B6B6B",
)
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY, "#000000")
MARKERS = "os^Dv*PX"
REFERENCE: dict[str, Any] = {"color": BLUE, "linestyle": "-", "marker": "o", "linewidth": 2.2}
CONTROL: dict[str, Any] = {"color": VERMILION, "linestyle": "--", "marker": "s"}
LINES: dict[str, dict[str, Any]] = {
    TEACHER: {"color": GREEN, "linestyle": "-.", "marker": "^"},
    "majority": {"color": GREY, "linestyle": ":"},
    "by-length": {"color": GREY, "linestyle": (0, (1, 3))},
    tables.CEILING: {"color": "#222222", "linestyle": (0, (6, 2))},
}
OTHERS = (
    ORANGE,
    PURPLE,
    SKY,
    "#8B4513",
    "#000000",
    "#999933",
    GREEN,
    VERMILION,
)  # of methods without a fixed style
WIDTH = 8.4  # inches, of figures that span the page
POINTS = 600  # of a projection: enough to see clusters, few enough for t-SNE to take a second


@dataclass(frozen=True)
class Picture:
    """One figure, ready to be written. `alt` is the alternative text."""

    name: str
    caption: str
    alt: str
    svg: bytes
    png: bytes


def style(name: str) -> AbstractContextManager[None]:
    """Return a context with the style of reports, independent of the user's matplotlib settings.
    SVG ids depend on `name` alone.
    """
    settings = {
        "axes.axisbelow": True,
        "axes.edgecolor": "#888888",
        "axes.grid": True,
        "axes.linewidth": 0.6,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 9,
        "figure.constrained_layout.use": True,
        "font.size": 8.5,
        "grid.color": "#E4E4E4",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "lines.linewidth": 1.4,
        "lines.markersize": 3.5,
        "savefig.bbox": "tight",
        "savefig.dpi": 200,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,  # a class may be called "$"
        "xtick.color": "#444444",
        "xtick.major.width": 0.6,
        "ytick.color": "#444444",
        "ytick.major.width": 0.6,
    }
    return matplotlib.style.context(["default", settings])


def picture(name: str, caption: str, alt: str, figure: Figure) -> Picture:
    """Return a figure as SVG and PNG bytes without date and version."""
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(
        svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    figure.savefig(png, format="png", metadata={"Software": None})
    return Picture(name, caption, alt, svg.getvalue(), png.getvalue())


def looks(run: RunFolder, methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the line style of each method. Methods without a fixed style take colours and markers
    in turn.
    """
    fixed: dict[Any, dict[str, Any]] = {
        **LINES,
        run.card.control: CONTROL,
        run.reference: REFERENCE,
    }
    names = list(methods)
    others = {
        m: {
            "color": OTHERS[k % 8],
            "linestyle": ("-", "--", "-.")[k % 3],
            "marker": "Dv*PX^s<"[k % 8],
        }
        for k, m in enumerate(m for m in names if m not in fixed)
    }
    return {m: fixed.get(m) or others[m] for m in names}


def wrapped(text: str, width: int = 22) -> str:
    """Return a label in lines of at most `width` characters."""
    return (
        "\n".join(textwrap.wrap(terminal_text(text), width)) or " "
    )  # XML has no control characters


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], **location: Any) -> None:
    """Add a legend above the axes."""
    # Entries start with a space because matplotlib drops those with a leading underscore.
    options: dict[str, Any] = {"loc": "outside upper left", "ncols": min(len(labels), 5)} | location
    figure.legend(handles, [f"\u2009{wrapped(label, 26)}" for label in labels], **options)


def ratio_curves(run: RunFolder, methods: Sequence[str] | None = None) -> Picture:
    """Return the curves of weighted F1 against the share of missing frames, with floors and
    ceiling. All methods have 95 % bands if they are few, else only the reference.

    Args:
        run: folder of the dataset.
        methods: trained methods to show; default: all.
    """
    how, headings = tables.FRACTION, tables.ratio_headings(run)
    frame = tables.compared(run, "weighted_f1", headings, how, methods)
    titles, look = tables.method_titles(run), looks(run, map(str, frame.index))
    trained = [m for m in look if m not in (*tables.FLOORS, tables.CEILING)]
    few = len(trained) <= FEW_ARMS
    banded = [m for m in trained if few or m == run.reference]
    with style("missing-ratios"):
        figure = Figure(figsize=(WIDTH, 3.7 if few else 4.8))
        axes = figure.subplots()
        drawn = {}
        bands = []
        for method, cells in frame.iterrows():
            points = [(float(x), c.mean, c.half) for x, c in cells.items() if c is not None]  # type: ignore[arg-type]
            ratio, mean, half = (np.array(v, float) for v in zip(*points, strict=True))
            drawn[str(method)] = axes.plot(ratio, mean, **look[str(method)], zorder=3)[0]
            if method in banded and (half > 0).any():
                bands.append(titles[str(method)])
                half, color = np.nan_to_num(half), look[str(method)]["color"]
                axes.fill_between(
                    ratio, mean - half, mean + half, color=color, alpha=0.15, linewidth=0
                )
        low, high = axes.get_ylim()  # a band of two seeds may exceed the range of F1
        axes.set(
            xlabel="Share of frames missing from every modality",
            ylabel=how.title,
            xlim=(-0.02, 1.02),
        )
        axes.set_ylim(max(low, 0.0), min(high, how.scale))
        legend(figure, list(drawn.values())[::-1], [titles[m] for m in drawn][::-1])
        caption = (
            f"Intra-modality missingness on the {run.card.split} split: weighted F1 against the "
            f"share of missing frames."
        )
        if bands:
            of = (
                ""
                if len(bands) == len(trained)
                else f" of {', '.join(bands)}; the other intervals are in the table"
            )
            caption += (
                f" Band{'s' if len(bands) > 1 else ''}: Student-t 95 % interval over seeds{of}."
            )
        ends = [
            f"{titles[str(m)]} from {row.iloc[0].mean:.1f} to {row.iloc[-1].mean:.1f}"
            for m, row in frame.iterrows()
            if row.iloc[0] is not None and row.iloc[-1] is not None
        ]
        alt = (
            f"Line chart, missing share {frame.columns[0]} to {frame.columns[-1]}: "
            f"{'; '.join(ends)}."
        )
        return picture("missing-ratios", caption, alt, figure)


def training(run: RunFolder) -> Picture:
    """Return the curves of the loss terms and the validation score by epoch, for the arms of
    `run.focus`, with the kept epoch of each seed marked.
    """
    history = run.history()
    history = history[history["method"].isin(run.focus)]
    titles = {m: t for m, t in tables.method_titles(run).items() if m in set(history["method"])}
    if not titles:
        raise AbsentError("history.csv contains none of the run's methods.")
    terms = [c for c in map(str, history) if c.startswith("loss/") and history[c].notna().any()]
    with style("training"):
        figure = Figure(figsize=(WIDTH, 5.0))
        grid = figure.subplots(2, len(titles), sharex="col", sharey="row", squeeze=False)
        drawn: dict[str, Any] = {}
        for (above, below), (method, title) in zip(grid.T, titles.items(), strict=True):
            epochs = history[history["method"] == method]
            mean = epochs.groupby("epoch")[terms].mean()
            for index, term in enumerate(terms):
                if mean[term].notna().any():
                    total = term == "loss/total"
                    look = {
                        "color": "#222222" if total else PALETTE[index % 7 - 1],
                        "linestyle": "-" if total else "--",
                    }
                    drawn[term] = above.plot(mean.index, mean[term], **look)[0]
            above.set_title(wrapped(title, 26))
            validation(below, epochs, looks(run, titles)[method]["color"])
        positive = history[terms].min().min() > 0
        grid[0, 0].set(ylabel="Loss, mean over seeds", yscale="log" if positive else "linear")
        grid[0, 0].yaxis.set_major_formatter("{x:g}")
        grid[1, 0].set_ylabel("Validation weighted F1 × 100")
        legend(figure, [drawn[t] for t in terms], [t.removeprefix("loss/") for t in terms])
    kept = "; ".join(
        f"{titles[m]}: {', '.join(map(str, e))}" for m, e in kept_epochs(history, titles).items()
    )
    caption = (
        "Loss terms on the training split (top) and weighted F1 on the validation split (bottom), "
        "one line per seed; a dot marks the epoch whose parameters were kept. Kept epochs by seed: "
        f"{kept}."
    )
    alt = (
        f"Line charts by epoch for {', '.join(titles.values())}: loss terms, and the validation "
        f"score with a dot at each seed's kept epoch."
    )
    with style("training"):
        return picture("training", caption, alt, figure)


def kept_epochs(history: pd.DataFrame, methods: Iterable[str]) -> dict[str, list[int]]:
    """Return the kept epoch of each seed, in order of the seeds, by method."""
    kept = history[history["kept"] == 1].sort_values("seed", kind="stable")
    return {m: kept.loc[kept["method"] == m, "epoch"].astype(int).tolist() for m in methods}


def validation(axes: Axes, history: pd.DataFrame, color: str) -> None:
    """Draw the validation curves of one method, with the kept epochs marked."""
    for _, rows in history.groupby("seed"):
        rows = rows.sort_values("epoch").reset_index(drop=True)
        score = rows["valid/weighted_f1"] * 100
        axes.plot(rows["epoch"], score, color=color, alpha=0.55, linewidth=1)
        kept = rows["kept"] == 1
        dots: dict[str, Any] = {
            "color": color,
            "markersize": 5,
            "markeredgecolor": "white",
            "zorder": 4,
        }
        axes.plot(rows["epoch"][kept], score[kept], "o", **dots)
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def confusion(run: RunFolder) -> Picture:
    """Return the confusion matrices of the reference for complete samples and for the hardest
    single modality.
    """
    conditions = tables.shown_conditions(run)
    matrices = {c: tables.confusion(run, c) for c in conditions}
    questions = list(matrices[COMPLETE])
    by_question = questions != [""]
    shape = (len(conditions), len(questions)) if by_question else (1, len(conditions))
    size = max(1.5, 0.62 * max(len(m) for by in matrices.values() for m in by.values())) + 0.75
    with style("confusion"):
        figure = Figure(figsize=(min(size * shape[1] + 0.6, 12), size * shape[0] + 0.3))
        panels = figure.subplots(*shape, squeeze=False).ravel()
        for axes, (condition, question) in zip(
            panels, ((c, q) for c in conditions for q in questions), strict=True
        ):
            matrix(axes, matrices[condition][question])
            axes.set_title(
                wrapped(f"{question}, {condition}" if question else f"Available: {condition}", 30)
            )
        seeds = ", ".join(str(seed) for seed, _ in run.seeds())
        caption = (
            f"Confusion matrices of {tables.reference_title(run)} on the {run.card.split} split, "
            f"summed over seeds ({seeds}): all modalities available, and {conditions[-1]} alone, "
            "the single modality with the lowest weighted F1. In each cell: share of the true "
            "class, and number of samples."
        )
        return picture(
            "confusion",
            caption,
            "Confusion matrices; the same counts are in the tables below.",
            figure,
        )


def matrix(axes: Axes, counts: pd.DataFrame) -> None:
    """Draw a confusion matrix with the share of the true class and the count in each cell."""
    number = counts.to_numpy(int)
    share = number / np.maximum(number.sum(1, keepdims=True), 1)
    edges = np.arange(len(share) + 1) - 0.5
    axes.pcolormesh(
        edges, edges, share, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1
    )
    axes.set(aspect="equal", ylim=(edges[-1], edges[0]))
    for (row, column), value in np.ndenumerate(share):
        text = f"{100 * value:.0f} %\n{number[row, column]}"
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=7.5,
            color="white" if value > 0.55 else "#222222",
        )
    names = [wrapped(str(n), 12) for n in counts.index]
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 4 else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="Predicted", ylabel="True")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def scores(run: RunFolder) -> Picture:
    """Return the scatter plots of predicted against true scores of the reference, which replace
    confusion matrices for score targets.
    """
    conditions = tables.shown_conditions(run)
    rows = run.predictions(conditions)
    rows = rows[rows["method"] == run.reference]
    rows = rows[rows["seed"] == rows["seed"].min()]
    if rows.empty:
        raise AbsentError(
            f"predictions.parquet contains nothing about {run.reference} under these conditions."
        )
    with style("scores"):
        figure = Figure(figsize=(3.2 * len(conditions) + 0.4, 3.2))
        for axes, condition in zip(
            figure.subplots(1, len(conditions), squeeze=False, sharey=True)[0],
            conditions,
            strict=True,
        ):
            selected = rows[rows["condition"] == condition]
            axes.scatter(
                selected["target"], selected["prediction"], s=7, color=BLUE, alpha=0.4, linewidth=0
            )
            low, high = rows["target"].min(), rows["target"].max()
            axes.plot([low, high], [low, high], color=GREY, linewidth=0.8)
            axes.set(xlabel="True score", title=wrapped(f"Available: {condition}", 30))
            axes.set_ylabel("Predicted score" if condition == COMPLETE else "")
        caption = (
            f"Predicted against true score of {tables.reference_title(run)} on the "
            f"{run.card.split} split, seed {rows['seed'].min()}; on the line both are equal."
        )
        return picture("scores", caption, "Scatter plots of predicted against true scores.", figure)


def reliability(run: RunFolder) -> Picture:
    """Return the reliability diagrams: accuracy against confidence in ten bins, for complete
    samples and for the hardest single modality, with all seeds pooled.
    """
    if not run.card.target.has_classes:
        raise AbsentError("The target is a score: there are no probabilities to calibrate.")
    conditions = tables.shown_conditions(run)
    rows = run.predictions(conditions)
    rows = rows.assign(
        confidence=rows.filter(regex=r"^p_\d+$").max(axis=1),
        right=rows["target"] == rows["prediction"],
    )
    rows = rows.assign(bin=np.minimum((rows["confidence"] * 10).astype(int), 9))
    titles = {
        m: t
        for m, t in tables.method_titles(run).items()
        if m in set(rows["method"]) & set(run.focus)
    }
    with style("reliability"):
        figure = Figure(figsize=(6.8, 3.6))
        drawn: dict[str, Any] = {}
        for axes, condition in zip(
            figure.subplots(1, len(conditions), squeeze=False, sharey=True)[0],
            conditions,
            strict=True,
        ):
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
            for method, look in looks(run, titles).items():
                selected = rows[(rows["method"] == method) & (rows["condition"] == condition)]
                share = selected.groupby("bin").size() / max(len(selected), 1)
                share = share[share >= 0.01]
                bins = selected.groupby("bin")[["confidence", "right"]].mean().loc[share.index]
                drawn[method] = axes.plot(
                    bins["confidence"],
                    bins["right"],
                    color=look["color"],
                    linestyle=look["linestyle"],
                )[0]
                axes.scatter(
                    bins["confidence"],
                    bins["right"],
                    s=8 + 90 * share,
                    color=look["color"],
                    zorder=3,
                    linewidth=0,
                )
            axes.set(
                xlabel="Confidence",
                xlim=(0, 1),
                ylim=(0, 1),
                aspect="equal",
                xticks=[0, 0.5, 1],
                yticks=[0, 0.5, 1],
                title=wrapped(f"Available: {condition}", 30),
            )
            axes.set_ylabel("Accuracy" if condition == COMPLETE else "")
        legend(figure, list(drawn.values()), [titles[m] for m in drawn])
        caption = (
            f"Reliability on the {run.card.split} split, all seeds pooled: accuracy against "
            "confidence in ten bins; the area of a dot is the share of samples in its bin, and "
            "bins with less than 1 % are left out. Below the diagonal, confidence is too high."
        )
        return picture(
            "reliability",
            caption,
            "Reliability diagrams; the calibration errors are in the table.",
            figure,
        )


def projection(run: RunFolder, condition: str | None = None) -> Picture:
    """Return t-SNE plots of the teacher's representations of complete samples, and of teacher,
    control and reference under one condition, coloured by target.

    Args:
        run: folder of the dataset.
        condition: a condition with stored representations; default: the projection in the settings,
            or else the first stored missing subset.
    """
    subsets = [c.name for c in missing_subsets(run.modalities)]
    candidates = dict.fromkeys(
        [condition] if condition else filter(None, [run.card.projection, *subsets])
    )
    methods = dict.fromkeys(m for m in (TEACHER, run.card.control, run.reference) if m is not None)
    keys = [f"{TEACHER}/{COMPLETE}", *(f"{method}/{c}" for c in candidates for method in methods)]
    seed, arrays = run.representations([*keys, "targets"])
    stored = next((c for c in candidates if f"{run.reference}/{c}" in arrays), None)
    if stored is None or "targets" not in arrays:
        raise AbsentError(
            f"The representations contain no targets, or none of {run.reference} under "
            f"{condition or 'a missing subset'}."
        )
    panels = dict.fromkeys([f"{TEACHER}/{COMPLETE}", *(f"{method}/{stored}" for method in methods)])
    return projected(
        run, seed, {key: arrays[key] for key in panels if key in arrays}, arrays["targets"]
    )


def projected(
    run: RunFolder, seed: int, panels: Mapping[str, npt.NDArray[Any]], targets: npt.NDArray[Any]
) -> Picture:
    """Return a figure with a panel for each "<method>/<condition>" and representations (N, D),
    coloured by target.
    """
    count = len(targets)
    sample = np.unique(np.linspace(0, count - 1, min(count, POINTS)).astype(int))
    titles = tables.method_titles(run)
    with style("projection"):
        figure = Figure(figsize=(WIDTH, WIDTH / len(panels) + 0.8))
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (key, values) in zip(grid, panels.items(), strict=True):
            method, _, available = key.partition("/")
            handles, labels = coloured(axes, embedded(values[sample]), targets[sample], run)
            axes.set_title(wrapped(f"{titles[method]}, {available}", 24))
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.spines[:].set_visible(True)
            axes.set_box_aspect(1)
        if handles:
            legend(
                figure,
                handles,
                labels,
                loc="outside lower center",
                ncols=min(len(labels), 5),
                markerscale=2,
            )
        else:
            figure.colorbar(axes.collections[0], ax=list(grid), label="True score", shrink=0.7)
        caption = (
            f"Representations of {len(sample)} samples of the {run.card.split} split (seed "
            f"{seed}) in two dimensions, by PCA followed by t-SNE for each panel separately: only "
            "neighbourhoods within a panel are meaningful, not distances between panels."
        )
        return picture(
            "projection",
            caption,
            f"Scatter plots of {', '.join(panels)}, coloured by target.",
            figure,
        )


def embedded(representations: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return representations (N, D) in two dimensions, (N, 2), by PCA to at most 30 dimensions and
    t-SNE initialised by PCA.
    """
    values = representations.astype(np.float64)
    if len(values) < 4 or not np.ptp(values, axis=0).any():
        return np.zeros((len(values), 2))  # nothing to separate
    with threadpool_limits(limits=1):  # for reproducible bits
        reduced = PCA(min(30, *values.shape), svd_solver="full").fit_transform(values)
        if reduced.shape[1] < 2:
            reduced = np.pad(reduced, ((0, 0), (0, 1)))
        perplexity = min(30.0, (len(values) - 1) / 3)
        result = TSNE(2, init="pca", random_state=0, perplexity=perplexity).fit_transform(reduced)
    return np.asarray(result, np.float64)


def coloured(
    axes: Axes, points: npt.NDArray[np.float64], targets: npt.NDArray[Any], run: RunFolder
) -> tuple[list[Any], list[str]]:
    """Draw points coloured by class, by the one question with label yes, or by score. Return the
    handles and labels for the legend, which are empty for scores.
    """
    target = run.card.target
    look: dict[str, Any] = {"s": 8, "alpha": 0.75, "linewidth": 0}
    if not target.has_classes:
        axes.scatter(points[:, 0], points[:, 1], c=targets, cmap="cividis", **look)
        return [], []
    names, colors = list(target.classes), list(PALETTE)
    if target.questions:
        names = [*target.questions, "none or several"]
        colors = [*PALETTE[: len(target.questions)], "#BBBBBB"]
        targets = np.where(targets.sum(1) == 1, targets.argmax(1), len(target.questions))
    handles = [
        axes.scatter(
            points[targets == k, 0],
            points[targets == k, 1],
            color=colors[k % len(colors)],
            marker=MARKERS[k % 8],
            **look,
        )
        for k in range(len(names))
    ]
    return handles, names
