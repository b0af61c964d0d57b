"""The manifest beside a file of vectors: what it was made of, by what, and how it went."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from service.bulk.job import differences
from service.bulk.parts import PartAbout, write_durably
from service.bulk.records import BadRecord
from service.errors import OtherJob
from service.recipe.spec import file_sha256

Json = dict[str, object]

FORMAT = 1
# Of more skipped lines than this only the number is told.
SKIPPED_MAX = 10_000


@dataclass
class Tally:
    """The figures of many windows. seconds: by run, until its last window was stored."""

    windows: int = 0
    records: int = 0
    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    skipped: int = 0
    lines: list[BadRecord] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    processors: set[str] = field(default_factory=set)

    def add(self, about: PartAbout) -> None:
        """One window more."""
        self.windows += 1
        self.records += about.records
        self.texts += about.texts
        self.tokens += about.tokens
        self.truncated += about.truncated
        self.skipped += len(about.bad)
        self.lines += about.bad[: SKIPPED_MAX - len(self.lines)]
        self.seconds[about.run] = max(about.elapsed_s, self.seconds.get(about.run, 0.0))
        self.processors.add(about.processor)

    def join(self, other: Tally) -> None:
        """Those of the windows that come after these."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.lines += other.lines[: SKIPPED_MAX - len(self.lines)]
        self.seconds |= other.seconds
        self.processors |= other.processors


_COUNTS = ("windows", "records", "texts", "skipped", "tokens", "truncated")


def tally(abouts: Iterable[PartAbout]) -> Tally:
    """The figures of these windows together."""
    found = Tally()
    for about in abouts:
        found.add(about)
    return found


def manifest_file(target: Path) -> Path:
    """Where the manifest of a file of vectors is."""
    return target.with_name(f"{target.name}.manifest.json")


def manifest_of(
    target: Path, identity: Mapping[str, object], name: str, figures: Tally, *, exact: bool, joining_s: float
) -> Json:
    """The manifest of a file that is whole. name: the input's.   joining_s: what it took to make one file of parts."""
    seconds = sum(figures.seconds.values()) + joining_s
    return {
        "format": FORMAT,
        "file": target.name,
        "bytes": target.stat().st_size,
        "sha256": file_sha256(target),
        "rows": figures.texts,
        "input_name": name,
        "job": dict(identity),
        # Whether the same job, interrupted or not, gives the same bytes.
        "exact": exact and len(figures.processors) <= 1,
        "counts": {name: getattr(figures, name) for name in _COUNTS},
        "skipped_lines": [{"line": item.line, "reason": item.reason} for item in figures.lines],
        "processors": sorted(figures.processors),
        # How often it was begun or gone on with, and for how long: of several workers, all their time together.
        "runs_s": figures.seconds,
        "duration_s": round(seconds, 3),
        "texts_per_s": round(figures.texts / seconds, 1) if seconds else None,
        "tokens_per_s": round(figures.tokens / seconds, 1) if seconds else None,
    }


def tally_of(manifest: Json) -> Tally:
    """The figures that a manifest was written from."""
    lines = [BadRecord(**item) for item in cast(list[dict[str, object]], manifest["skipped_lines"])]  # type: ignore[arg-type]
    return Tally(
        **cast(dict[str, int], manifest["counts"]),
        lines=lines,
        seconds=cast(dict[str, float], manifest["runs_s"]),
        processors=set(cast(list[str], manifest["processors"])),
    )


def write_manifest(target: Path, manifest: Mapping[str, object]) -> None:
    """Put it beside the file that it is of: the last thing a job does."""
    text = json.dumps(manifest, ensure_ascii=False, indent=2) + "\n"
    write_durably(manifest_file(target), text.encode("utf-8"))


def read_manifest(target: Path) -> Json | None:
    """The manifest of a file that is whole; None where there is none."""
    try:
        found: Json = json.loads(manifest_file(target).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found if target.is_file() else None


def finished_before(target: Path, identity: Mapping[str, object]) -> Json | None:
    """The manifest of this very job where it is done already. Raises OtherJob where the file is of another one."""
    found = read_manifest(target)
    if found is None:
        if target.exists():
            raise OtherJob(f"{target} is there, without a manifest; give another name, or replace it by --overwrite")
        return None
    other = differences(found["job"], dict(identity))
    if other:
        raise OtherJob(
            f"{target} is there, of another job: {'; '.join(other)}; give another name, or replace it by --overwrite"
        )
    return found
