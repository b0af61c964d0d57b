"""A map of texts: near texts near each other, topics by colour, each with its words at its middle."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font

from service.applications.topics import NOISE, Numbers, Places, Topic
from service.errors import InvalidInput

LABELS_MAX = 24
# Told apart by colour-blind readers too: Okabe and Ito's, then Tol's muted ones.
COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"),
    *("#332288", "#999933", "#882255", "#44AA99", "#AA4499", "#117733", "#DDCC77", "#88CCEE", "#CC6677"),
)
GREY = "#C4C4C4"
# Points of a picture in lines that are drawn one by one; more are an image in it.
RASTER_FROM = 3000
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
    fonts = [name for name in FONTS if name in {font.name for font in fontManager.ttflist}]
    style = {
        "svg.hashsalt": "me5",
        # Letters, not outlines: whoever opens it has fonts for scripts that this machine may lack.
        "svg.fonttype": "none",
        "font.family": fonts,
        "font.size": 9,
    }
    drawn = path.suffix != ".svg"
    labels = {topic.number: label_of(topic, signs_of(fonts) if drawn else None) for topic in topics[:LABELS_MAX]}
    # Its stub wants each key as a literal.
    with mpl.rc_context(style), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(11, 8), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        _points(axes, places, numbers)
        _labels(axes, places, numbers, labels)
        axes.set_axis_off()
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def signs_of(fonts: Sequence[str]) -> set[int]:
    """The code points that these fonts draw."""
    found: set[int] = set()
    for name in fonts:
        found.update(get_font(findfont(name)).get_charmap())
    return found


def label_of(topic: Topic, signs: set[int] | None) -> str:
    """Four words of a topic on two lines. signs: code points that can be drawn; words with others are left out."""
    words = [word for word in topic.words if signs is None or signs.issuperset(map(ord, word))][:4]
    return "\n".join(", ".join(words[start : start + 2]) for start in range(0, len(words), 2))


def colour_of(number: int) -> str:
    """A topic's colour; after the last the first comes again."""
    return GREY if number == NOISE else COLOURS[number % len(COLOURS)]


def _points(axes: Axes, places: Places, numbers: Numbers) -> None:
    size = float(np.clip(30_000 / len(places), 5, 60))
    many = len(places) > RASTER_FROM
    # One call a topic, so that a reader can pick it apart in the SVG; noise lies at the bottom.
    for number in range(NOISE, int(numbers.max()) + 1):
        at = places[numbers == number]
        axes.scatter(at[:, 0], at[:, 1], s=size, color=colour_of(number), alpha=0.7, linewidths=0, rasterized=many)


def _labels(axes: Axes, places: Places, numbers: Numbers, labels: Mapping[int, str]) -> None:
    # Not a halo by matplotlib's path effects: with them an SVG's letters become outlines.
    ground = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.7, "linewidth": 0}
    for number, label in labels.items():
        chosen = places[numbers == number]
        if not len(chosen):
            continue
        # The text nearest to the middle of its places: a topic in two islands is named on one of them.
        at = chosen[np.argmin(np.abs(chosen - np.median(chosen, axis=0)).sum(axis=1))]
        shade = tuple(0.6 * part for part in to_rgb(colour_of(number)))
        axes.annotate(
            label,
            (float(at[0]), float(at[1])),
            ha="center",
            va="center",
            fontweight="bold",
            color=shade,
            bbox=ground,
            annotation_clip=False,
        )
