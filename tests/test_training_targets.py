"""Which English text each text of a pair is led to."""

from pathlib import Path

import numpy as np
import pytest

from training.data import NO_TEXT, Corpus, keep_open_sources, read_corpus, read_sources
from training.distil import remember
from training.distil_loss import plan
from training.targets import NO_TARGET, find_targets, pair_weights

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def corpus():
    return read_corpus(keep_open_sources(read_sources(DATA)))


def test_an_english_text_is_its_own_target_and_that_of_its_translation(corpus):
    english = corpus.languages.index("en")
    targets = find_targets(corpus)
    is_english = corpus.text_language[corpus.pairs] == english
    assert (targets[is_english] == corpus.pairs[is_english]).all()
    to_german = np.flatnonzero(corpus.pair_language == corpus.languages.index("de"))
    to_german = [row for row in to_german if is_english[row, 0]]
    assert (targets[to_german, 1] == corpus.pairs[to_german, 0]).all()


def small_corpus(pairs: list[tuple[int, int]], sources: list[int]) -> Corpus:
    """Texts 0 and 1 are English, 10 to 19 German, 20 to 29 French; source 0 translates, source 1 does not."""
    languages = np.array([0] * 10 + [1] * 10 + [2] * 10, dtype=np.int16)
    return Corpus(
        texts=[f"text {number}" for number in range(30)],
        languages=["en", "de", "fr"],
        sources=["translation_small", "paraphrase_small"],
        text_language=languages,
        pairs=np.array(pairs, dtype=np.int32),
        negatives=np.full(len(pairs), NO_TEXT, dtype=np.int32),
        pair_source=np.array(sources, dtype=np.int16),
        pair_language=np.ones(len(pairs), dtype=np.int16),
    )


def test_a_translation_between_others_takes_the_english_that_either_side_has_elsewhere():
    corpus = small_corpus([(0, 10), (10, 20), (21, 10), (11, 22)], [0, 0, 0, 0])
    targets = find_targets(corpus)
    assert targets.tolist() == [[0, 0], [0, 0], [0, 0], [NO_TARGET, NO_TARGET]]
    assert pair_weights(corpus, targets, 0.25).tolist() == [1.0, 1.0, 1.0, 0.25]


def test_a_paraphrase_is_no_translation_and_keeps_its_odds():
    corpus = small_corpus([(0, 10), (10, 11)], [0, 1])
    targets = find_targets(corpus)
    assert targets[1].tolist() == [NO_TARGET, NO_TARGET]
    assert pair_weights(corpus, targets, 0.25).tolist() == [1.0, 1.0]


def test_the_student_reads_the_foreign_side_always_and_the_english_one_sometimes():
    # English texts are 0 and 1; the second pair is stored the other way round.
    pairs, targets = np.array([[0, 10], [11, 1]]), np.array([[0, 0], [1, 1]])
    read = plan(pairs, targets, share=0.0, rng=np.random.default_rng(0))
    assert read.left.tolist() == [10, 11]
    assert read.right.tolist() == [0, 1]
    assert len(read.read_right) == 0
    assert plan(pairs, targets, share=1.0, rng=np.random.default_rng(0)).read_right.tolist() == [0, 1]


def test_a_pair_without_a_target_is_read_on_both_sides():
    read = plan(np.array([[10, 20], [11, 21]]), np.full((2, 2), NO_TARGET), share=0.0, rng=np.random.default_rng(0))
    assert read.left.tolist() == [10, 11]
    assert read.read_right.tolist() == [0, 1]


def test_an_english_question_and_its_passage_keep_their_own_targets():
    read = plan(np.array([[0, 1]]), np.array([[0, 1]]), share=1.0, rng=np.random.default_rng(0))
    assert read.left.tolist() == [0]
    assert read.targets.tolist() == [[0, 1]]


def test_the_newest_english_texts_are_remembered_once_each():
    recent = remember(np.array([5, 7, 9]), np.array([[7, 7], [11, NO_TARGET]]), size=3)
    assert recent.tolist() == [9, 7, 11]
    assert remember(recent, np.array([[9, 9]]), size=0).tolist() == []
