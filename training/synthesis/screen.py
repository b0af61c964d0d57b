"""A rough screen for unsafe texts where no moderation endpoint is at hand.

Weak, and meant to be: a few words that are the same, or nearly, in many languages, so a text may be harmful in plain
words of any language and pass. It keeps the worst out of a trial; for a real synthesis give a moderation endpoint.
"""

import re

_RULES = {
    "sexual": r"\bporn\w*|\bxxx\b|\bhentai\b|\bnsfw\b|порно\w*|ポルノ|色情|黄色视频|포르노|पोर्न|بورنو|إباحي|\bפורנו",
    "hate": r"\bsieg heil\b|\bheil hitler\b|\bwhite power\b|\bwhite genocide\b|\bgas the \w+\b|\b1488\b",
    "self-harm": r"\bkill yourself\b|\bkys\b|\bhow to (?:commit suicide|kill myself)\b",
    "violence": r"\bhow to (?:make|build) (?:a|an) \w* ?(?:bomb|explosive)|\bpipe bombs?\b|\bschool shooting\b",
    "drugs": r"\bhow to (?:cook|make|synthesi[sz]e) (?:meth|crack|heroin|fentanyl)\w*",
}
_COMPILED = {category: re.compile(pattern, re.IGNORECASE) for category, pattern in _RULES.items()}


def unsafe_categories(texts: list[str]) -> list[str]:
    """The categories that any of the texts falls into, sorted."""
    return sorted(category for category, pattern in _COMPILED.items() if any(pattern.search(text) for text in texts))
