"""How much one replica does, how many a load needs, and what the autoscaler makes of it. Writes docs/capacity.md.

    python tests/benchmarks/capacity.py                        # measure: nothing else should run; `make capacity`
    python tests/benchmarks/capacity.py --quick                # one shape for seconds, just prints
    python tests/benchmarks/capacity.py --simulate             # the autoscaler with the manifests that ship
    python tests/benchmarks/capacity.py --render               # docs/capacity.md again, from docs/capacity.json
    python tests/benchmarks/capacity.py --plan --texts-per-s 500 --tokens 120 --p95-wait-s 0.1 [--model me5_small]

A model has the shape of a published mE5 and random weights, and the shipped tokenizer: what it computes costs the same.
The load generator runs on the same cores; tokens a second of CPU time count the gateway's and its engine's alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import machine
import psutil
from capacity_page import Json, best, render_measured, render_plans, render_simulated, replace_part
from gateway_process import Gateway, start_gateway
from metric_series import scrape, total
from queueing import Replica, Work, plan
from shared_model import TOKENIZER
from steps import Bench, generate

from service.pull import pull
from service.recipe.tokens import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
# name, layers, published checkpoint.
SHAPES = {
    "small": ("me5_small", 12, "intfloat/multilingual-e5-small"),
    "base": ("me5_base", 12, "intfloat/multilingual-e5-base"),
    "large": ("me5_large", 24, "intfloat/multilingual-e5-large"),
}
CLIENTS = {"passages": 4, "queries": 64}
# Where nothing was measured yet, and for round numbers in the simulation.
ASSUMED_TOKENS_PER_S, ASSUMED_START_S = 10_000.0, 30.0


def model_of(shape: str, scratch: Path) -> Path:
    """A model repository with a version of this shape, made if it is not there yet (minutes)."""
    from published_folder import write_published_folder

    _, layers, published = SHAPES[shape]
    folder = scratch / shape
    if not folder.is_dir():
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=scratch) as unfinished:
            checkpoint = write_published_folder(
                Path(unfinished) / "checkpoint",
                TOKENIZER,
                shape=shape,  # type: ignore[arg-type]
                layers=layers,
            )
            pull(str(checkpoint), Path(unfinished) / "repo", published=published)
            (Path(unfinished) / "repo").rename(folder)
    return folder


def measure_replica(shape: str, precision: str, scratch: Path, data: Path | None, seconds: float, rounds: int) -> Json:
    """One gateway with every core of this machine: its rates, memory, and time to ready without and with a cache."""
    model, model_repo = SHAPES[shape][0], model_of(shape, scratch)
    with tempfile.TemporaryDirectory(dir=scratch) as cache:
        settings = {
            "model": model,
            "model_repo": model_repo,
            "precision": precision,
            "cache_dir": cache,
            "drain_s": 0,
        }
        start_s = []
        for _ in range(2):
            started = time.monotonic()
            with start_gateway(**settings):
                start_s.append(round(time.monotonic() - started, 2))
        with start_gateway(**settings) as gateway, gateway.client() as client:
            info = client.get("/info").json()
            idle = memory_mib(gateway)
            rates = {
                work: [load(gateway, client, data, work, seconds, round_) for round_ in range(rounds)]
                for work in CLIENTS
            }
            row: Json = {
                "model": model,
                "engine": info["engine"],
                "precision": info["precision"],
                "start_s": {"first": start_s[0], "again": start_s[1]},
                "memory_mib": {"idle": idle, "loaded": memory_mib(gateway)},
                "memory_bound_mib": info["memory_peak_bytes"] // 2**20,
                "rates": {work: medians(found) for work, found in rates.items()},
            }
    print(f"  {row}", flush=True)
    return row


def load(gateway: Gateway, client: httpx.Client, data: Path | None, work: str, seconds: float, seed: int) -> Json:
    """A closed loop of one kind of request: what came out of the engine, and the CPU time that it took."""
    url = f"{gateway.url}/embed"
    # Shapes that are new to an engine are prepared once.
    generate(Bench(data, seed), url, "tei", work, seconds / 4, clients=CLIENTS[work])  # type: ignore[arg-type]
    before, cpu, started = scrape(client), cpu_s(gateway), time.monotonic()
    raw = generate(Bench(data, seed), url, "tei", work, seconds, clients=CLIENTS[work])  # type: ignore[arg-type]
    after, spent_s, cpu = scrape(client), time.monotonic() - started, cpu_s(gateway) - cpu
    # The generator's own start is none of the time in which it sends.
    spent_s = min(spent_s, raw["spent_s"])
    texts, tokens = (total(after, name) - total(before, name) for name in ("me5_inputs_total", "me5_tokens_total"))
    if not texts or raw["errors"]:
        sys.exit(f"{texts} texts were answered, errors {raw['errors']}; {gateway.log_text()[-2000:]}")
    return {
        "texts_per_s": texts / spent_s,
        "tokens_per_s": tokens / spent_s,
        "tokens_per_cpu_s": tokens / cpu,
        "tokens_a_text": tokens / texts,
    }


def medians(rows: list[Json]) -> dict[str, float]:
    """Of every value, over the rounds."""
    return {name: round(statistics.median(row[name] for row in rows), 1) for name in rows[0]}


def processes(gateway: Gateway) -> list[psutil.Process]:
    """The gateway and its engine."""
    own = psutil.Process(gateway.process.pid)
    return [own, *own.children(recursive=True)]


def cpu_s(gateway: Gateway) -> float:
    """CPU seconds of both so far."""
    return sum(times.user + times.system for times in (each.cpu_times() for each in processes(gateway)))


def memory_mib(gateway: Gateway) -> int:
    """Resident memory of both; pages they share are counted once."""
    return int(sum(each.memory_full_info().pss for each in processes(gateway)) // 2**20)


def measure(args: argparse.Namespace) -> Json:
    """Every shape in fp32 and in what `auto` chooses."""
    about = machine.describe()
    rows = []
    for shape in ("small",) if args.quick else args.shapes.split(","):
        for precision in ("auto",) if args.quick else ("fp32", "auto"):
            row = measure_replica(shape, precision, args.scratch, args.data, args.seconds, args.rounds)
            if (row["engine"], row["precision"]) not in [
                (other["engine"], other["precision"]) for other in rows if other["model"] == row["model"]
            ]:
                rows.append(row)
    return {
        "measured": datetime.date.today().isoformat(),
        "machine": about,
        "vocabulary": load_tokenizer(TOKENIZER).get_vocab_size(),
        "rounds": args.rounds,
        "replicas": rows,
    }


def print_plan(args: argparse.Namespace) -> None:
    """The sum for one load."""
    rate, cores, note = args.tokens_per_s, args.cores, "given"
    if rate is None:
        row, cores = best(read_json(args.docs), args.model)
        rate, note = row["rates"]["passages"]["tokens_per_s"], f"measured, {row['engine']} {row['precision']}"
    work = Work(args.texts_per_s, args.tokens, args.scv, args.texts_a_request)
    found = plan(
        work,
        Replica(rate, args.streams, cores),
        args.p95_wait_s,
        utilisation_max=args.utilisation,
        spare=args.spare,
    )
    print(
        f"{found.replicas} replicas ({found.cores} cores) of {rate:g} tokens/s ({note}) for {args.texts_per_s:g} "
        f"texts/s of {args.tokens:g} tokens: busy {found.utilisation:.0%}, wait {1e3 * found.mean_wait_s:.0f} ms on "
        f"average, {1e3 * found.p95_wait_s:.0f} ms at the 95th percentile, then {1e3 * found.service_s:.0f} ms of work"
    )


def run_simulation(docs: Path) -> str:
    """Every scenario, its picture, and the part of the page."""
    from scaling import SCENARIOS, draw, shipped, simulate

    if shutil.which("kubectl") is None:
        sys.exit("kubectl is not on this machine; the simulation reads the manifests that it builds")
    of = shipped(ASSUMED_TOKENS_PER_S, ASSUMED_START_S)
    runs = []
    for scenario in SCENARIOS:
        runs.append((scenario, simulate(scenario, of)))
        draw(runs[-1][1], ASSUMED_TOKENS_PER_S, docs / f"capacity-{scenario.name}.svg")
        print(f"  {scenario.name}: {runs[-1][1].turns()} turns", flush=True)
    return render_simulated(of, runs)


def read_json(docs: Path) -> Json:
    """What was measured before."""
    file = docs / "capacity.json"
    if not file.is_file():
        sys.exit(f"{file} is not there; run `make capacity` on an idle machine first, or give --tokens-per-s")
    found: Json = json.loads(file.read_text(encoding="utf-8"))
    return found


def main() -> None:
    args = arguments()
    page = args.docs / "capacity.md"
    if args.plan:
        print_plan(args)
    elif args.simulate:
        part = run_simulation(args.docs)
        # Read after the minutes that this takes: an edit made meanwhile stays.
        page.write_text(replace_part(page.read_text(encoding="utf-8"), "autoscaler", part), encoding="utf-8")
    elif args.quick:
        found = measure(args)
        print(render_measured(found), render_plans(found), sep="\n\n")
    else:
        if not args.render:
            found = measure(args)
            (args.docs / "capacity.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        found = read_json(args.docs)
        text = replace_part(page.read_text(encoding="utf-8"), "measured", render_measured(found))
        page.write_text(replace_part(text, "plans", render_plans(found)), encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="one shape for seconds; writes nothing")
    what.add_argument("--render", action="store_true", help="only write the page from docs/capacity.json")
    what.add_argument("--simulate", action="store_true", help="the autoscaler's runs, table and pictures")
    what.add_argument("--plan", action="store_true", help="the sum for one load")
    parser.add_argument("--data", type=Path, help="folder with eval/retrieval_xquad; else the tests' toy pairs")
    parser.add_argument("--shapes", default="small,base,large")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=ROOT / ".bench" / "capacity", help="models")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--texts-per-s", type=float)
    parser.add_argument("--tokens", type=float, help="mean of a text, its prompt included")
    parser.add_argument("--scv", type=float, default=1.0, help="variance of a text's tokens over their mean squared")
    parser.add_argument("--texts-a-request", type=int, default=1)
    parser.add_argument("--p95-wait-s", type=float, default=0.1)
    parser.add_argument("--tokens-per-s", type=float, help="of a replica; else the one measured for --model")
    parser.add_argument("--model", default="me5_small")
    parser.add_argument("--cores", type=int, default=2, help="of a replica, with --tokens-per-s")
    parser.add_argument("--streams", type=int, default=2, help="batches a replica computes at a time")
    parser.add_argument("--utilisation", type=float, default=0.7, help="at most; the autoscaler's CPU target")
    parser.add_argument("--spare", type=float, default=0.0, help="share of the replicas that may be missing")
    args = parser.parse_args()
    if args.plan and (args.texts_per_s is None or args.tokens is None):
        parser.error("--plan needs --texts-per-s and --tokens")
    if args.quick:
        args.seconds, args.rounds = min(args.seconds, 4.0), 1
    args.scratch = args.scratch.resolve()
    return args


if __name__ == "__main__":
    main()
