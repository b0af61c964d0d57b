"""What a fault's test saw, the table of all of them, and the program that puts it into README.md.

python tests/faults/evidence.py [--runs N]     # every row, N times; the table is written if none failed
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE.parent.parent / "README.md"
START, END = "<!-- faults:start -->", "<!-- faults:end -->"
# Where each row's test adds its line, if anywhere.
REPORT_VARIABLE = "FAULT_REPORT"
# What /readyz does where a fault is nobody else's.
GREEN = "stays green"

# Each row's test, and the fault in words; in the order of the table.
ROWS = {
    "test_engine_raises_once": "the engine raises on one batch",
    "test_engine_raises_on_every_batch": "the engine raises on every batch",
    "test_engine_gives_nan": "it gives NaN",
    "test_engine_gives_a_wrong_shape": "it gives a wrong shape",
    "test_engine_hangs": "it hangs, the interpreter's lock in hand (`ME5_ENGINE_TIMEOUT_S=2`)",
    "test_engine_crashes": "it crashes (SIGSEGV)",
    "test_engine_is_killed": "its process is killed (`kill -9`, OOM killer)",
    "test_engine_runs_out_of_memory": "it gets no more memory (`RLIMIT_AS`)",
    "test_engine_fails_its_proof_when_it_starts_again": "started again, it fails the golden proof",
    "test_model_file_is_damaged_before_start": "a file of the model is damaged before start",
    "test_model_file_is_damaged_while_running": "`model.onnx` is damaged while it serves, then the engine dies",
    "test_disk_is_full_at_start": "the disk is full at start (cache and temporary files)",
    "test_tokenizer_panics": "the tokenizer's native code panics",
    "test_a_thousand_clients_disconnect_at_once": "1,000 clients disconnect at once",
    "test_slow_loris": "200 connections send a header byte by byte",
    "test_half_sent_bodies": "200 connections send half a body",
    "test_clients_that_never_read": "clients never read their answers (some MB)",
    "test_gzip_bombs": "gzip bombs (100 kB become 100 MB)",
    "test_clock_jumps": "the clock jumps an hour ahead, and back",
    "test_sigterm_under_load": "SIGTERM under load (`ME5_DRAIN_S=0.5`)",
    "test_sigterm_twice": "SIGTERM twice (`ME5_DRAIN_S=60`)",
    "test_gateway_is_killed": "the gateway itself is killed (`kill -9`)",
}


@dataclass(frozen=True)
class Evidence:
    """What one run of a row showed.

    requests: how those under way ended, status → count (0: the connection broke).   red_after_s: how long /readyz still
    was green, or what it did instead.   log, metric: what told of it.   back_after_s: from red to green, or to the end.
    """

    row: str
    requests: dict[int, int]
    red_after_s: float | str
    log: str
    metric: str
    back: str
    back_after_s: float | None = None


def keep(evidence: Evidence, report: Path | None) -> None:
    """Add a line to the report, where one is wanted."""
    assert evidence.row in ROWS
    if report is not None:
        with report.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(evidence)) + "\n")


def load(report: Path) -> list[Evidence]:
    """Every line of a report."""
    found = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    return [
        Evidence(**line | {"requests": {int(status): n for status, n in line["requests"].items()}}) for line in found
    ]


def table(found: Sequence[Evidence]) -> str:
    """The matrix in Markdown, one line a row: medians over its runs; statuses from all of them."""
    lines = [
        "| fault | requests under way get | `/readyz` red after | log | metric | comes back |",
        "|---|---|--:|---|---|---|",
    ]
    for row, words in ROWS.items():
        runs = [one for one in found if one.row == row]
        if runs:
            last = runs[-1]
            cells = (words, _requests(runs), _seconds([one.red_after_s for one in runs]) or str(last.red_after_s))
            back = _seconds([one.back_after_s for one in runs])
            lines.append(
                f"| {' | '.join(cells)} | {_code(last.log)} | {_code(last.metric)} | {last.back}"
                f"{f' after {back}' if back else ''} |"
            )
    return "\n".join(lines)


def rows_of(readme: str) -> list[str]:
    """The faults that README's table names."""
    between = readme.partition(START)[2].partition(END)[0]
    lines = [line for line in between.splitlines() if line.startswith("| ")]
    return [line.split(" | ")[0].removeprefix("| ") for line in lines[1:]]


def replaced(readme: str, found: Sequence[Evidence]) -> str:
    """README with this table between its marks."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(f"README.md has no {START} … {END} to put the table between")
    runs = max(Counter(one.row for one in found).values())
    note = f"Every row is a test with the real engine (`make faults`); medians of {runs} run{'s' if runs > 1 else ''}."
    return f"{before}{START}\n{note}\n\n{table(found)}\n{END}{after}"


def _requests(runs: Sequence[Evidence]) -> str:
    statuses = sorted({status for one in runs for status in one.requests})
    parts = []
    for status in statuses:
        count = statistics.median(one.requests.get(status, 0) for one in runs)
        share = f"{count:.0f} × {status or 'no answer'}"
        parts.append(share if count >= 1 else f"rarely {status}")
    return ", ".join(parts) or "none under way"


def _seconds(values: Sequence[float | str | None]) -> str:
    numbers = [value for value in values if isinstance(value, float)]
    if not numbers:
        return ""
    middle = statistics.median(numbers)
    return f"{middle * 1000:.0f} ms" if middle < 1 else f"{middle:.1f} s"


def _code(text: str) -> str:
    return f"`{re.sub(r'[|`]', ' ', text)}`" if text else ""


def main() -> None:
    """Run every row, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.jsonl"
        for run in range(runs):
            print(f"run {run + 1} of {runs}", flush=True)
            environment = os.environ | {REPORT_VARIABLE: str(report)}
            # Not the table's own tests: README is what is about to change.
            rows = sorted(str(file) for file in HERE.glob("test_*_faults.py"))
            ended = subprocess.run([sys.executable, "-m", "pytest", *rows], env=environment, check=False)
            if ended.returncode:
                raise SystemExit(f"run {run + 1} of {runs} failed; README.md is left as it was")
        README.write_text(replaced(README.read_text(encoding="utf-8"), load(report)), encoding="utf-8")


if __name__ == "__main__":
    main()
