"""What each client came to, the table of all of them, and the program that puts it into README.md and docs/clients.md.

python tests/clients/client_table.py     # every client is tried; the table is written if none failed
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from catalogue import ALONE, CLIENTS, Client
from running import Outcome, Tried, source_of, version

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
README = ROOT / "README.md"
GUIDE = ROOT / "docs" / "clients.md"
START, END = "<!-- clients:start -->", "<!-- clients:end -->"
# Where what was seen goes, if anywhere.
REPORT_VARIABLE = "CLIENTS_REPORT"

# The same in every program, so the table spares it.
HOST = "127.0.0.1:8080"
LANGUAGES = {".py": "python", ".mjs": "js", ".sh": "sh"}


def keep(found: Mapping[str, Tried], report: Path) -> None:
    """Write down what every client came to."""
    report.write_text(json.dumps({script: asdict(tried) for script, tried in found.items()}), encoding="utf-8")


def load(report: Path) -> dict[str, Tried]:
    """What was written down."""
    found = json.loads(report.read_text(encoding="utf-8"))
    return {
        script: Tried(**{name: Outcome(**outcome) for name, outcome in tried.items()})
        for script, tried in found.items()
    }


def row(client: Client, tried: Tried) -> str:
    """The client's line of the table."""
    link = f"[{client.name}](tests/clients/{client.script})"
    roles = ALONE if client.roles == (ALONE,) else ", ".join(f"`{words}`" for words in client.roles)
    works = tried.works.error or "yes"
    errors = [_error(client, 422, tried.refused), _error(client, 429, tried.overloaded)]
    cells = (
        link,
        version(client.place, client.package),
        f"`{client.address.replace(HOST, '…')}`",
        roles,
        works,
        *errors,
    )
    return f"| {' | '.join(cells)} |"


def table(found: Mapping[str, Tried]) -> str:
    """What stands between README's marks."""
    lines = [
        "Every row is an unmodified package with its own defaults, run against a gateway by `make test-clients`; its",
        "name leads to the program ([all on one page](docs/clients.md)). *works*: the vectors of the question and the",
        "passages are the engine's with each one's own prompt (cosine ≥ 0.9999). *422*, *429*: the client's own error",
        "for more texts than `ME5_MAX_INPUTS`, and from a gateway without room; its message holds the gateway's words.",
        "",
        "| client | version | where the gateway is | what says the role | works | 422 | 429 |",
        "|---|---|---|---|---|---|---|",
        *(row(client, found[client.script]) for client in CLIENTS),
        "",
        "¹ after more than a minute of tries of its own.   ² it looks at no status, and takes an error for vectors.",
    ]
    return "\n".join(lines)


def between(text: str) -> str:
    """What stands between the marks."""
    return text.partition(START)[2].partition(END)[0].strip("\n")


def replaced(readme: str, found: Mapping[str, Tried]) -> str:
    """README with this table between its marks."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(f"README.md has no {START} … {END} to put the table between")
    return f"{before}{START}\n{table(found)}\n{END}{after}"


def guide() -> str:
    """docs/clients.md: every client's program as it is tried."""
    parts = [
        "# Clients",
        "Programs for a gateway on this machine that serves `me5_nano`. `make test-clients` tries each of them and\n"
        'writes this page; with which versions, and what becomes of errors, is in [README](../README.md), "Clients".',
    ]
    for client in CLIENTS:
        language = LANGUAGES[Path(client.script).suffix]
        parts.append(f"## {client.name}\n\n{_install(client)}```{language}\n{source_of(client)}```")
    return "\n\n".join(parts) + "\n"


def _install(client: Client) -> str:
    if client.place == "shell":
        return ""
    program = "npm install" if client.place == "node" else "pip install"
    return f"`{program} {client.installs}`\n\n"


def _error(client: Client, status: int, outcome: Outcome) -> str:
    mark = "²" if client.blind else "¹" if status in client.patient_at else ""
    return f"`{outcome.error.rpartition('.')[2]}`{mark}"


def main(arguments: Sequence[str] = ()) -> None:
    """Try every client, and write the table and the programs."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        # Not the table's own tests: README is what is about to change.
        tests = sorted(str(file) for file in HERE.glob("test_*.py") if file.name != "test_client_table.py")
        environment = os.environ | {REPORT_VARIABLE: str(report)}
        ended = subprocess.run([sys.executable, "-m", "pytest", *tests, *arguments], env=environment, check=False)
        if ended.returncode:
            raise SystemExit("a client failed; README.md is left as it was")
        README.write_text(replaced(README.read_text(encoding="utf-8"), load(report)), encoding="utf-8")
    GUIDE.write_text(guide(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
