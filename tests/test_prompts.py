"""Roles and prompts."""

from __future__ import annotations

import pytest

from service.errors import InvalidInput
from service.recipe.prompts import E5_INSTRUCT_PROMPTS, E5_PROMPTS, INPUT_TYPES, Role, format_text, role_of


@pytest.mark.parametrize(("role", "prompted"), [("query", "query: tea"), ("passage", "passage: tea")])
def test_each_role_puts_its_own_prefix(role: Role, prompted: str) -> None:
    assert format_text("tea", E5_PROMPTS, role).text == prompted


@pytest.mark.parametrize("text", ["query: tea", "passage: tea"])
def test_without_a_role_a_prompted_text_stands_and_has_the_role_it_names(text: str) -> None:
    found = format_text(text, E5_PROMPTS, default_role="passage")
    assert (found.text, found.role) == (text, text.split(":")[0])


@pytest.mark.parametrize("default", ["query", "passage"])
def test_without_a_role_and_a_prefix_the_default_role_applies(default: Role) -> None:
    assert format_text("tea", E5_PROMPTS, default_role=default).text == f"{default}: tea"


def test_with_a_role_only_its_own_prefix_counts_as_already_there() -> None:
    assert format_text("query: tea", E5_PROMPTS, "query").text == "query: tea"
    assert format_text("query: tea", E5_PROMPTS, "passage").text == "passage: query: tea"


def test_a_prefix_counts_only_as_the_model_writes_it() -> None:
    for text in ("query:tea", "Query: tea", " query: tea"):
        assert format_text(text, E5_PROMPTS).text == f"query: {text}"


def test_prompt_chars_counts_the_prompt_whether_put_or_found() -> None:
    assert format_text("tea", E5_PROMPTS, "passage").prompt_chars == len("passage: ")
    assert format_text("query: tea", E5_PROMPTS).prompt_chars == len("query: ")


def test_instruct_models_take_an_instruction_on_the_query_side_only() -> None:
    query = format_text("tea", E5_INSTRUCT_PROMPTS, "query", instruction="Find recipes")
    assert query.text == "Instruct: Find recipes\nQuery: tea"
    assert format_text("tea", E5_INSTRUCT_PROMPTS, "passage", instruction="Find recipes").text == "tea"


def test_instruct_models_have_a_default_instruction_and_one_for_similarity() -> None:
    assert format_text("tea", E5_INSTRUCT_PROMPTS).text.startswith("Instruct: Given a web search query")
    similar = format_text("tea", E5_INSTRUCT_PROMPTS, "query", input_type="similarity")
    assert similar.text == "Instruct: Retrieve semantically similar text.\nQuery: tea"


def test_a_text_with_its_instruction_is_not_given_another() -> None:
    text = "Instruct: Find recipes\nQuery: tea"
    assert format_text(text, E5_INSTRUCT_PROMPTS).text == text
    assert format_text(text, E5_INSTRUCT_PROMPTS, "query").text == text
    assert format_text("Instruct: no second line", E5_INSTRUCT_PROMPTS).text.startswith("Instruct: Given a web")


@pytest.mark.parametrize("role", ["query", "passage", None])
def test_an_instruction_for_a_model_without_one_is_refused(role: Role | None) -> None:
    with pytest.raises(InvalidInput, match="takes no instruction"):
        format_text("tea", E5_PROMPTS, role, instruction="Find recipes")


def test_every_input_type_has_a_role_and_unknown_ones_are_refused_by_name() -> None:
    roles = {name: role_of(name) for name in INPUT_TYPES}
    assert {name for name, role in roles.items() if role == "passage"} == {"passage", "document", "search_document"}
    assert role_of("SEARCH_QUERY") == "query"
    with pytest.raises(InvalidInput, match="'zork'.*search_document"):
        role_of("zork")
