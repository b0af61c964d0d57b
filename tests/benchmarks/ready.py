"""How long a gateway takes from the command to a green /readyz: each engine in turn. Run it on an idle machine.

    python tests/benchmarks/ready.py [--rounds 9] [--model me5_nano] [--cache]

Python's start, all imports, the engine, and the proof on the golden texts are in it. The first round, in which files
are read from the disk, is told alone; the figure is the median of the others.
"""

from __future__ import annotations

import argparse
import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gateway_process import ROOT, free_port

ENGINES = ("onnx", "openvino")
POLL_S = 0.005


def ready_s(settings: dict[str, str]) -> float:
    """Seconds from the start of the process until it says that it is ready."""
    port = free_port()
    given = {**os.environ, **settings, "ME5_HOST": "127.0.0.1", "ME5_PORT": str(port), "ME5_LOG_LEVEL": "warning"}
    started = time.perf_counter()
    gateway = subprocess.Popen([sys.executable, "-m", "service", "serve"], cwd=ROOT, env=given)
    try:
        while gateway.poll() is None:
            try:
                asked = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                asked.request("GET", "/readyz")
                if asked.getresponse().status == 200:
                    return time.perf_counter() - started
            except OSError:
                time.sleep(POLL_S)
        raise SystemExit(f"the gateway ended with {gateway.returncode}")
    finally:
        gateway.kill()
        gateway.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", default="me5_nano")
    parser.add_argument("--cache", action="store_true", help="keep optimised models, as the gateway does by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, list[float]] = {engine: [] for engine in ENGINES}
        for _ in range(1 + args.rounds):
            for engine, seconds in found.items():
                cache = folder if args.cache else ""
                seconds.append(ready_s({"ME5_MODEL": args.model, "ME5_ENGINE": engine, "ME5_CACHE_DIR": cache}))
    print("| engine | first, s | again, median | fastest | slowest |\n|---|--:|--:|--:|--:|")
    for engine, (first, *others) in found.items():
        print(f"| {engine} | {first:.2f} | {statistics.median(others):.2f} | {min(others):.2f} | {max(others):.2f} |")


if __name__ == "__main__":
    main()
