"""Resident memory of the gateway and its engine's process, under requests of every length, count, route and encoding.

    python tests/benchmarks/memory.py [--minutes 60]

Prints one line a minute, and at the end the slope over the second half and the peak against the gateway's own formula.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import numpy as np
import psutil
from gateway_process import Gateway, start_gateway

CLIENTS = 8
# Bounds that eight clients can fill.
BOUNDS = {"max_buffered_bytes": 16 * 2**20, "max_queued_tokens": 20_000}
SAMPLE_S = 0.25
MIB = 2**20
# What a client may get; anything else ends the run.
EXPECTED = {200, 400, 404, 408, 413, 415, 422, 429, 503, 504}
SCRIPTS = (
    "the ships that call here ",
    "東京都庁の展望台は",
    "गाड़ी कितने बजे ",
    "кораблей в порту ",
    "\U0001f6a2\u200d\U0001f30a ",
)


@dataclass(frozen=True)
class Sample:
    """Bytes at a moment, seconds since the start: resident set sizes, and the proportional ones (shared pages divided
    among those who share them) of both together."""

    at: float
    gateway: int
    engine: int
    pss: int

    @property
    def both(self) -> int:
        """Resident, the two together; pages that they share are counted twice."""
        return self.gateway + self.engine


def request_of(draw: random.Random) -> tuple[str, dict[str, object] | bytes, dict[str, str]]:
    """Route, body and headers of the next request: mostly small, now and then as large as may be."""
    kind = draw.random()
    if kind < 0.02:
        return "/embed", b'{"inputs": "' + b"a " * draw.randint(1, 5_000_000) + b'"}', {}
    if kind < 0.04:
        return "/embed", {"inputs": [_text(draw, 3) for _ in range(draw.randint(500, 2048))]}, {}
    if kind < 0.06:
        return "/tokenize", {"inputs": "a b " * draw.randint(1, 25_000)}, {}
    if kind < 0.08:
        return "/embed", {"inputs": [_text(draw, 30)] * draw.randint(2049, 5000)}, {}
    if kind < 0.12:
        return "/embed", {"inputs": [_text(draw, 100) for _ in range(100)]}, {"x-me5-timeout-ms": "1"}
    if kind < 0.20:
        ids = [
            [0, *(draw.randint(3, 50_000) for _ in range(draw.randint(1, 600))), 2] for _ in range(draw.randint(1, 8))
        ]
        return "/embed", {"inputs": ids}, {}
    if kind < 0.35:
        return "/v1/embeddings", {"input": _texts(draw), "encoding_format": draw.choice(["float", "base64"])}, {}
    if kind < 0.42:
        return "/similarity", {"inputs": {"source_sentence": _text(draw, 20), "sentences": _texts(draw)}}, {}
    if kind < 0.46:
        return "/decode", {"ids": [draw.randint(0, 50_000) for _ in range(draw.randint(1, 5000))]}, {}
    if kind < 0.50:
        return "/embed", {"inputs": ["a", "", 5]}, {}
    headers = {"accept": "application/octet-stream"} if draw.random() < 0.3 else {}
    dtype = draw.choice(["float32", "float16", "int8"])
    return "/embed", {"inputs": _texts(draw), "output_dtype": dtype, "encoding_format": "base64"}, headers


def _texts(draw: random.Random) -> list[str]:
    return [_text(draw, draw.choice([1, 4, 20, 100, 400])) for _ in range(draw.choice([1, 1, 1, 2, 5, 32]))]


def _text(draw: random.Random, words: int) -> str:
    return f"{draw.random()} {draw.choice(SCRIPTS) * draw.randint(1, words)}"


def sample(gateway: psutil.Process, started: float) -> Sample:
    """Both processes, now. The engine's is 0 while it is started again."""
    engines = [child.memory_info().rss for child in gateway.children()]
    pss = sum(process.memory_full_info().pss for process in (gateway, *gateway.children()))
    return Sample(time.monotonic() - started, gateway.memory_info().rss, sum(engines), pss)


def run(gateway: Gateway, seconds: float, *, every_s: float = 60.0, seed: int = 0) -> tuple[list[Sample], Counter[int]]:
    """Send for so long, sampling; every sample, and how often each status came."""
    process, started = psutil.Process(gateway.process.pid), time.monotonic()
    over = threading.Event()

    def send(client: int) -> Counter[int]:
        draw, seen = random.Random(seed * 1000 + client), Counter[int]()
        with gateway.client() as own:
            while not over.is_set():
                path, body, headers = request_of(draw)
                sent = {"content": body} if isinstance(body, bytes) else {"json": body}
                try:
                    status = own.post(path, headers=headers, timeout=180, **sent).status_code  # type: ignore[arg-type]
                except httpx.TransportError:
                    status = 0
                seen[status] += 1
        return seen

    samples: list[Sample] = []
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(send, index) for index in range(CLIENTS)]
        told = 0.0
        try:
            while (now := time.monotonic() - started) < seconds and not any(client.done() for client in clients):
                samples.append(sample(process, started))
                if now - told >= every_s:
                    told = now
                    print(line(samples[-1]), flush=True)
                time.sleep(SAMPLE_S)
        finally:
            over.set()
    return samples, sum((client.result() for client in clients), Counter[int]())


def line(one: Sample) -> str:
    """A sample for people."""
    return (
        f"{one.at / 60:5.1f} min   gateway {one.gateway / MIB:5.0f} MiB   engine {one.engine / MIB:5.0f} MiB   "
        f"both, shared pages once {one.pss / MIB:5.0f} MiB"
    )


def slope_mib_per_hour(samples: Sequence[Sample]) -> float:
    """The least-squares line through the second half of the sizes: in the first, allocators fill their pools."""
    half = samples[len(samples) // 2 :]
    at = np.array([one.at for one in half])
    resident = np.array([one.both for one in half])
    return float(np.polyfit(at, resident, 1)[0]) * 3600 / MIB


def peaks(samples: Sequence[Sample]) -> tuple[int, int]:
    """The largest resident size in the first and in the second half, bytes of both processes."""
    middle = len(samples) // 2
    return max(one.both for one in samples[:middle]), max(one.both for one in samples[middle:])


def main() -> None:
    """Run, and print slope and peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--model", default="me5_nano", help="a name in model_repo, or a version's folder")
    parser.add_argument("--engine", default="auto", choices=["auto", "onnx", "openvino"])
    parser.add_argument("--cache-dir", default="", help="without one: an engine opened from its cache takes less")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    settings = {"model": options.model, "engine": options.engine, "cache_dir": options.cache_dir, **BOUNDS}
    with start_gateway(drain_s=0, **settings) as gateway:
        predicted = httpx.get(f"{gateway.url}/info", timeout=30).json()["memory_peak_bytes"]
        idle = sample(psutil.Process(gateway.process.pid), time.monotonic())
        print(line(idle))
        samples, seen = run(gateway, options.minutes * 60, seed=options.seed)
        log = gateway.log_text()
    first, second = peaks(samples)
    print(f"answers: {', '.join(f'{count} × {status}' for status, count in sorted(seen.items()))}")
    print(f"slope over the second half: {slope_mib_per_hour(samples):+.1f} MiB an hour")
    print(
        f"peak: {first / MIB:.0f} MiB in the first half, {second / MIB:.0f} in the second; idle {idle.both / MIB:.0f}"
    )
    worst = max(first, second)
    print(f"formula: {predicted / MIB:.0f} MiB, the peak is {worst / predicted:.2f} of it")
    if set(seen) - EXPECTED or "Traceback" in log:
        raise SystemExit(f"unexpected answers {set(seen) - EXPECTED}, or a traceback in the log:\n{log[-3000:]}")


if __name__ == "__main__":
    main()
