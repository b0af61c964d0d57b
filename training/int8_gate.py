"""Whether int8 vectors may stand for those of fp32, language by language.

An average hides what rounding does to the languages that a model has seen least of, so each is held to the bounds by
itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.collection import Vectors

MEAN_COSINE_MIN = 0.99
WORST_COSINE_MIN = 0.95
NEIGHBOURS_MIN = 0.95
# Two neighbours of one text so close to each other, by fp32, are equally right.
TIE = 0.01


@dataclass(frozen=True)
class Loss:
    """What one language loses.

    mean_cosine, worst_cosine: between the int8 and the fp32 vector of a text.   neighbours: the share of texts whose
    nearest other text of the language, by int8, is by fp32 the nearest too, or within 0.01 of it.
    """

    texts: int
    mean_cosine: float
    worst_cosine: float
    neighbours: float

    @property
    def passed(self) -> bool:
        """A value that is not a number passes no comparison."""
        return (
            self.mean_cosine >= MEAN_COSINE_MIN
            and self.worst_cosine >= WORST_COSINE_MIN
            and self.neighbours >= NEIGHBOURS_MIN
        )


def losses(languages: Sequence[str], wanted: Vectors, found: Vectors) -> dict[str, Loss]:
    """languages: of each text.   wanted, found: float32[N, D], unit vectors of fp32 and of int8."""
    rows: dict[str, list[int]] = {}
    for row, language in enumerate(languages):
        rows.setdefault(language, []).append(row)
    return {language: loss(wanted[chosen], found[chosen]) for language, chosen in sorted(rows.items())}


def loss(wanted: Vectors, found: Vectors) -> Loss:
    """The loss of one language: [N, D] each."""
    cosines = np.einsum("nd,nd->n", wanted, found, dtype=np.float64)
    return Loss(len(cosines), float(cosines.mean()), float(cosines.min()), _neighbours(wanted, found))


def _neighbours(wanted: Vectors, found: Vectors) -> float:
    if len(wanted) < 2:
        return 1.0
    right, chosen = wanted @ wanted.T, found @ found.T
    np.fill_diagonal(right, -2)
    np.fill_diagonal(chosen, -2)
    texts = np.arange(len(wanted))
    return float(np.mean(right[texts, chosen.argmax(axis=1)] >= right.max(axis=1) - TIE))


def table(by_language: dict[str, Loss], *, failed_only: bool = False) -> str:
    """For the terminal; the worst language first."""
    lines = [f"{'language':<14}{'texts':>7}{'mean':>10}{'worst':>10}{'neighbours':>12}"]
    for language, item in sorted(by_language.items(), key=lambda pair: pair[1].mean_cosine):
        if not (failed_only and item.passed):
            lines.append(
                f"{language:<14}{item.texts:>7}{item.mean_cosine:>10.5f}{item.worst_cosine:>10.5f}{item.neighbours:>12.3f}"
            )
    return "\n".join(lines)
