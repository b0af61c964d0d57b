"""Whatever is sent: an answer of the documented kind, no traceback, no hang. `make fuzz` runs it long."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fuzz_reading import MAX_BODY_BYTES, READERS, read_or_refuse
from fuzz_text import CLEAN_TEXTS, SURROGATES, bodies, check_tokens, prompted
from gateway_process import Gateway, start_gateway
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from service.api.large_json import PIECE_BYTES
from service.errors import InvalidInput, Me5Error
from service.recipe.prompts import E5_PROMPTS, format_text
from service.recipe.spec import TOKENIZER_FILE, ModelSpec
from service.recipe.tokens import Direction, load_tokenizer, take_ids, tokenize

# `make fuzz` asks for many more.
EXAMPLES = int(os.environ.get("ME5_FUZZ_EXAMPLES", "60"))

# No bound on an example's time: the machine may be busy. A hang is what pytest's own timeout is for.
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
# What a schema can't say decides over yes and no: which ids the vocabulary has, whether the model takes instructions,
# and pydantic reads "true" for true. Whether an answer is one of the documented ones is checked all the same.
LEFT_OUT = ("positive_data_acceptance", "negative_data_rejection")
METHODS = st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "TRACE", "PRI", "get", "CONNECT"])
PATHS = st.sampled_from(
    [
        "/",
        "/embed",
        "/v1/embeddings",
        "/similarity",
        "/tokenize",
        "/decode",
        "/v2/embed",
        "/api/tags",
        "/info",
        "*",
        "//",
    ]
)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Gateway]:
    """A gateway of its own, whose log has to stay clean of tracebacks to the end."""
    with start_gateway(drain_s=0) as started:
        yield started
        assert httpx.get(f"{started.url}/readyz").status_code == 200
        assert "Traceback" not in started.log_text()
        assert "unhandled error" not in started.log_text()


@pytest.fixture(scope="module")
def tokenizer(shipped: Path) -> Tokenizer:
    """The shipped model's."""
    return load_tokenizer(shipped / TOKENIZER_FILE)


def test_every_route_answers_as_the_openapi_document_says(fuzzed: Gateway) -> None:
    # Its command line and not its pytest plug-in: only there does it also walk each field's limits one by one.
    found = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--no-color", "run", f"{fuzzed.url}/openapi.json"),
            *("--checks=all", f"--exclude-checks={','.join(LEFT_OUT)}", "--phases=examples,coverage,fuzzing,stateful"),
            *(f"--max-examples={EXAMPLES}", "--continue-on-failure", "--request-timeout=60"),
            "--generation-database=none",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-8000:] + found.stderr[-2000:]


@SETTINGS
@given(
    route=st.sampled_from(sorted(READERS)),
    body=st.one_of(bodies(), st.binary(max_size=200)),
    pieces=st.integers(1, 4),
    header=st.one_of(
        st.none(),
        st.tuples(st.sampled_from([b"content-encoding", b"content-length", b"content-type"]), st.binary(max_size=20)),
    ),
)
def test_any_bytes_are_read_or_refused_with_our_own_error(
    route: str, body: bytes, pieces: int, header: tuple[bytes, bytes] | None
) -> None:
    size = len(body) // pieces + 1
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    whole = read_or_refuse(route, [body], [header] if header else [])
    parted = read_or_refuse(route, chunks, [header] if header else [])
    assert (whole is None) == (parted is None)
    assert whole is None or parted is None or (whole.status, whole.message) == (parted.status, parted.message)


@SETTINGS
@given(route=st.sampled_from(sorted(READERS)), body=bodies())
def test_a_large_body_is_read_as_a_small_one_is(route: str, body: bytes) -> None:
    # JSON takes any spaces at its end; what is long is read by other means.
    small, large = read_or_refuse(route, [body]), read_or_refuse(route, [body, b" " * PIECE_BYTES])
    assert (small and (small.status, small.code)) == (large and (large.status, large.code))


@SETTINGS
@given(route=st.sampled_from(sorted(READERS)), depth=st.integers(3, 5000), count=st.integers(10, 20_000))
def test_deep_and_wide_bodies_are_refused(route: str, depth: int, count: int) -> None:
    field = {"openai": b"input", "decode": b"ids", "cohere": b"texts", "ollama": b"input"}.get(route, b"inputs")
    for inner in (b"[" * depth + b"]" * depth, b"[" + b"[]," * count + b"[]]", b'{"a":' * depth + b"1" + b"}" * depth):
        assert read_or_refuse(route, [b'{"%s": %s}' % (field, inner)]) is not None


@SETTINGS
@given(item=prompted(), max_tokens=st.integers(2, 512), direction=st.sampled_from(["left", "right"]))
def test_the_tokens_of_any_text_fit_the_model(
    tokenizer: Tokenizer, item: object, max_tokens: int, direction: Direction
) -> None:
    (found,) = tokenize(tokenizer, [item], max_tokens, direction)
    check_tokens(found, item, tokenizer, max_tokens, direction)


@SETTINGS
@given(items=st.lists(prompted(), min_size=1, max_size=5), direction=st.sampled_from(["left", "right"]))
def test_a_text_has_the_same_tokens_among_others(
    tokenizer: Tokenizer, spec: ModelSpec, items: list[object], direction: Direction
) -> None:
    together = tokenize(tokenizer, items, spec.max_tokens, direction)
    for item, tokens in zip(items, together, strict=True):
        (alone,) = tokenize(tokenizer, [item], spec.max_tokens, direction)
        assert alone.ids.tolist() == tokens.ids.tolist()
        assert (alone.counted, alone.truncated) == (tokens.counted, tokens.truncated)


@SETTINGS
@given(before=st.text(max_size=99), surrogate=SURROGATES, after=CLEAN_TEXTS)
def test_half_a_surrogate_pair_is_refused_and_not_a_fault(
    tokenizer: Tokenizer, before: str, surrogate: str, after: str
) -> None:
    item = format_text(before + surrogate + after, E5_PROMPTS, "query")
    with pytest.raises(InvalidInput, match="surrogate"):
        tokenize(tokenizer, [item], 512)


@SETTINGS
@given(ids=st.lists(st.one_of(st.integers(0, 59_999), st.integers()), max_size=700), max_tokens=st.integers(2, 512))
def test_any_ids_are_taken_cut_or_refused(ids: list[int], max_tokens: int) -> None:
    try:
        found = take_ids(ids, max_tokens, 60_000)
    except Me5Error:
        assert any(not 0 <= part < 60_000 for part in ids)
        return
    assert found.ids.dtype.name == "int32"
    assert len(found.ids) == min(len(ids), max_tokens)
    assert found.truncated == (len(ids) > max_tokens)


@SETTINGS
@given(
    method=METHODS,
    path=st.one_of(PATHS, st.text(st.characters(codec="latin-1", categories=["L", "N", "P", "S"]), max_size=30)),
    headers=st.lists(
        st.tuples(
            st.sampled_from([b"content-length", b"transfer-encoding", b"host", b"expect", b"connection", b"upgrade"]),
            st.one_of(
                st.sampled_from([b"0", b"5", b"-1", b"chunked", b"9" * 30, b"100-continue", b"close", b"websocket"]),
                st.binary(max_size=12),
            ),
        ),
        max_size=4,
    ),
    body=st.one_of(bodies(), st.sampled_from([b"5\r\nhello\r\n0\r\n\r\n", b"fffffffffffffffff\r\n", b"\0" * 100])),
)
def test_any_bytes_on_the_wire_are_answered_or_cut_off(
    fuzzed: Gateway, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    host, port = fuzzed.url.removeprefix("http://").rsplit(":", 1)
    head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\n".encode("latin-1") + head + b"\r\n" + body)
        # Nothing more will come: an unfinished request ends here.
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionResetError:
            # What it did not read when it closed; what it had to say may be lost on the way.
            pass
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert not answer.startswith(b"HTTP/1.1 5"), answer[:300]


def test_a_body_over_the_limit_is_refused_whatever_it_holds() -> None:
    refused = read_or_refuse("embed", [b"[" * 65536] * (MAX_BODY_BYTES // 65536 + 1))
    assert refused is not None
    assert refused.status == 413
