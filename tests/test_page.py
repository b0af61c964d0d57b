"""The pages as HTTP serves them: who gets one, what it says, and what it may not do. No browser needed."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import httpx
import pytest
from faulty_engine import SHIPPED
from gateway_process import ROOT
from setuptools import Distribution

from service import __version__
from service.api.page import FOLDER, MEDIA_TYPES, wants_page
from service.recipe.spec import ModelSpec

CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
LYNX = "text/html, text/plain, text/sgml, */*;q=0.01"
PROGRAMS = [
    None,
    "",
    "*/*",
    "application/json",
    "application/json, text/plain, */*",
    "text/plain",
    "application/octet-stream",
]
FILES = sorted(path.name for path in FOLDER.iterdir())
PAGES = ("/", "/playground")


def page(client: httpx.Client, path: str = "/", **headers: str) -> httpx.Response:
    return client.get(path, headers={"accept": CHROME, **headers})


@pytest.mark.parametrize(
    "accept", [CHROME, LYNX, "text/html", "TEXT/HTML;charset=utf-8", "application/json;q=0.5, text/html"]
)
def test_whoever_names_html_gets_a_page_at_the_root(client: httpx.Client, accept: str) -> None:
    response = client.get("/", headers={"accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text.startswith("<!doctype html>")


@pytest.mark.parametrize("accept", PROGRAMS)
def test_a_program_gets_teis_probe_at_the_root(client: httpx.Client, accept: str | None) -> None:
    request = client.build_request("GET", "/")
    del request.headers["accept"]
    if accept is not None:
        request.headers["accept"] = accept
    response = client.send(request)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["vary"] == "accept"


@pytest.mark.parametrize(
    "accept",
    [
        "text/html;q=0",
        "text/html;q=0.5, application/json",
        "application/json, text/html",
        "text/html;q=x",
        ";;,,=",
        "text",
    ],
)
def test_html_that_is_unwanted_or_wanted_no_more_than_json_is_not_sent(accept: str) -> None:
    assert not wants_page(accept)


def test_a_post_to_the_root_embeds_whatever_it_accepts(client: httpx.Client) -> None:
    answers = [client.post("/", json={"inputs": "ok"}, headers={"accept": accept}) for accept in (CHROME, "*/*")]
    assert answers[0].json() == answers[1].json()
    assert len(answers[0].json()[0]) == 768


def test_the_landing_page_says_what_it_serves_and_lists_every_route(client: httpx.Client, spec: ModelSpec) -> None:
    text = unescape(page(client).text)
    for fact in (
        f"{spec.name}, version {SHIPPED.name}",
        f"{spec.dimension} components",
        f"{spec.max_tokens} tokens",
        f"me5 {__version__}",
    ):
        assert fact in text
    assert f"curl {str(client.base_url).rstrip('/')}/embed" in text
    paths = client.get("/openapi.json").json()["paths"]
    listed = set(re.findall(r"<code>([A-Z]+ /\S*)</code>", text))
    assert listed == {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    for link in ("playground", "docs", "openapi.json"):
        assert f'href="{link}"' in text
        assert client.get(f"/{link}").status_code == 200


def test_a_hostile_host_header_stays_text(client: httpx.Client) -> None:
    text = page(client, host="x'\"><script>alert(1)</script>").text
    assert "<script>" not in text


def test_the_pages_stay_out_of_the_description_and_of_the_metrics(client: httpx.Client) -> None:
    def series() -> set[str]:
        lines = client.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if line.startswith("me5_")}

    before = series()
    for path in (*PAGES, "/page/main.js", "/page/nothing.js"):
        page(client, path)
    assert series() == before
    assert not [path for path in client.get("/openapi.json").json()["paths"] if "page" in path or "playground" in path]


@pytest.mark.parametrize("path", [*PAGES, "/page/main.js"])
def test_a_page_may_run_only_what_its_own_files_say(client: httpx.Client, path: str) -> None:
    headers = page(client, path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", [*PAGES, "/page/main.js"])
def test_what_a_browser_has_is_not_sent_again(client: httpx.Client, path: str) -> None:
    first = page(client, path)
    assert first.headers["cache-control"] == "no-cache"
    for known in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
        again = page(client, path, **{"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    assert page(client, path, **{"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".html")])
def test_a_file_is_served_as_it_lies_under_its_type(client: httpx.Client, name: str) -> None:
    response = client.get(f"/page/{name}")
    assert response.content == (FOLDER / name).read_bytes()
    assert response.headers["content-type"] == MEDIA_TYPES[Path(name).suffix]


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "..%2fapp.py", "%2e%2e/app.py", "page.py", ""])
def test_nothing_else_is_served(client: httpx.Client, name: str) -> None:
    assert client.get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize("name", FILES)
def test_a_file_names_no_other_origin_and_nothing_in_the_markup_runs(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert re.findall(r"(?:https?:)?//[a-z]", re.sub(r"http://www\.w3\.org/2000/svg", "", text)) == []
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    if name.endswith(".html"):
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text)
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))
        for reference in re.findall(r'(?:src|href)="page/([^"]+)"', text):
            assert reference in FILES
    for module in re.findall(r'from "\./([^"]+)"', text):
        assert module in FILES


# Folders of data look like packages to it.
@pytest.mark.filterwarnings("ignore::setuptools.warnings.SetuptoolsDeprecationWarning")
def test_a_wheel_holds_the_pages() -> None:
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files([str(ROOT / "pyproject.toml")])
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    packed = {name for package, _, _, names in build.data_files if package == "service" for name in names}
    assert packed >= {f"page/{name}" for name in FILES}
