"""Whether a passage holds an answer: then it is no wrong one, whatever the search says of it."""

import unicodedata
from collections.abc import Sequence

# Scripts whose words no spaces stand between: an answer may begin anywhere. By the names of their characters.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def normalised(text: str) -> str:
    """Compatible forms joined, case folded, one space for any run of white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def holds_answer(passage: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in the passage, as whole words where its script has spaces."""
    text = normalised(passage)
    return any(_stands_in(text, answer) for given in answers if (answer := normalised(given)))


def _stands_in(text: str, answer: str) -> bool:
    start = text.find(answer)
    while start >= 0:
        stop = start + len(answer)
        if not (_joined(text[start - 1 : start], answer[0]) or _joined(answer[-1], text[stop : stop + 1])):
            return True
        start = text.find(answer, start + 1)
    return False


def _joined(left: str, right: str) -> bool:
    """Whether two neighbouring characters are of one word. Either may be missing, at an end of the text."""
    return _in_word(left) and _in_word(right)


def _in_word(character: str) -> bool:
    # Marks are parts of words: a vowel sign behind a Devanagari letter makes another word of it.
    is_part = character != "" and unicodedata.category(character)[0] in "LMN"
    return is_part and not unicodedata.name(character, "").startswith(UNSPACED)
