"""What keys cost: gateways without any, with one, and with a thousand, each key with a token limit. Run it on an idle
machine.

    python tests/benchmarks/keys.py [--rounds 7] [--seconds 8] [--clients 8]

One after another, in another order each round, as in tracing.py. Then, without a server, the time of one decision about
one request, and of a scrape of /metrics.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import timeit
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gateway_process import start_gateway
from prometheus_client import generate_latest
from tracing import Step, print_table, step

from service.api.guard import Guard
from service.callers import Callers
from service.keys import Key, digest_of, new_secret
from service.metrics import KeyMetrics, Metrics

OFF = "no keys"
COUNTS = {OFF: 0, "1 key": 1, "1000 keys": 1000}
# More than any machine uses in a minute, so that nothing is refused and every request is still counted.
TOKENS_PER_MINUTE = 10**9


def keys_file(path: Path, secrets: list[str]) -> Path:
    """A file of so many keys with limits."""
    tables = (
        f'[application-{number}]\nsha256 = "{digest_of(secret.encode()).hex()}"\n'
        f"tokens_per_minute = {TOKENS_PER_MINUTE}\n"
        for number, secret in enumerate(secrets)
    )
    path.write_text("".join(tables), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=8.0, help="of load for each gateway in each round")
    parser.add_argument("--clients", type=int, default=8)
    args = parser.parse_args()
    secrets = [new_secret() for _ in range(max(COUNTS.values()))]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        gateways = {}
        for name, count in COUNTS.items():
            given = {"keys_file": keys_file(folder / f"{count}.toml", secrets[:count])} if count else {}
            gateways[name] = stack.enter_context(start_gateway(drain_s=0, **given))
        sent = {name: secrets[count - 1] if count else "" for name, count in COUNTS.items()}
        for name, gateway in gateways.items():
            step(gateway, min(2.0, args.seconds), args.clients, 0, sent[name])
        rounds: dict[str, list[Step]] = defaultdict(list)
        names = list(gateways)
        for number in range(args.rounds):
            for place in range(len(names)):
                name = names[(place + number) % len(names)]
                rounds[name].append(step(gateways[name], args.seconds, args.clients, number, sent[name]))
    print_table("keys", rounds, OFF)
    print()
    for count in COUNTS.values():
        if count:
            print(f"{count} keys: {in_process(secrets[:count])}")


def in_process(secrets: list[str]) -> str:
    """Without a server: a decision, the headers of its answer, and a scrape."""
    metrics = Metrics()
    callers = Callers((), KeyMetrics(metrics.registry), 0.0)
    limit = TOKENS_PER_MINUTE
    callers.use(tuple(Key(f"key-{n}", digest_of(s.encode()), limit, limit) for n, s in enumerate(secrets)), 0.0)
    guard = Guard(callers, metrics_open=True)
    known, unknown = (
        {"method": "POST", "path": "/embed", "headers": [(b"authorization", b"Bearer " + secret)]}
        for secret in (secrets[-1].encode(), new_secret().encode())
    )

    def time_us(work: str) -> float:
        found = timeit.repeat(work, number=2000, repeat=9, globals={**globals(), **locals_of})
        return 1e6 * statistics.median(found) / 2000

    locals_of = {"guard": guard, "known": known, "unknown": unknown, "caller": callers.identify(secrets[0].encode(), 0)}
    scrape_s = statistics.median(timeit.repeat(lambda: generate_latest(metrics.registry), number=1, repeat=5))
    return (
        f"a known one {time_us('guard.refusal(dict(known))'):.1f} µs, an unknown one "
        f"{time_us('guard.refusal(dict(unknown))'):.1f} µs, the headers of a limit "
        f"{time_us('caller.headers(1.0)'):.1f} µs, a scrape {1e3 * scrape_s:.0f} ms"
    )


if __name__ == "__main__":
    main()
