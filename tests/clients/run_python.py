"""Runs a client's script a few times in one process and says what it came to. Run by the clients' own Python.

python run_python.py ANSWER < SOURCES     # a list of sources in JSON; a file for the list of outcomes
"""

import json
import sys
import time
from pathlib import Path


def outcome(source: str) -> dict[str, object]:
    """What is left in the script's variables, or the error that it ended with, by its class and its words."""
    names: dict[str, object] = {"__name__": "__main__"}
    began = time.monotonic()
    try:
        exec(compile(source, "script", "exec"), names)
        found: dict[str, object] = {
            name: [plain(vector) for vector in names[name]] if name.endswith("s") else plain(names[name])
            for name in ("question_vector", "passage_vectors")
        }
    except Exception as error:
        kind = type(error)
        found = {"error": f"{kind.__module__}.{kind.__qualname__}", "message": str(error)}
    return found | {"seconds": time.monotonic() - began}


def plain(vector: object) -> list[float]:
    """A vector, or whatever else a client took for one, as numbers."""
    return [float(number) for number in vector]  # type: ignore[attr-defined]


if __name__ == "__main__":
    outcomes = [outcome(source) for source in json.load(sys.stdin)]
    Path(sys.argv[1]).write_text(json.dumps(outcomes), encoding="utf-8")
