"""A map of texts: near texts near each other, topics by colour, each with its words at its middle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from service.applications.topics import NOISE, Numbers, Places, Topic
from service.errors import InvalidInput

LABELS_MAX = 24
# Told apart by colour-blind readers too: Okabe and Ito's, then Tol's muted ones.
COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"),
    *("#332288", "#999933", "#882255", "#44AA99", "#AA4499", "#117733", "#DDCC77", "#88CCEE", "#CC6677"),
)
GREY = "#BBBBBB"
# Fonts for scripts that matplotlib's own font lacks, where they are installed. In an SVG the reader's fonts draw them.
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Sans Arabic",
)
ENDINGS = (".svg", ".png", ".pdf")


def check_ending(path: Path) -> None:
    """Raises InvalidInput where no picture can be written under this name."""
    if path.suffix not in ENDINGS:
        raise InvalidInput(f"{path}: a map is written as {', '.join(ENDINGS)}; end its name so")


def draw_map(path: Path, places: Places, numbers: Numbers, topics: Sequence[Topic], title: str) -> None:
    """Write the map: a point a text, [N, 2], in the colour of its topic, [N]. The same places give the same bytes."""
    there = {font.name for font in fontManager.ttflist}
    style = {
        "svg.hashsalt": "me5",
        # Letters, not outlines: whoever opens it has fonts for scripts that this machine may lack.
        "svg.fonttype": "none",
        "font.family": [name for name in FONTS if name in there],
        "font.size": 9,
    }
    # Its stub wants each key as a literal.
    with mpl.rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(11, 8), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        _points(axes, places, numbers)
        _labels(axes, places, numbers, topics)
        axes.set_axis_off()
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _points(axes: Axes, places: Places, numbers: Numbers) -> None:
    size = float(np.clip(16_000 / len(places), 4, 60))
    # One call a topic, so that a reader can pick it apart in the SVG; noise lies at the bottom.
    for number in range(NOISE, int(numbers.max()) + 1):
        chosen = numbers == number
        colour = GREY if number == NOISE else COLOURS[number % len(COLOURS)]
        axes.scatter(
            places[chosen, 0],
            places[chosen, 1],
            s=size,
            color=colour,
            alpha=0.75,
            linewidths=0,
            rasterized=len(places) > 3000,
        )


def _labels(axes: Axes, places: Places, numbers: Numbers, topics: Sequence[Topic]) -> None:
    halo = [patheffects.withStroke(linewidth=3, foreground="white")]
    for topic in topics[:LABELS_MAX]:
        chosen = places[numbers == topic.number]
        if len(chosen):
            # The text nearest to the middle of its places: a topic in two islands is named on one of them.
            middle = chosen[np.argmin(np.abs(chosen - np.median(chosen, axis=0)).sum(axis=1))]
            lines = f"{', '.join(topic.words[:2])}\n{', '.join(topic.words[2:4])}".rstrip()
            axes.annotate(
                lines,
                middle,
                ha="center",
                va="center",
                fontsize=9,
                fontweight="bold",
                color="#222222",
                path_effects=halo,
                annotation_clip=False,
            )
