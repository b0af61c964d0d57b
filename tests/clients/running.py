"""Each client's script, run as it stands in the environment that `make clients` made, against another address.

A script names the gateway's address, a question and two passages, in words that are the same in all of them; a run puts
others in their place. Nothing else of a script is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from catalogue import Client

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CLIENTS_VENV = Path(os.environ.get("CLIENTS_VENV", ROOT / ".venv-clients"))

ADDRESS = "http://127.0.0.1:8080"
QUESTION = '"How tall is the television tower?"'
PASSAGES = '["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]'

# Generous: importing some of them takes seconds, and the machine may be busy with something else.
RUN_MAX_S = 240.0
# What a user may have set is nobody's default; offline, huggingface_hub refuses every request, to this machine too.
NOT_OURS = ("ANTHROPIC_", "CO_API", "CHROMA_", "COHERE_", "HF_", "HUGGING", "LITELLM_", "ME5_", "OLLAMA_", "OPENAI_")


@dataclass(frozen=True)
class Ask:
    """What a run of a script asks of whom.   url: of a gateway, in place of the script's."""

    url: str
    question: str
    passages: Sequence[str]


@dataclass(frozen=True)
class Outcome:
    """What a run came to: vectors, or the class and the words of the error that it ended with."""

    seconds: float
    question_vector: list[float] | None = None
    passage_vectors: list[list[float]] | None = None
    error: str = ""
    message: str = ""


def source_of(client: Client) -> str:
    """The client's script."""
    return (HERE / client.script).read_text(encoding="utf-8")


def filled(source: str, ask: Ask) -> str:
    """A script that asks this."""
    for words in (ADDRESS, QUESTION, PASSAGES):
        assert words in source, f"the script has to hold {words}"
    texts = json.dumps(list(ask.passages), ensure_ascii=False)
    return (
        source.replace(ADDRESS, ask.url)
        .replace(PASSAGES, texts)
        .replace(QUESTION, json.dumps(ask.question, ensure_ascii=False))
    )


def run(client: Client, asks: Sequence[Ask]) -> list[Outcome]:
    """The client's script run once for each, in one process: what it imports, it imports once."""
    return run_sources(client, [filled(source_of(client), ask) for ask in asks])


def run_sources(client: Client, sources: Sequence[str]) -> list[Outcome]:
    """These scripts, run where the client lives."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        outcomes = []
        for given in [sources] if client.place != "shell" else [[source] for source in sources]:
            ended = subprocess.run(
                [*_program(client), str(answer)],
                input=json.dumps(given) if client.place != "shell" else given[0],
                text=True,
                cwd=CLIENTS_VENV / "node" if client.place == "node" else folder,
                env=_environment(folder),
                capture_output=True,
                timeout=RUN_MAX_S,
                check=False,
            )
            outcomes += _outcomes(client, ended, answer)
        return outcomes


def versions(place: str, packages: Sequence[str]) -> str:
    """The version of each package as it lies in its environment."""
    if place == "shell":
        return subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    if place == "node":
        files = [CLIENTS_VENV / "node" / "node_modules" / package / "package.json" for package in packages]
        return ", ".join(json.loads(file.read_text(encoding="utf-8"))["version"] for file in files)
    script = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]), sep=', ')"
    command = [str(CLIENTS_VENV / place / "bin" / "python"), "-c", script, *packages]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def missing(place: str) -> str:
    """Why what lives there can't be run, and what would change that; empty where it can."""
    if place == "shell":
        return "" if shutil.which("curl") else "no curl"
    if place == "node" and not shutil.which("node"):
        return "no node"
    there = CLIENTS_VENV / place / ("node_modules" if place == "node" else "bin")
    return "" if there.exists() else f"no {there}; make clients"


def _program(client: Client) -> list[str]:
    if client.place == "shell":
        return ["sh", str(HERE / "run_shell.sh")]
    if client.place == "node":
        return ["node", str(HERE / "run_node.mjs")]
    return [str(CLIENTS_VENV / client.place / "bin" / "python"), str(HERE / "run_python.py")]


def _environment(folder: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
    return kept | {"HOME": folder}


def _outcomes(client: Client, ended: subprocess.CompletedProcess[str], answer: Path) -> list[Outcome]:
    if client.place == "shell" and ended.returncode:
        # curl's own words and, for the client has no other, the answer's body.
        return [Outcome(0.0, error=f"exit code {ended.returncode}", message=ended.stderr + ended.stdout)]
    assert ended.returncode == 0, f"{client.script}: exit code {ended.returncode}\n{ended.stderr[-4000:]}"
    found = json.loads(answer.read_text(encoding="utf-8"))
    return [Outcome(**one) for one in found] if isinstance(found, list) else [Outcome(0.0, **found)]
