"""From a model's answer to tasks or to an example, or to the reason why it is no good. Nothing is mended."""

import re
import unicodedata
from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter, ValidationError

from training.synthesis.config import INVENTED, Kind
from training.synthesis.plan import ExamplePlan
from training.synthesis.templates import KEYS, TASKS_KEY
from training.text_languages import why_not_in

# Characters. Chinese and Japanese say a word in one or two: a long text has at least as many as it should have words.
TASK_CHARACTERS = (20, 300)
SHORT_CHARACTERS = (2, 600)
LONG_CHARACTERS_MAX = 20_000
# A query that long does not stand in its passage by chance.
COPY_FROM_CHARACTERS = 12

_OBJECT = TypeAdapter(dict[str, str], config=ConfigDict(strict=True))
_LISTS = TypeAdapter(dict[str, list[str]], config=ConfigDict(strict=True))

# What models leave of their instructions, or say in place of an answer.
_LEFTOVERS = re.compile(
    r"\bas an ai\b|\bas a (?:large )?language model\b|\A\W*(?:i'm|i am) (?:sorry|unable|not able)\b|"
    r"\A\W*i can(?:'t|not) (?:help|assist|provide|comply)|\blorem ipsum\b|"
    r"\[(?:insert|your|name|placeholder|todo)[^\]]*\]|\{\{[^{}]+\}\}|\{[a-z]+_[a-z_]+\}|<(?:insert|your|placeholder)[^>]*>|"
    r"\bmisleading_passage\b|\bwrong_answer\b|\bflawed_translation\b|```",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w")
# Nine to fifteen digits in groups, or behind a plus sign: years and prices have fewer, account numbers are no loss.
_TELEPHONE = re.compile(r"(?<![\d.,])(?:\+\d{9,15}|\(?\d{2,5}\)?[\s./-]\d{2,5}[\s.-]?\d{2,5}(?:[\s.-]?\d{2,4})*)(?!\d)")
_DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}\b|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b")


@dataclass(frozen=True)
class Example:
    """negative: None where the kind has none."""

    query: str
    positive: str
    negative: str | None

    @property
    def texts(self) -> list[str]:
        """All of them."""
        return [self.query, self.positive, *([self.negative] if self.negative is not None else [])]


def parse_tasks(answer: str) -> list[str] | None:
    """The tasks of an answer as they stand, or None where it is not the object that was asked for."""
    try:
        content = _LISTS.validate_json(answer)
    except ValidationError:
        return None
    return content[TASKS_KEY] if set(content) == {TASKS_KEY} else None


def why_not_task(task: str) -> str | None:
    """Why a task is no instruction, or None."""
    if not TASK_CHARACTERS[0] <= len(task) <= TASK_CHARACTERS[1] or "\n" in task:
        return "length"
    if left_over(task):
        return "leftover"
    if why_not_in(task, "en") is not None:
        return "language"
    return None


def parse_example(answer: str, kind: Kind) -> Example | None:
    """The example of an answer, or None where it is not the object that was asked for."""
    try:
        content = _OBJECT.validate_json(answer)
    except ValidationError:
        return None
    keys = KEYS[kind]
    if set(content) != {key for key in (keys.query, keys.positive, keys.negative) if key}:
        return None
    negative = content[keys.negative].strip() if keys.negative else None
    return Example(content[keys.query].strip(), content[keys.positive].strip(), negative)


def why_not_example(example: Example, plan: ExamplePlan) -> str | None:
    """Why an example is no good, or None."""
    if not all(example.texts):
        return "empty"
    if not _has_length(example, plan):
        return "length"
    if any(left_over(text) for text in example.texts):
        return "leftover"
    if any(has_personal_data(text) for text in example.texts):
        return "personal data"
    query, positive, *negatives = map(normalised, example.texts)
    if query == positive or _is_copied(query, positive, plan.kind):
        return "copied"
    if positive in negatives or query in negatives:
        return "negative is right"
    languages = (plan.language, *[plan.other or plan.language] * 2)
    for text, language in zip(example.texts, languages, strict=False):
        if (reason := why_not_in(text, language)) is not None:
            return f"language: {reason}"
    return None


def _has_length(example: Example, plan: ExamplePlan) -> bool:
    shortest, longest = SHORT_CHARACTERS
    passages = example.texts[1:]
    match plan.kind:
        case "short_long":
            return shortest <= len(example.query) <= longest and all(_is_long(text, plan) for text in passages)
        case "long_short":
            return _is_long(example.query, plan) and all(len(text) <= longest for text in passages)
        case "long_long":
            return all(_is_long(text, plan) for text in example.texts)
        case _:
            # A passage is what bitext and sts may be about; the others are short by their nature.
            limit = longest if plan.kind == "short_short" else LONG_CHARACTERS_MAX
            return all(shortest <= len(text) <= limit for text in example.texts)


def _is_long(text: str, plan: ExamplePlan) -> bool:
    return plan.words <= len(text) <= LONG_CHARACTERS_MAX


def _is_copied(query: str, positive: str, kind: Kind) -> bool:
    """Whether the short side stands in the long one, so that matching words would be enough."""
    if kind == "short_long":
        return len(query) >= COPY_FROM_CHARACTERS and query in positive
    if kind == "long_short":
        return re.search(rf"(?<!\w){re.escape(positive)}(?!\w)", query) is not None
    return kind in INVENTED and len(query) >= COPY_FROM_CHARACTERS and (query in positive or positive in query)


def left_over(text: str) -> bool:
    """Whether a text has a placeholder, a key or an excuse in it."""
    return _LEFTOVERS.search(text.replace("’", "'")) is not None


def has_personal_data(text: str) -> bool:
    """Whether a text has an e-mail address or what looks like a telephone number in it."""
    if _EMAIL.search(text):
        return True
    return any(
        9 <= sum(char.isdigit() for char in found.group()) <= 15 for found in _TELEPHONE.finditer(_DATE.sub("", text))
    )


def normalised(text: str) -> str:
    """For comparing: compatibility forms, case and white space made one."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
