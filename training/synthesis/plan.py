"""What is asked under which number: a function of the settings and the number alone, so that any may be asked first.

Units are numbered from 0. A unit has one kind; where that has invented tasks, a request asks for a list of them first.
Example n belongs to unit n // examples_a_unit and to a place in that unit's list.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from training.permutation import key_of
from training.synthesis.config import Kind, SynthesisConfig

Choice = TypeVar("Choice")

# Words, as far as a language has them. The paper's values.
DOCUMENT_WORDS = (50, 100, 200, 300, 400, 500)
TEXT_WORDS = (5, 10, 50, 100, 200)
QUERY_LENGTHS = ("fewer than five words", "five to fifteen words", "at least ten words")
FREQUENCIES = ("one that many people ask", "one that few people ask", "one that hardly anybody ever asks")
CLARITIES = ("clear at once", "clear with some effort", "ambiguous")
EDUCATIONS = ("a pupil", "a university student", "a specialist with a doctorate")
# Without them the same request comes again and again, and so do its answers.
FIELDS = (
    "farming and gardening", "cooking and food", "medicine", "nursing and care", "law and courts", "public offices",
    "schools and teaching", "universities and research", "physics and chemistry", "biology and nature", "mathematics",
    "software", "machines and engineering", "building and crafts", "money and banks", "insurance and taxes",
    "shopping", "customer service", "travel and hotels", "railways, roads and ships", "weather and climate",
    "energy and the environment", "news and politics", "history", "religion and philosophy", "languages", "literature",
    "music and dance", "film and theatre", "art and museums", "sport", "games and hobbies", "fashion",
    "family and children", "friendship and everyday life", "work and careers", "health and fitness", "animals and pets",
    "space and astronomy", "geography and maps", "telecommunication", "social media", "patents and inventions",
    "emergencies and safety", "psychology",
)  # fmt: skip
UNITS = ("sentence", "phrase", "passage")
CLOSE_SCORES = ("4", "4.5", "5")
DISTANT_SCORES = ("2.5", "3", "3.5")
FLAWED_SCORES = ("1.5", "2", "2.5")

_KIND, _LANGUAGE, _OTHER, _WORDS, _LENGTH, _FREQUENCY, _CLARITY, _EDUCATION, _UNIT, _CLOSE, _FAR, _ASKED, _FIELD = (
    range(1, 14)
)


@dataclass(frozen=True)
class ExamplePlan:
    """One example.

    place: of its task in the unit's list.   language: of everything, and for bitext of the first text; `other` is then
    the translation's, else "".   words: that a long text has at least.   unit_of_text: what bitext and sts are made of;
    they are about something in `field`.   close, distant: scores of similarity or of translation, up to 5.
    """

    number: int
    unit: int
    kind: Kind
    place: int
    language: str
    other: str
    words: int
    query_length: str
    frequency: str
    clarity: str
    education: str
    unit_of_text: str
    field: str
    close: str
    distant: str


def kind_of(unit: int, config: SynthesisConfig) -> Kind:
    """What a unit's examples are."""
    return _drawn(list(config.kinds), list(config.kinds.values()), config.seed, _KIND, unit)


def field_of(unit: int, config: SynthesisConfig) -> str:
    """Where most of a unit's tasks are to come from."""
    return _drawn(FIELDS, [1.0] * len(FIELDS), config.seed, _FIELD, unit)


def plan_of(number: int, config: SynthesisConfig) -> ExamplePlan:
    """Example `number`, from 0."""
    unit, inside = divmod(number, config.examples_a_unit)
    kind = kind_of(unit, config)

    def any_of(choices: Sequence[Choice], what: int) -> Choice:
        return _drawn(choices, [1.0] * len(choices), config.seed, what, number)

    language = _drawn(list(config.languages), list(config.languages.values()), config.seed, _LANGUAGE, number)
    others = {code: share for code, share in config.languages.items() if code != language and share > 0}
    other = _drawn(list(others), list(others.values()), config.seed, _OTHER, number) if kind == "bitext" else ""
    return ExamplePlan(
        number=number,
        unit=unit,
        kind=kind,
        place=inside // config.examples_a_task,
        language=language,
        other=other,
        words=any_of(TEXT_WORDS if kind == "long_short" else DOCUMENT_WORDS, _WORDS),
        query_length=any_of(QUERY_LENGTHS, _LENGTH),
        frequency=any_of(FREQUENCIES, _FREQUENCY),
        clarity=any_of(CLARITIES, _CLARITY),
        education=any_of(EDUCATIONS, _EDUCATION),
        unit_of_text=any_of(UNITS, _UNIT),
        field=any_of(FIELDS, _FIELD),
        close=any_of(CLOSE_SCORES, _CLOSE),
        distant=any_of(FLAWED_SCORES if kind == "bitext" else DISTANT_SCORES, _FAR),
    )


def request_seed(number: int, config: SynthesisConfig, *, tasks: bool) -> int:
    """The seed that a request carries, of 31 bits; servers are free to ignore it."""
    return int(key_of(config.seed, _ASKED, int(tasks), number)[0] >> np.uint64(33))


def _drawn(choices: Sequence[Choice], shares: Sequence[float], seed: int, what: int, number: int) -> Choice:
    """One of the choices, by their shares."""
    place = float(key_of(seed, what, number)[0]) / 2.0**64
    edges = np.cumsum(shares) / np.sum(shares)
    return choices[min(int(np.searchsorted(edges, place, side="right")), len(choices) - 1)]
