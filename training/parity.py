"""The parity gate: whether the vectors of another form of a model may stand for those of the model itself.

One gate for every form in a version (float16, dynamic and static int8, OpenVINO's int8) and for what optimum writes,
with limits of its own for each. An average hides what rounding does to the languages that a model has seen least of, so
each language is held to the limits by itself: how far its vectors moved, whether its rankings are the same, and, where
texts are translations of each other, how many a text no longer finds.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from training.collection import Vectors
from training.errors import ExportError

# Two neighbours of one text so close to each other, by the model itself, are equally right.
TIE = 0.01
# Among fewer, two that change places weigh as much as all the rest.
RANKED_TEXTS_MIN = 10
# Languages that translations are searched in, the first that there is.
PIVOTS = ("eng_Latn", "en")


@dataclass(frozen=True)
class Limits:
    """What a form of a model may lose in a language; see Loss for the measures."""

    mean_cosine: float
    worst_cosine: float
    neighbours: float
    rank: float
    bitext_drop: float


# Measured, mean cosine and rank agreement of the worst language. Static int8 of a model of two layers, 67 languages of
# FLORES: 0.99998 and 0.9999 by ONNX Runtime, 0.9983 and 0.9977 by OpenVINO, no translation lost. float16 of a model of
# its shape, 7 languages: 0.9999998 and 0.99998.
FLOAT32 = Limits(0.9999, 0.9999, 0.99, 0.999, 0.0)
FLOAT16 = Limits(0.9999, 0.999, 0.99, 0.998, 0.01)
INT8 = Limits(0.99, 0.95, 0.95, 0.98, 0.01)


@dataclass(frozen=True)
class GateTexts:
    """The texts that a form is held to.   languages: of each text.   keys: of each text, what it shares with its
    translations; None where it has none."""

    languages: list[str]
    texts: list[str]
    keys: list[str | None]


@dataclass(frozen=True)
class Loss:
    """What one language loses.

    mean_cosine, worst_cosine: between the vectors of a text.   neighbours: the share of texts whose nearest other text
    of the language, by the form, is by the model the nearest too, or within 0.01 of it.   rank: Spearman's correlation
    of how near the language's other texts are to a text, averaged over the texts; 1 below ten texts.   bitext_drop:
    the share of texts that find their translation in the pivot language by the model (or a text as near, within 0.01)
    less the share that do so by the form; None without translations.
    """

    texts: int
    mean_cosine: float
    worst_cosine: float
    neighbours: float
    rank: float
    bitext_drop: float | None = None

    def exceeded(self, limits: Limits) -> list[str]:
        """Each measure beyond its limit, with its value. A value that is not a number passes no comparison."""
        floors = [
            ("mean cosine", self.mean_cosine, limits.mean_cosine),
            ("worst cosine", self.worst_cosine, limits.worst_cosine),
            ("neighbours", self.neighbours, limits.neighbours),
            ("rank agreement", self.rank, limits.rank),
        ]
        found = [f"{name} {value:.5f} (≥ {floor})" for name, value, floor in floors if not value >= floor]
        # Shares of texts: a difference that is the limit may be a rounding error above it.
        if self.bitext_drop is not None and not self.bitext_drop <= limits.bitext_drop + 1e-9:
            found.append(f"bitext accuracy down by {self.bitext_drop:.3f} (≤ {limits.bitext_drop})")
        return found


@dataclass(frozen=True)
class Parity:
    """One form held to its limits, language by language."""

    form: str
    limits: Limits
    lost: dict[str, Loss]

    @property
    def failed(self) -> dict[str, list[str]]:
        """Language → what it lost beyond the limits."""
        exceeded = {language: item.exceeded(self.limits) for language, item in self.lost.items()}
        return {language: names for language, names in exceeded.items() if names}

    def sentence(self) -> str:
        """For the terminal: that all is well, or each language with value, limit, and the remedy."""
        if not self.failed:
            return f"{self.form}: {len(self.lost)} languages within the limits"
        named = "; ".join(f"{language}: {', '.join(names)}" for language, names in sorted(self.failed.items()))
        return (
            f"{self.form} is not written, it loses too much in {len(self.failed)} of {len(self.lost)} languages: "
            f"{named}; {_remedy(self.form)}"
        )

    def check(self) -> None:
        """Raises ExportError where a language lost too much."""
        if self.failed:
            raise ExportError(self.sentence())

    def as_json(self) -> dict[str, object]:
        """For the version's report."""
        return {
            "limits": asdict(self.limits),
            "passed": not self.failed,
            "lost": {language: asdict(item) for language, item in self.lost.items()},
        }


def _remedy(form: str) -> str:
    if "int8" in form:
        return "serve fp32, bf16 or fp16, or calibrate on texts of these languages"
    return "serve fp32, and see which layer's values leave the range of this precision"


def hold(form: str, limits: Limits, gate: GateTexts, wanted: Vectors, found: Vectors) -> Parity:
    """Compare a form's vectors with the model's.   wanted, found: float32[N, D], unit vectors of the gate's texts."""
    rows: dict[str, list[int]] = {}
    for row, language in enumerate(gate.languages):
        rows.setdefault(language, []).append(row)
    drops = bitext_drops(gate, wanted, found)
    lost = {
        language: loss(wanted[chosen], found[chosen], drops.get(language)) for language, chosen in sorted(rows.items())
    }
    return Parity(form, limits, lost)


def loss(wanted: Vectors, found: Vectors, bitext_drop: float | None = None) -> Loss:
    """The loss of one language: [N, D] each."""
    cosines = np.einsum("nd,nd->n", wanted, found, dtype=np.float64)
    return Loss(
        texts=len(cosines),
        mean_cosine=float(cosines.mean()),
        worst_cosine=float(cosines.min()),
        neighbours=_neighbours(wanted, found),
        rank=rank_agreement(wanted, found) if len(cosines) >= RANKED_TEXTS_MIN else 1.0,
        bitext_drop=bitext_drop,
    )


def rank_agreement(wanted: Vectors, found: Vectors) -> float:
    """Spearman's correlation of each text's similarities to the others, averaged over the texts.

    wanted, found: [N, D].   Returns 1 below three texts, which have no ranking; NaN where a vector is not finite.
    """
    count = len(wanted)
    if count < 3:
        return 1.0
    if not np.isfinite(found).all():
        return float("nan")
    others = ~np.eye(count, dtype=bool)
    first, second = (
        rankdata((vectors @ vectors.T)[others].reshape(count, count - 1), axis=1) for vectors in (wanted, found)
    )
    first, second = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (first, second))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    # A row whose similarities are all equal has no order to agree with.
    return float(np.mean(np.where(lengths > 0, (first * second).sum(axis=1) / np.maximum(lengths, 1e-12), 0)))


def bitext_drops(gate: GateTexts, wanted: Vectors, found: Vectors) -> dict[str, float]:
    """By how much the share of texts falls that find their translation in the pivot language; by language."""
    pivot = next((name for name in PIVOTS if name in gate.languages), None)
    place: dict[str, dict[str, int]] = {}
    for row, (language, key) in enumerate(zip(gate.languages, gate.keys, strict=True)):
        if key is not None:
            place.setdefault(language, {})[key] = row
    drops = {}
    for language, own in place.items():
        shared = sorted(own.keys() & place.get(pivot or "", {}).keys())
        if language != pivot and len(shared) > 1:
            sources = np.array([own[key] for key in shared])
            targets = np.array([place[pivot or ""][key] for key in shared])
            by_model = wanted[sources] @ wanted[targets].T
            by_form = found[sources] @ found[targets].T
            drops[language] = _right(by_model, by_model) - _right(by_model, by_form)
    return drops


def _right(by_model: NDArray[np.float32], similarities: NDArray[np.float32]) -> float:
    """The share of rows whose largest similarity is on the diagonal, or at a text as near by the model."""
    rows = np.arange(len(similarities))
    chosen = np.where(np.isfinite(similarities), similarities, -2).argmax(axis=1)
    right = by_model[rows, chosen] >= by_model[rows, rows] - TIE
    return float(np.mean(right & (by_model[rows, chosen] <= by_model[rows, rows] + TIE)))


def _neighbours(wanted: Vectors, found: Vectors) -> float:
    if len(wanted) < 2:
        return 1.0
    right, chosen = wanted @ wanted.T, found @ found.T
    np.fill_diagonal(right, -2)
    np.fill_diagonal(chosen, -2)
    texts = np.arange(len(wanted))
    return float(np.mean(right[texts, chosen.argmax(axis=1)] >= right.max(axis=1) - TIE))


def table(by_language: dict[str, Loss], languages: Sequence[str] = ()) -> str:
    """For the terminal; the worst language first.   languages: only these."""
    lines = [f"{'language':<14}{'texts':>7}{'mean':>10}{'worst':>10}{'neighbours':>12}{'rank':>10}{'bitext':>10}"]
    for language, item in sorted(by_language.items(), key=lambda pair: pair[1].mean_cosine):
        if not languages or language in languages:
            drop = "—" if item.bitext_drop is None else f"{0 - item.bitext_drop:+.3f}"
            lines.append(
                f"{language:<14}{item.texts:>7}{item.mean_cosine:>10.5f}{item.worst_cosine:>10.5f}"
                f"{item.neighbours:>12.3f}{item.rank:>10.4f}{drop:>10}"
            )
    return "\n".join(lines)


def worst(parities: Sequence[Loss]) -> Loss:
    """The worst of each measure over languages, for one line in a table."""
    drops = [item.bitext_drop for item in parities if item.bitext_drop is not None]
    return Loss(
        texts=sum(item.texts for item in parities),
        mean_cosine=min(item.mean_cosine for item in parities),
        worst_cosine=min(item.worst_cosine for item in parities),
        neighbours=min(item.neighbours for item in parities),
        rank=min(item.rank for item in parities),
        bitext_drop=max(drops) if drops else None,
    )
