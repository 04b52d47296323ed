"""The charts of a training report, each as an inline SVG."""

import io
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from markupsafe import Markup
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from train.evaluation.evaluate import Evaluation
from train.fit.loss_chart import STYLE

BLUE, ORANGE, GREY, LIGHT = "#3f6fb5", "#c2410c", "#62676e", "#e2e3e5"
COLOURS = (BLUE, ORANGE)
THEME = {  # a figure's colours → the page's variables, which differ in the dark
    BLUE: "fill",
    ORANGE: "tick",
    GREY: "soft",
    LIGHT: "line",
    "#000000": "ink",
    "#ffffff": "card",
    "#555555": "soft",
    "#e5e5e5": "line",
}
PANELS = 2  # small charts side by side


def svg(figure: Figure, name: str) -> Markup:
    """The figure as an `<svg>` element: the page sets its colours, by variables, and its width. A screen
    reader says `name`.
    """
    buffer = io.StringIO()
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    plt.close(figure)
    text = buffer.getvalue()
    for colour, variable in THEME.items():
        text = text.replace(colour, f"var(--{variable})")
    label = Markup('<svg role="img" aria-label="{}" fill="var(--ink)"').format(name)
    return Markup(text[text.index("<svg") :].replace("<svg", label, 1))


def intervals(evaluations: Sequence[Evaluation], measures: Sequence[str]) -> Figure:
    """Share right of each measure with its 95 % Wilson interval, adapters side by side; one dataset."""
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        figure, axes = plt.subplots(figsize=(10, 0.8 + 0.36 * len(measures)), layout="constrained")
        places = np.arange(len(measures))[::-1]
        for index, evaluation in enumerate(evaluations):
            shift = 0 if len(evaluations) == 1 else 0.15 - 0.3 * index
            for place, name in zip(places, measures, strict=True):
                found = evaluation.measures[name]
                low, high = found.interval
                axes.plot(
                    [low, high],
                    [place + shift] * 2,
                    color=COLOURS[index],
                    linewidth=2,
                    solid_capstyle="round",
                )
                label = evaluation.adapter if place == 0 else None
                axes.plot(
                    found.share or 0, place + shift, "o", color=COLOURS[index], markersize=6, label=label
                )
        axes.set_yticks(places, measures)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(measures) - 0.4))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.tick_params(left=False)
        axes.grid(axis="x", color=LIGHT, linewidth=0.8)
        axes.set_axisbelow(True)
        if len(evaluations) > 1:
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.08), ncols=2)
    return figure  # type: ignore[no-any-return]


def confused(cells: Mapping[tuple[str, str | None], int], values: Sequence[str], at_most: int) -> list[str]:
    """Those of the `values` that occur in most wrong rows, as gold or answered, in their own order."""
    wrong: Counter[str] = Counter()
    for (gold, answered), count in cells.items():
        if gold != answered:
            wrong.update({gold: count, **({} if answered is None else {answered: count})})
    kept = {value for value, _ in wrong.most_common(at_most)}
    return [value for value in values if value in kept]


def confusion(cells: Mapping[tuple[str, str | None], int], values: Sequence[str]) -> Figure:
    """Counts of gold (rows) by answered (columns); the shade is the share of all the gold value's rows."""
    columns: list[str | None] = [*values, *([None] if any(answered is None for _, answered in cells) else [])]
    counts = np.array([[cells.get((gold, answered), 0) for answered in columns] for gold in values])
    of: Counter[str] = Counter()  # what was answered may not be among the values that are shown
    for (gold, _), count in cells.items():
        of[gold] += count
    shares = counts / np.array([[max(1, of[gold])] for gold in values])
    names = [textwrap.fill(name or "no answer", 18) for name in columns]
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        figure, axes = plt.subplots(
            figsize=(2.2 + 0.6 * len(columns), 1.4 + 0.5 * len(values)), layout="constrained"
        )
        edges = [np.arange(size + 1) - 0.5 for size in reversed(counts.shape)]
        # shapes, no picture
        axes.pcolormesh(*edges, shares, cmap="Blues", vmin=0, vmax=1.25, edgecolors="white", linewidth=1)
        axes.invert_yaxis()
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.6 else "#1c1e21" if count else "#b8bcc2"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
        turned = max(map(len, (name for full in names for name in full.split("\n")))) > 8
        axes.set_xticks(
            range(len(columns)),
            names,
            rotation=35 if turned else 0,
            ha="right" if turned else "center",
            fontsize=8,
        )
        axes.set_yticks(range(len(values)), names[: len(values)], fontsize=8)
        axes.set(xlabel="answered", ylabel="gold")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return figure  # type: ignore[no-any-return]


def reliability(fields: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Share right by mean score in bins of equal mass, a panel a field; `fields` has `raw` and perhaps
    `calibrated` bins.
    """
    rows = -(-len(fields) // PANELS)
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        figure, grid = plt.subplots(
            rows, PANELS, figsize=(10, 3.2 * rows), layout="constrained", squeeze=False
        )
        for axes, (name, found) in zip(grid.flat, fields.items(), strict=False):
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
            for kind, colour in (("raw", GREY), ("calibrated", BLUE)):
                if kind in found:
                    points = [(each["score"], each["right"]) for each in found[kind]["bins"]]
                    label = f"{kind}, ECE {found[kind]['ece']:.3f}"
                    axes.plot(
                        *zip(*points, strict=True),
                        color=colour,
                        marker="o",
                        markersize=4,
                        linewidth=1.2,
                        label=label,
                    )
            axes.set(title=name, xlim=(0, 1), ylim=(0, 1.02), xlabel="mean score", ylabel="share right")
            axes.legend(frameon=False, loc="lower right", fontsize=8)
            axes.grid(color=LIGHT, linewidth=0.8)
        for axes in list(grid.flat)[len(fields) :]:
            axes.set_visible(False)
    return figure  # type: ignore[no-any-return]


def risk_coverage(curve: Sequence[tuple[float, float]], target: float | None, kept: float | None) -> Figure:
    """Share of wrong rows among those kept, by the share kept; with the error target and the coverage of the
    threshold.
    """
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        figure, axes = plt.subplots(figsize=(10, 3.4), layout="constrained")
        axes.plot(*zip(*curve, strict=True), color=BLUE, linewidth=1.8)
        if target is not None:
            axes.axhline(target, color=ORANGE, linewidth=1, linestyle="--", label=f"error target {target:g}")
        if kept is not None:
            axes.axvline(
                kept,
                color=GREY,
                linewidth=1,
                linestyle=":",
                label=f"threshold: {kept:.0%} of rows need no person",
            )
        axes.set(xlim=(0, 1), xlabel="rows kept, by falling score", ylabel="wrong among them")
        axes.set_ylim(bottom=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(color=LIGHT, linewidth=0.8)
        if target is not None or kept is not None:
            axes.legend(loc="upper left", facecolor="white", edgecolor="none", framealpha=1)
    return figure  # type: ignore[no-any-return]
