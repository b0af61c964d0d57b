"""The playground in a real browser, asking a real gateway with the shipped model."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import Visit, needs_chromium, open_browser, open_visit, playwright
from faulty_engine import SHIPPED
from gateway_process import Gateway, start_gateway
from key_proxy import KEY, key_proxy

pytestmark = needs_chromium

# What the page rounds to, and how far two batches of one text may be apart in bf16.
MATRIX_ATOL = 0.005 + 0.01
SCORE_ATOL = 0.00005 + 0.01
SCRIPTS = {
    "Han": "[一-鿿]",
    "Kana": "[ぁ-ヿ]",
    "Hangul": "[가-힣]",
    "Arabic": "[؀-ۿ]",
    "Devanagari": "[ऀ-ॿ]",
    "Bengali": "[ঀ-৿]",
    "Thai": "[ก-๛]",
    "Cyrillic": "[а-я]",
    "Latin": "[a-z]",
}
HOSTILE = [
    "<img src=x onerror=\"window.broken='img'\">",
    "</textarea><script>window.broken='script'</script>",
    "\"'><svg onload=\"window.broken='svg'\">",
    "javascript:window.broken='link'",
    "${window.broken='template'} {{window.broken}}",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def visit(browser: playwright.Browser, gateway: Gateway) -> Iterator[Visit]:
    with open_visit(browser, gateway.url) as opened:
        yield opened


@pytest.fixture
def open_page(visit: Visit) -> playwright.Page:
    return visit.open()


def matrix(page: playwright.Page) -> np.ndarray:
    """The numbers of the table, row by row."""
    rows = page.locator("#matrix tbody tr").all()
    return np.array([[float(text) for text in row.locator("td").all_inner_texts()] for row in rows])


def listed(page: playwright.Page) -> list[tuple[str, str]]:
    """(text, role) of the list, in order."""
    texts = [area.input_value() for area in page.locator("#texts textarea").all()]
    return list(zip(texts, [role.input_value() for role in page.locator("#texts select").all()], strict=True))


def vectors(client: httpx.Client, texts: list[tuple[str, str]]) -> np.ndarray:
    """What POST /embed gives for the same, text by text."""
    answers = [client.post("/embed", json={"inputs": text, "input_type": role}) for text, role in texts]
    return np.array([answer.raise_for_status().json()[0] for answer in answers])


def scores(page: playwright.Page) -> dict[int, float]:
    """The score of each text found, by its number, best first."""
    found = page.locator("#found li")
    numbers, values = (found.locator(part).all_inner_texts() for part in (".number", ".score"))
    return {int(number): float(value) for number, value in zip(numbers, values, strict=True)}


def violations(page: playwright.Page) -> list[str]:
    return [
        f"{found['id']}: {node['html'][:200]}"
        for found in Axe().run(page).response["violations"]
        for node in found["nodes"]
    ]


def test_it_opens_with_many_scripts_and_everything_computed(visit: Visit) -> None:
    page = visit.open()
    texts = " ".join(text for text, _ in listed(page)).lower()
    assert [name for name, letters in SCRIPTS.items() if not re.search(letters, texts)] == []
    assert matrix(page).shape == (12, 12)
    assert len(scores(page)) == 9
    assert page.locator("#map .point").count() == 12
    assert re.search(r"The plane shows \d+\s% of their variance", page.inner_text("#map-note"))
    assert page.locator("#tokens .token").count() > 5
    assert page.locator("#commands pre").count() == 4
    assert page.locator("#trouble").is_hidden()
    assert f"me5_nano/{SHIPPED.name}" in page.inner_text(".top")
    # A text from right to left stands so, wherever it is shown.
    for place in ("#text-3", "#row-3 .snippet", "#found-3 .snippet"):
        assert page.locator(place).evaluate("node => getComputedStyle(node).direction") == "rtl", place


def test_the_numbers_are_those_of_the_api(open_page: playwright.Page, client: httpx.Client) -> None:
    wanted = vectors(client, listed(open_page))
    np.testing.assert_allclose(matrix(open_page), wanted @ wanted.T, atol=MATRIX_ATOL)
    question = vectors(client, [(open_page.input_value("#search"), "query")])[0]
    found = scores(open_page)
    np.testing.assert_allclose(
        list(found.values()), [wanted[number - 1] @ question for number in found], atol=SCORE_ATOL
    )
    tokens = client.post("/tokenize", json={"inputs": listed(open_page)[0][0], "input_type": "query"}).json()[0]
    assert [int(part) for part in open_page.locator("#ids").text_content().split(", ")] == [
        each["id"] for each in tokens
    ]


def test_a_role_changes_the_numbers(visit: Visit, client: httpx.Client) -> None:
    page = visit.open()
    before = matrix(page)
    page.get_by_label("Role of text 1", exact=True).select_option("passage")
    visit.settle()
    after = matrix(page)
    assert np.abs(after[0, 1:] - before[0, 1:]).max() >= 0.01
    np.testing.assert_allclose(after[1:, 1:], before[1:, 1:], atol=0.01)
    wanted = vectors(client, listed(page))
    np.testing.assert_allclose(after, wanted @ wanted.T, atol=MATRIX_ATOL)


def test_what_is_typed_is_computed_once_the_typing_rests(visit: Visit, client: httpx.Client) -> None:
    page = visit.open()
    sent = len(visit.requests)
    page.get_by_label("Text 2", exact=True).fill("")
    page.get_by_label("Text 2", exact=True).press_sequentially("Brot backt man im Ofen.", delay=5)
    visit.settle()
    # Vectors and tokens of both roles, and the search: once, or twice where the typing took long.
    assert len(visit.requests) - sent <= 2 * 5
    assert page.locator("#row-2").inner_text().endswith("Brot backt man im Ofen.")
    wanted = vectors(client, listed(page))
    np.testing.assert_allclose(matrix(page), wanted @ wanted.T, atol=MATRIX_ATOL)
    assert "Latin" in page.inner_text("#about-2")


def test_texts_come_and_go(visit: Visit) -> None:
    page = visit.open()
    page.get_by_label("Remove text 12").click()
    page.get_by_text("Add several, one a line").click()
    page.get_by_label("Texts, one a line").fill("eins\n\n  zwei  \n" + "\n".join(map(str, range(60))))
    page.get_by_role("button", name="Add these").click()
    visit.settle()
    assert matrix(page).shape == (40, 40)
    assert [text for text, _ in listed(page)[11:14]] == ["eins", "zwei", "0"]
    assert "33 left out" in page.inner_text("#many-note")
    assert page.get_by_role("button", name="Add a text").is_disabled()
    page.get_by_role("button", name="Remove all").click()
    visit.settle()
    assert matrix(page).size == 0
    page.keyboard.press("Enter")
    page.keyboard.type("allein")
    visit.settle()
    assert matrix(page).shape == (1, 1)


def test_a_blank_text_is_left_out_and_said_so(visit: Visit) -> None:
    page = visit.open()
    page.get_by_label("Text 4", exact=True).fill("  ")
    visit.settle()
    assert matrix(page).shape == (11, 11)
    assert page.inner_text("#about-4") == "empty, left out"
    assert page.locator("#row-4").count() == 0


def test_the_place_of_a_cut_is_shown_where_the_model_stops(
    visit: Visit, client: httpx.Client, least_cosine: float
) -> None:
    page = visit.open("playground#example=cut")
    text = listed(page)[0][0]
    body = {"inputs": [text], "input_type": "passage"}
    assert client.post("/embed", json=body).headers["x-me5-truncated"] == "1"
    assert "cut at 512" in page.inner_text("#about-1")
    assert page.locator("#tokens .token:not(.lost)").count() == 512
    assert page.locator(".scissors").is_visible()
    # As far as the page says that it is read, and no token more, the text has the same vector.
    tokens = client.post("/tokenize", json=body).json()[0]
    prompt, last = len("passage: "), tokens[510]
    shown = page.locator("#tokens .token:not(.lost)").nth(510).inner_text()
    assert shown == last["text"]
    read, less = (text.encode()[: token["stop"] - prompt].decode() for token in (last, tokens[480]))
    whole, same, other = vectors(client, [(text, "passage"), (read, "passage"), (less, "passage")])
    assert whole @ same >= least_cosine
    assert whole @ other < whole @ same


def test_the_search_ranks_the_passages_by_their_cosine(visit: Visit, client: httpx.Client) -> None:
    page = visit.open()
    assert set(list(scores(page))[:3]) == {2, 3, 4}
    page.get_by_label("Search the passages").fill("हज़ारों घर किसने तोड़े? भूकंप")
    visit.settle()
    found = scores(page)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert set(found) == {number for number, (_, role) in enumerate(listed(page), 1) if role == "passage"}
    question = vectors(client, [(page.input_value("#search"), "query")])[0]
    best = vectors(client, listed(page)) @ question
    assert best[next(iter(found)) - 1] >= max(best[number - 1] for number in found) - 0.01


def test_all_of_it_works_by_keyboard(visit: Visit) -> None:
    page = visit.open()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#example=topics"
    reached: list[str] = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        style = page.evaluate("(s => [s.outlineStyle, s.outlineWidth])(getComputedStyle(document.activeElement))")
        assert style == ["solid", "2px"], reached[-1]
        if reached[-1] == "search":
            break
    assert reached[1:] == [f"row-{number}" for number in range(1, 13)] + ["search"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "row-12"
    assert page.get_attribute("#row-12", "aria-pressed") == "true"
    assert page.inner_text("#tokens-of").startswith("Text 12")
    assert page.inner_text("#pair").startswith("Nearest to 12:")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("Mwezi")
    visit.settle()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == f"found-{next(iter(scores(page)))}"
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"


def test_the_theme_is_the_systems_until_another_is_chosen(browser: playwright.Browser, gateway: Gateway) -> None:
    with open_visit(browser, gateway.url, color_scheme="dark") as visit:
        page = visit.open()

        def brightness(selector: str) -> float:
            script = """node => { const pen = new OffscreenCanvas(1, 1).getContext("2d");
                pen.fillStyle = getComputedStyle(node).backgroundColor; pen.fillRect(0, 0, 1, 1);
                return pen.getImageData(0, 0, 1, 1).data.slice(0, 3).reduce((a, b) => a + b) / 3 }"""
            return float(page.locator(selector).evaluate(script))

        low, high = np.unravel_index(np.argsort(matrix(page) + np.eye(12), axis=None)[[0, -13]], (12, 12))
        cells = [f"#matrix tbody tr:nth-child({i + 1}) td:nth-of-type({j + 1})" for i, j in zip(low, high, strict=True)]
        assert brightness("body") < 60
        assert brightness(cells[0]) < brightness(cells[1])
        page.get_by_role("button", name="Theme: auto").click()
        assert brightness("body") > 200
        assert brightness(cells[0]) > brightness(cells[1])
        page.reload()
        visit.settle()
        assert brightness("body") > 200
        page.get_by_role("button", name="Theme: light").click()
        page.get_by_role("button", name="Theme: dark").click()
        page.get_by_role("button", name="Theme: auto").wait_for()
        assert brightness("body") < 60


@pytest.mark.parametrize("width", [320, 390, 800])
def test_no_width_makes_the_page_scroll_sideways(browser: playwright.Browser, gateway: Gateway, width: int) -> None:
    with open_visit(browser, gateway.url, viewport={"width": width, "height": 700}) as visit:
        for path in ("playground", "playground#example=cut", ""):
            page = visit.open(path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def test_the_state_travels_in_the_address_and_the_key_does_not(browser: playwright.Browser, visit: Visit) -> None:
    page = visit.open()
    page.get_by_label("Text 1", exact=True).fill("Ünïcode – 🙂 <&> 東京")
    page.get_by_label("Role of text 2", exact=True).select_option("query")
    page.get_by_label("Search the passages").fill("Wohin?")
    page.get_by_text("API key").first.click()
    page.get_by_label("API key, if this server wants one").fill("secret-key")
    page.keyboard.press("Enter")
    visit.settle()
    page.wait_for_url("**/playground#state=*")
    # Not the last of all: a browser asks for the icon when it likes.
    asked = [each for each in visit.requests if each.url.endswith("/embed")]
    assert asked[-1].headers["authorization"] == "Bearer secret-key"
    assert page.evaluate("localStorage.length + document.cookie.length") == 0
    assert not [each.url for each in visit.requests if "secret-key" in each.url or "state=" in each.url]
    with open_visit(browser, visit.url) as second:
        other = second.open(f"playground{urlsplit(page.url).fragment and '#' + urlsplit(page.url).fragment}")
        assert listed(other) == listed(page)
        assert other.input_value("#search") == "Wohin?"
        assert other.input_value("#key") == ""
        np.testing.assert_allclose(matrix(other), matrix(page), atol=0.02)


@pytest.mark.parametrize("fragment", ["state=%%%", "state=bnVsbA", "state=eyJ0Ijo1fQ", "example=__proto__", "state="])
def test_a_broken_address_opens_the_first_example(visit: Visit, fragment: str) -> None:
    assert len(listed(visit.open(f"playground#{fragment}"))) == 12


def test_pasted_markup_stays_text(visit: Visit) -> None:
    page = visit.open()
    elements = "document.querySelectorAll('img, iframe, script, object, svg').length"
    before = page.evaluate(elements)
    for number, text in enumerate(HOSTILE, 1):
        page.get_by_label(f"Text {number}", exact=True).fill(text)
    page.get_by_label("Search the passages").fill(HOSTILE[0])
    visit.settle()
    for number in range(1, len(HOSTILE) + 1):
        page.locator(f"#row-{number}").click()
    page.wait_for_url("**/playground#state=*")
    page.reload()
    visit.settle()
    assert [text for text, _ in listed(page)[: len(HOSTILE)]] == HOSTILE
    assert HOSTILE[1] in page.inner_text("#row-2")
    assert "<img src=x onerror=" in page.locator("#commands pre").nth(2).inner_text()
    assert page.evaluate(elements) == before
    assert page.evaluate("window.broken") is None


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_give_what_the_page_shows(visit: Visit) -> None:
    page = visit.open()
    page.get_by_label("Text 1", exact=True).fill("It's 5 o'clock: \"now\"; $HOME `id` \\n 去机场")
    visit.settle()

    def run(number: int) -> list[list[float]]:
        command = page.locator("#commands pre").nth(number).inner_text()
        done = subprocess.run(["sh", "-c", command], capture_output=True, check=True, timeout=60)
        found: list[list[float]] = json.loads(done.stdout)
        return found

    queries, passages = (iter(run(number)) for number in (0, 1))
    rows = np.array([next(queries if role == "query" else passages) for _, role in listed(page)])
    np.testing.assert_allclose(matrix(page), rows @ rows.T, atol=MATRIX_ATOL)
    assert [token["id"] for token in run(3)[0]] == [
        int(each) for each in page.locator("#ids").text_content().split(", ")
    ]


def test_what_the_server_refuses_is_said_beside_its_text(browser: playwright.Browser, gateway: Gateway) -> None:
    with open_visit(browser, gateway.url, faults=True) as visit:
        page = visit.open("playground#example=cut")
        page.get_by_label("cut texts over the limit").uncheck()
        visit.settle()
        assert re.match(r"422: .*must have less than 512 tokens", page.inner_text("#error-1"))
        assert page.get_attribute("#text-1", "aria-invalid") == "true"
        assert "error-1" in page.get_attribute("#text-1", "aria-describedby")
        assert page.locator("#texts .error:visible").count() == 1
        # The others are there without it.
        assert matrix(page).shape == (3, 3)
        page.get_by_label("cut texts over the limit").check()
        visit.settle()
        assert matrix(page).shape == (4, 4)
        assert page.locator("#texts .error:visible").count() == 0


def test_a_server_that_is_busy_or_gone_is_said_and_asked_again(browser: playwright.Browser) -> None:
    with (
        start_gateway(max_buffered_bytes=16384, drain_s=0) as gateway,
        open_visit(browser, gateway.url, faults=True) as visit,
    ):
        address = urlsplit(gateway.url)
        with socket.create_connection((address.hostname, address.port)) as half:
            # Half a body, which takes all the room there is.
            half.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 16384\r\n\r\n" + b" " * 16380)
            page = visit.open()
            said = page.get_by_role("alert").inner_text()
        assert "The server is busy (429)" in said
        assert "Trying again in 1 s" in said
        # By itself, once there is room.
        page.locator("#matrix tbody tr").nth(11).wait_for()
        assert page.locator("#trouble").is_hidden()
        gateway.terminate()
        page.get_by_label("Text 1", exact=True).fill("still there?")
        visit.settle()
        assert "No answer" in page.get_by_role("alert").inner_text()
        assert "Trying again in 5 s" in page.get_by_role("alert").inner_text()
        # What was shown stays, and so does what was typed.
        assert matrix(page).shape == (12, 12)
        assert listed(page)[0][0] == "still there?"


def test_a_server_without_an_engine_is_said_to_be_not_ready(browser: playwright.Browser) -> None:
    pytest.importorskip("tritonclient", reason="tritonclient is not installed")
    nobody = "127.0.0.1:9"
    with (
        start_gateway(engine="triton", triton_urls=nobody, status=503) as gateway,
        open_visit(browser, gateway.url, faults=True) as visit,
    ):
        assert httpx.get(f"{gateway.url}/info", timeout=30).json()["model_dtype"] == "auto"
        assert "The server is not ready (503)" in visit.open().get_by_role("alert").inner_text()
        page = visit.open("")
        assert page.inner_text("#ready") != "ready"


def test_a_key_opens_a_server_that_wants_one_below_a_prefix(browser: playwright.Browser, gateway: Gateway) -> None:
    with key_proxy(gateway.url) as url, open_visit(browser, url, faults=True) as visit:
        page = visit.open()
        assert "This server wants a key (401)" in page.get_by_role("alert").inner_text()
        field = page.get_by_label("API key, if this server wants one")
        assert field.get_attribute("aria-invalid") == "true"
        field.fill(KEY)
        field.press("Enter")
        visit.settle()
        assert matrix(page).shape == (12, 12)
        assert page.locator("#trouble").is_hidden()
        command = page.locator("#commands pre").first.inner_text()
        assert '-H "authorization: Bearer $API_KEY"' in command
        assert KEY not in page.locator("#commands").inner_text()
        page.reload()
        visit.settle()
        assert matrix(page).shape == (12, 12)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: playwright.Browser, gateway: Gateway, scheme: str) -> None:
    with open_visit(browser, gateway.url, faults=True, color_scheme=scheme) as visit:
        assert violations(visit.open("")) == []
        assert violations(visit.open()) == []
        page = visit.open("playground#example=cut")
        page.get_by_label("cut texts over the limit").uncheck()
        for summary in page.locator("summary").all():
            summary.click()
        visit.settle()
        assert page.locator("#error-1").is_visible()
        assert violations(page) == []
    with open_visit(browser, gateway.url, color_scheme=scheme, viewport={"width": 360, "height": 700}) as visit:
        assert violations(visit.open()) == []
