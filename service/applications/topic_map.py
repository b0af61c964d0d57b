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
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from service.applications.neighbours import Vectors
from service.applications.topics import NOISE, SEED, Numbers, Topic
from service.errors import InvalidInput

# More points are neither seen apart nor laid out in a minute.
POINTS_MAX = 8000
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


def draw_map(path: Path, vectors: Vectors, numbers: Numbers, topics: Sequence[Topic], title: str) -> None:
    """Write the map; the same vectors give the same picture. Of more than POINTS_MAX texts a sample is drawn."""
    rows = np.arange(len(vectors))
    if len(rows) > POINTS_MAX:
        rows = np.sort(np.random.default_rng(SEED).permutation(len(rows))[:POINTS_MAX])
    places = lay_out(np.ascontiguousarray(vectors[rows]))
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
        _points(axes, places, numbers[rows])
        _labels(axes, places, numbers[rows], topics)
        axes.set_axis_off()
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def lay_out(vectors: Vectors) -> NDArray[np.float64]:
    """A place in the plane for each row of [N, D], [N, 2]: t-SNE, which keeps neighbours together."""
    if len(vectors) < 4:
        return np.stack([np.arange(len(vectors)), np.zeros(len(vectors))], axis=1)
    # Its default of 30 neighbours, or a third of what there is.
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    layout = TSNE(2, perplexity=perplexity, metric="cosine", init="pca", random_state=SEED, n_jobs=-1)
    return np.asarray(layout.fit_transform(vectors), dtype=np.float64)


def _points(axes: Axes, places: NDArray[np.float64], numbers: Numbers) -> None:
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


def _labels(axes: Axes, places: NDArray[np.float64], numbers: Numbers, topics: Sequence[Topic]) -> None:
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
