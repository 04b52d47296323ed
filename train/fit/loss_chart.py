"""The loss chart of a training run, as PNG and SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TRAIN, VALIDATION, GREY = "#7aa6d6", "#c2410c", "#555555"


STYLE = {
    "svg.hashsalt": "loss",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a label may hold a `$`
}


def draw_loss(history: Sequence[Mapping[str, float]], folder: Path, title: str) -> None:
    """Write `loss.png` and `loss.svg` into `folder`; the same history gives the same bytes."""
    figure = loss_figure(history, title)
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        figure.savefig(folder / "loss.png", dpi=150)
        figure.savefig(folder / "loss.svg", metadata={"Date": None})
    plt.close(figure)


def loss_figure(history: Sequence[Mapping[str, float]], title: str) -> Figure:
    """`history` holds, step by step, `step` with `loss` (train) or `validation_loss`, both in nats per answer
    token.
    """
    train = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    validation = [
        (entry["step"], entry["validation_loss"]) for entry in history if "validation_loss" in entry
    ]
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        axes.plot(*zip(*train, strict=True), color=TRAIN, linewidth=1.5, label="train, each step")
        axes.plot(
            *zip(*validation, strict=True), color=VALIDATION, linewidth=2, marker="o", label="validation"
        )
        step, loss = min(validation, key=lambda point: point[1])
        axes.axvline(step, color=GREY, linewidth=0.8, linestyle=":", label=f"kept: step {step}, {loss:.3g}")
        axes.set(title=title, xlabel="optimiser step", ylabel="loss, nats per answer token")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(frameon=False)
    return figure  # type: ignore[no-any-return]
