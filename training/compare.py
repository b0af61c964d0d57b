"""Two results, set by set: is the difference more than chance?

    python -m training compare before.json after.json

A paired bootstrap over the examples: each of 10,000 drawings measures both systems on the same examples. What it
answers is how far the figure could move on other examples of the same kind; other languages or other sets are another
question.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.errors import BadResult
from training.resampling import resampled_difference, statistic
from training.result import Result, SetResult

RESAMPLES = 10_000
SEED = 0


@dataclass(frozen=True)
class Difference:
    """One set: the mean of its main measure by both, the second less the first, its 95 % interval, and p.

    p: two-sided, that a difference of this sign comes from the drawing of the examples alone.
    """

    name: str
    measure: str
    first: float
    second: float
    low: float
    high: float
    p: float

    @property
    def value(self) -> float:
        """The second less the first."""
        return self.second - self.first


@dataclass(frozen=True)
class Comparison:
    """unlike: what the figures do not have in common, one sentence each.   only: names of sets of one result only."""

    differences: list[Difference]
    unlike: list[str]
    only_first: list[str]
    only_second: list[str]


def compare(first: Result, second: Result, *, resamples: int = RESAMPLES, seed: int = SEED) -> Comparison:
    """Test the sets that both have. Raises BadResult where they were not measured on the same data."""
    shared = [name for name in first.sets if name in second.sets]
    if not shared:
        raise BadResult("the two results have no set in common")
    for name in shared:
        _same_data(first.sets[name], second.sets[name])
    return Comparison(
        [difference(first.sets[name], second.sets[name], resamples=resamples, seed=seed) for name in shared],
        unlike(first, second),
        [name for name in first.sets if name not in second.sets],
        [name for name in second.sets if name not in first.sets],
    )


def difference(first: SetResult, second: SetResult, *, resamples: int = RESAMPLES, seed: int = SEED) -> Difference:
    """The main measure's difference on one set."""
    drawn = drawn_differences(first, second, resamples=resamples, seed=seed)
    low, high = np.quantile(drawn, [0.025, 0.975])
    one, other = (float(np.mean(list(each.values.values()))) for each in (first, second))
    return Difference(first.name, first.measure, one, other, float(low), float(high), two_sided(drawn))


def drawn_differences(
    first: SetResult, second: SetResult, *, resamples: int = RESAMPLES, seed: int = SEED
) -> NDArray[np.float64]:
    """The main measure's difference in each drawing of the examples, float64[R]; the seed decides the drawings."""
    counts = {name: len(next(iter(examples.values()))) for name, examples in first.examples.items()}
    return resampled_difference(
        {name: statistic(first.task, examples) for name, examples in first.examples.items()},
        {name: statistic(second.task, second.examples[name]) for name in counts},
        counts,
        parallel=first.parallel,
        resamples=resamples,
        rng=np.random.default_rng(seed),
    )


def two_sided(drawn: NDArray[np.float64]) -> float:
    """The smaller tail beyond 0, twice; the observed drawing counts too, so p is never 0 (Davison and Hinkley 1997)."""
    tail = min(int(np.sum(drawn <= 0)), int(np.sum(drawn >= 0)))
    return min(1.0, 2 * (tail + 1) / (len(drawn) + 1))


def unlike(first: Result, second: Result) -> list[str]:
    """What makes the figures less than comparable: protocol, prompts, precision, length."""
    pairs: Sequence[tuple[str, object, object]] = (
        ("protocol", first.protocol["name"], second.protocol["name"]),
        ("prompts", dict(first.system.prompts), dict(second.system.prompts)),
        ("instructions", first.protocol["instructions"], second.protocol["instructions"]),
        ("dtype", first.system.dtype, second.system.dtype),
        ("longest text in tokens", first.system.max_tokens, second.system.max_tokens),
    )
    return [f"{what} differs: {one} and {other}" for what, one, other in pairs if one != other]


def _same_data(first: SetResult, second: SetResult) -> None:
    if first.data != second.data:
        files = sorted(file for file in {*first.data, *second.data} if first.data.get(file) != second.data.get(file))
        raise BadResult(f"{first.name}: measured on other data, {', '.join(files)}; evaluate both on the same folder")
    if first.examples.keys() != second.examples.keys():
        odd = sorted(first.examples.keys() ^ second.examples.keys())
        raise BadResult(
            f"{first.name}: only one of the two has {', '.join(odd[:5])}{', …' if len(odd) > 5 else ''}; "
            "evaluate both with or without --quick"
        )


def describe(comparison: Comparison, first: str, second: str) -> str:
    """The comparison as lines of text.   first, second: the systems' names."""
    lines = [f"A = {first}", f"B = {second}", *(f"warning: {each}" for each in comparison.unlike), ""]
    lines.append(f"{'set':<16}{'measure':<12}{'A':>9}{'B':>9}{'B - A':>10}   {'95 % interval':<20}{'p':>8}")
    lines += [
        f"{each.name:<16}{each.measure:<12}{each.first:>9.4f}{each.second:>9.4f}{each.value:>+10.4f}   "
        f"{f'[{each.low:+.4f}, {each.high:+.4f}]':<20}{each.p:>8.4f}"
        for each in comparison.differences
    ]
    for name, sets in (("A", comparison.only_first), ("B", comparison.only_second)):
        if sets:
            lines.append(f"only in {name}: {', '.join(sets)}")
    return "\n".join([*lines, ""])
