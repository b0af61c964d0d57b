"""What a caller or an operator gets wrong: a sentence with value, limit and remedy, never a traceback."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gateway_process import MODEL_REPO, SHIPPED_MODEL, Gateway, run_service

from service.errors import ModelFileError, ModelNotFound
from service.model import load_model
from service.recipe.golden import Golden, GoldenItem, load_golden, save_golden
from service.recipe.spec import GOLDEN_FILE, MODEL_FILE, SPEC_FILE, TOKENIZER_FILE, file_sha256, load_spec

Json = Any
DEEP = "[" * 100_000


@pytest.fixture(autouse=True)
def _no_traceback(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a client sends is no reason for a traceback in the shared gateway's log."""
    if "client" not in request.fixturenames:
        yield
        return
    gateway: Gateway = request.getfixturevalue("gateway")
    before = len(gateway.log_text())
    yield
    log = gateway.log_text()[before:]
    assert "Traceback" not in log
    assert "unhandled error" not in log


def refused(response: httpx.Response, status: int, *words: str) -> str:
    """The message of an error in the façade's own body shape, which must hold these words."""
    body = response.json()
    assert response.status_code == status, body
    if response.request.url.path.startswith("/v1/"):
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        message: str = body["error"]["message"]
        assert body["error"]["type"] == "invalid_request_error"
        assert body["error"]["code"]
    else:
        assert set(body) == {"error", "error_type"}
        message = body["error"]
        assert body["error_type"] in ("Validation", "Empty")
    assert response.headers["x-request-id"]
    for word in words:
        assert word in message
    # A page of someone's own text, or of a Python class, helps nobody.
    assert len(message) < 2000
    assert "pydantic" not in message
    return message


# route, body as it is sent, status, words of the message
BAD_BODIES: list[tuple[str, str, bytes | Json, int, tuple[str, ...]]] = [
    ("no body", "/embed", b"", 400, ("not JSON",)),
    ("not JSON", "/embed", b"hello", 400, ("not JSON",)),
    ("half a JSON", "/embed", b'{"inputs": ["a", ', 400, ("not JSON",)),
    ("trailing bytes", "/embed", b'{"inputs": "a"} x', 400, ("not JSON",)),
    ("invalid UTF-8", "/embed", b'{"inputs": "\xff\xfe"}', 400, ("not JSON",)),
    ("UTF-16", "/embed", '{"inputs": "a"}'.encode("utf-16"), 400, ("not JSON",)),
    ("a lone surrogate", "/embed", b'{"inputs": "\\ud800"}', 400, ("not JSON",)),
    ("half a pair in a list", "/embed", b'{"inputs": ["ok", "a\\udc00b"]}', 400, ("not JSON", "surrogate")),
    ("too deep", "/embed", f'{{"inputs": {DEEP}'.encode(), 400, ("not JSON",)),
    ("a list for a body", "/embed", ["a"], 422, ("JSON object", "inputs")),
    ("a number for a body", "/embed", 5, 422, ("JSON object",)),
    ("null for a body", "/embed", None, 422, ("JSON object",)),
    ("no inputs", "/embed", {"input": "a"}, 422, ("`inputs`", "required")),
    ("inputs null", "/embed", {"inputs": None}, 422, ("`inputs`", "null")),
    ("inputs a number", "/embed", {"inputs": 5}, 422, ("`inputs`", "a number")),
    ("inputs an object", "/embed", {"inputs": {"text": "a"}}, 422, ("`inputs`", "an object")),
    ("NaN", "/embed", b'{"inputs": NaN}', 422, ("`inputs`", "a number")),
    ("infinity in a list", "/embed", b'{"inputs": ["a", 1e999]}', 422, ("`inputs`", "input 1", "a number")),
    ("ids with a fraction", "/embed", {"inputs": [[1, 2.5]]}, 422, ("`inputs`", "input 0")),
    ("a boolean", "/embed", {"inputs": [True]}, 422, ("`inputs`", "input 0", "a boolean")),
    ("ids and texts in one list", "/embed", {"inputs": [[1, "a"]]}, 422, ("input 0", "mixed values")),
    ("lists too deep", "/embed", {"inputs": [[[1]]]}, 422, ("input 0",)),
    ("a negative id", "/embed", {"inputs": [[0, -1, 2]]}, 422, ("-1", "vocabulary", "/tokenize")),
    ("an id beyond the vocabulary", "/embed", {"inputs": [[0, 10**7, 2]]}, 422, ("10000000", "vocabulary")),
    ("an id beyond 64 bits", "/embed", {"inputs": [[0, 10**30, 2]]}, 422, ("vocabulary",)),
    ("a flat id beyond 64 bits", "/embed", {"inputs": [10**30]}, 422, ("vocabulary",)),
    ("an id below 64 bits", "/embed", {"inputs": [[-(10**30)]], "input_type": "query"}, 422, ("vocabulary",)),
    ("an id of thousands of digits", "/embed", b'{"inputs": [[%s]]}' % (b"9" * 5000), 400, ("number out of range",)),
    (
        "dimensions of thousands of digits",
        "/embed",
        b'{"inputs": "a", "dimensions": %s}' % (b"9" * 5000),
        400,
        ("number out of range",),
    ),
    ("a bad id with a role", "/embed", {"inputs": [[0, -5, 2]], "input_type": "query"}, 422, ("-5", "vocabulary")),
    ("an empty text", "/embed", {"inputs": ""}, 400, ("`inputs` cannot be empty",)),
    ("an empty text at the root", "/", {"inputs": ""}, 400, ("`inputs` cannot be empty",)),
    ("no texts", "/embed", {"inputs": []}, 400, ("`inputs` cannot be empty",)),
    ("an unknown role", "/embed", {"inputs": "a", "input_type": "title"}, 422, ("title", "query", "passage")),
    ("an unknown prompt", "/embed", {"inputs": "a", "prompt_name": "s2p"}, 422, ("s2p", "query", "passage")),
    ("an empty role", "/embed", {"inputs": "a", "input_type": ""}, 422, ("input_type", "query", "passage")),
    ("a role that is a number", "/embed", {"inputs": "a", "input_type": 5}, 422, ("`input_type`", "5")),
    (
        "two roles",
        "/embed",
        {"inputs": "a", "input_type": "query", "prompt_name": "passage"},
        422,
        ("`input_type`", "`prompt_name`", "one of them"),
    ),
    ("an empty instruction", "/embed", {"inputs": "a", "instruction": ""}, 422, ("`instruction`",)),
    ("dimensions NaN", "/embed", b'{"inputs": "a", "dimensions": NaN}', 422, ("`dimensions`",)),
    ("dimensions huge", "/embed", {"inputs": "a", "dimensions": 10**30}, 422, ("`dimensions`",)),
    ("dimensions a text", "/embed", {"inputs": "a", "dimensions": "many"}, 422, ("`dimensions`", "many")),
    ("normalize a text", "/embed", {"inputs": "a", "normalize": "maybe"}, 422, ("`normalize`", "maybe")),
    ("truncate a list", "/embed", {"inputs": "a", "truncate": []}, 422, ("`truncate`",)),
    (
        "a side that is none",
        "/embed",
        {"inputs": "a", "truncation_direction": "up"},
        422,
        ("`truncation_direction`", "left", "right"),
    ),
    ("OpenAI: no input", "/v1/embeddings", {"model": "x"}, 422, ("`input`", "required")),
    ("OpenAI: not JSON", "/v1/embeddings", b"{", 400, ("not JSON",)),
    ("OpenAI: empty input", "/v1/embeddings", {"input": ""}, 400, ("`input` cannot be empty",)),
    ("OpenAI: input null", "/v1/embeddings", {"input": None}, 422, ("`input`", "null")),
    (
        "OpenAI: unknown format",
        "/v1/embeddings",
        {"input": "a", "encoding_format": "int8"},
        422,
        ("`encoding_format`", "float", "base64", "int8"),
    ),
    ("OpenAI: model a number", "/v1/embeddings", {"input": "a", "model": 5}, 422, ("`model`", "5")),
    ("OpenAI: unknown role", "/v1/embeddings", {"input": "a", "input_type": "x"}, 422, ("'x'", "query", "passage")),
    ("similarity: no sentences", "/similarity", {"inputs": {"source_sentence": "a"}}, 422, ("sentences", "required")),
    (
        "similarity: none to compare with",
        "/similarity",
        {"inputs": {"source_sentence": "a", "sentences": []}},
        400,
        ("sentences", "empty"),
    ),
    (
        "similarity: an empty sentence",
        "/similarity",
        {"inputs": {"source_sentence": "a", "sentences": ["b", ""]}},
        400,
        ("sentences", "empty"),
    ),
    (
        "similarity: an unknown role",
        "/similarity",
        {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": {"prompt_name": "x"}},
        422,
        ("'x'",),
    ),
    ("similarity: a text for inputs", "/similarity", {"inputs": "a"}, 422, ("`inputs`",)),
    ("tokenize: inputs a number", "/tokenize", {"inputs": 5}, 422, ("`inputs",)),
    ("tokenize: a lone surrogate", "/tokenize", b'{"inputs": "\\ud800"}', 400, ("not JSON",)),
    ("tokenize: an unknown role", "/tokenize", {"inputs": "a", "prompt_name": "x"}, 422, ("'x'",)),
    ("decode: a text for ids", "/decode", {"ids": "a"}, 422, ("`ids",)),
    ("decode: a negative id", "/decode", {"ids": [-1]}, 422, ("-1", "vocabulary")),
    ("decode: an id beyond 64 bits", "/decode", {"ids": [[10**30]]}, 422, ("vocabulary",)),
]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"), [row[1:] for row in BAD_BODIES], ids=[row[0] for row in BAD_BODIES]
)
def test_a_bad_body_is_refused_with_a_sentence_that_helps(
    client: httpx.Client, path: str, body: bytes | Json, status: int, words: tuple[str, ...]
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    refused(client.post(path, content=content, headers={"content-type": "application/json"}), status, *words)


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_every_bad_input_is_named(client: httpx.Client, path: str) -> None:
    name = "input" if path.startswith("/v1/") else "inputs"
    message = refused(client.post(path, json={name: ["a", 1, "b", None, {}, "c"]}), 422)
    assert "inputs 1, 3-4" in message
    message = refused(client.post(path, json={name: ["", "a", "", "b", ""]}), 400)
    assert "inputs 0, 2, 4" in message
    message = refused(client.post(path, json={name: ["a", *[""] * 50]}), 400)
    assert "inputs 1-50" in message


def test_more_inputs_than_allowed_are_refused_with_teis_sentence(client: httpx.Client) -> None:
    limit = client.get("/info").json()["max_client_batch_size"]
    for path, name in (("/embed", "inputs"), ("/v1/embeddings", "input"), ("/tokenize", "inputs")):
        response = client.post(path, json={name: ["a"] * (limit + 1)})
        refused(response, 422, f"batch size {limit + 1} > maximum allowed batch size {limit}")
    sentences = {"inputs": {"source_sentence": "a", "sentences": ["a"] * limit}}
    refused(client.post("/similarity", json=sentences), 422, f"batch size {limit + 1}")


def test_an_instruction_is_refused_on_a_model_without_one(client: httpx.Client) -> None:
    if client.get("/info").json()["prompts"]["instruct"]:
        pytest.skip("this model takes instructions")
    for path, name in (("/embed", "inputs"), ("/v1/embeddings", "input")):
        response = client.post(path, json={name: "a", "instruction": "Find the song"})
        refused(response, 422, "takes no instruction", "Find the song", "leave it out")


def test_more_text_than_tokenize_can_answer_is_refused(client: httpx.Client) -> None:
    # It never cuts, and each token takes a hundred times its text: ten megabytes would become gigabytes.
    for inputs in ("many words " * 200_000, ["many words " * 1000] * 200):
        refused(client.post("/tokenize", json={"inputs": inputs}), 422, "2200000 characters", "100000", "split")


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/tokenize"])
def test_a_body_over_the_limit_gets_its_answer_though_the_client_is_still_sending(
    client: httpx.Client, path: str
) -> None:
    limit = client.get("/info").json()["max_body_bytes"]
    body = b'{"inputs": "' + b"a" * limit + b'"}'

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    refused(client.post(path, content=body), 413, str(limit), "fewer texts", "ME5_MAX_BODY_BYTES")
    refused(client.post(path, content=chunks()), 413, str(limit), "fewer texts", "ME5_MAX_BODY_BYTES")


def test_a_body_just_within_the_limit_is_read(client: httpx.Client) -> None:
    limit = client.get("/info").json()["max_body_bytes"]
    start, end = b'{"inputs": "ok", "note": "', b'"}'
    body = start + b"a" * (limit - len(start) - len(end)) + end
    assert client.post("/embed", content=body).status_code == 200


def test_a_compressed_body_is_refused(client: httpx.Client) -> None:
    body = gzip.compress(b'{"inputs": "a"}')
    response = client.post("/embed", content=body, headers={"content-encoding": "gzip"})
    refused(response, 415, "gzip", "plain JSON")
    # Without the header it is just not JSON.
    refused(client.post("/embed", content=body), 400, "not JSON")


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/similarity", "/tokenize", "/decode"])
def test_a_wrong_method_is_told_which_one_is_right(client: httpx.Client, path: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        response = client.request(method, path)
        refused(response, 405, method, path, "/docs")
        assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "path", ["/nope", "/v1/nope", "/embed/nope", "/v1", "/embed%00", "/%ff", "/embed/", "/v1/embeddings/", "/info/"]
)
def test_an_unknown_route_is_a_404_in_the_facades_shape(client: httpx.Client, path: str) -> None:
    for method in ("GET", "POST"):
        response = client.request(method, path)
        if path.startswith("/v1/"):
            assert response.json()["error"]["code"] == "not_found"
        refused(response, 404, "no route", "/docs")


@pytest.mark.parametrize(
    ("header", "value", "remedy"),
    [
        ("x-me5-timeout-ms", "soon", "86400000"),
        ("x-me5-timeout-ms", "0", "86400000"),
        ("x-me5-timeout-ms", "-5", "86400000"),
        ("x-me5-timeout-ms", "nan", "86400000"),
        ("x-me5-timeout-ms", "inf", "86400000"),
        ("x-me5-timeout-ms", "1e300", "86400000"),
        ("x-me5-timeout-ms", "", "86400000"),
        ("x-me5-lane", "fast", "interactive, bulk"),
        ("x-me5-lane", "", "interactive, bulk"),
    ],
)
def test_a_bad_header_is_refused(client: httpx.Client, header: str, value: str, remedy: str) -> None:
    for path, name in (("/embed", "inputs"), ("/v1/embeddings", "input")):
        response = client.post(path, json={name: "a"}, headers={header: value})
        refused(response, 422, header, repr(value), remedy)


def test_bad_requests_disturb_no_good_ones_of_the_same_moment(gateway: Gateway, client: httpx.Client) -> None:
    wanted = np.array(client.post("/embed", json={"inputs": "the same text"}).json())
    bad: list[bytes] = [
        body if isinstance(body, bytes) else json.dumps(body).encode()
        for name, path, body, _, _ in BAD_BODIES
        if path == "/embed" and name != "too deep"
    ]

    def send_bad(part: int) -> list[int]:
        with gateway.client() as own:
            return [own.post("/embed", content=body).status_code for body in bad[part::4] * 3]

    def send_good(_: int) -> list[float]:
        with gateway.client() as own:
            answers = [own.post("/embed", json={"inputs": "the same text"}) for _ in range(40)]
        assert {answer.status_code for answer in answers} == {200}
        # 1e-2: they share batches, so bf16 rounds differently; another text's vector is further off.
        return [float(np.abs(np.array(answer.json()) - wanted).max()) for answer in answers]

    with ThreadPoolExecutor(8) as pool:
        bad_ones, good_ones = pool.map(send_bad, range(4)), pool.map(send_good, range(4))
        assert max(max(part) for part in good_ones) < 1e-2
        assert {status for part in bad_ones for status in part} == {400, 422}


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_fault_of_ours(
    gateway: Gateway, client: httpx.Client
) -> None:
    def halves() -> Iterator[bytes]:
        yield b'{"inputs": "'
        raise ConnectionAbortedError

    for _ in range(5):
        with gateway.client() as own, pytest.raises(ConnectionAbortedError):
            own.post("/embed", content=halves())
    time.sleep(0.1)
    assert client.post("/embed", json={"inputs": "ok"}).status_code == 200


def does_not_start(*words: str, lines: int = 1, **settings: Any) -> None:
    """`serve` with these settings must end with 2 and one line that holds the words."""
    done = run_service("serve", **settings)
    text = done.stderr.decode()
    assert done.returncode == 2, text
    assert "Traceback" not in text
    assert done.stdout == b""
    assert len(text.splitlines()) <= lines, text
    last = text.splitlines()[-1]
    assert last.startswith("me5: ")
    for word in words:
        assert word in last


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"modle": "x"}, ("unknown setting ME5_MODLE='x'", "did you mean ME5_MODEL?")),
        ({"zzzzzz": "1"}, ("unknown setting ME5_ZZZZZZ", "known are", "ME5_PORT")),
        ({"port": "70000", "max_inputs": "0"}, ("ME5_PORT='70000'", "65535", "ME5_MAX_INPUTS='0'", "1")),
        ({"engine": "tflite", "default_role": "title"}, ("ME5_ENGINE='tflite'", "onnx", "ME5_DEFAULT_ROLE", "query")),
        ({"truncate": "perhaps", "threads": "two"}, ("ME5_TRUNCATE='perhaps'", "ME5_THREADS='two'", "integer")),
        ({"model": f"{SHIPPED_MODEL}/99"}, (f"no model '{SHIPPED_MODEL}/99'", "ME5_MODEL")),
        ({"model_repo": "/nowhere"}, ("/nowhere", "none", "pull")),
        ({"engine": "onnx", "precision": "bf16"}, ("ME5_PRECISION=bf16", "ME5_ENGINE=openvino")),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_bad_setting_ends_the_start_with_one_line(settings: dict[str, str], words: tuple[str, ...]) -> None:
    does_not_start(*words, **settings)


@pytest.fixture
def copy(shipped: Path, tmp_path: Path) -> Path:
    """A version that may be damaged. The weights are only linked: replace that file, never write into it."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in shipped.iterdir():
        if path.name != MODEL_FILE:
            shutil.copy(path, folder / path.name)
    (folder / MODEL_FILE).symlink_to(shipped / MODEL_FILE)
    return folder


def replace_file(path: Path, content: bytes) -> None:
    """Other content under this name, whatever the name pointed to."""
    path.unlink()
    path.write_bytes(content)


def edit_spec(folder: Path, edit: Callable[[Json], object]) -> None:
    """Change the parsed spec.json in place."""
    raw = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
    edit(raw)
    (folder / SPEC_FILE).write_text(json.dumps(raw), encoding="utf-8")


def fix_hash(folder: Path, name: str) -> None:
    """Make spec.json agree with the file as it now is."""
    edit_spec(folder, lambda raw: raw["files"].update({name: file_sha256(folder / name)}))


@pytest.mark.parametrize("name", [MODEL_FILE, TOKENIZER_FILE, GOLDEN_FILE])
def test_an_edited_file_is_not_served(copy: Path, name: str) -> None:
    replace_file(copy / name, (copy / name).read_bytes() + b"\n")
    does_not_start(str(copy / name), "damaged or was edited", "SHA-256", "restore the file", model=copy)


@pytest.mark.parametrize("name", [MODEL_FILE, TOKENIZER_FILE, GOLDEN_FILE])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ModelFileError, match=rf"can't read .*{re.escape(name)}.*; export or pull"):
        load_model(str(copy), MODEL_REPO)


@pytest.mark.parametrize("name", [MODEL_FILE, TOKENIZER_FILE, GOLDEN_FILE])
def test_a_file_that_is_no_such_file_is_not_served_though_its_hash_is_right(copy: Path, name: str) -> None:
    replace_file(copy / name, (copy / name).read_bytes()[:1000])
    fix_hash(copy, name)
    does_not_start(str(copy / name), "export or pull", model=copy, engine="onnx")


SPEC_EDITS: list[tuple[str, Callable[[Json], object], str]] = [
    ("another format", lambda raw: raw.update(format=99), "format"),
    ("an unknown field", lambda raw: raw.update(colour="red"), "colour"),
    ("no prompts", lambda raw: raw.pop("prompts"), "prompts"),
    ("prompts of another shape", lambda raw: raw.update(prompts="query: "), "does not describe a model"),
    ("files of another shape", lambda raw: raw.update(files=None), "files"),
    ("a file without a hash", lambda raw: raw["files"].pop(GOLDEN_FILE), GOLDEN_FILE),
    ("a dimension that is a text", lambda raw: raw.update(dimension="many"), "dimension"),
    ("a hidden size of nothing", lambda raw: raw.update(hidden_size=0), "hidden_size"),
    ("a hidden size that is a text", lambda raw: raw.update(hidden_size="many"), "hidden_size"),
]


@pytest.mark.parametrize(("edit", "word"), [row[1:] for row in SPEC_EDITS], ids=[row[0] for row in SPEC_EDITS])
def test_a_spec_that_describes_no_model_is_named(copy: Path, edit: Callable[[Json], object], word: str) -> None:
    edit_spec(copy, edit)
    with pytest.raises(ModelFileError, match=f"{word}.*export") as caught:
        load_model(str(copy), MODEL_REPO)
    assert SPEC_FILE in caught.value.message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_spec_that_is_no_json_object_is_named(copy: Path, content: bytes) -> None:
    (copy / SPEC_FILE).write_bytes(content)
    with pytest.raises(ModelFileError, match=rf"{SPEC_FILE}.*export"):
        load_model(str(copy), MODEL_REPO)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        # The engine says so itself, by failing on the golden texts.
        (lambda raw: raw.update(dimension=raw["dimension"] - 1), ("shape",)),
        (lambda raw: raw["prompts"].update(query="search: "), ("golden text", "cosine", "bound")),
        (lambda raw: raw.update(output="logits"), (MODEL_FILE, "logits", SPEC_FILE)),
    ],
    ids=["another dimension", "another prompt", "a tensor the graph lacks"],
)
def test_a_spec_that_is_not_the_weights_own_is_found_out_by_running_them(
    copy: Path, edit: Callable[[Json], object], words: tuple[str, ...]
) -> None:
    edit_spec(copy, edit)
    # Failed batches are logged before the line that ends the start.
    does_not_start(*words, lines=20, model=copy, engine="onnx")


def test_a_folder_without_a_spec_is_no_model(copy: Path) -> None:
    (copy / SPEC_FILE).unlink()
    with pytest.raises(ModelNotFound, match=f"no model '{re.escape(str(copy))}'.*pull"):
        load_model(str(copy), MODEL_REPO)


def test_a_model_that_does_not_give_its_golden_vectors_is_not_served(copy: Path) -> None:
    golden = load_golden(copy / GOLDEN_FILE)
    items = list(golden.items)
    wrong = np.roll(items[1].vector, 1)
    items[1] = GoldenItem(items[1].text, items[1].role, items[1].instruction, wrong)
    save_golden(copy / GOLDEN_FILE, Golden(golden.source, golden.bounds, tuple(items)))
    fix_hash(copy, GOLDEN_FILE)
    does_not_start("golden text 1", "cosine", "bound for fp32", "ME5_ENGINE", model=copy, engine="onnx")


@pytest.mark.parametrize(
    "edit",
    [
        lambda raw: raw["items"][0].update(vector=base64.b64encode(b"\0" * 12).decode()),
        lambda raw: raw["items"][0].update(vector="short"),
        lambda raw: raw["items"][0].pop("role"),
        lambda raw: raw.update(bounds=[0.9]),
        lambda raw: raw.update(items=[]),
        lambda raw: raw.update(format=99),
    ],
    ids=["vectors of several sizes", "no base64", "an item without a role", "bounds in a list", "no items", "format"],
)
def test_a_golden_file_of_another_shape_is_named(copy: Path, edit: Callable[[Json], object]) -> None:
    raw = json.loads((copy / GOLDEN_FILE).read_text(encoding="utf-8"))
    edit(raw)
    (copy / GOLDEN_FILE).write_text(json.dumps(raw), encoding="utf-8")
    fix_hash(copy, GOLDEN_FILE)
    with pytest.raises(ModelFileError, match=f"can't read .*{GOLDEN_FILE}.*export or pull"):
        load_model(str(copy), MODEL_REPO)


def test_the_shipped_model_is_found_by_name_and_version_and_folder(shipped: Path) -> None:
    assert load_spec(shipped).name == SHIPPED_MODEL
    assert shipped == MODEL_REPO / SHIPPED_MODEL / shipped.name


def test_a_path_that_ends_with_a_line_is_no_route(client: httpx.Client) -> None:
    for path in ("/embed%0A", "/v1/embeddings%0A", "/info%0A"):
        for method in ("GET", "POST"):
            answer = client.request(method, path, json={"inputs": "a", "input": "a", "surprise": 1})
            assert answer.status_code == 404, path
            refused(answer, 404, "no", "route", "/docs")


def test_head_is_answered_wherever_get_is_without_a_body(client: httpx.Client) -> None:
    for path in ("/livez", "/readyz", "/health", "/", "/docs", "/info", "/playground", "/v1/models/me5_nano"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path
    assert client.head("/embed").status_code == 405
    assert client.put("/info").headers["allow"] == "GET, HEAD"
