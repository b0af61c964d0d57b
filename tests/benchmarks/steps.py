"""One measurement at a time: a step of load on one server, the engine alone, the load generator's own cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import orjson
from contestants import Server
from load import Kind, Wire, Work, body_of
from numpy.typing import NDArray
from report import Json, percentile

HERE = Path(__file__).resolve().parent
# Above this share of one core a server that should be idle disturbs the one that is measured.
IDLE_SHARE_MAX = 0.02


@dataclass(frozen=True)
class Bench:
    """What every step needs. seed: the round; each server gets the same requests in it."""

    data: Path | None
    round: int


def load_step(
    bench: Bench,
    server: Server,
    idle: list[Server],
    work: Work,
    seconds: float,
    *,
    clients: int = 0,
    rate: float = 0.0,
) -> Json:
    """Put one server under load, watch that the others rest, and sum up what came."""
    before = {other.name: other.cpu_seconds() for other in idle}
    raw = generate(bench, server.url, server.contestant.wire, work, seconds, clients=clients, rate=rate)
    for other in idle:
        share = (other.cpu_seconds() - before[other.name]) / raw["spent_s"]
        if share > IDLE_SHARE_MAX:
            print(f"  {other.name} took {100 * share:.0f} % of a core while {server.name} was measured", flush=True)
    step = {
        "server": server.name,
        "round": bench.round,
        "work": work,
        "clients": clients,
        "rate": rate,
        "spent_s": round(raw["spent_s"], 3),
        "generator_cpu_s": round(raw["cpu_s"], 3),
        "errors": raw["errors"],
        "queries": summary(raw, "queries"),
        "passages": summary(raw, "passages"),
    }
    told = [f"{kind} {step[kind]['per_s']:.1f}/s p50 {step[kind]['p50_ms']:.0f} ms" for kind in KINDS if step[kind]]
    at = f"{rate:.0f}/s offered" if rate else f"{clients} clients"
    print(f"  {bench.round} {work:8} {at:14} {server.name:32} {', '.join(told)} {raw['errors'] or ''}", flush=True)
    return step


KINDS: tuple[Kind, ...] = ("queries", "passages")


def summary(raw: Json, kind: Kind) -> dict[str, float] | None:
    """Texts a second and percentiles of one kind of request; None where none was answered."""
    latencies = raw["latencies_ms"][kind]
    if not latencies:
        return None
    texts = len(latencies) * (32 if kind == "passages" else 1)
    return {
        "requests": len(latencies),
        "per_s": round(texts / raw["spent_s"], 3),
        **{f"p{part}_ms": round(percentile(latencies, part), 2) for part in (50, 95, 99)},
    }


def generate(
    bench: Bench, url: str, wire: Wire, work: Work, seconds: float, *, clients: int = 0, rate: float = 0.0
) -> Json:
    """Run the load generator in a process of its own; what it prints."""
    command = [sys.executable, str(HERE / "load.py"), "--url", url, "--wire", wire, "--work", work]
    command += ["--seconds", str(seconds), "--clients", str(clients), "--rate", str(rate), "--seed", str(bench.round)]
    command += ["--data", str(bench.data)] if bench.data else []
    found: Json = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def engine_alone(bench: Bench, folder: Path, engine: str, precision: str, clients: list[int], seconds: float) -> Json:
    """Texts a second of the engine without a gateway, by number of clients."""
    command = [sys.executable, str(HERE / "engine_alone.py"), str(folder), "--engine", engine, "--precision", precision]
    command += ["--clients", ",".join(map(str, clients)), "--seconds", str(seconds)]
    command += ["--data", str(bench.data)] if bench.data else []
    found: Json = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def generator_share(bench: Bench, echo: Server, clients: int, rate: float, seconds: float) -> float:
    """The share of all cores that the load generator takes for this rate with this many clients.

    The echo server answers late enough that the clients together reach the rate; what its own work delays them by is
    made up for by taking the generator's CPU time for each request.
    """
    url = f"{echo.url}?delay_ms={1e3 * clients / rate:.3f}"
    raw = generate(bench, url, "tei", "queries", seconds, clients=clients)
    a_request = raw["cpu_s"] / len(raw["latencies_ms"]["queries"])
    return float(a_request * rate / len(os.sched_getaffinity(0)))


def vectors(server: Server, texts: list[str]) -> NDArray[np.float32]:
    """float32[N, D] of these texts, as they stand."""
    answer = httpx.post(server.url, content=body_of(server.contestant.wire, texts), headers=JSON_BODY, timeout=120)
    answer.raise_for_status()
    found = orjson.loads(answer.content)
    if server.contestant.wire == "openai":
        found = [item["embedding"] for item in sorted(found["data"], key=lambda item: item["index"])]
    rows = np.array(found, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


JSON_BODY = {"content-type": "application/json"}


def engine_of(server: Server) -> str:
    """The engine that a gateway computes with, from a header of its own such as CPU+onnx-fp32."""
    answer = httpx.post(server.url, content=body_of("tei", ["query: which engine?"]), headers=JSON_BODY, timeout=120)
    return answer.headers["x-compute-type"].rsplit("+", 1)[1].rsplit("-", 1)[0]
