"""Results side by side, as a page and figures.

python -m training report small.json base.json --out report/
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from training.audit import audit, describe_audit, describe_drops, drops
from training.compare import unlike
from training.errors import BadResult, TrainingError
from training.pages import check_page, put_between
from training.plots import Point, plot_languages, plot_matrix, plot_sizes
from training.result import NAMED_MEANS, Result, SetResult, summary

PAGE = "report.md"
# As many names as an axis has room for.
NAMED_SETS = 4
_SIZES: tuple[tuple[str, float, str], ...] = (
    ("bytes", 1e6, "MB of weights"),
    ("parameters", 1e6, "million parameters"),
)


def write_report(results: Sequence[Result], out: Path, into: Path | None = None, card: Path | None = None) -> Path:
    """Write the page and its figures. Returns the page's path. Raises TrainingError where the folder takes no file.

    into: another page, which takes the table and the figures between its marks, see pages.
    card: a model's, which takes the table and those by language between the same marks.
    """
    for place in (into, card):
        if place is not None:
            check_page(place, "evaluation")
    named = dict(zip(labels(results), results, strict=True))
    try:
        out.mkdir(parents=True, exist_ok=True)
        figures = draw_figures(named, out)
        (out / PAGE).write_text(page(named, figures), encoding="utf-8")
        if into is not None:
            put_between(into, "evaluation", brief(named, figures, os.path.relpath(out, into.parent)))
        if card is not None:
            put_between(card, "evaluation", "\n\n".join([_figures_of_all(named), *by_language(named)]))
    except OSError as error:
        raise TrainingError(f"{out} can't be written: {error.strerror}; give --out another folder") from error
    return out / PAGE


def brief(named: Mapping[str, Result], figures: Sequence[tuple[str, str]], folder: str) -> str:
    """The table of all sets and the figures, for another page.   folder: of the figures, seen from that page.

    Of the figures that each system has one of, only the first system's.
    """
    others = tuple(f"-{number}.svg" for number in range(2, len(named) + 1))
    images = [f"![{title}]({folder}/{file})" for title, file in figures if not file.endswith(others)]
    return "\n\n".join([_figures_of_all(named), *images])


def by_language(named: Mapping[str, Result]) -> list[str]:
    """A folded table for each set of several languages: the main measure, a row a language, a column a system."""
    sets = {each.name: each for result in named.values() for each in result.sets.values()}
    parts = []
    for name, measured in sets.items():
        if measured.subsets != "language" or len(measured.values) < 2:
            continue
        columns = [result.sets[name].values if name in result.sets else {} for result in named.values()]
        rows = [["language", *named]]
        for language in sorted({language for values in columns for language in values}):
            found = [values.get(language) for values in columns]
            best = f"{max(value for value in found if value is not None):.4f}"
            rows.append([language, *(_cell(value, best if len(named) > 1 else "") for value in found)])
        head = f"<details><summary>{name}: {measured.measure} by language</summary>"
        parts.append(f"{head}\n\n{_table(rows, numbers_from=1)}\n\n</details>")
    return parts


def labels(results: Sequence[Result]) -> list[str]:
    """A name for each result: the system's, and of engine and protocol what tells it from the others."""
    names = [result.system.name for result in results]
    more: tuple[Callable[[Result], str], ...] = (
        lambda result: result.system.engine,
        lambda result: str(result.protocol["name"]),
    )
    for each in more:
        found = [each(result) for result in results]
        if len(set(names)) < len(names) and len(set(found)) > 1:
            names = [f"{name}, {value}" for name, value in zip(names, found, strict=True)]
    often = Counter(names)
    return [f"{name}, {place}" if often[name] > 1 else name for place, name in enumerate(names, start=1)]


def draw_figures(named: Mapping[str, Result], out: Path) -> list[tuple[str, str]]:
    """Draw what the results have numbers for. Returns title and file name of each figure."""
    figures = []
    for name in ("flores", "tatoeba"):
        if shown := {label: result.sets[name].values for label, result in named.items() if name in result.sets}:
            measure = next(result.sets[name].measure for result in named.values() if name in result.sets)
            figures.append((f"{name}: {measure} by language", f"{name}.svg"))
            plot_languages(out / figures[-1][1], figures[-1][0], measure, shown)
    for number, (label, result) in enumerate(named.items(), start=1):
        for each in result.sets.values():
            if each.subsets == "pair":
                figures.append((f"{each.name}: {each.measure} of {label}", f"{each.name}-{number}.svg"))
                plot_matrix(out / figures[-1][1], figures[-1][0], each.measure, pairs(each))
    points, unit, sets = sizes(named)
    if len({point.size for point in points}) > 1:
        figures.append(("Size against quality", "size.svg"))
        plot_sizes(
            out / "size.svg",
            points,
            unit,
            f"mean of {', '.join(sets) if len(sets) <= NAMED_SETS else f'{len(sets)} sets'}",
        )
    return figures


def pairs(matrix: SetResult) -> dict[tuple[str, str], float]:
    """(from, to) → the main measure."""
    found = {}
    for name, value in matrix.values.items():
        source, _, target = name.partition("→")
        found[source, target] = value
    return found


def sizes(named: Mapping[str, Result]) -> tuple[list[Point], str, list[str]]:
    """Where each system of known size stands, the unit, and the sets that all have, whose mean is the quality."""
    shared = [name for name in next(iter(named.values())).sets if all(name in result.sets for result in named.values())]
    if not shared:
        return [], "", []
    key, scale, unit = max(_SIZES, key=lambda size: sum(size[0] in result.system.details for result in named.values()))
    points = [
        Point(label, float(result.system.details[key]) / scale, float(np.mean([_mean(result.sets[n]) for n in shared])))
        for label, result in named.items()
        if key in result.system.details
    ]
    return points, unit, shared


def page(named: Mapping[str, Result], figures: Sequence[tuple[str, str]]) -> str:
    """The report as Markdown."""
    parts = ["# Evaluation", _systems(named), "## All sets", _figures_of_all(named)]
    first, *others = named
    parts += [f"{other} against {first}: {each}." for other in others for each in unlike(named[first], named[other])]
    for title, file in figures:
        parts += [f"## {title}", f"![{title}]({file})"]
    parts += ["## By language", *by_language(named)]
    for label, result in named.items():
        try:
            parts += [f"## Languages of {label}", _block(describe_audit(audit(result)))]
        except BadResult:
            # Results of single languages have nothing to audit; the rest of the report stands.
            continue
    for other in others:
        try:
            changes = describe_drops(drops(named[first], named[other]))
        except BadResult as reason:
            changes = f"{reason.message}\n"
        parts += [f"## From {first} to {other}, by language", _block(changes)]
    return "\n\n".join(parts) + "\n"


def _systems(named: Mapping[str, Result]) -> str:
    rows = [["system", "engine", "dtype", "tokens", "protocol", "protocol's hash"]]
    for label, result in named.items():
        system, protocol = result.system, result.protocol
        length = "any" if system.max_tokens is None else str(system.max_tokens)
        rows.append(
            [label, system.engine, system.dtype, length, str(protocol["name"]), f"`{str(protocol['sha256'])[:12]}`"]
        )
    return _table(rows, numbers_from=len(rows[0]))


def _figures_of_all(named: Mapping[str, Result]) -> str:
    """The main measure of each set, averaged over its subsets, the best of a row in bold."""
    rows = [["set", "measure", *named]]
    means = {label: summary({n: each.scores for n, each in result.sets.items()}) for label, result in named.items()}
    measures = {name: each.measure for result in named.values() for name, each in result.sets.items()}
    measures |= {name: measures[of] for name, (of, _) in NAMED_MEANS.items() if of in measures}
    for name, measure in measures.items():
        found = [means[label].get(name, {}).get(measure) for label in named]
        if all(value is None for value in found):
            continue
        best = f"{max(value for value in found if value is not None):.4f}"
        rows.append([name, measure, *(_cell(value, best if len(named) > 1 else "") for value in found)])
    return _table(rows, numbers_from=2)


def _cell(value: float | None, best: str) -> str:
    if value is None:
        return "–"
    return f"**{value:.4f}**" if f"{value:.4f}" == best else f"{value:.4f}"


def _table(rows: Sequence[Sequence[str]], numbers_from: int) -> str:
    head, *body = rows
    rule = ["---" if place < numbers_from else "---:" for place in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def _block(text: str) -> str:
    return f"```text\n{text}```"


def _mean(measured: SetResult) -> float:
    return float(np.mean(list(measured.values.values())))
