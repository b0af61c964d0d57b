"""docs/examples/rag.py, as a reader runs it, against a real gateway and Qdrant."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest
from gateway_process import ROOT, Gateway
from qdrant_client import QdrantClient

SCRIPT = ROOT / "docs" / "examples" / "rag.py"
# A question in another language than its passage, and words of the one that answers it.
QUESTIONS = {
    "When is the museum open on Sundays?": "sonntags von 11",
    "Wie lange kann ich ein Buch aus der Bibliothek ausleihen?": "presta libros",
    "Can I take my bicycle on the ferry?": "Les vélos",
    "¿Cuándo está abierta la piscina?": "Бассейн закрыт",
    "Quand a lieu le marché ?": "farmers' market",
    "How many steps are there in the bell tower?": "二百一十四",
    "Is there a bus at night?": "autocarro noturno",
}


@pytest.fixture(scope="module")
def rag() -> ModuleType:
    found = importlib.util.spec_from_file_location("rag", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["rag"] = module
    found.loader.exec_module(module)
    return module


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_without_a_chat_server_the_prompt_is_printed_with_numbered_sources(gateway: Gateway) -> None:
    text = run("When is the museum open on Sundays?", "--gateway", gateway.url)
    assert "Question: When is the museum open on Sundays?" in text
    assert "sonntags von 11 bis 16 Uhr" in text
    assert all(f"[{number}] (" in text for number in (1, 2, 3))
    assert "[4] (" not in text


def test_most_questions_find_their_passage_in_another_language(gateway: Gateway, rag: ModuleType) -> None:
    client = QdrantClient(":memory:")
    rag.store(client, "town", gateway.url, [rag.Passage(*row) for row in rag.PASSAGES])
    found = {
        question: [passage.text for _, passage in rag.retrieve(client, "town", gateway.url, question, 3)]
        for question in QUESTIONS
    }
    right = [any(words in text for text in found[question]) for question, words in QUESTIONS.items()]
    # 16 passages: by chance three hold the right one in 19 % of the cases.
    assert sum(right) >= 5, found


def test_a_passage_that_is_stored_twice_is_there_once(gateway: Gateway, rag: ModuleType, tmp_path: Path) -> None:
    client = QdrantClient(path=str(tmp_path / "store"))
    for _ in range(2):
        rag.store(client, "town", gateway.url, [rag.Passage(*row) for row in rag.PASSAGES])
    assert client.count("town").count == len(rag.PASSAGES)
    client.close()


class _Chat(BaseHTTPRequestHandler):
    """Answers with the first passage, and with a number that no passage has."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        first = next(line for line in body["messages"][1]["content"].split("\n") if line.startswith("[1]"))
        text = f"It says: {first.partition(') ')[2]} [1] And more besides. [9]"
        answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        self.send_response(200 if self.path == "/v1/chat/completions" else 404)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def chat() -> Iterator[str]:
    """A server that speaks the chat wire."""
    server = HTTPServer(("127.0.0.1", 0), _Chat)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_answer_is_printed_with_its_sources_and_those_it_made_up(gateway: Gateway, chat: str) -> None:
    text = run("When is the museum open on Sundays?", "--gateway", gateway.url, "--chat", chat)
    assert text.startswith("It says: ")
    cited = re.search(r"^\[1\] \w+ \((\w\w)\)$", text, re.MULTILINE)
    first = re.search(r"^  0\.\d+  (\w\w)  ", text, re.MULTILINE)
    assert cited is not None
    assert first is not None
    assert cited[1] == first[1]
    assert "no passage has the numbers [9]" in text
