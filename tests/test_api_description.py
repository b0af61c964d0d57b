"""The OpenAPI document is true: its examples are taken, and answered in the shape of the examples of answers."""

from __future__ import annotations

from typing import Any

import httpx
import jsonschema
import pytest

from service.api.contracts import CONTRACTS, METHODS, facade_of
from service.errors import InvalidInput

JSON = "application/json"
# One that any server has: their parameters and answers are the same for any model.
PARAMETERS = {"/v1/models/{model}": "/v1/models/me5_nano"}


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    """The description as the gateway gives it."""
    found: dict[str, Any] = client.get("/openapi.json").raise_for_status().json()
    return found


def form(value: object) -> object:
    """What a value is made of: fields by name, lists by their first element, numbers as one kind."""
    if isinstance(value, dict):
        return {name: form(part) for name, part in value.items()}
    if isinstance(value, list):
        return [form(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def operations(document: dict[str, Any], method: str) -> dict[str, dict[str, Any]]:
    """Path → operation."""
    return {path: methods[method] for path, methods in document["paths"].items() if method in methods}


def test_every_route_is_described(document: dict[str, Any]) -> None:
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    pages = {("/playground", "GET"), ("/page/{name}", "GET")}
    assert described == {(path, method) for path, methods in METHODS.items() for method in methods} - pages


def test_every_request_example_is_answered_as_described(client: httpx.Client, document: dict[str, Any]) -> None:
    for path, operation in operations(document, "post").items():
        examples = operation["requestBody"]["content"][JSON]["examples"]
        described = operation["responses"]["200"]["content"][JSON]
        forms = []
        for name, example in examples.items():
            jsonschema.validate(example["value"], operation["requestBody"]["content"][JSON]["schema"])
            answer = client.post(path, json=example["value"])
            assert answer.status_code == 200, f"{path}, {name}: {answer.text}"
            jsonschema.validate(answer.json(), described["schema"])
            forms.append(form(answer.json()))
        jsonschema.validate(described["example"], described["schema"])
        assert form(described["example"]) in forms, path


def test_every_answer_to_a_get_has_the_form_of_its_example(client: httpx.Client, document: dict[str, Any]) -> None:
    for path, operation in operations(document, "get").items():
        answer = client.get(PARAMETERS.get(path, path))
        assert answer.status_code == 200, path
        described = operation["responses"]["200"].get("content", {}).get(JSON)
        if not answer.headers.get("content-type", "").startswith(JSON):
            # Prometheus' text, and the empty bodies of TEI's probes.
            assert described is None, path
            continue
        jsonschema.validate(answer.json(), described["schema"])
        assert form(answer.json()) == form(described["example"]), path


def test_every_error_example_has_its_contracts_form(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            wanted = form(facade_of(path).error_body(InvalidInput("x"), 422))
            for status, response in operation["responses"].items():
                if status == "200" or JSON not in response.get("content", {}):
                    continue
                described = response["content"][JSON]
                jsonschema.validate(described["example"], described["schema"])
                if path != "/readyz":
                    assert form(described["example"]) == wanted, f"{path} {status}"


def test_routes_that_take_bodies_name_every_status_they_may_answer(document: dict[str, Any]) -> None:
    statuses = {"200", "400", "401", "403", "408", "413", "415", "422", "429", "431", "500", "503", "504"}
    for path, operation in operations(document, "post").items():
        assert set(operation["responses"]) == statuses, path


ERRORS: dict[str, object] = {
    "/embed": {"error": "str", "error_type": "str"},
    "/v1/embeddings": {"error": {"message": "str", "type": "str", "param": "NoneType", "code": "str"}},
    "/v2/embed": {"message": "str"},
    "/api/embed": {"error": "str"},
}
SAME = {
    "/": "/embed",
    "/invocations": "/embed",
    "/embed_all": "/embed",
    "/similarity": "/embed",
    "/tokenize": "/embed",
    "/decode": "/embed",
    "/embeddings": "/v1/embeddings",
    "/v1/embed": "/v2/embed",
    "/api/embeddings": "/api/embed",
    # Nobody's own, but of the contract that has the prefix.
    "/nope": "/embed",
    "/v1/nope": "/v1/embeddings",
    "/v2/nope": "/v2/embed",
    "/api/nope": "/api/embed",
}


@pytest.mark.parametrize("path", [*ERRORS, *SAME])
def test_a_contract_decides_the_form_of_an_error_and_never_its_status(client: httpx.Client, path: str) -> None:
    missing = path.endswith("/nope")
    wanted = ERRORS[SAME.get(path, path)]
    found = {
        "not JSON": client.post(path, content=b"{"),
        "compressed": client.post(path, content=b"{}", headers={"content-encoding": "br"}),
        "a list": client.post(path, json=[]),
        "put": client.put(path, json={}),
    }
    assert {name: answer.status_code for name, answer in found.items()} == (
        dict.fromkeys(found, 404) if missing else {"not JSON": 400, "compressed": 415, "a list": 422, "put": 405}
    )
    for answer in found.values():
        assert form(answer.json()) == wanted, path


def test_contracts_with_one_prefix_are_one_contract() -> None:
    prefixes = {module.FACADE.prefix: module.FACADE for module in CONTRACTS}
    assert all(module.FACADE is prefixes[module.FACADE.prefix] for module in CONTRACTS)
