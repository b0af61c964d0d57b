"""An OpenAI-compatible server for the tests of synthesis: a real one on a port, with answers made by a rule.

What it answers depends on the prompt and the seed alone; the faults of a wire come at the first try of a request only.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

ENGLISH = {
    "who": ["The gardener", "My neighbour", "A young teacher", "The old captain", "Her cousin", "The baker's daughter"],
    "did": ["repaired", "painted", "forgot", "borrowed", "described", "cleaned", "photographed", "drew", "sold"],
    "what": ["the wooden bridge", "a small violin", "the kitchen window", "an ancient map", "a bicycle", "the lantern"],
    "where": ["behind the mill", "near the harbour", "in the village", "on the island", "at the railway station"],
    "when": ["last winter", "before breakfast", "during the festival", "after the storm", "on Thursday", "in May"],
}
GERMAN = {
    "who": ["Der Gärtner", "Meine Nachbarin", "Eine junge Lehrerin", "Der alte Kapitän", "Ihr Vetter", "Der Bäcker"],
    "did": ["reparierte", "bemalte", "vergaß", "verlieh", "beschrieb", "putzte", "zeichnete", "verkaufte"],
    "what": ["die hölzerne Brücke", "eine kleine Geige", "das Küchenfenster", "eine alte Karte", "ein Fahrrad"],
    "where": ["hinter der Mühle", "am Hafen", "im Dorf", "auf der Insel", "am Bahnhof", "neben dem Brunnen"],
    "when": ["im letzten Winter", "vor dem Frühstück", "während des Festes", "nach dem Sturm", "am Donnerstag"],
}
WORDS = {"English": ENGLISH, "German": GERMAN}
THINGS = ["letters", "recipes", "rulings", "poems", "reports", "reviews", "patents", "songs", "lectures", "diaries"]
ACTIONS = ["Find", "Retrieve", "Look up", "Search for", "Pick out", "Collect"]
ENDS = ["that explain its causes", "with the same moral", "that argue the opposite", "written by a beginner"]

# One request in so many of each kind of answer that is no good.
NOT_JSON, REFUSES, SAME, UNSAFE, PERSONAL, FOREIGN, COPIES = 13, 17, 11, 19, 23, 29, 31
# And of each fault of the wire, at the first try.
BUSY, BROKEN, GARBLED = 7, 9, 12
SAME_QUERY = {
    "English": "Where may one see the northern lights in March?",
    "German": "Wo sieht man im März Polarlichter?",
}


@dataclass
class ChatServer:
    """url: with /v1.   asked: seed → requests.   keys: that came as headers.   down: answers 503 to everything."""

    url: str = ""
    asked: Counter[int] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)
    moderation_keys: set[str] = field(default_factory=set)
    moderated: list[list[str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    faults: bool = True
    down: bool = False
    delay_s: float = 0.0
    status: int = 0
    # Of the first request of all, whatever its seed.
    first_retry_after: str = ""


def sentence(language: str, draw: random.Random) -> str:
    """A sentence that a speaker could have said."""
    words = {name: draw.choice(options) for name, options in WORDS[language].items()}
    order = "{who} {did} {what} {where} {when}." if language == "English" else "{who} {did} {when} {where} {what}."
    return order.format(**words)


def answer_of(prompt: str, seed: int) -> str:
    """The content of a good answer, or of one that the checks must notice."""
    draw = random.Random(f"{prompt} {seed}")
    if '"tasks"' in prompt:
        count = int(re.search(r"Think up (\d+)", prompt)[1])  # type: ignore[index]
        tasks = [
            f"{draw.choice(ACTIONS)} {draw.choice(THINGS)} about {draw.choice(THINGS)} and {draw.choice(THINGS)} "
            f"{draw.choice(ENDS)}, given number {draw.randrange(10**6)} of them"
            for _ in range(count - 1)
        ]
        return json.dumps({"tasks": [*tasks, "Find {thing_name} by its name, whatever it is"]})
    if seed % NOT_JSON == 0:
        return 'Here you are: {"query": "half of it'
    keys = re.search(r"Its keys are (.*); every", prompt)[1].replace('"', "").split(", ")  # type: ignore[index]
    languages = re.findall(r"\b(English|German)\b", prompt)
    words = int(found[1]) if (found := re.search(r"(\d+) words", prompt)) else 0
    texts = []
    for place, _ in enumerate(keys):
        language = languages[min(place, 1)] if "translation" in keys else languages[0]
        text = " ".join(sentence(language, draw) for _ in range(1 + words // 50))
        texts.append(f"{text} ({draw.randrange(10**5)})")
    if seed % SAME == 0:
        texts[0] = " ".join([SAME_QUERY[languages[0]]] * (1 + words // 45))
    if seed % UNSAFE == 0:
        texts[1] += " XXX porn"
    if seed % PERSONAL == 0:
        texts[0] += " Write to somebody@example.org"
    if seed % FOREIGN == 0:
        other = "German" if languages[0] == "English" else "English"
        texts[0] = " ".join(sentence(other, draw) for _ in range(2 + words // 50))
    if seed % COPIES == 0:
        texts[1] = f"{texts[0]} {texts[1]}" if "passage" in keys else texts[0]
    if "answer" in keys:
        texts[1:] = [f"class {draw.randrange(50)}a", f"class {draw.randrange(50)}b"]
    return json.dumps(dict(zip(keys, texts, strict=True)), ensure_ascii=False)


def _fault(seed: int) -> Response | None:
    if seed % BUSY == 0:
        return JSONResponse({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.05"})
    if seed % BROKEN == 0:
        return PlainTextResponse("the server has a problem", 500)
    return PlainTextResponse('{"choices": [{"mess', 200) if seed % GARBLED == 0 else None


def app_of(server: ChatServer) -> FastAPI:
    """The routes."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    def chat(request: Request, body: dict[str, Any]) -> Response:
        is_first = not server.times
        server.times.append(time.monotonic())
        server.keys.add(request.headers.get("Authorization", ""))
        seed, prompt = body["seed"], body["messages"][0]["content"]
        server.asked[seed] += 1
        time.sleep(server.delay_s)
        if server.first_retry_after and is_first:
            error = {"message": "quota"}
            return JSONResponse({"error": error}, 429, {"Retry-After": server.first_retry_after})
        if server.status or server.down:
            return JSONResponse({"error": {"message": "no such thing"}}, server.status or 503)
        if server.faults and server.asked[seed] == 1 and (fault := _fault(seed)) is not None:
            return fault
        refused = seed % REFUSES == 0 and '"tasks"' not in prompt
        if refused and seed % 2:
            error = {"message": "filtered", "code": "content_filter"}
            return JSONResponse({"error": error}, 400)
        text = None if refused else answer_of(prompt, seed)
        message = {"role": "assistant", "content": text, **({"refusal": "I won't"} if refused else {})}
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text or "") // 4}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({"choices": [choice], "usage": usage, "model": body["model"]})

    @app.post("/v1/moderations")
    def moderations(request: Request, body: dict[str, Any]) -> Response:
        server.moderation_keys.add(request.headers.get("Authorization", ""))
        server.moderated.append(body["input"])
        results = [
            {"flagged": "lantern" in text, "categories": {"light": "lantern" in text, "dark": False}}
            for text in body["input"]
        ]
        return JSONResponse({"results": results})

    return app


@contextmanager
def start_chat_server(**options: Any) -> Iterator[ChatServer]:
    """A server on a free port, in a thread."""
    server = ChatServer(**options)
    config = uvicorn.Config(app_of(server), host="127.0.0.1", port=0, log_level="error")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    server.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield server
    finally:
        running.should_exit = True
        thread.join(10)
