"""From the journal to the files of pairs: a function of the answers alone, in the order of their numbers.

short_long.jsonl …   one a kind: {"query", "positive", "negative", "instruction", "lang", "number"}
rejected.jsonl       {"part", "number", "reason", "text"}
statistics.json      what there is, and what was left out and why
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from training.synthesis.answers import parse_example, parse_tasks, why_not_example, why_not_task
from training.synthesis.config import INSTRUCTIONS, INVENTED, KINDS, Kind, SynthesisConfig
from training.synthesis.duplicates import NearDuplicates
from training.synthesis.journal import Entry, Part
from training.synthesis.plan import ExamplePlan, kind_of, plan_of
from training.synthesis.screen import unsafe_categories

REJECTED_FILE, STATISTICS_FILE = "rejected.jsonl", "statistics.json"
NOT_JSON = "not the JSON asked for"
Entries = Mapping[tuple[Part, int], Entry]


@dataclass(frozen=True)
class Rejected:
    """An answer, or one task of an answer, that is not used."""

    part: Part
    number: int
    reason: str
    text: str


@dataclass
class Tasks:
    """of: unit → its tasks, as many as there are fit ones."""

    of: dict[int, list[str]] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)

    def of_example(self, plan: ExamplePlan) -> str | None:
        """The instruction of an example; None where its unit has fewer."""
        if plan.kind not in INVENTED:
            return INSTRUCTIONS[plan.kind]
        tasks = self.of.get(plan.unit, [])
        return tasks[plan.place] if plan.place < len(tasks) else None


def tasks_of(entries: Entries, units: int, config: SynthesisConfig) -> Tasks:
    """The lists of the first units. A unit's is a function of its own answer and of those before it, so they end before
    one that has no answer yet.
    """
    found, seen = Tasks(), NearDuplicates(config.near_duplicate)
    for unit in range(units):
        entry = entries.get(("tasks", unit))
        if kind_of(unit, config) not in INVENTED:
            continue
        if entry is None:
            break
        tasks = None if entry.text is None else parse_tasks(entry.text)
        if tasks is None:
            why = f"refused: {entry.refused}" if entry.text is None else NOT_JSON
            found.rejected.append(Rejected("tasks", unit, why, entry.text or ""))
            tasks = []
        fit: list[str] = []
        for task in map(str.strip, tasks):
            reason = why_not_task(task) or _unsafe_rules([task])
            if reason is None and not seen.is_new(task):
                reason = "near duplicate"
            if reason is None:
                fit.append(task)
            else:
                found.rejected.append(Rejected("tasks", unit, reason, task))
        found.of[unit] = fit[: config.tasks_a_request]
    return found


@dataclass(frozen=True)
class Reading:
    """An answer by itself. reason: why it is no good, or None; `texts` are then query, positive and any negative."""

    reason: str | None
    texts: list[str]


def read_answer(entry: Entry, plan: ExamplePlan) -> Reading:
    """What can be said of an answer without looking at any other."""
    if entry.text is None:
        return Reading(f"refused: {entry.refused}", [])
    example = parse_example(entry.text, plan.kind)
    if example is None:
        return Reading(NOT_JSON, [])
    return Reading(why_not_example(example, plan), example.texts)


@dataclass
class _Found:
    """What was read so far."""

    accepted: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    instructions: set[str] = field(default_factory=set)
    rejected: list[Rejected] = field(default_factory=list)


def write_files(
    folder: Path, entries: Entries, examples: int, config: SynthesisConfig, *, moderated: bool
) -> dict[str, object]:
    """Write everything that the answers to the first `examples` numbers give; returns the statistics.

    moderated: whether a moderation endpoint judges; what it has not seen yet is left out then.
    """
    units = -(-examples // config.examples_a_unit)
    tasks = tasks_of(entries, units, config)
    found = _Found(rejected=list(tasks.rejected))
    with ExitStack() as stack:
        streams = {kind: stack.enter_context(_whole(folder / f"{kind}.jsonl")) for kind in KINDS}
        for kind, row in _accepted(entries, examples, config, found, moderated):
            streams[kind].write(_line(row))
    with _whole(folder / REJECTED_FILE) as stream:
        stream.writelines(_line(asdict(item)) for item in found.rejected)
    answers = Counter[str]()
    for (part, number), entry in entries.items():
        if number < (units if part == "tasks" else examples):
            answers.update(answers=1, prompt_tokens=entry.prompt_tokens, answer_tokens=entry.answer_tokens)
    statistics: dict[str, object] = {
        "examples": sum(found.accepted.values()),
        "instructions": len(found.instructions),
        "kinds": {kind: found.accepted[kind] for kind in KINDS},
        "languages": dict(sorted(found.languages.items())),
        "rejected": _counted(found.rejected),
        "numbers": examples,
        **{name: answers[name] for name in ("answers", "prompt_tokens", "answer_tokens")},
    }
    with _whole(folder / STATISTICS_FILE) as stream:
        stream.write(json.dumps(statistics, ensure_ascii=False, indent=1).encode("utf-8") + b"\n")
    return statistics


def _accepted(
    entries: Entries, examples: int, config: SynthesisConfig, found: _Found, moderated: bool
) -> Iterator[tuple[Kind, dict[str, object]]]:
    seen = NearDuplicates(config.near_duplicate)
    for number in range(examples):
        entry = entries.get(("example", number))
        if entry is None:
            continue
        plan = plan_of(number, config)
        reading = read_answer(entry, plan)
        reason = reading.reason
        if reason is None and moderated and entry.unsafe is None:
            continue
        if reason is None:
            reason = _unsafe(entry, reading.texts)
        if reason is None and not seen.is_new(reading.texts[0]):
            reason = "near duplicate"
        if reason is not None:
            found.rejected.append(Rejected("example", number, reason, entry.text or ""))
            continue
        language = f"{plan.language}-{plan.other}" if plan.other else plan.language
        found.accepted[plan.kind] += 1
        found.instructions.add(entry.task)
        found.languages[language] += 1
        query, positive, *negatives = reading.texts
        texts = {"query": query, "positive": positive, "negative": negatives}
        yield plan.kind, {**texts, "instruction": entry.task, "lang": language, "number": number}


def _unsafe(entry: Entry, texts: list[str]) -> str | None:
    """By the moderation endpoint, or by the rules where none was asked."""
    if entry.unsafe is None:
        return _unsafe_rules(texts)
    return f"unsafe: {', '.join(entry.unsafe)}" if entry.unsafe else None


def _unsafe_rules(texts: list[str]) -> str | None:
    categories = unsafe_categories(texts)
    return f"unsafe: {', '.join(categories)}" if categories else None


def _counted(rejected: Iterable[Rejected]) -> dict[str, dict[str, int]]:
    """Part → reason → how many."""
    counts: dict[str, Counter[str]] = {"tasks": Counter(), "example": Counter()}
    for item in rejected:
        counts[item.part][item.reason] += 1
    return {part: dict(sorted(reasons.items())) for part, reasons in counts.items()}


def _line(row: Mapping[str, object]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that appears when all of it is written."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("wb") as stream:
        yield stream
    os.replace(unfinished, path)
