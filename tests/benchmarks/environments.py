"""The other servers' environments: their packages collide with this project's, so each has a folder of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent.parent / "constraints.txt"

# Infinity 0.0.78 asks for packages without upper bounds and breaks with today's; these are the last that work.
INFINITY = [
    "infinity-emb[server,optimum,torch]==0.0.78",
    "transformers<4.50",
    "optimum[onnxruntime]<1.25",
    "pyarrow<20",
    "datasets<3",
]
PLAIN = ["-c", str(CONSTRAINTS), "fastapi", "sentence-transformers", "uvicorn[standard]"]
TORCH = "torch==2.13.0"


def make_environment(folder: Path, packages: list[str], torch_index: str | None) -> Path:
    """The Python of an environment with these packages, made if it is not there yet (minutes).

    torch_index: an index with CPU builds of torch; a plain one brings CUDA along.
    """
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if not stamp.exists():
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        index = ["--extra-index-url", torch_index] if torch_index else []
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        # torch first and by itself: a CPU build satisfies what the other packages ask for.
        subprocess.run([*pip, *index, TORCH], check=True)
        subprocess.run([*pip, *packages], check=True)
        stamp.touch()
    return python


def versions(python: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of these packages, without local parts; what is not installed is left out."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "found = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: found[n].split('+')[0] for n in sys.argv[1:] if n in found}))"
    )
    output = subprocess.run([str(python), "-c", code, *names], check=True, capture_output=True, text=True).stdout
    found: dict[str, str] = json.loads(output)
    return found
