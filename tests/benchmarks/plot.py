"""Throughput against p99, one line a server, as a picture for the README."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FormatStrFormatter, LogLocator, ScalarFormatter
from report import Json, open_loop

# Okabe and Ito's colours, told apart by every kind of colour vision; the markers tell them apart in print as well.
STYLES = (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#D55E00", "D"), ("#CC79A7", "v"))


def draw(bench: Json, path: Path) -> None:
    """Write the picture. The same numbers give the same bytes."""
    plt.rcParams.update({"svg.hashsalt": "me5", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11})
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for server, (colour, marker) in zip(bench["servers"], STYLES, strict=False):
        points = open_loop(bench, server)
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=server, linewidth=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
    axes.set_xlim(left=0)
    axes.set_xlabel("queries answered per second, arriving at random")
    axes.set_ylabel("p99 in ms (log)")
    axes.grid(which="both", color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
