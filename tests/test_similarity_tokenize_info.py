"""/similarity, /tokenize, /decode, /info, the probes and the API's own description."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

from service import __version__
from service.recipe.prompts import INPUT_TYPES
from service.recipe.spec import MODEL_FILE, ModelSpec

SOURCE = "How tall is the television tower?"
SENTENCES = ["Der Fernsehturm ist 368 Meter hoch.", SOURCE, "東京の人口は約千四百万人です。"]
TEXTS = ["Größe: 3 €, naïve", "東京の人口 🙂 ok", "телебашня", "", "x"]


def embed(client: httpx.Client, inputs: object, **fields: object) -> np.ndarray:
    """What POST /embed gives for the same."""
    return np.array(client.post("/embed", json={"inputs": inputs, **fields}).raise_for_status().json())


@pytest.mark.parametrize("parameters", [None, {}, {"prompt_name": "passage"}, {"input_type": "similarity"}])
def test_similarity_is_the_cosine_of_embeds_vectors(client: httpx.Client, parameters: dict[str, str] | None) -> None:
    body = {"inputs": {"source_sentence": SOURCE, "sentences": SENTENCES}, "parameters": parameters}
    response = client.post("/similarity", json=body)
    assert response.status_code == 200
    vectors = embed(client, [SOURCE, *SENTENCES], **(parameters or {}))
    # float32 sums of 384 products.
    np.testing.assert_allclose(response.json(), vectors[1:] @ vectors[0], atol=1e-5)
    assert response.json()[1] == pytest.approx(1, abs=1e-3)
    assert int(response.headers["x-compute-tokens"]) > 0


def test_tokens_are_told_with_prompt_and_specials(client: httpx.Client, spec: ModelSpec) -> None:
    for role, prompt in (("query", spec.prompts.query), ("passage", spec.prompts.passage)):
        tokens = client.post("/tokenize", json={"inputs": "ok", "prompt_name": role}).json()[0]
        assert set(tokens[0]) == {"id", "text", "special", "start", "stop"}
        assert [token["special"] for token in (tokens[0], tokens[-1])] == [True, True]
        assert tokens[0]["start"] is tokens[0]["stop"] is None
        assert max(token["stop"] or 0 for token in tokens) == len((prompt + "ok").encode())
        plain = client.post("/tokenize", json={"inputs": "ok", "prompt_name": role, "add_special_tokens": False})
        assert plain.json()[0] == tokens[1:-1]


@pytest.mark.parametrize("text", TEXTS)
def test_offsets_are_bytes_of_the_prompted_text(client: httpx.Client, spec: ModelSpec, text: str) -> None:
    prompted = (spec.prompts.passage + text).encode()
    for token in client.post("/tokenize", json={"inputs": text, "input_type": "passage"}).json()[0]:
        if not token["special"]:
            assert prompted[token["start"] : token["stop"]].decode() == token["text"]


def test_a_long_text_is_tokenised_whole(client: httpx.Client, spec: ModelSpec) -> None:
    tokens = client.post("/tokenize", json={"inputs": "word " * 3000}).json()[0]
    assert len(tokens) > spec.max_tokens


def test_texts_are_tokenised_in_order(client: httpx.Client) -> None:
    together = client.post("/tokenize", json={"inputs": TEXTS}).json()
    assert together == [client.post("/tokenize", json={"inputs": text}).json()[0] for text in TEXTS]


def test_ids_become_text_again(client: httpx.Client) -> None:
    ids = [token["id"] for token in client.post("/tokenize", json={"inputs": "ok"}).json()[0]]
    one = client.post("/decode", json={"ids": ids}).json()
    assert one == client.post("/decode", json={"ids": [ids]}).json()
    assert len(client.post("/decode", json={"ids": [ids, ids[1:-1]]}).json()) == 2
    assert "ok" in one[0]
    with_specials = client.post("/decode", json={"ids": ids, "skip_special_tokens": False}).json()
    assert len(with_specials[0]) > len(one[0])


def test_info_has_teis_fields_and_ours(client: httpx.Client, spec: ModelSpec) -> None:
    info = client.get("/info").json()
    assert {
        "model_id": spec.name,
        "served_model_name": spec.name,
        "model_sha": spec.files[MODEL_FILE],
        "model_type": {"embedding": {"pooling": "mean"}},
        "max_input_length": spec.max_tokens,
        "auto_truncate": True,
        "version": __version__,
        "dimension": spec.dimension,
        "hidden_size": spec.states_dimension,
        "model_source": spec.source,
        "weights": spec.weights,
        "default_role": "query",
        "prompts": {"query": spec.prompts.query, "passage": spec.prompts.passage, "instruct": spec.prompts.instruct},
    }.items() <= info.items()
    for limit in ("max_concurrent_requests", "max_batch_tokens", "max_client_batch_size", "tokenization_workers"):
        assert isinstance(info[limit], int), limit
    assert info["model_dtype"] in ("float32", "bfloat16", "float16", "int8")
    assert info["engine"] in ("onnx", "openvino")
    assert info["device"]
    assert 0.98 <= info["golden"]["cosine"] <= 1.0001
    assert {"model_version", "docker_label", "sha", "max_batch_requests", "max_queued_tokens"} <= set(info)


def test_the_probes_are_green(client: httpx.Client) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    health = client.get("/health")
    assert (health.status_code, health.content) == (200, b"")


def test_metrics_are_prometheus_text(client: httpx.Client) -> None:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert "# TYPE me5_request_duration_seconds histogram" in response.text
    assert "me5_ready 1.0" in response.text


def test_the_description_lists_every_field_of_every_body(client: httpx.Client) -> None:
    options = {"truncate", "truncation_direction", "prompt_name", "input_type", "instruction", "instruction_weight"}
    embed = {"inputs", "normalize", "dimensions", "encoding_format", "output_dtype", *options}
    wanted = {
        "/embed": (embed, ["inputs"]),
        "/similarity": ({"inputs", "parameters"}, ["inputs"]),
        "/tokenize": ({"inputs", "add_special_tokens", "prompt_name", "input_type"}, ["inputs"]),
        "/decode": ({"ids", "skip_special_tokens"}, ["ids"]),
        "/v1/embeddings": (
            {"input", "model", "encoding_format", "dimensions", "user", "normalize", *options},
            ["input"],
        ),
    }
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert document["info"] == document["info"] | {"title": "me5", "version": __version__}
    posts = {path: methods["post"] for path, methods in document["paths"].items() if "post" in methods}
    assert set(posts) >= set(wanted)
    for path, operation in posts.items():
        assert operation["requestBody"]["required"], path
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        for one in schema.get("anyOf", ()) if "properties" not in schema else ():
            assert "inputs" in one["properties"], path
        if path in wanted:
            fields, required = wanted[path]
            assert set(schema["properties"]) == fields, path
            assert schema["required"] == required, path
        for name, field in schema.get("properties", {}).items():
            assert {"type", "anyOf", "oneOf", "enum", "properties"} & set(field), f"{path} says nothing of {name}"


def test_the_description_names_the_roles(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()["paths"]["/embed"]["post"]["requestBody"]["content"]
    text = str(schema["application/json"]["schema"]["properties"]["input_type"])
    for input_type in INPUT_TYPES:
        assert repr(input_type) in text


def test_the_description_is_sound(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    seen: set[str] = set()

    def check(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                target = document
                assert node["$ref"].startswith("#/")
                for part in node["$ref"][2:].split("/"):
                    target = target[part]
            if isinstance(node.get("type"), str):
                assert node["type"] in ("object", "array", "string", "integer", "number", "boolean", "null")
            for name, value in node.items():
                # An example is not a description, whatever its keys are called.
                if name not in ("example", "examples"):
                    check(value)
        elif isinstance(node, list):
            for value in node:
                check(value)

    check(document)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], path
            assert "200" in operation["responses"], path
            assert operation["operationId"] not in seen, f"{method} {path}"
            seen.add(operation["operationId"])


def test_every_route_of_the_description_exists(client: httpx.Client) -> None:
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            response = client.request(method, path.replace("{model}", "any"))
            assert "no route" not in response.text, path
            assert response.status_code not in (405, 500), path


def test_the_docs_page_shows_the_description(client: httpx.Client) -> None:
    response = client.get("/docs")
    assert response.status_code == 200
    assert "/openapi.json" in response.text
