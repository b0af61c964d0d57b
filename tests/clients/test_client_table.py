"""README's table of clients and docs/clients.md: neither may say what is no longer so."""

from __future__ import annotations

import re

import pytest
from catalogue import ALONE, CLIENTS, SIMILARITY, Client
from client_table import GUIDE, README, between, guide, table
from running import Tried, missing, source_of
from trying import TRY_MAX_S

pytestmark = pytest.mark.timeout(TRY_MAX_S)

REMEDY = "make test-clients writes it"


@pytest.mark.parametrize("client", [*CLIENTS, SIMILARITY], ids=lambda client: client.script)
def test_what_the_table_says_a_user_writes_is_in_the_program(client: Client) -> None:
    source = source_of(client)
    for words in (client.address, *client.roles):
        assert words == ALONE or words in source


def test_the_table_names_every_client() -> None:
    named = re.findall(r"^\| \[.+?\]\(tests/clients/(.+?)\)", between(README.read_text(encoding="utf-8")), re.MULTILINE)
    assert named == [client.script for client in CLIENTS], REMEDY


def test_the_table_is_what_the_clients_came_to(tried: dict[str, Tried]) -> None:
    not_there = {missing(client.place) for client in CLIENTS} - {""}
    if not_there:
        pytest.skip("; ".join(sorted(not_there)))
    assert between(README.read_text(encoding="utf-8")) == table(tried), REMEDY


def test_the_guide_shows_every_program_as_it_is_tried() -> None:
    assert GUIDE.read_text(encoding="utf-8") == guide(), REMEDY
