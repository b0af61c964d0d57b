"""Small inputs of bulk jobs, and the command run on them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway_process import ROOT, environment, run_service

WORDS = ("harbour", "Größe", "東京", "ещё", "عربي", "deep", "a", "lighthouse keeper", "ñandú", "0.5 %")


def text(number: int) -> str:
    """A text unlike the others; some have a word or two, some hundreds."""
    return " ".join(
        WORDS[(number * 7 + place * (number % 5 + 1)) % len(WORDS)] for place in range(1 + number * 13 % 60)
    )


def write_jsonl(path: Path, count: int) -> Path:
    """Records of an id, a text, and something that is neither."""
    lines = (json.dumps({"id": f"d{number}", "text": text(number), "n": number}) for number in range(count))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def arguments(source: Path | str, output: Path, *more: str) -> Sequence[str]:
    """Of the command, for passages with ids, in windows of 32."""
    given = ("embed", "--input", str(source), "--output", str(output), "--role", "passage", "--window", "32")
    return (*given, *(() if "--id-field" in more else ("--id-field", "id")), *more)


def bulk(source: Path | str, output: Path, *more: str, stdin: bytes = b"", **settings: object) -> str:
    """Run it to its end, and return what it wrote to stderr."""
    done = run_service(*arguments(source, output, *more), stdin=stdin, **settings)
    assert done.returncode == 0, done.stderr.decode()
    return done.stderr.decode()


def start(source: Path, output: Path, *more: str, **settings: object) -> subprocess.Popen[bytes]:
    """Run it beside the test."""
    command = [sys.executable, "-m", "service", *arguments(source, output, *more)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(**settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def manifest(output: Path) -> dict[str, object]:
    """What lies beside the output."""
    found: dict[str, object] = json.loads(output.with_name(f"{output.name}.manifest.json").read_text(encoding="utf-8"))
    return found
