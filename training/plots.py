"""The figures of a report as SVG, the same bytes from the same numbers.

Colours are those of Okabe and Ito, told apart by colour-blind readers too, and cividis for the matrix.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
WIDTH_INCHES = 9.0  # as wide as a README is shown, so that a point stays about a point
LANGUAGES_PER_ROW = 34
_STYLE = {
    "svg.hashsalt": "me5",
    "font.family": "DejaVu Sans",  # matplotlib brings it, so the same letters come out everywhere
    "font.size": 9,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
}


@dataclass(frozen=True)
class Point:
    """A system in the plane of size and quality.   size: in the unit of the axis."""

    label: str
    size: float
    quality: float


def plot_languages(path: Path, title: str, measure: str, values: Mapping[str, Mapping[str, float]]) -> None:
    """Bars by language, the first system's best language first, in rows that can be read.

    values: system → language → value.
    """
    first = next(iter(values.values()))
    languages = sorted(first, key=lambda language: (-first[language], language))
    count = -(-len(languages) // LANGUAGES_PER_ROW)
    length = -(-len(languages) // count)
    with _figure(path, 0.9 + 1.75 * count) as figure:
        rows = figure.subplots(count, 1, squeeze=False)[:, 0]
        for number, axes in enumerate(rows):
            _bars(axes, languages[number * length : (number + 1) * length], values, length)
            axes.set_ylabel(measure)
        rows[0].set_title(title, pad=26 if len(values) > 1 else 8)
        if len(values) > 1:
            rows[0].legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, frameon=False, borderaxespad=0.2)


def _bars(axes: Axes, languages: Sequence[str], values: Mapping[str, Mapping[str, float]], places: int) -> None:
    width = 0.8 / len(values)
    for number, (label, by_language) in enumerate(values.items()):
        shown = [(place, by_language[lang]) for place, lang in enumerate(languages) if lang in by_language]
        where = [place + (number - (len(values) - 1) / 2) * width for place, _ in shown]
        axes.bar(where, [value for _, value in shown], width, color=COLOURS[number % len(COLOURS)], label=label)
    axes.set_xticks(range(len(languages)), languages, rotation=90, fontsize=7.5)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.7, places - 0.3)
    lowest = min(0.0, *(value for by in values.values() for value in by.values()))
    axes.set_ylim(lowest, 1)
    axes.grid(axis="y")


def plot_sizes(path: Path, points: Sequence[Point], unit: str, quality: str) -> None:
    """Size against quality, the size on a logarithmic axis."""
    with _figure(path, 4.2) as figure:
        axes = figure.subplots()
        for number, point in enumerate(points):
            axes.scatter(point.size, point.quality, s=70, color=COLOURS[number % len(COLOURS)], zorder=3)
            axes.annotate(point.label, (point.size, point.quality), xytext=(7, 5), textcoords="offset points")
        axes.set_xscale("log")
        sizes = [point.size for point in points]
        # Room on the right for the last name.
        axes.set_xlim(min(sizes) / 1.5, max(sizes) * 3)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(y=0.25)
        axes.set_xlabel(f"size ({unit})")
        axes.set_ylabel(quality)
        axes.set_title("Size against quality")
        axes.grid()


def plot_matrix(path: Path, title: str, measure: str, cells: Mapping[tuple[str, str], float]) -> None:
    """A heat map of (from, to) → value; a row is the language that asks."""
    languages = list(dict.fromkeys(language for pair in cells for language in pair))
    grid = np.full((len(languages), len(languages)), np.nan)
    for (source, target), value in cells.items():
        grid[languages.index(source), languages.index(target)] = value
    with _figure(path, 1.9 + 0.32 * len(languages)) as figure:
        axes = figure.subplots()
        image = axes.imshow(grid, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(languages)), languages, rotation=90, fontsize=8)
        axes.set_yticks(range(len(languages)), languages, fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("found in")
        axes.set_ylabel("asked in")
        axes.set_title(title)
        for row, column in np.argwhere(~np.isnan(grid)):
            value = grid[row, column]
            # Dark cells are the low ones.
            colour = "white" if value < 0.55 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(image, ax=axes, label=measure, fraction=0.04, pad=0.02).outline.set_visible(False)


@contextmanager
def _figure(path: Path, height: float) -> Iterator[Figure]:
    # A figure with its own canvas: nothing is left open, and no display is asked for.
    # Its stub wants each key as a literal.
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure
        figure.savefig(path, format="svg", metadata={"Date": None})
