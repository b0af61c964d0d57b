"""The bodies that cost a gateway most, within its limits or refused late: for the event loop's tests and figures."""

from __future__ import annotations

import functools
import json

PASSAGE = "The harbour of Rotterdam lies where the Rhine meets the sea, and ships call from far away. "
LARGE_BYTES = 10_000_000
COHERE = ["float", "int8", "uint8", "binary", "ubinary", "base64"]


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


@functools.cache
def worst_bodies() -> dict[str, tuple[str, bytes, dict[str, str]]]:
    """name → route, body, headers."""
    few_bytes = {"x-me5-timeout-ms": "2000"}
    many = [f"{number} ships" for number in range(2048)]
    octets = {"accept": "application/octet-stream"}
    return {
        "10 MB in 2000 texts": ("/embed", _json({"inputs": [PASSAGE * 54] * 2000}), few_bytes),
        "10 texts of 1 MB": ("/embed", _json({"inputs": [PASSAGE * 10_800] * 10}), few_bytes),
        "one text of 10 MB": ("/embed", _json({"inputs": "東京の人口は約" * 470_000}), few_bytes),
        "10 MB of escapes": ("/embed", json.dumps({"inputs": "東京の人口🙂" * 230_000}).encode(), few_bytes),
        "2 million ids": ("/embed", _json({"inputs": [5] * 2_000_000}), {}),
        "1 million ids in 2000 rows": ("/embed", _json({"inputs": [[1234] * 512] * 2000}), few_bytes),
        "3 million empty lists": ("/embed", b'{"inputs":[' + b",".join([b"[]"] * 3_000_000) + b"]}", {}),
        "a million unknown fields": (
            "/embed",
            b'{"inputs":"a",' + b",".join(b'"%d":1' % number for number in range(900_000)) + b"}",
            {},
        ),
        "10 MB of brackets": ("/embed", b'{"inputs":' + b"[" * LARGE_BYTES, {}),
        "2048 texts, answered in JSON": ("/embed", _json({"inputs": many}), {}),
        "2048 texts, answered in base64": ("/embed", _json({"inputs": many, "encoding_format": "base64"}), {}),
        "2048 texts, answered in bytes": ("/embed", _json({"inputs": many}), octets),
        "2048 texts, OpenAI's list": ("/v1/embeddings", _json({"input": many}), {}),
        "2048 texts, in all of Cohere's types": ("/v2/embed", _json({"texts": many, "embedding_types": COHERE}), {}),
        "one text of 10 MB, sent back by Cohere's route": (
            "/v2/embed",
            _json({"texts": ["東京の人口は約" * 470_000]}),
            {},
        ),
        "10 MB in parts, by Cohere's route": (
            "/v2/embed",
            _json({"inputs": [{"content": [{"type": "text", "text": PASSAGE * 54}]}] * 2000}),
            few_bytes,
        ),
        "2048 texts, Ollama's list": ("/api/embed", _json({"input": many}), {}),
        "10,000 token states": ("/embed_all", _json({"inputs": [PASSAGE * 40] * 19}), {}),
        "/tokenize of 100 000 characters": ("/tokenize", _json({"inputs": ("東京の人口は約" * 14_300)[:99_999]}), {}),
        "/tokenize of 2000 texts": ("/tokenize", _json({"inputs": [PASSAGE[:49]] * 2000}), {}),
        "/decode of 100 000 ids": ("/decode", _json({"ids": [[1234] * 500] * 200}), {}),
    }
