"""What tracing costs: gateways without it, with it and nothing sampled, and with everything sampled. Run it on an idle
machine.

    python tests/benchmarks/tracing.py [--rounds 7] [--seconds 8] [--clients 8]

One after another, in another order each round; each figure is the median over rounds of a ratio within the round, to
the gateway without tracing. CPU time is the gateway's process alone, threads that send spans included, the engine's
process not. The receiver takes its share of the same cores, as a collector beside the gateway does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
from gateway_process import Gateway, start_gateway
from report import percentile
from trace_receiver import receiver

HERE = Path(__file__).resolve().parent
OFF = "off"
# The share of requests sampled.
ON = {"on, 0 sampled": 0.0, "on, 0.05 sampled": 0.05, "on, all sampled": 1.0}


@dataclass(frozen=True)
class Step:
    """One gateway in one round."""

    requests_per_s: float
    p50_ms: float
    cpu_ms: float


def step(gateway: Gateway, seconds: float, clients: int, seed: int, key: str = "") -> Step:
    """A closed loop of single queries from a process of its own."""
    process = psutil.Process(gateway.process.pid)
    before = sum(process.cpu_times()[:2])
    command = [sys.executable, str(HERE / "load.py"), "--url", f"{gateway.url}/embed", "--work", "queries"]
    command += ["--clients", str(clients), "--seconds", str(seconds), "--seed", str(seed), "--key", key]
    raw = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert not raw["errors"], raw["errors"]
    latencies = raw["latencies_ms"]["queries"]
    cpu_s = sum(process.cpu_times()[:2]) - before
    return Step(len(latencies) / raw["spent_s"], percentile(latencies, 50), 1e3 * cpu_s / len(latencies))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=8.0, help="of load for each gateway in each round")
    parser.add_argument("--clients", type=int, default=8)
    args = parser.parse_args()
    with ExitStack() as stack:
        found = stack.enter_context(receiver())
        found.keep = False
        gateways = {OFF: stack.enter_context(start_gateway(drain_s=0))}
        for name, ratio in ON.items():
            settings = {"otlp_endpoint": found.url, "trace_sample_ratio": ratio}
            gateways[name] = stack.enter_context(start_gateway(drain_s=0, **settings))
        for gateway in gateways.values():
            step(gateway, min(2.0, args.seconds), args.clients, 0)
        rounds: dict[str, list[Step]] = defaultdict(list)
        names = list(gateways)
        for number in range(args.rounds):
            for place in range(len(names)):
                name = names[(place + number) % len(names)]
                rounds[name].append(step(gateways[name], args.seconds, args.clients, number))
        assert found.calls, "no spans came"
    print_table("tracing", rounds, OFF)


def print_table(what: str, rounds: dict[str, list[Step]], off: str) -> None:
    """Medians over rounds, and medians of the ratios within each round to the steps called `off`."""
    columns = "requests/s | p50, ms | gateway's CPU a request, ms"
    print(f"| {what} | {columns} | requests/s : {off} | p50 : {off} | CPU : {off} |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, steps in rounds.items():
        values = [[getattr(one, field) for one in steps] for field in Step.__dataclass_fields__]
        base = [[getattr(one, field) for one in rounds[off]] for field in Step.__dataclass_fields__]
        figures = [f"{statistics.median(column):.2f}" for column in values]
        ratios = [
            f"{statistics.median(one / off for one, off in zip(column, other, strict=True)):.3f}"
            for column, other in zip(values, base, strict=True)
        ]
        print(f"| {name} | {' | '.join([*figures, *ratios])} |")


if __name__ == "__main__":
    main()
