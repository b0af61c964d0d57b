"""The gateway beside what a user would otherwise run, and beside its own engine. `make bench ME5_DATA=DIR` runs it.

    python tests/benchmarks/bench.py --data DIR             # about 15 minutes on two cores; nothing else should run
    python tests/benchmarks/bench.py --data DIR --quick     # one short round, to see that everything works
    python tests/benchmarks/bench.py --render               # the README again, from docs/bench.json

All servers run during the whole run, each in an environment of its own, with one and the same model; only one is asked
at a time, and it is checked that the others rest. Each round goes through the kinds of work, and for each through the
servers, in another order each round. Writes docs/bench.json, docs/throughput.svg and the README's section between its
markers; a quick run writes to .bench/quick instead and prints the section.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import machine
from contestants import Contestant, DidNotStart, Server, echo, infinity, me5, plain, refuse_busy, running
from environments import INFINITY, PLAIN, make_environment, versions
from load import jobs, read_texts
from report import CLIENTS, MIXED_CLIENTS, PASSAGES_CLIENTS, Json, insert, section
from shared_model import NAME, make_model, quantize
from steps import Bench, engine_alone, engine_of, generator_share, load_step, vectors

ROOT = Path(__file__).resolve().parent.parent.parent
DIMENSION = 384
# Rates of the open loop, as parts of what the server itself answers with 64 clients.
OFFERED = (0.5, 0.8, 0.95)
# Every server has to give the model's vectors; int8 is allowed its rounding.
COSINE_MIN, COSINE_MIN_INT8 = 0.999, 0.9


@dataclass(frozen=True)
class Plan:
    """Seconds of each kind of step, and how many rounds."""

    rounds: int
    queries_s: float = 2.5
    # A server that does four passages a second needs half a minute for the four requests that are on their way at once.
    passages_s: float = 4.0
    mixed_s: float = 6.0
    open_s: float = 2.0
    engine_s: float = 0.6
    echo_s: float = 1.0


QUICK = Plan(rounds=1, queries_s=2, passages_s=2, mixed_s=2, open_s=2, engine_s=0.5, echo_s=1)


def main() -> None:
    args = arguments()
    # Ends by way of every `finally`: no server is left behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("ended by a signal; all servers are stopped"))
    if args.render:
        write(json.loads((args.docs / "bench.json").read_text(encoding="utf-8")), args.docs, args.readme)
        return
    ports = range(args.first_port, args.first_port + 6)
    refuse_busy(ports)
    args.scratch.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        bench = run(args, QUICK if args.quick else Plan(args.rounds), ports)
    except DidNotStart as error:
        sys.exit(f"{error}; its log is in {args.scratch}")
    bench["minutes"] = round((time.monotonic() - started) / 60, 1)
    if args.quick:
        write(bench, args.scratch / "quick", None)
        print(section(bench))
    else:
        write(bench, args.docs, args.readme)
    print(f"{bench['minutes']} minutes")


def run(args: argparse.Namespace, plan: Plan, ports: range) -> Json:
    """Prepare, start every server, measure."""
    about = machine.describe()
    folder = make_model(args.scratch / "model")
    missing: dict[str, str] = {}
    int8_lacks = quantize(folder, args.data)
    contestants = [me5("fp32", folder / "model_repo", NAME)]
    if int8_lacks is None:
        contestants.insert(0, me5("int8", folder / "model_repo", NAME))
    else:
        missing["me5 int8"] = int8_lacks
    if machine.has_bf16(about):
        contestants.insert(0, me5("bf16", folder / "model_repo", NAME))
    else:
        missing["me5 bf16"] = "this CPU has no bf16; emulated it is slower than fp32 and no closer to the model"
    pythons = {
        "Infinity": args.infinity_python or make_environment(args.scratch / "infinity", INFINITY, args.torch_index),
        "FastAPI + sentence-transformers": args.plain_python
        or make_environment(args.scratch / "plain", PLAIN, args.torch_index),
    }
    contestants.append(infinity(pythons["Infinity"], folder / "checkpoint", args.scratch))
    contestants.append(plain(pythons["FastAPI + sentence-transformers"], folder / "checkpoint", args.scratch))
    texts = read_texts(args.data)
    with contextlib.ExitStack() as stack:
        servers = list(start_all(stack, contestants, ports, args.scratch))
        nothing = stack.enter_context(running(echo(DIMENSION), ports[-1], args.scratch))
        sample = [text for work in ("queries", "passages") for text in next(jobs(work, texts, 0))[1][:8]]
        bench: Json = {
            "measured": datetime.date.today().isoformat(),
            "machine": about,
            "versions": {
                "me5": versions(Path(sys.executable), ("onnxruntime", "openvino", "tokenizers", "uvicorn")),
                "Infinity": versions(pythons["Infinity"], ("infinity-emb", "optimum", "onnxruntime")),
                "FastAPI + sentence-transformers": versions(
                    pythons["FastAPI + sentence-transformers"], ("fastapi", "sentence-transformers", "torch")
                ),
            },
            "work": {"source": source(args.data), "rounds": plan.rounds},
            "servers": [server.name for server in servers],
            "not_measured": missing,
            "cosines": check_vectors(servers, sample),
            "steps": [],
            "engine": [],
        }
        # The one order of the table; each round begins with another server.
        for round_ in range(plan.rounds):
            turn = servers[round_ % len(servers) :] + servers[: round_ % len(servers)]
            measure_round(Bench(args.data, round_), plan, turn, nothing, folder, bench)
    return bench


def start_all(
    stack: contextlib.ExitStack, contestants: list[Contestant], ports: range, scratch: Path
) -> Iterator[Server]:
    """Each contestant on a port of its own, warmed up by a few requests of each kind."""
    for contestant, port in zip(contestants, ports, strict=False):
        print(f"starting {contestant.name}", flush=True)
        server = stack.enter_context(running(contestant, port, scratch))
        for size in (1, 1, 8, 1, 1):
            vectors(server, ["query: is it warm?"] * size)
        yield server


def check_vectors(servers: list[Server], sample: list[str]) -> dict[str, float]:
    """The smallest cosine of each server's vectors to those of me5 fp32. Ends the program where the work differs."""
    truth = vectors(next(server for server in servers if server.name == "me5 fp32"), sample)
    cosines = {server.name: round(float((vectors(server, sample) * truth).sum(axis=1).min()), 5) for server in servers}
    for name, cosine in cosines.items():
        least = COSINE_MIN_INT8 if "int8" in name else COSINE_MIN
        if cosine < least:
            sys.exit(f"{name} gives other vectors than me5 fp32: cosine {cosine}, at least {least} is the same model")
    print(f"smallest cosine to me5 fp32: {cosines}", flush=True)
    return cosines


def measure_round(bench: Bench, plan: Plan, turn: list[Server], nothing: Server, folder: Path, found: Json) -> None:
    """One round of everything, added to what was found."""

    def step(server: Server, work: str, seconds: float, **load: float) -> Json:
        idle = [other for other in [*turn, nothing] if other is not server]
        found["steps"].append(load_step(bench, server, idle, work, seconds, **load))  # type: ignore[arg-type]
        last: Json = found["steps"][-1]
        return last

    rates = {}
    for clients in CLIENTS:
        for server in turn:
            answered = step(server, "queries", plan.queries_s, clients=clients)["queries"]
            rates[server.name, clients] = answered["per_s"] if answered else float("nan")
    versions_there = sorted((folder / "model_repo" / NAME).iterdir(), key=lambda path: path.name)
    for server in turn:
        if not server.name.startswith("me5 "):
            continue
        precision = server.name.removeprefix("me5 ")
        alone = engine_alone(bench, versions_there[-1], engine_of(server), precision, list(CLIENTS), plan.engine_s)
        for clients in CLIENTS:
            rate = rates[server.name, clients]
            share = generator_share(bench, nothing, clients, rate, plan.echo_s)
            row = {"server": server.name, "round": bench.round, "clients": clients, "gateway_per_s": rate}
            found["engine"].append(row | {"engine_per_s": alone[str(clients)], "generator_share": round(share, 4)})
            print(f"  {found['engine'][-1]}", flush=True)
    for server in turn:
        step(server, "passages", plan.passages_s, clients=PASSAGES_CLIENTS)
    for server in turn:
        step(server, "mixed", plan.mixed_s, clients=MIXED_CLIENTS)
    # The first round's capacity says what all rounds offer, so that their medians are of the same load.
    capacity = found.setdefault("capacity", {name: rate for (name, clients), rate in rates.items() if clients == 64})
    for part in OFFERED:
        for server in turn:
            step(server, "queries", plan.open_s, rate=round(part * capacity[server.name], 1))


def source(data: Path | None) -> str:
    """What the texts are, for the report."""
    if data is None:
        return "the tests' toy pairs"
    return "XQuAD (questions and paragraphs in eight languages)" if data.is_dir() else "a file of one query a line"


def write(bench: Json, docs: Path, readme: Path | None) -> None:
    """The results, the picture, and the README's section."""
    from plot import draw

    docs.mkdir(parents=True, exist_ok=True)
    (docs / "bench.json").write_text(json.dumps(bench, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(bench, docs / "throughput.svg")
    if readme is not None:
        readme.write_text(insert(readme.read_text(encoding="utf-8"), section(bench)), encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with eval/retrieval_xquad, or a file of one query a line")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round; the README stays as it is")
    parser.add_argument("--render", action="store_true", help="only write the README and the plot from bench.json")
    parser.add_argument("--infinity-python", type=Path, help="an environment that has Infinity; else one is made")
    parser.add_argument("--plain-python", type=Path, help="one that has FastAPI and sentence-transformers")
    parser.add_argument("--torch-index", help="an index with CPU builds of torch, for the environments that are made")
    parser.add_argument("--first-port", type=int, default=18300, help="six ports from here must be free")
    parser.add_argument("--scratch", type=Path, default=ROOT / ".bench", help="model, environments, logs")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    args = parser.parse_args()
    args.scratch = args.scratch.resolve()
    args.data = args.data.resolve() if args.data else None
    if args.data is not None and not args.data.exists():
        parser.error(f"{args.data} does not exist; give a folder with eval/retrieval_xquad or a file of queries")
    return args


if __name__ == "__main__":
    main()
