"""An instruct model over HTTP: a graph of the published layout, pulled and served."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import httpx
import numpy as np
import pytest
from browser import needs_chromium, open_browser, open_visit
from faulty_engine import SHIPPED
from gateway_process import start_gateway
from published_folder import write_published_folder

from service.pull import install
from service.recipe.prompts import E5_INSTRUCT_PROMPTS
from service.recipe.spec import PUBLISHED

TASK = "Given a recipe, find others with the same main ingredient"
LARGE_INSTRUCT = PUBLISHED["intfloat/multilingual-e5-large-instruct"]


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The published instruct checkpoint but for its size: 384 wide and one layer, random weights."""
    top = tmp_path_factory.mktemp("instruct")
    folder = write_published_folder(top / "checkpoint", SHIPPED / "tokenizer.json", layers=1)
    install(folder, replace(LARGE_INSTRUCT, dimension=384), top)
    with start_gateway(model="me5_large_instruct", model_repo=top) as gateway, gateway.client() as client:
        yield client


def vector(client: httpx.Client, text: str, **options: object) -> np.ndarray:
    answer = client.post("/embed", json={"inputs": text, **options})
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()[0])


def raw(client: httpx.Client, text: str) -> np.ndarray:
    """The text exactly as given: on this model a passage has no prompt."""
    return vector(client, text, input_type="passage")


def test_the_instruction_stands_before_the_query(instruct: httpx.Client) -> None:
    found = vector(instruct, "tea with milk", input_type="query", instruction=TASK)
    assert found @ raw(instruct, f"Instruct: {TASK}\nQuery: tea with milk") >= 0.9999
    assert found @ raw(instruct, "tea with milk") < 0.999


def test_without_an_instruction_the_default_one_applies(instruct: httpx.Client) -> None:
    default = E5_INSTRUCT_PROMPTS.instructions["query"]
    wanted = raw(instruct, f"Instruct: {default}\nQuery: tea with milk")
    assert vector(instruct, "tea with milk") @ wanted >= 0.9999
    assert instruct.get("/info").json()["prompts"]["query"] == f"Instruct: {default}\nQuery: "


def test_passages_take_neither_prompt_nor_instruction(instruct: httpx.Client) -> None:
    plain = vector(instruct, "tea with milk", input_type="passage")
    assert vector(instruct, "tea with milk", input_type="document", instruction=TASK) @ plain >= 0.9999


def test_a_text_that_carries_its_instruction_is_taken_as_it_stands(instruct: httpx.Client) -> None:
    text = f"Instruct: {TASK}\nQuery: tea with milk"
    assert vector(instruct, text) @ raw(instruct, text) >= 0.9999


def test_the_openai_route_takes_an_instruction_too(instruct: httpx.Client) -> None:
    body = {"input": "tea with milk", "model": "x-query", "instruction": TASK, "encoding_format": "float"}
    answer = instruct.post("/v1/embeddings", json=body).json()
    wanted = vector(instruct, "tea with milk", input_type="query", instruction=TASK)
    assert np.array(answer["data"][0]["embedding"]) @ wanted >= 0.9999


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_instruction_longer_than_the_model_reads_is_cut_and_reported(instruct: httpx.Client, side: str) -> None:
    body = {"inputs": "tea", "instruction": "a very long task " * 400, "truncation_direction": side}
    answer = instruct.post("/embed", json=body)
    assert answer.status_code == 200
    assert answer.headers["x-me5-truncated"] == "1"


def mixed(client: httpx.Client, weight: float, **options: object) -> np.ndarray:
    return vector(client, "tea with milk", instruction=TASK, instruction_weight=weight, **options)


def test_the_ends_of_the_mixture_are_exactly_the_plain_vectors(instruct: httpx.Client) -> None:
    plain = vector(instruct, "tea with milk", input_type="passage")
    instructed = vector(instruct, "tea with milk", input_type="query", instruction=TASK)
    np.testing.assert_array_equal(mixed(instruct, 0), plain)
    np.testing.assert_array_equal(mixed(instruct, 1), instructed)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_between_them_it_is_the_mean_of_both_at_length_one(instruct: httpx.Client, weight: float) -> None:
    plain = vector(instruct, "tea with milk", input_type="passage")
    instructed = vector(instruct, "tea with milk", input_type="query", instruction=TASK)
    mean = (1 - weight) * plain + weight * instructed
    np.testing.assert_allclose(mixed(instruct, weight), mean / np.linalg.norm(mean), atol=1e-5)
    small = mixed(instruct, weight, dimensions=32)
    np.testing.assert_allclose(small, mean[:32] / np.linalg.norm(mean[:32]), atol=1e-5)


def test_both_readings_of_a_text_are_counted(instruct: httpx.Client) -> None:
    def tokens(path: str = "/embed", **fields: object) -> int:
        name = "inputs" if path == "/embed" else "input"
        answer = instruct.post(path, json={name: ["tea with milk", "tea"], **fields})
        assert answer.status_code == 200, answer.text
        if path != "/embed":
            assert answer.json()["usage"]["total_tokens"] == int(answer.headers["x-compute-tokens"])
        return int(answer.headers["x-compute-tokens"])

    plain, instructed = tokens(input_type="passage"), tokens(instruction=TASK)
    for path in ("/embed", "/v1/embeddings"):
        assert tokens(path, instruction=TASK, instruction_weight=0.5) == plain + instructed
        assert tokens(path, instruction=TASK, instruction_weight=0) == plain
        assert tokens(path, instruction=TASK, instruction_weight=1) == instructed


def test_a_mixture_has_one_vector_for_each_text_and_names_what_was_cut(instruct: httpx.Client) -> None:
    body = {"inputs": ["tea", "many words " * 600, "milk"], "instruction": TASK, "instruction_weight": 0.5}
    answer = instruct.post("/embed", json=body)
    assert np.array(answer.json()).shape == (3, 384)
    assert (answer.headers["x-me5-truncated"], answer.headers["x-me5-truncated-inputs"]) == ("1", "1")
    refused = instruct.post("/embed", json={**body, "truncate": False})
    assert (refused.status_code, "(input 1)" in refused.json()["error"]) == (422, True)


def test_an_instruction_that_the_text_brings_is_no_part_of_its_plain_reading(instruct: httpx.Client) -> None:
    text = f"Instruct: {TASK}\nQuery: tea with milk"
    np.testing.assert_allclose(vector(instruct, text, instruction_weight=0.5), mixed(instruct, 0.5), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input_type": "passage"}, "is for queries"),
        ({"normalize": False}, "`normalize`"),
        ({"inputs": ["tea", [0, 5, 2]]}, "input 1 is of token ids"),
        ({"instruction_weight": 1.5}, "instruction_weight"),
        ({"instruction_weight": -0.1}, "instruction_weight"),
    ],
)
def test_a_mixture_that_means_nothing_is_refused(instruct: httpx.Client, fields: dict[str, object], words: str) -> None:
    answer = instruct.post("/embed", json={"inputs": "tea", "instruction_weight": 0.5, **fields})
    assert (answer.status_code, words in answer.json()["error"]) == (422, True)


def test_a_model_whose_documents_have_a_prompt_has_no_mixture(client: httpx.Client) -> None:
    for path, name in (("/embed", "inputs"), ("/v1/embeddings", "input"), ("/api/embed", "input")):
        answer = client.post(path, json={name: "tea", "instruction_weight": 0.5})
        assert answer.status_code == 422
        assert "multilingual-e5-large-instruct" in answer.text


def test_ollamas_route_takes_an_instruction_and_its_weight(instruct: httpx.Client) -> None:
    body = {"input": "tea with milk", "instruction": TASK, "instruction_weight": 0.5}
    found = np.array(instruct.post("/api/embed", json=body).json()["embeddings"][0])
    assert found @ mixed(instruct, 0.5) >= 0.9999


def test_token_states_of_a_graph_that_does_not_pool(instruct: httpx.Client) -> None:
    (rows,) = instruct.post("/embed_all", json={"inputs": "tea with milk", "input_type": "passage"}).json()
    mean = np.array(rows).mean(axis=0)
    assert mean @ vector(instruct, "tea with milk", input_type="passage") / np.linalg.norm(mean) >= 0.9999


def test_cohere_input_types_choose_their_own_instruction(instruct: httpx.Client) -> None:
    for input_type in ("search_query", "search_document", "classification", "clustering"):
        body = {"texts": ["tea with milk"], "input_type": input_type}
        found = np.array(instruct.post("/v2/embed", json=body).json()["embeddings"]["float"][0])
        assert found @ vector(instruct, "tea with milk", input_type=input_type) >= 0.9999


@needs_chromium
def test_the_playground_offers_an_instruction_for_each_query_and_for_the_search(instruct: httpx.Client) -> None:
    with open_browser() as browser, open_visit(browser, str(instruct.base_url).rstrip("/")) as visit:
        page = visit.open()
        field = page.get_by_label("Instruction of text 1", exact=True)
        assert field.get_attribute("placeholder") == E5_INSTRUCT_PROMPTS.instructions["query"]
        assert page.get_by_label("Instruction of text 2", exact=True).is_hidden()
        field.fill(TASK)
        page.get_by_label("Instruction", exact=True).fill(TASK)
        visit.settle()
        first = vector(instruct, page.input_value("#text-1"), input_type="query", instruction=TASK)
        others = [raw(instruct, page.input_value(f"#text-{number}")) for number in (2, 3, 4)]
        shown = page.locator("#matrix tbody tr").first.locator("td").all_inner_texts()
        # Two decimals, of batches that differ.
        np.testing.assert_allclose([float(each) for each in shown[1:4]], np.array(others) @ first, atol=0.015)
        asked = vector(instruct, page.input_value("#search"), input_type="query", instruction=TASK)
        score = float(page.locator("#found-2 .score").inner_text())
        assert score == pytest.approx(others[0] @ asked, abs=0.01)
        ids = page.locator("#ids").text_content()
        prompted = f"Instruct: {TASK}\nQuery: {page.input_value('#text-1')}"
        tokens = instruct.post("/tokenize", json={"inputs": prompted, "input_type": "query"}).json()[0]
        assert ids == ", ".join(str(token["id"]) for token in tokens)
        commands = page.locator("#commands pre").all_inner_texts()
        assert sum(f'"instruction":"{TASK}"' in command for command in commands) == 2
