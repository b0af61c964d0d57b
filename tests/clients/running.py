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
from importlib.metadata import distributions
from pathlib import Path

from catalogue import Client, Place

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CLIENTS_VENV = Path(os.environ.get("CLIENTS_VENV", ROOT / ".venv-clients"))

ADDRESS = "http://127.0.0.1:8080"
QUESTION = '"How tall is the television tower?"'
PASSAGES = '["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]'

# Generous: importing some of them takes seconds, and the machine may be busy with something else.
RUN_MAX_S = 600.0
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
    similarities: list[float] | None = None
    error: str = ""
    message: str = ""


@dataclass(frozen=True)
class Tried:
    """What a client came to.   works: on a gateway that serves.   refused: on one that takes one text a request (422).
    overloaded: on one without room (429).
    """

    works: Outcome
    refused: Outcome
    overloaded: Outcome


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


def run(client: Client, ask: Ask, change: tuple[str, str] | None = None) -> Outcome:
    """The client's script run once.   change: words of it, and those in their place."""
    (outcome,) = run_sources(client.place, [filled(changed(source_of(client), change), ask)])
    return outcome


def changed(source: str, change: tuple[str, str] | None) -> str:
    """A script with other words in place of some of its own."""
    if change is None:
        return source
    assert change[0] in source, f"the script has to hold {change[0]}"
    return source.replace(*change)


def run_sources(place: Place, sources: Sequence[str]) -> list[Outcome]:
    """These scripts, run where their client lives, in one process: what they import, they import once."""
    if place == "shell":
        return [_run_shell(source) for source in sources]
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        ended = subprocess.run(
            [*_program(place), str(answer)],
            input=json.dumps(sources),
            text=True,
            cwd=CLIENTS_VENV / "node" if place == "node" else folder,
            env=_environment(folder),
            capture_output=True,
            timeout=RUN_MAX_S,
            check=False,
        )
        assert ended.returncode == 0, f"exit code {ended.returncode}\n{ended.stderr[-4000:]}"
        return [Outcome(**one) for one in json.loads(answer.read_text(encoding="utf-8"))]


def _run_shell(source: str) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = ["sh", str(HERE / "run_shell.sh"), str(answer)]
        ended = subprocess.run(
            command,
            input=source,
            text=True,
            env=_environment(folder),
            capture_output=True,
            timeout=RUN_MAX_S,
            check=False,
        )
        if ended.returncode:
            return Outcome(0.0, error=f"exit code {ended.returncode}", message=ended.stderr)
        found = json.loads(answer.read_text(encoding="utf-8"))
    # The answer as it came: a list, whatever was asked.
    (question,) = found["question_vector"]
    return Outcome(0.0, question, found["passage_vectors"])


def version(place: Place, package: str) -> str:
    """Of a package, as it lies in its environment; empty where it is the machine's own."""
    if place == "shell":
        return ""
    if place == "node":
        file = CLIENTS_VENV / "node" / "node_modules" / package / "package.json"
        return str(json.loads(file.read_text(encoding="utf-8"))["version"])
    packages = sorted(CLIENTS_VENV.glob(f"{place}/lib/python*/site-packages"))
    (found,) = distributions(name=package, path=[str(folder) for folder in packages])
    return found.version


def missing(place: Place) -> str:
    """Why what lives there can't be run, and what would change that; empty where it can."""
    if place == "shell":
        return "" if shutil.which("curl") else "no curl"
    if place == "node" and not shutil.which("node"):
        return "no node"
    # The stamp is there once an installation has ended; where there was no npm, nothing came of it.
    there = (CLIENTS_VENV / f".installed-{place}").exists()
    if place == "node":
        there = there and (CLIENTS_VENV / "node" / "node_modules").exists()
    return "" if there else f"no client packages in {CLIENTS_VENV / place}; make clients"


def _program(place: Place) -> list[str]:
    if place == "node":
        return ["node", str(HERE / "run_node.mjs")]
    return [str(CLIENTS_VENV / place / "bin" / "python"), str(HERE / "run_python.py")]


def _environment(folder: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
    # What tiktoken would download: LlamaIndex brings the same file.
    vocabularies = next(CLIENTS_VENV.glob("frameworks/lib/python*/site-packages/llama_index/core/_static"), HERE)
    # And what LiteLLM and Chroma would ask for and tell: a test asks nobody but its gateway.
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "ANONYMIZED_TELEMETRY": "False"}
    return kept | local | {"HOME": folder, "TIKTOKEN_CACHE_DIR": str(vocabularies / "tiktoken_cache")}
