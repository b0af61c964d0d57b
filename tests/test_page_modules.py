"""The pure functions behind the playground, run in the browser they are written for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from browser import needs_chromium, open_browser, open_visit
from gateway_process import Gateway

pytestmark = needs_chromium

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def call(gateway: Gateway) -> Iterator[Call]:
    """call("pca.js", "project", …): a function of a module with these arguments, in a page of the gateway's origin."""
    with open_browser() as browser, open_visit(browser, gateway.url) as visit:
        page = visit.open("")

        def called(module: str, name: str, *arguments: object) -> Any:
            script = "async ([m, name, args]) => (await import(`/page/${m}`))[name](...args)"
            return page.evaluate(script, [module, name, list(arguments)])

        yield called


def unit_rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [2, 3, 12, 40])
def test_the_map_is_the_singular_value_decompositions(call: Call, count: int) -> None:
    rows = unit_rows(count, 48)
    found = call("pca.js", "project", rows.tolist())
    centred = rows - rows.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    wanted = (u * s)[:, :2]
    wanted *= np.sign(wanted[np.abs(wanted).argmax(0), [0, 1]])
    points = np.array(found["points"])
    # Of two points nothing lies beside the line through them, and its direction is rounding's.
    axes = 1 if count == 2 else 2
    np.testing.assert_allclose(points[:, :axes], wanted[:, :axes], atol=1e-9)
    np.testing.assert_allclose(found["shares"], (s**2 / (s**2).sum())[:2], atol=1e-9)


@pytest.mark.parametrize("rows", [[], [[1, 0]], [[0.6, 0.8]] * 5])
def test_points_without_any_variance_lie_on_one_spot(call: Call, rows: list[list[float]]) -> None:
    assert call("pca.js", "project", rows) == {"points": [[0, 0]] * len(rows), "shares": [0, 0]}


def test_map_labels_do_not_cover_each_other_where_there_is_room(call: Call) -> None:
    points = [{"x": 300 + 12 * (i % 2), "y": 60 + 40 * i, "width": 100} for i in range(6)]
    places = call("labels.js", "placeLabels", points, {"width": 600, "height": 400})
    boxes = [(place["x"], place["x"] + 100, place["y"] - 12, place["y"] + 4) for place in places]
    for i, (left, right, top, bottom) in enumerate(boxes):
        assert 0 <= left < right <= 600
        assert not [
            j
            for j, other in enumerate(boxes)
            if j != i and left < other[1] and other[0] < right and top < other[3] and other[2] < bottom
        ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_colour_scale_rises_in_lightness_and_its_numbers_are_read(call: Call, theme: str) -> None:
    steps = [call("colour.js", "heat", step / 50, theme) for step in range(51)]
    black = [call("colour.js", "contrast", step, [0, 0, 0]) for step in steps]
    order = np.sign(np.diff(black))
    assert set(order) == {-1.0 if theme == "light" else 1.0}
    for step in steps:
        assert call("colour.js", "contrast", step, call("colour.js", "inkOn", step)) >= 4.5
    assert call("colour.js", "contrast", [0, 0, 0], [255, 255, 255]) == pytest.approx(21)


def test_ranking_is_by_score_and_stable(call: Call) -> None:
    scores = [{"index": i, "score": score} for i, score in enumerate([0.1, 0.5, -0.2, 0.5])]
    assert [one["index"] for one in call("similarity.js", "ranked", scores)] == [1, 3, 0, 2]
    rows = unit_rows(5, 8)
    np.testing.assert_allclose(call("similarity.js", "cosines", rows.tolist()), rows @ rows.T, atol=1e-12)


@pytest.mark.parametrize(
    ("message", "inputs"),
    [
        ("`inputs` cannot be empty (inputs 0, 2-5)", [0, 2, 3, 4, 5]),
        ("input 7: half of a surrogate pair can't be tokenised", [7]),
        ("Given: 812 (input 1); shorten the text", [1]),
        ("unknown input_type 'x'", []),
        ("batch size 9 > maximum allowed batch size 8", []),
    ],
)
def test_an_error_names_its_texts(call: Call, message: str, inputs: list[int]) -> None:
    assert call("api.js", "namedInputs", message) == inputs


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("去机场的火车几点开？", "Han"),
        ("東京タワーはどこ？", "Japanese"),
        ("공항 기차 KTX", "Hangul"),
        ("القطار 12", "Arabic"),
        ("घर पर", "Devanagari"),
        ("123 – 45", "None"),
        ("Ünïcode", "Latin"),
    ],
)
def test_a_text_is_labelled_by_the_script_of_most_of_its_letters(call: Call, text: str, script: str) -> None:
    assert call("scripts.js", "scriptOf", text)["name"] == script


def test_a_cut_keeps_the_closing_token_and_what_stands_before_the_limit(call: Call) -> None:
    special = {"special": True, "start": None, "stop": None}
    words = [{"id": i, "text": "ab", "special": False, "start": 3 * i, "stop": 3 * i + 2} for i in range(6)]
    tokens = [{"id": 90, "text": "<s>", **special}, *words, {"id": 91, "text": "</s>", **special}]
    shown = call("tokens.js", "pieces", tokens, 5, 3)
    assert [piece["kept"] for piece in shown] == [True] * 4 + [False] * 3 + [True]
    assert [piece["kind"] for piece in shown] == ["special", "prompt", *["text"] * 5, "special"]
    assert [piece["gap"] for piece in shown] == [False, False, *[True] * 5, False]
    assert all(piece["kept"] for piece in call("tokens.js", "pieces", tokens, 8, 3))


def test_a_word_boundary_of_its_own_is_not_shown_as_the_word(call: Call) -> None:
    tokens = [
        {"id": 4, "text": "京", "special": False, "start": 0, "stop": 3},
        {"id": 5, "text": "京都", "special": False, "start": 0, "stop": 6},
    ]
    assert [piece["text"] for piece in call("tokens.js", "pieces", tokens, 512, 0)] == ["·", "京都"]
