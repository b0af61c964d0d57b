"""Bodies that a coverage-guided fuzzer bends towards lines they have not reached yet. Needs the package atheris.

python tests/fuzz_atheris.py [-max_total_time=SECONDS]     # what it has found so far is kept in .fuzz/
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

# What is imported here is watched: the gateway's own code, not the libraries'.
with atheris.instrument_imports(include=["service"]):
    from fuzz_reading import READERS, read_or_refuse

CORPUS = Path(__file__).resolve().parent.parent / ".fuzz"
# The first byte says which route; bodies that come far, to begin with.
SEEDS = (
    b'\x00{"inputs": ["a", "b"], "input_type": "query", "normalize": true}',
    b'\x01{"input": "a", "model": "x-query", "encoding_format": "base64", "dimensions": 5}',
    b'\x02{"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": {"truncate": true}}',
    b'\x03{"inputs": "\\ud83d\\ude00", "add_special_tokens": false}',
    b'\x04{"ids": [[0, 5, 2]], "skip_special_tokens": false}',
)
ROUTES = ("embed", "openai", "similarity", "tokenize", "decode", "embed_all", "cohere", "ollama")


def fuzz(data: bytes) -> None:
    """One body, read as a small one and, with spaces behind it, as a large one."""
    route = ROUTES[data[0] % len(ROUTES)] if data else ROUTES[0]
    small = read_or_refuse(route, [data[1:]])
    large = read_or_refuse(route, [data[1:], b" " * 65536])
    assert (small and small.status) == (large and large.status), f"{small!r}, but {large!r}"


def main() -> None:
    """Fuzz until the time is up, or something else than a Me5Error is raised."""
    assert set(ROUTES) == set(READERS)
    CORPUS.mkdir(exist_ok=True)
    for index, seed in enumerate(SEEDS):
        (CORPUS / f"seed-{index}").write_bytes(seed)
    atheris.Setup([*sys.argv, f"-artifact_prefix={CORPUS}/", str(CORPUS)], fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
