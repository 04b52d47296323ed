"""Small charts as inline SVG. Text stays in the page around them, where it keeps its size at any width.

Each fills its box (`preserveAspectRatio="none"`) and takes its colours from the page's style sheet, by class.
"""

import itertools
from collections.abc import Sequence

from markupsafe import Markup


def bar(share: float, before: float | None = None) -> Markup:
    """A horizontal bar of `share` (0 to 1), with a tick at an earlier share."""
    tick = (
        Markup('<rect class="tick" x="{:.2f}" width=".8" height="10"/>').format(min(before * 100, 99.2))
        if before is not None
        else ""
    )
    return _svg(
        "bar",
        f"{share:.1%}",
        100,
        10,
        Markup('<rect class="fill" width="{:.2f}" height="10"/>').format(share * 100) + tick,
    )


def histogram(counts: Sequence[int], titles: Sequence[str], marks: Sequence[float] = ()) -> Markup:
    """Upright bars side by side, the tallest as tall as the box; `titles` show where the pointer rests.

    `marks` are positions on the axis (0 to 1) that an upright line shows.
    """
    tallest = max((*counts, 1))
    bars = (
        Markup(
            '<rect class="fill" x="{}" y="{:.2f}" width=".9" height="{:.2f}"><title>{}: {}</title></rect>'
        ).format(index + 0.05, 100 - 100 * count / tallest, 100 * count / tallest, title, count)
        for index, (count, title) in enumerate(zip(counts, titles, strict=True))
    )
    lines = (
        Markup('<rect class="tick" x="{:.3f}" width="{:.3f}" height="100"/>').format(
            mark * len(counts), len(counts) / 250
        )
        for mark in marks
    )
    return _svg(
        "plot", f"histogram of {sum(counts)} rows", len(counts), 100, Markup("").join([*bars, *lines])
    )


def steps(edges: Sequence[float], values: Sequence[float]) -> Markup:
    """An area of constant `values` between successive `edges` (one more than values), from 0 to the largest
    value.
    """
    start, end, tallest = edges[0], edges[-1], max((*values, 1e-9))
    path = ["M0 100"]
    for (left, right), value in zip(itertools.pairwise(edges), values, strict=True):
        height = 100 - 100 * value / tallest
        path += [f"L{_at(left, start, end)} {height:.2f}", f"L{_at(right, start, end)} {height:.2f}"]
    return _svg(
        "plot",
        f"rate over time, at most {tallest:.0f}",
        100,
        100,
        Markup('<path class="area" d="{}"/>').format(" ".join([*path, "L100 100Z"])),
    )


def _at(value: float, start: float, end: float) -> str:
    return f"{100 * (value - start) / (end - start):.2f}" if end > start else "0"


def _svg(name: str, label: str, width: float, height: float, content: Markup) -> Markup:
    frame = Markup(
        '<svg class="{}" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    )
    return frame.format(name, width, height, label, content)
