"""Which English text shows where a text belongs."""

import numpy as np
from numpy.typing import NDArray

from training.data import Corpus

NO_TARGET = -1
# Beginning of the names of sources whose pairs say the same in two languages.
TRANSLATION_SOURCES = "translation_"


def find_targets(corpus: Corpus) -> NDArray[np.int32]:
    """Name for both sides of every pair the English text that shows where it belongs.

    Returns int32[N, 2] text numbers. An English side is its own target; a side in another language takes the English
    side, when the pair is a translation. A translation between two other languages takes the English text that either
    side has in another pair. NO_TARGET otherwise.
    """
    english = corpus.languages.index("en")
    is_english = corpus.text_language[corpus.pairs] == english
    targets = np.where(is_english, corpus.pairs, NO_TARGET)
    translation = is_translation(corpus)
    for side in (0, 1):
        other = 1 - side
        from_other = translation & ~is_english[:, side] & is_english[:, other]
        targets[from_other, side] = corpus.pairs[from_other, other]
    in_english = np.full(len(corpus.texts), NO_TARGET, dtype=np.int32)
    known = translation[:, None] & ~is_english & (targets != NO_TARGET)
    in_english[corpus.pairs[known]] = targets[known]
    for side in (0, 1):
        without = translation & (targets[:, side] == NO_TARGET)
        own, others = in_english[corpus.pairs[without, side]], in_english[corpus.pairs[without, 1 - side]]
        targets[without, side] = np.where(own != NO_TARGET, own, others)
    return targets


def pair_weights(corpus: Corpus, targets: NDArray[np.int32], untaught: float) -> NDArray[np.float64]:
    """The odds of every pair within its source: 1, or `untaught` for a translation of which the teacher knows nothing.

    Such a pair costs twice as much, for the student has to read both sides, and shows only where they are to each
    other. Returns float64[N].
    """
    return np.where(is_translation(corpus) & (targets == NO_TARGET).any(axis=1), untaught, 1.0)


def is_translation(corpus: Corpus) -> NDArray[np.bool_]:
    """Whether the sides of each pair say the same in two languages, bool[N]: by the name of the source."""
    by_source = np.array([name.startswith(TRANSLATION_SOURCES) for name in corpus.sources], dtype=bool)
    found: NDArray[np.bool_] = by_source[corpus.pair_source]
    return found
