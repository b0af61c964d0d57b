"""The languages of a result: who is served badly, and what an average hides.

python -m training audit after.json --before before.json --model model_repo/me5_nano/2 --data DATA
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import numpy as np
from tokenizers import Tokenizer

from training.errors import BadResult
from training.eval_reading import read_flores, read_tatoeba
from training.languages import HIGH_GIB, MID_GIB, language_of
from training.result import Result, SetResult

BADLY_SERVED = 0.5
LINE_CHARACTERS = 110
RESOURCE_RULE = (
    f"resource by the size of a language's text in CC-100 (arXiv 1911.02116, table 6): high from {HIGH_GIB:g} GiB, "
    f"mid from {MID_GIB:g} GiB, low below, unlisted where it has none"
)


@dataclass(frozen=True)
class Group:
    """Languages that have something in common."""

    name: str
    languages: int
    mean: float


@dataclass(frozen=True)
class SetAudit:
    """One set over its languages.

    worst_decile: the value that a tenth of the languages lie below (linear between two).   badly_served: languages
    below 0.5, the worst first.
    """

    name: str
    measure: str
    values: Mapping[str, float]
    mean: float
    worst_decile: float
    best: str
    worst: str
    badly_served: list[str]
    scripts: list[Group]
    resources: list[Group]

    @property
    def gap(self) -> float:
        """Between the best and the worst language."""
        return self.values[self.best] - self.values[self.worst]


@dataclass(frozen=True)
class Drop:
    """What changed between two results on one set, by language.   change: the later less the earlier, worst first."""

    name: str
    measure: str
    change: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Over all languages: what an average would have told."""
        return float(np.mean(list(self.change.values())))


def audit(result: Result) -> list[SetAudit]:
    """Every set with more than one language. Raises BadResult where there is none."""
    found = [audit_set(each) for each in result.sets.values() if each.subsets == "language" and len(each.scores) > 1]
    if not found:
        raise BadResult("no set with more than one language in this result; evaluate flores, tatoeba, stsb or xquad")
    return found


def audit_set(measured: SetResult) -> SetAudit:
    """The languages of one set, by its main measure."""
    values = dict(sorted(measured.values.items(), key=lambda item: (item[1], item[0])))
    return SetAudit(
        measured.name,
        measured.measure,
        values,
        mean=float(np.mean(list(values.values()))),
        worst_decile=float(np.quantile(list(values.values()), 0.1)),
        best=list(values)[-1],
        worst=next(iter(values)),
        badly_served=[language for language, value in values.items() if value < BADLY_SERVED],
        scripts=_groups(values, lambda language: language_of(language).script or "unknown"),
        resources=_groups(values, lambda language: language_of(language).resource),
    )


def _groups(values: Mapping[str, float], group_of: Callable[[str], str]) -> list[Group]:
    members: dict[str, list[float]] = defaultdict(list)
    for language, value in values.items():
        members[group_of(language)].append(value)
    groups = [Group(name, len(found), float(np.mean(found))) for name, found in members.items()]
    return sorted(groups, key=lambda group: group.mean)


def drops(before: Result, after: Result) -> list[Drop]:
    """By how much each language of each set that both have changed. Raises BadResult where they have none in common."""
    found = []
    for name, one in before.sets.items():
        other = after.sets.get(name)
        if other is None or one.subsets != "language":
            continue
        if one.data != other.data:
            raise BadResult(f"{name}: measured on other data; evaluate both on the same folder")
        change = {lang: other.values[lang] - value for lang, value in one.values.items() if lang in other.values}
        if change:
            found.append(Drop(name, one.measure, dict(sorted(change.items(), key=lambda item: (item[1], item[0])))))
    if not found:
        raise BadResult("the two results have no set with languages in common")
    return found


def tokens_per_character(tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """How many tokens a character costs in each language, special tokens left out; the dearest language first."""
    found = {}
    for language, lines in texts.items():
        encoded = tokenizer.encode_batch(list(lines), add_special_tokens=False)
        found[language] = sum(len(each.ids) for each in encoded) / sum(map(len, lines))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def texts_by_language(data: Path) -> dict[str, dict[str, list[str]]]:
    """The sentences of FLORES and of Tatoeba by language: set → language → texts."""
    sets = {"flores": read_flores(data), "tatoeba": read_tatoeba(data)}
    return {name: {lang: pairs.sources for lang, pairs in subsets.items()} for name, subsets in sets.items()}


def describe_audit(audits: Sequence[SetAudit]) -> str:
    """The audit as lines of text."""
    lines = []
    for each in audits:
        lines += [
            f"{each.name}, {each.measure}, {len(each.values)} languages",
            f"  mean {each.mean:.4f}, worst decile {each.worst_decile:.4f}, "
            f"gap {each.gap:.4f} ({_named(each, each.best)}, {_named(each, each.worst)})",
            *_wrapped(
                f"below {BADLY_SERVED}: {len(each.badly_served)}"
                + (f" ({', '.join(each.badly_served)})" if each.badly_served else "")
            ),
            *_wrapped(f"by script: {_listed(each.scripts)}"),
            *_wrapped(f"by resource: {_listed(each.resources)}"),
            "",
        ]
    return "\n".join([*lines, *wrap(RESOURCE_RULE, LINE_CHARACTERS), ""])


def describe_drops(found: Sequence[Drop], shown: int = 5) -> str:
    """The changes as lines of text, the worst of each set named."""
    lines = []
    for each in found:
        worst = list(each.change.items())[:shown]
        named = ", ".join(f"{language} {change:+.4f}" for language, change in worst)
        lines.append(f"{each.name}, {each.measure}: mean {each.mean:+.4f}, worst {named}")
    return "\n".join([*lines, ""])


def describe_tokens(found: Mapping[str, Mapping[str, float]]) -> str:
    """Tokens per character as lines of text, the dearest language first."""
    lines = []
    for name, languages in found.items():
        middle = float(np.median(list(languages.values())))
        lines.append(f"{name}, tokens per character, median {middle:.2f}, by language:")
        named = ", ".join(f"{language} {value:.2f}" for language, value in languages.items())
        lines += _wrapped(named)
    return "\n".join([*lines, ""])


def _wrapped(text: str) -> list[str]:
    return wrap(text, LINE_CHARACTERS, initial_indent="  ", subsequent_indent="    ")


def _named(audited: SetAudit, language: str) -> str:
    return f"{language} {audited.values[language]:.4f}"


def _listed(groups: Sequence[Group]) -> str:
    return ", ".join(f"{group.name} {group.mean:.4f} ({group.languages})" for group in groups)
