"""How long the gateway's event loop is held up by the worst requests, beside light queries. Run it on an idle machine.

For each kind of body: the largest lag of a call that is due every millisecond, and the longest stretch of the loop's
thread on the CPU between two such calls. A lag without a stretch is another thread that held the interpreter, or the
kernel that ran something else.

    python tests/benchmarks/loop_lag.py [--seconds 5]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gateway_process import Gateway, start_gateway
from worst_bodies import worst_bodies

LIMIT_MS = 5.0
PROGRAM = str(Path(__file__).resolve().parent.parent / "lag_gateway.py")


def largest(report: Path, since: float, until: float) -> tuple[float, float]:
    """The largest lag and stretch, in seconds, of the report's lines between two moments."""
    rows = [[float(part) for part in line.split()] for line in report.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if len(row) == 3 and since < row[0] <= until]
    return max((row[1] for row in rows), default=0.0), max((row[2] for row in rows), default=0.0)


def light_queries(gateway: Gateway, over: threading.Event) -> None:
    """A lone query every few milliseconds."""
    with gateway.client() as client:
        while not over.wait(0.005):
            client.post("/embed", json={"inputs": "how deep is the harbour?"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each kind of body is sent")
    seconds: float = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "lag"
        over = threading.Event()
        with start_gateway(program=(PROGRAM, str(report)), drain_s=0) as gateway, gateway.client() as client:
            light = threading.Thread(target=light_queries, args=(gateway, over))
            light.start()
            print("| body | requests | status | largest lag, ms | longest stretch on the CPU, ms |")
            print("|---|--:|---|--:|--:|")
            for name, (path, body, headers) in {"nothing": ("/livez", b"", {}), **worst_bodies()}.items():
                since, count, statuses = time.monotonic(), 0, set()
                while time.monotonic() - since < seconds:
                    if body:
                        statuses.add(client.post(path, content=body, headers=headers).status_code)
                        count += 1
                    else:
                        time.sleep(0.1)
                time.sleep(0.3)
                lag_s, stretch_s = largest(report, since, time.monotonic())
                over_limit = " **over**" if stretch_s * 1000 > LIMIT_MS else ""
                codes = ", ".join(map(str, sorted(statuses)))
                print(
                    f"| {name} | {count} | {codes} | {lag_s * 1000:.1f} | {stretch_s * 1000:.1f}{over_limit} |",
                    flush=True,
                )
            over.set()
            light.join()


if __name__ == "__main__":
    main()
