"""The table of an ablation: what every arm reaches, and what every part adds, with intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from training.ablate import ARMS, EFFECTS
from training.compare import drawn_differences
from training.result import Result, SetResult


@dataclass(frozen=True)
class Effect:
    """What a part adds to the mean of a set's main measure, with its 95 % interval.

    The interval is over examples, by a bootstrap, and over seeds, by Student's t; their squares add up.
    for_each_seed: the differences one by one.
    """

    part: str
    set_name: str
    value: float
    low: float
    high: float
    for_each_seed: tuple[float, ...]


def effect_of(part: str, before: Sequence[SetResult], after: Sequence[SetResult]) -> Effect:
    """before, after: one set's results with one seed each, in the same order of seeds."""
    each = tuple(mean_of(other) - mean_of(one) for one, other in zip(before, after, strict=True))
    drawn = np.stack([drawn_differences(one, other) for one, other in zip(before, after, strict=True)]).mean(axis=0)
    low, high = np.quantile(drawn, [0.025, 0.975])
    value, count = float(np.mean(each)), len(each)
    # A bootstrap over three seeds covers 76 % in place of 95: theirs is Student's interval.
    of_seeds = float(np.std(each, ddof=1) / count**0.5 * t.ppf(0.975, count - 1)) if count > 1 else 0.0
    half = math.hypot((high - low) / 2, of_seeds)
    return Effect(part, before[0].name, value, value - half, value + half, each)


def effects_of(results: Mapping[str, Sequence[Result]]) -> list[Effect]:
    """Every part on every set.   results: arm → a result for each seed."""
    sets = next(iter(results.values()))[0].sets
    return [
        effect_of(part, [each.sets[name] for each in results[before]], [each.sets[name] for each in results[after]])
        for part, before, after in EFFECTS
        for name in sets
    ]


def mean_of(result: SetResult) -> float:
    """The mean of the main measure over the subsets."""
    return float(np.mean(list(result.values.values())))


def markdown(results: Mapping[str, Sequence[Result]], effects: Sequence[Effect]) -> str:
    """Two tables: the arms, and the effects."""
    sets = next(iter(results.values()))[0].sets
    names = [f"{name}, {each.measure}" for name, each in sets.items()]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for arm in ARMS:
        cells = []
        for name in sets:
            values = [mean_of(each.sets[name]) for each in results[arm.name]]
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"| {arm.title} | {' | '.join(cells)} |")
    count = len(results[ARMS[0].name])
    lines += ["", f"Means of {count} seeds, in brackets the least and the greatest. What each part adds:", ""]
    lines += ["| | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for part, _, _ in EFFECTS:
        found = {each.set_name: each for each in effects if each.part == part}
        cells = [f"{each.value:+.3f} [{each.low:+.3f}, {each.high:+.3f}]" for each in (found[name] for name in sets)]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])
