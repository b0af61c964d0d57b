"""Token ids of another vocabulary on OpenAI's route, where the operator names the vocabulary's file."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import numpy as np
import pytest
from exact_gateway import FOREIGN

from service.errors import InvalidInput, SettingsError
from service.foreign_tokens import IDS_A_SLICE, ForeignTokens
from service.settings import load_settings

THE, HARBOUR, IS, DEEP, TOKYO = (256 + number for number in range(5))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> ForeignTokens:
    """A small one: single bytes, and some words."""
    path = tmp_path_factory.mktemp("foreign") / "small.tiktoken"
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), n) for n, token in enumerate(FOREIGN)))
    return ForeignTokens(path)


def decoded(vocabulary: ForeignTokens, rows: list[str | list[int]]) -> list[str]:
    """The texts of all parts."""
    return [text for part in vocabulary.texts(rows, lambda _: None) for text in part]


def test_ids_are_the_text_they_stand_for(vocabulary: ForeignTokens) -> None:
    rows: list[str | list[int]] = [[THE, HARBOUR, IS, DEEP], "as it is", [TOKYO, *"の人口".encode()]]
    assert decoded(vocabulary, rows) == ["the harbour is deep", "as it is", "東京の人口"]


def test_a_character_that_is_cut_in_two_leaves_a_mark(vocabulary: ForeignTokens) -> None:
    assert decoded(vocabulary, [list("é".encode())[:1]]) == ["\ufffd"]


def test_many_ids_are_read_in_parts_that_lose_nothing(vocabulary: ForeignTokens) -> None:
    # A slice may end within a character: bytes are joined before they are read.
    ids = list("東京の人口".encode()) * 5000
    parts = list(vocabulary.texts([ids, [HARBOUR]], lambda _: None))
    assert len(parts) > len(ids) // IDS_A_SLICE
    assert [text for part in parts for text in part] == ["東京の人口" * 5000, "harbour"]


@pytest.mark.parametrize("wrong", [-1, 262, 10**30])
def test_an_id_that_the_vocabulary_has_not_is_refused_by_its_place(vocabulary: ForeignTokens, wrong: int) -> None:
    with pytest.raises(InvalidInput, match=f"input 1: token id {wrong} is not in small.tiktoken"):
        decoded(vocabulary, [[THE], [THE, wrong]])


@pytest.mark.parametrize(
    "content", [b"", b"not base64! 1\n", b"dGhl\n", b"dGhl x\n", b"dGhl -4\n", b"dGhl 99999999999\n"]
)
def test_a_file_of_another_format_stops_the_start(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "wrong.tiktoken"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="ME5_OPENAI_TOKENS"):
        ForeignTokens(path)
    with pytest.raises(SettingsError, match="ME5_OPENAI_TOKENS"):
        ForeignTokens(tmp_path / "missing")


def test_the_setting_may_be_empty() -> None:
    assert load_settings({"ME5_OPENAI_TOKENS": ""}).openai_tokens is None


def test_langchains_requests_give_the_vectors_of_their_texts(exact: httpx.Client) -> None:
    rows = [[THE, HARBOUR, IS, DEEP], [TOKYO]]
    for path in ("/v1/embeddings", "/embeddings"):
        found = exact.post(path, json={"input": rows, "model": "me5_nano-passage"}).raise_for_status().json()
        wanted = exact.post("/embed", json={"inputs": ["the harbour is deep", "東京"], "input_type": "passage"}).json()
        vectors = np.array([item["embedding"] for item in found["data"]])
        assert (vectors * np.array(wanted)).sum(axis=1).min() >= 0.9999
    one = exact.post("/v1/embeddings", json={"input": rows[0]}).json()
    assert len(one["data"]) == 1
    answer = exact.post("/v1/embeddings", json={"input": [[THE], [9999]]})
    assert (answer.status_code, "token id 9999" in answer.json()["error"]["message"]) == (422, True)


def test_this_models_own_ids_are_still_taken_by_embed(exact: httpx.Client) -> None:
    ids = [token["id"] for token in exact.post("/tokenize", json={"inputs": "harbour"}).json()[0]]
    wanted = exact.post("/embed", json={"inputs": "harbour"}).json()
    np.testing.assert_allclose(exact.post("/embed", json={"inputs": ids}).json(), wanted, atol=1e-5)


def test_a_too_long_text_may_be_413_in_teis_own_words(exact: httpx.Client) -> None:
    long = {"inputs": ["ok", "many words " * 600], "truncate": False}
    answer = exact.post("/embed", json=long)
    assert answer.status_code == 413
    assert answer.json()["error_type"] == "Validation"
    assert answer.json()["error"].startswith("Input validation error: `inputs` must have less than 512 tokens. Given: ")
    for path, body in (
        ("/v1/embeddings", {"input": long["inputs"], "truncate": False}),
        ("/v2/embed", {"texts": long["inputs"], "truncate": "NONE"}),
        ("/api/embed", {"input": long["inputs"], "truncate": False}),
        ("/embed_all", long),
    ):
        assert exact.post(path, json=body).status_code == 413, path


def test_ids_that_stand_for_more_text_than_a_body_may_have_are_refused_before_it_is_made(exact: httpx.Client) -> None:
    # Three bytes of JSON each, eight bytes of text: all within the limits of a body, and its text is not.
    limit = exact.get("/info").json()["max_body_bytes"]
    ids = b",".join([b"%d" % HARBOUR] * 90_000)
    answer = exact.post("/v1/embeddings", content=b'{"input":[' + b",".join([b"[%s]" % ids] * 20) + b"]}")
    assert limit < 20 * 90_000 * 7
    assert answer.status_code == 422, answer.text
    assert "ME5_MAX_BODY_BYTES" in answer.json()["error"]["message"]
