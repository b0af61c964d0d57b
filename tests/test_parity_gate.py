"""The parity gate: what it measures, and that it names the language, the value, the limit and the remedy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from training.errors import ExportError
from training.parity import FLOAT16, FLOAT32, INT8, TIE, GateTexts, bitext_drops, hold, loss, rank_agreement

LANGUAGES = ("eng_Latn", "deu_Latn", "yor_Latn")
EACH = 20


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def gate() -> GateTexts:
    languages = [language for language in LANGUAGES for _ in range(EACH)]
    keys: list[str | None] = [str(number) for _ in LANGUAGES for number in range(EACH)]
    return GateTexts(languages, [f"{language} {key}" for language, key in zip(languages, keys, strict=True)], keys)


@pytest.fixture
def vectors() -> NDArray[np.float32]:
    """Translations lie close to each other, texts do not."""
    chance = np.random.default_rng(0)
    meanings = chance.normal(size=(EACH, 32))
    return unit(np.concatenate([meanings + chance.normal(size=(EACH, 32)) * 0.2 for _ in LANGUAGES]).astype(np.float32))


def test_the_same_vectors_pass_every_limit(gate: GateTexts, vectors: NDArray[np.float32]) -> None:
    for limits in (FLOAT32, FLOAT16, INT8):
        parity = hold("int8", limits, gate, vectors, vectors)
        parity.check()
        assert set(parity.lost) == set(LANGUAGES)
        assert parity.lost["deu_Latn"].bitext_drop == 0
        assert parity.lost["eng_Latn"].bitext_drop is None


def test_a_damaged_language_is_refused_by_name_with_value_limit_and_remedy(
    gate: GateTexts, vectors: NDArray[np.float32]
) -> None:
    damaged = vectors.copy()
    rows = [row for row, language in enumerate(gate.languages) if language == "yor_Latn"]
    # Every text of the language means what its neighbour means.
    damaged[rows] = np.roll(vectors[rows], 1, axis=0)
    parity = hold("int8 static for onnx", INT8, gate, vectors, damaged)
    assert list(parity.failed) == ["yor_Latn"]
    with pytest.raises(ExportError) as caught:
        parity.check()
    told = caught.value.message
    assert "1 of 3 languages: yor_Latn: mean cosine" in told
    assert "(≥ 0.99)" in told
    assert "rank agreement" in told
    assert "bitext accuracy down by 1.000 (≤ 0.01)" in told
    assert "calibrate on texts of these languages" in told


def test_bitext_accuracy_alone_can_refuse_a_language(gate: GateTexts, vectors: NDArray[np.float32]) -> None:
    # All of one language turned alike: neighbours and ranks within it stay what they are.
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(32, 32)))[0].astype(np.float32)
    found = vectors.copy()
    rows = [row for row, language in enumerate(gate.languages) if language == "yor_Latn"]
    found[rows] = found[rows] @ turn
    lost = hold("int8", INT8, gate, vectors, found).lost["yor_Latn"]
    assert lost.rank > 0.999
    assert lost.neighbours == 1
    assert lost.bitext_drop is not None
    assert lost.bitext_drop > 0.5


def test_a_translation_as_near_as_the_right_one_counts_as_found(gate: GateTexts, vectors: NDArray[np.float32]) -> None:
    wanted = vectors.copy()
    # Two English texts all but equal: a form may swap them.
    wanted[1] = unit(wanted[:1] + np.float32(1e-4) * wanted[1:2])[0]
    swapped = wanted.copy()
    swapped[[0, 1]] = wanted[[1, 0]]
    assert abs(wanted[0] @ wanted[20] - wanted[1] @ wanted[20]) < TIE
    assert bitext_drops(gate, wanted, swapped) == {"deu_Latn": 0.0, "yor_Latn": 0.0}


def test_rank_agreement_is_spearmans_correlation_averaged_over_texts(vectors: NDArray[np.float32]) -> None:
    some = vectors[:8]
    other = unit(some + np.random.default_rng(2).normal(size=some.shape).astype(np.float32) * 0.1)
    expected = []
    for row in range(len(some)):
        rest = [number for number in range(len(some)) if number != row]
        expected.append(spearmanr(some[rest] @ some[row], other[rest] @ other[row]).statistic)
    assert rank_agreement(some, other) == pytest.approx(np.mean(expected), abs=1e-9)
    assert rank_agreement(some, other) < 1
    assert rank_agreement(some[:2], other[:2]) == 1


def test_a_value_that_is_not_a_number_passes_no_limit(vectors: NDArray[np.float32]) -> None:
    lost = loss(vectors, np.full_like(vectors, np.nan))
    assert len(lost.exceeded(INT8)) >= 3


def test_texts_without_translations_have_no_bitext_figure(gate: GateTexts, vectors: NDArray[np.float32]) -> None:
    alone = GateTexts(gate.languages, gate.texts, [None] * len(gate.texts))
    parity = hold("fp16", FLOAT16, alone, vectors, vectors)
    assert {item.bitext_drop for item in parity.lost.values()} == {None}
