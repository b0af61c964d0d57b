"""What the model is asked, in our own words. The division of tasks is that of arXiv 2401.00368."""

from dataclasses import dataclass

from training.synthesis.config import INVENTED, Kind, SynthesisConfig
from training.synthesis.plan import ExamplePlan, field_of, kind_of
from training.text_languages import LANGUAGES


@dataclass(frozen=True)
class Keys:
    """What the JSON object of an example calls its parts. negative: None where the kind has none."""

    query: str
    positive: str
    negative: str | None


KEYS: dict[Kind, Keys] = {
    "short_long": Keys("query", "passage", "misleading_passage"),
    "long_short": Keys("text", "answer", "wrong_answer"),
    "short_short": Keys("left", "right", None),
    "long_long": Keys("left", "right", None),
    "bitext": Keys("original", "translation", "flawed_translation"),
    "sts": Keys("first", "close", "distant"),
}
TASKS_KEY = "tasks"

_SUBJECTS: dict[Kind, str] = {
    "short_long": (
        "search tasks: somebody types a short request, and wants passages or whole documents of a certain sort. Two "
        'of many possibilities: "Given a symptom described by a patient, retrieve articles that explain its causes", '
        '"Given a function name, retrieve pages of a manual that show how it is called"'
    ),
    "long_short": (
        "tasks that put a text into one of several classes or give it a short name: topic, intent, mood, genre, "
        'difficulty and whatever else texts are sorted by. Two of many possibilities: "Classify the mood of a diary '
        'entry", "Identify the trade that a job advertisement belongs to"'
    ),
    "short_short": (
        "matching tasks in which both sides are short, a phrase or one or two sentences. Two of many possibilities: "
        '"Given a proverb, retrieve proverbs with the same moral", "Given the name of a dish, retrieve its main '
        'ingredients"'
    ),
    "long_long": (
        "matching tasks in which both sides are long documents. Two of many possibilities: "
        '"Given a court ruling, retrieve rulings on comparable facts", "Given an essay, retrieve essays that argue the '
        'opposite"'
    ),
}

_ANSWER = "Answer with one JSON object and nothing else: no comment, no Markdown."


def tasks_prompt(unit: int, config: SynthesisConfig) -> str:
    """The request for a unit's list of tasks."""
    return (
        f"Think up {config.tasks_a_request} {_SUBJECTS[kind_of(unit, config)]}.\n\n"
        "- Write each task in English, as one sentence that tells a search system what to do, and what is given.\n"
        "- Each is to cover many possible inputs; no task names one particular input.\n"
        f"- Most come from the world of {field_of(unit, config)}; beyond that they differ as much as possible, in sort "
        "of text and in who needs it.\n"
        "- Nothing sexual, hateful, violent or otherwise harmful, and nothing about identifying people.\n\n"
        f'{_ANSWER} Its only key is "{TASKS_KEY}": a list of {config.tasks_a_request} strings.'
    )


def example_prompt(plan: ExamplePlan, task: str) -> str:
    """The request for one example. task: of the unit's list; the fixed kinds don't look at it."""
    body = _BODIES[plan.kind](plan)
    intro = (
        f"There is this task for a search system: {task}\n\nWrite one example of it.\n" if plan.kind in INVENTED else ""
    )
    keys = KEYS[plan.kind]
    names = ", ".join(f'"{key}"' for key in (keys.query, keys.positive, keys.negative) if key)
    return (
        f"{intro}{body}\n"
        "- Invent everything: no real person, no address, no telephone number, no e-mail address.\n"
        "- Nothing sexual, hateful, violent or otherwise harmful.\n\n"
        f"{_ANSWER} Its keys are {names}; every value is a string."
    )


def _name(code: str) -> str:
    return LANGUAGES[code]


def _short_long(plan: ExamplePlan) -> str:
    return (
        f'- "query": what somebody types, in {_name(plan.language)}: {plan.query_length}, {plan.frequency}, '
        f"{plan.clarity}.\n"
        f'- "passage": a text in {_name(plan.language)} that gives what the query wants, at least {plan.words} words '
        "long. It is written for its own sake, not as an answer: it does not repeat the query and may touch on other "
        "things.\n"
        f'- "misleading_passage": a text of the same length and language that looks as if it were right, with the same '
        "words and subject, and does not give what the query wants, or far less of it.\n"
        f"- {plan.education} should be able to follow all of it."
    )


def _long_short(plan: ExamplePlan) -> str:
    return (
        f'- "text": the input, in {_name(plan.language)}, about {plan.words} words long, {plan.clarity}, for '
        f"{plan.education}.\n"
        f'- "answer": its right class or name, short, in {_name(plan.language)}.\n'
        f'- "wrong_answer": another one that the task allows and that fits worse, in {_name(plan.language)}.\n'
        "- Neither answer stands in the text word by word."
    )


def _short_short(plan: ExamplePlan) -> str:
    return (
        f'- "left": an input, a phrase or a sentence in {_name(plan.language)}.\n'
        f'- "right": what belongs to it by the task, as short, in {_name(plan.language)}.\n'
        "- They share as few words as possible, and each can be understood alone."
    )


def _long_long(plan: ExamplePlan) -> str:
    return (
        f'- "left": an input, a document in {_name(plan.language)} of at least {plan.words} words.\n'
        f'- "right": a document that belongs to it by the task, as long, in {_name(plan.language)}.\n'
        "- They share as few phrases as possible, and each can be understood alone."
    )


def _bitext(plan: ExamplePlan) -> str:
    return (
        f"Write a {plan.unit_of_text} and two translations of it.\n"
        f'- "original": a {plan.unit_of_text} in {_name(plan.language)} for {plan.education}, from the world of '
        f"{plan.field}.\n"
        f'- "translation": a translation into {_name(plan.other)} that reviewers give {plan.close} of 5 points.\n'
        f'- "flawed_translation": a fluent one into {_name(plan.other)} worth {plan.distant} of 5 points: a wrong word '
        "or number, something left out or added."
    )


def _sts(plan: ExamplePlan) -> str:
    return (
        f"Write three {plan.unit_of_text}s in {_name(plan.language)} for {plan.education}, about one thing from the "
        f"world of {plan.field}.\n"
        f'- "first": any {plan.unit_of_text}.\n'
        f'- "close": one that means nearly the same, {plan.close} of 5 points of similarity, in other words.\n'
        f'- "distant": one that shares words with the first and means something else, {plan.distant} of 5 points.'
    )


_BODIES = {
    "short_long": _short_long,
    "long_short": _long_short,
    "short_short": _short_short,
    "long_long": _long_long,
    "bitext": _bitext,
    "sts": _sts,
}
