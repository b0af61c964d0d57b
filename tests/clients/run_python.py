"""Runs clients' scripts one after another in one process and says what each came to. Run by the clients' own Python.

python run_python.py ANSWER < SOURCES     # a list of sources in JSON; a file for the list of outcomes
"""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path


def outcome(source: str) -> dict[str, object]:
    """What is left in the script's variables, or the error that it ended with, by its class and its words."""
    names: dict[str, object] = {"__name__": "__main__"}
    began = time.monotonic()
    try:
        exec(compile(source, "script", "exec"), names)
        found: dict[str, object] = {
            name: plain(names[name]) for name in ("question_vector", "passage_vectors", "similarities") if name in names
        }
    except Exception as error:
        kind = type(error)
        found = {"error": f"{kind.__module__.split('.')[0]}.{kind.__qualname__}", "message": str(error)}
    return found | {"seconds": time.monotonic() - began}


def plain(value: object) -> object:
    """Numbers, and lists of them, of whatever classes a client gives."""
    return [plain(item) for item in value] if isinstance(value, Iterable) else float(value)  # type: ignore[arg-type]


if __name__ == "__main__":
    outcomes = [outcome(source) for source in json.load(sys.stdin)]
    Path(sys.argv[1]).write_text(json.dumps(outcomes), encoding="utf-8")
