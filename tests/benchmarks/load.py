"""The load generator of the benchmarks: the same work for every server, over HTTP. Nothing of the gateway is imported.

    python tests/benchmarks/load.py --url http://127.0.0.1:8080/embed --work queries --clients 8 --data DIR
    python tests/benchmarks/load.py --url http://127.0.0.1:7997/embeddings --wire openai --work mixed --clients 8
    python tests/benchmarks/load.py --url http://127.0.0.1:8080/embed --work queries --rate 40 --data questions.txt

work   queries   one question a request (XQuAD's, in eight languages, some 15 to 40 tokens)
       passages  32 paragraphs a request (XQuAD's, some 100 to 500 tokens each)
       mixed     of every ten requests, nine queries and one of 32 passages, in random order

`--clients N` is a closed loop: each client sends, waits for the answer, sends again. `--rate R` is an open loop:
requests arrive at random (Poisson) R times a second, whether or not the ones before are answered, so the wait in a
queue is in the latencies. Texts carry E5's prompts already: a server without roles is asked for the same vectors. The
same seed sends the same texts in the same order. What is on its way when the time is up is waited for and counted.

Prints one line of JSON (`Result`), the CPU seconds this process took included.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

import aiohttp
import orjson

Kind = Literal["queries", "passages"]
Work = Literal["queries", "passages", "mixed"]
Wire = Literal["tei", "openai"]

TOY_PAIRS = Path(__file__).resolve().parent.parent / "data" / "train"
XQUAD = Path("eval") / "retrieval_xquad"
PASSAGES_A_REQUEST = 32
MIXED_BLOCK: tuple[Kind, ...] = ("queries",) * 9 + ("passages",)
# XQuAD's paragraphs have 790 characters on average; where there are only short lines, this many are joined to one.
PARAGRAPH_CHARS = 790
# A client that was refused waits, as any client should; otherwise it would measure how fast a server says no.
PAUSE_AFTER_ERROR_S = 0.1
REQUEST_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Texts:
    """What is sent, without prompts."""

    queries: list[str]
    passages: list[str]


@dataclass
class Result:
    """One step. spent_s: from the first request to the last answer.   cpu_s: of this process, in that time.

    latencies_ms: of the requests answered with 200, by kind.   errors: how often each other status or failure came.
    """

    spent_s: float = 0.0
    cpu_s: float = 0.0
    latencies_ms: dict[Kind, list[float]] = field(default_factory=lambda: {"queries": [], "passages": []})
    errors: dict[str, int] = field(default_factory=dict)


def read_texts(data: Path | None) -> Texts:
    """XQuAD from a data folder, or a text file (one query a line), or the pairs of the tests."""
    if data is not None and data.is_dir():
        return Texts(*(_column(data / XQUAD / f"{name}.jsonl.gz", "text") for name in ("queries", "corpus")))
    if data is not None:
        lines = [line for line in data.read_text(encoding="utf-8").splitlines() if line.strip()]
        return Texts(lines, paragraphs(lines))
    pairs = sorted(TOY_PAIRS.glob("*.jsonl.gz"))
    queries = [text for path in pairs for text in _column(path, "query")]
    return Texts(queries, paragraphs([text for path in pairs for text in _column(path, "positive")]))


def _column(path: Path, name: str) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)[name] for line in lines]


def paragraphs(lines: list[str]) -> list[str]:
    """Neighbouring lines joined until each paragraph has PARAGRAPH_CHARS; at least one."""
    found, current = [], ""
    for line in lines:
        current = f"{current} {line}".strip()
        if len(current) >= PARAGRAPH_CHARS:
            found.append(current)
            current = ""
    return found or [current]


def jobs(work: Work, texts: Texts, seed: int) -> Iterator[tuple[Kind, list[str]]]:
    """What to send, one request after another, for ever; the same for the same seed."""
    rng = random.Random(seed)
    block: tuple[Kind, ...] = MIXED_BLOCK if work == "mixed" else (work,)
    while True:
        for kind in rng.sample(block, len(block)):
            if kind == "queries":
                yield kind, ["query: " + rng.choice(texts.queries)]
            else:
                yield kind, ["passage: " + text for text in rng.choices(texts.passages, k=PASSAGES_A_REQUEST)]


def body_of(wire: Wire, texts: list[str]) -> bytes:
    """The request's JSON."""
    return orjson.dumps({"inputs": texts} if wire == "tei" else {"input": texts, "model": "model"})


class Generator:
    """Sends jobs to one address and keeps what came of them."""

    def __init__(self, http: aiohttp.ClientSession, url: str, wire: Wire, work: Iterator[tuple[Kind, list[str]]]):
        self.result = Result()
        self._http, self._url, self._wire, self._work = http, url, wire, work

    async def closed_loop(self, clients: int, seconds: float) -> None:
        """Clients that each have one request on its way at any time."""
        stop_at = time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < stop_at:
                await self._send()

        await asyncio.gather(*(client() for _ in range(clients)))

    async def open_loop(self, rate: float, seconds: float, seed: int) -> None:
        """Requests that arrive by themselves, `rate` a second on average."""
        rng, due = random.Random(seed), time.perf_counter()
        stop_at, sent = due + seconds, []
        while due < stop_at:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sent.append(asyncio.create_task(self._send(since=due)))
            due += rng.expovariate(rate)
        await asyncio.gather(*sent)

    async def _send(self, since: float | None = None) -> None:
        kind, texts = next(self._work)
        # In an open loop from when the request was due: a generator that is late itself must not flatter the server.
        started = time.perf_counter() if since is None else since
        try:
            async with self._http.post(
                self._url, data=body_of(self._wire, texts), headers={"content-type": "application/json"}
            ) as answer:
                await answer.read()
                if answer.status == 200:
                    self.result.latencies_ms[kind].append(1e3 * (time.perf_counter() - started))
                    return
                error = str(answer.status)
        except (aiohttp.ClientError, TimeoutError) as raised:
            error = type(raised).__name__
        self.result.errors[error] = self.result.errors.get(error, 0) + 1
        await asyncio.sleep(PAUSE_AFTER_ERROR_S)


async def measure(
    url: str, wire: Wire, work: Work, texts: Texts, *, clients: int, rate: float, seconds: float, seed: int, key: str
) -> Result:
    """One step: an open loop where there is a rate, else a closed one."""
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as http:
        generator = Generator(http, url, wire, jobs(work, texts, seed))
        started, cpu = time.perf_counter(), cpu_seconds()
        if rate > 0:
            await generator.open_loop(rate, seconds, seed)
        else:
            await generator.closed_loop(clients, seconds)
        generator.result.spent_s = time.perf_counter() - started
        generator.result.cpu_s = cpu_seconds() - cpu
        return generator.result


def cpu_seconds() -> float:
    """CPU time this process has taken, the kernel's share for its sockets included."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--wire", choices=get_args(Wire), default="tei")
    parser.add_argument("--work", choices=get_args(Work), default="queries")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0, help="open loop, requests a second; overrides --clients")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--key", default="", help="sent as a bearer token")
    parser.add_argument("--data", type=Path, help="folder with eval/retrieval_xquad, or a file of one query a line")
    args = parser.parse_args()
    if not any(host in args.url for host in ("127.0.0.1", "localhost", "[::1]")):
        sys.exit(f"{args.url} is not an address of this machine; the load generator speaks to no other")
    result = asyncio.run(
        measure(
            args.url,
            args.wire,
            args.work,
            read_texts(args.data),
            clients=args.clients,
            rate=args.rate,
            seconds=args.seconds,
            seed=args.seed,
            key=args.key,
        )
    )
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
