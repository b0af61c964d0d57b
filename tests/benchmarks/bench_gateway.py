"""The gateway over HTTP against its own engine on the same texts, as ratios. `make bench` runs it.

Each round measures the engine alone (texts tokenised beforehand, batches by the gateway's own policy) and then the
gateway under 1, 8 and 64 clients, one query a request; medians over the rounds are printed. The load generator is a
process of its own on the same cores, so the gateway's figures include what it costs.

    python tests/benchmarks/bench_gateway.py                       # mE5-small's shape with random weights, and me5_nano
    python tests/benchmarks/bench_gateway.py --texts questions.txt # one query a line
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import aiohttp
from faulty_engine import MODEL_REPO, SHIPPED
from gateway_process import start_gateway

from service.batching import Limits, take_batch
from service.engine import Engine, open_engine, vectors_of
from service.model import load_model
from service.pull import pull
from service.recipe.prompts import E5_PROMPTS, format_text
from service.recipe.tokens import pad, tokenize
from service.scheduler import Pending

PAIRS = Path(__file__).resolve().parent.parent / "data"
CLIENTS = (1, 8, 64)
LIMITS = Limits(1024)


def read_texts(path: Path | None) -> list[str]:
    """One query a line; without a file, the queries of the test data."""
    if path is not None:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    texts: list[str] = []
    for file in sorted(PAIRS.rglob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            texts.extend(json.loads(line)["query"] for line in lines)
    return texts


def raw_rate(engine: Engine, rows: list[Pending], clients: int, seconds: float, pad_id: int) -> float:
    """Texts a second of the engine alone, with `clients` texts to choose a batch from, as the gateway would have."""
    source = iter(random.Random(0).choices(rows, k=1_000_000))
    waiting = [next(source) for _ in range(clients)]
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        batch = take_batch(waiting, LIMITS)
        taken = set(map(id, batch))
        waiting = [row for row in waiting if id(row) not in taken]
        tokens = pad([row.ids for row in batch], pad_id)
        vectors_of(engine.run(tokens), tokens)
        done += len(batch)
        waiting += [next(source) for _ in batch]
    return done / (time.perf_counter() - started)


async def load(url: str, texts: list[str], clients: int, seconds: float) -> dict[str, float]:
    """Closed loop: each client sends one query, waits for its vector, sends the next."""
    rng = random.Random(clients)
    latencies: list[float] = []
    started = time.perf_counter()

    async def client(http: aiohttp.ClientSession) -> None:
        while time.perf_counter() - started < seconds:
            sent = time.perf_counter()
            async with http.post(url, json={"inputs": [rng.choice(texts)]}) as answer:
                await answer.read()
                assert answer.status == 200
            latencies.append(time.perf_counter() - sent)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    spent = time.perf_counter() - started
    ranked = sorted(latencies)
    return {
        "texts_per_s": len(ranked) / spent,
        "p50_ms": 1e3 * ranked[len(ranked) // 2],
        "p99_ms": 1e3 * ranked[int(len(ranked) * 0.99)],
    }


def load_apart(url: str, texts: Path, clients: int, seconds: float) -> dict[str, float]:
    """`load` in a process of its own."""
    command = [sys.executable, __file__, "--load", url, "--texts", str(texts), "--clients", str(clients)]
    found: dict[str, float] = json.loads(
        subprocess.run([*command, "--seconds", str(seconds)], check=True, capture_output=True, text=True).stdout
    )
    return found


def compare(title: str, repo: Path, name: str, texts: list[str], rounds: int, seconds: float) -> None:
    """Print the table of one model."""
    model = load_model(name, repo)
    engine = open_engine(model.folder, model.spec)
    prompted = [format_text(text, E5_PROMPTS) for text in texts]
    rows = [Pending(row.ids, None, 0, 0.0) for row in tokenize(model.tokenizer, prompted, 512)]  # type: ignore[arg-type]
    raw: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
    over_http: dict[int, list[dict[str, float]]] = {clients: [] for clients in CLIENTS}
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "texts.txt"
        lines.write_text("\n".join(text.replace("\n", " ") for text in texts), encoding="utf-8")
        with start_gateway(model=name, model_repo=repo, engine="onnx") as gateway:
            load_apart(gateway.url + "/embed", lines, 8, 1)
            for _ in range(rounds):
                for clients in CLIENTS:
                    raw[clients].append(raw_rate(engine, rows, clients, seconds, model.spec.pad_id))
                    over_http[clients].append(load_apart(gateway.url + "/embed", lines, clients, seconds))
    tokens = statistics.mean(row.length for row in rows)
    print(f"\n{title}: {len(texts)} queries of {tokens:.0f} tokens on average, medians of {rounds} rounds\n")
    print("| clients | engine alone, texts/s | gateway, texts/s | ratio | p50 ms | p99 ms |")
    print("|--:|--:|--:|--:|--:|--:|")
    for clients in CLIENTS:
        alone = statistics.median(raw[clients])
        rate, p50, p99 = (
            statistics.median(found[key] for found in over_http[clients]) for key in ("texts_per_s", "p50_ms", "p99_ms")
        )
        ratio = statistics.median(
            found["texts_per_s"] / rate for found, rate in zip(over_http[clients], raw[clients], strict=True)
        )
        print(f"| {clients} | {alone:.0f} | {rate:.0f} | {ratio:.2f} | {p50:.1f} | {p99:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="a file with one query a line")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--load", metavar="URL", help="be the load generator, for this address")
    parser.add_argument("--clients", type=int, default=1, help="with --load: how many at once")
    args = parser.parse_args()
    texts = read_texts(args.texts)
    if args.load:
        print(json.dumps(asyncio.run(load(args.load, texts, args.clients, args.seconds))))
        return
    # Here, so that the load generator does not load torch.
    from published_folder import write_published_folder

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_published_folder(Path(folder) / "checkpoint", SHIPPED / "tokenizer.json", layers=12)
        pull(str(checkpoint), Path(folder), published="intfloat/multilingual-e5-small")
        compare("mE5-small's shape, random weights", Path(folder), "me5_small", texts, args.rounds, args.seconds)
    compare("me5_nano", MODEL_REPO, "me5_nano", texts, args.rounds, args.seconds)


if __name__ == "__main__":
    main()
