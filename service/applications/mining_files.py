"""The command `mine` on files: sentences in, pairs out, and a gold file of what people know of some of the lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.applications.languages import chief_language
from service.applications.mining import Margin, Pairs, Retrieval, best_threshold, mine, quality
from service.applications.neighbours import How, nearest
from service.applications.origins import check_alike
from service.applications.texts import Texts, embed_files, note, read_texts
from service.applications.writing import open_output, write_table
from service.bulk.records import Fields
from service.errors import InvalidInput
from service.settings import Settings

# For each source line, from 1, its target line, or None where it has none.
Gold = dict[int, int | None]


@dataclass(frozen=True)
class Asked:
    """How to mine. k: neighbours that say what is usual.   threshold: the least score written.   gold: chooses it."""

    margin: Margin = "ratio"
    retrieval: Retrieval = "max"
    k: int = 4
    threshold: float | None = None
    gold: Path | None = None
    how: How = "auto"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InvalidInput(f"--k {self.k}: it must be 1 or more")
        if self.threshold is None:
            return
        if self.gold is not None:
            raise InvalidInput("--threshold and --gold: the gold file chooses the threshold; give one of them")
        # A ratio is around 1 and has no upper end; cosines, and what they differ by, have.
        if self.threshold < 0 or (self.margin != "ratio" and self.threshold > 1):
            most = "0 or more, mostly near 1" if self.margin == "ratio" else "from 0 to 1"
            raise InvalidInput(f"--threshold {self.threshold:g}: with --margin {self.margin} it is {most}")


def mine_files(
    settings: Settings,
    names: tuple[str, str],
    vectors: tuple[Path | None, Path | None],
    asked: Asked,
    read: tuple[str, str | None],
    to: Path | None,
) -> None:
    """Mine the sentences of two files and write the pairs. read: the field of the text, and the files' format."""
    gold = None if asked.gold is None else read_gold(asked.gold)
    if vectors[0] is not None and vectors[1] is not None:
        check_alike(vectors[0], vectors[1])
    files = [read_texts(name, Fields(read[0]), read[1]) for name in names]
    chief = [chief_language(item.texts) for item in files]
    if chief[0] is not None and chief[0] == chief[1]:
        note(f"both files seem to be in {chief[0]}: what is found are paraphrases, not translations")
    found = embed_files(settings, files, "similarity", vectors)
    distinct = [item.distinct() for item in files]
    # A sentence that is there many times would fill its own neighbourhood.
    sources, targets = (
        part if len(firsts) == len(part) else part[firsts] for part, (firsts, _) in zip(found, distinct, strict=True)
    )
    if sources.shape[1] != targets.shape[1]:
        raise InvalidInput(f"vectors of {sources.shape[1]} and {targets.shape[1]} components are not of one model")
    note(f"{len(sources)} distinct sentences of {names[0]}, {len(targets)} of {names[1]}")
    forward, backward = nearest(sources, targets, asked.k, asked.how), nearest(targets, sources, asked.k, asked.how)
    for way, side in zip(("forward", "backward"), (forward, backward), strict=True):
        note(f"neighbours {way}: {side.index}, recall {side.recall:.3f}")
    pairs = mine(forward, backward, asked.margin, asked.retrieval)
    threshold = asked.threshold
    if gold is not None:
        threshold = _chosen(pairs, gold_rows(gold, files, [places for _, places in distinct]))
    kept = pairs if threshold is None else pairs.above(threshold)
    _write(kept, files, [firsts for firsts, _ in distinct], to)
    note(f"{len(kept.scores)} of {len(pairs.scores)} pairs written")


def _chosen(pairs: Pairs, gold: Gold) -> float:
    threshold = best_threshold(pairs, gold)
    found = quality(pairs.above(threshold), gold)
    note(
        f"threshold {threshold:.4f}, chosen on {len(gold)} lines of gold: precision {found.precision:.3f}, "
        f"recall {found.recall:.3f}, F1 {found.f1:.3f} there"
    )
    return threshold


def _write(pairs: Pairs, files: Sequence[Texts], firsts: Sequence[NDArray[np.int64]], to: Path | None) -> None:
    left, right = firsts[0][pairs.sources].tolist(), firsts[1][pairs.targets].tolist()
    with open_output(to) as stream:
        write_table(
            stream,
            ("score", "source_line", "target_line", "source", "target"),
            (
                (score, files[0].lines[a], files[1].lines[b], files[0].texts[a], files[1].texts[b])
                for score, a, b in zip(pairs.scores.tolist(), left, right, strict=True)
            ),
        )


def read_gold(path: Path) -> Gold:
    """Lines of a source's line number, a tab, and its target's, empty where it has none. Blank lines count for nothing.

    Raises InvalidInput where a line is something else, a source is there twice, or no source has a target.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"can't read {path}: {error}") from error
    gold: Gold = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split("\t")]
        if (
            len(parts) > 2
            or not parts[0].isdecimal()
            or not (len(parts) == 1 or parts[1] == "" or parts[1].isdecimal())
        ):
            raise InvalidInput(
                f"{path}, line {number}: {line[:80]!r} is not a line number, a tab, and another or nothing"
            )
        source = int(parts[0])
        if source in gold:
            raise InvalidInput(f"{path}, line {number}: source line {source} is there twice; say one target for it")
        gold[source] = int(parts[1]) if len(parts) == 2 and parts[1] else None
    if all(target is None for target in gold.values()):
        raise InvalidInput(f"{path} names no pair; it takes some to choose a threshold by")
    return gold


def gold_rows(gold: Gold, files: Sequence[Texts], places: Sequence[NDArray[np.int64]]) -> Gold:
    """The gold in terms of rows of distinct sentences. places: for each file, which of these each of its rows is.

    Raises InvalidInput for a line that a file does not have.
    """
    rows = [dict(zip(item.lines, part.tolist(), strict=True)) for item, part in zip(files, places, strict=True)]

    def row_of(side: int, line: int) -> int:
        if line not in rows[side]:
            raise InvalidInput(f"the gold file names line {line} of {files[side].source}, which holds no text there")
        found: int = rows[side][line]
        return found

    return {row_of(0, source): None if target is None else row_of(1, target) for source, target in gold.items()}
