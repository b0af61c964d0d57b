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
