"""The languages of texts, guessed from their letters by py3langid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import py3langid

# Texts looked at, spread over a file, and the share of one language that makes it the file's.
SAMPLE, SHARE = 200, 0.8


def languages_of(texts: Sequence[str]) -> list[str]:
    """The language of each text: ISO 639-1 codes."""
    return [str(py3langid.classify(text)[0]) for text in texts]


def chief_language(texts: Sequence[str]) -> str | None:
    """The language of nearly all texts, or None where there is no such."""
    sample = texts[:: max(1, len(texts) // SAMPLE)]
    ((language, count),) = Counter(languages_of(sample)).most_common(1)
    return language if count >= SHARE * len(sample) else None
