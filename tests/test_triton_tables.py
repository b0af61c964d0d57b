"""What the Triton engine decides without a Triton: addresses, errors, settings."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import get_args

import pytest
from faulty_engine import SHIPPED

from service.batching import Limits, take_batch
from service.embedder import Embedder
from service.engine_triton import Target, addresses_of, targets_of
from service.errors import SettingsError
from service.metrics import Metrics
from service.settings import load_settings
from service.shapes import TRITON_WIDTHS, shapes_of
from service.triton_errors import Outcome, goes_elsewhere, outcome_of


@pytest.mark.parametrize(
    ("urls", "wanted"),
    [
        ("triton", [Target("triton", 8001)]),
        ("triton:9001", [Target("triton", 9001)]),
        ("grpc://a:1, grpcs://b:2,", [Target("a", 1), Target("b", 2, tls=True)]),
        ("[::1]:9001, [::1]", [Target("::1", 9001), Target("::1", 8001)]),
    ],
)
def test_upstreams_are_read_from_one_setting(urls: str, wanted: list[Target]) -> None:
    assert targets_of(urls) == wanted


@pytest.mark.parametrize(
    "urls", ["", " , ", "http://a:8000", "a:port", "a:70000", "a:0", "a:1/path", "::1", ":1", "a:1:2", "u@a:1"]
)
def test_upstreams_that_cannot_be_are_refused_with_a_remedy(urls: str) -> None:
    with pytest.raises(SettingsError, match="ME5_TRITON_URLS"):
        targets_of(urls)


def test_a_name_is_looked_up_and_one_without_an_address_has_none() -> None:
    assert asyncio.run(addresses_of(Target("localhost", 8001))) == ["127.0.0.1:8001"]
    assert asyncio.run(addresses_of(Target("127.0.0.2", 8001))) == ["127.0.0.2:8001"]
    assert asyncio.run(addresses_of(Target("no-such-host.invalid", 8001))) == []
    assert asyncio.run(addresses_of(Target("two..dots", 8001))) == []
    assert asyncio.run(addresses_of(Target("a" * 70 + ".label", 8001))) == []


@pytest.mark.parametrize(
    ("status", "message", "wanted"),
    [
        ("StatusCode.UNAVAILABLE", "Exceeds maximum queue size", "rejected"),
        ("StatusCode.UNAVAILABLE", "Request timeout expired", "deadline"),
        ("StatusCode.UNAVAILABLE", "Server is stopping, scheduler for model has stopped", "lost"),
        ("StatusCode.NOT_FOUND", "Request for unknown model: 'x' is not found", "lost"),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", "deadline"),
        ("StatusCode.INTERNAL", "Stub process 'me5_nano_0_0' is not healthy.", "lost"),
        ("StatusCode.INTERNAL", "onnx runtime error 6: Non-zero status code", "failed"),
        ("StatusCode.INVALID_ARGUMENT", "unexpected shape for input 'input_ids'", "failed"),
        ("StatusCode.SOMETHING_NEW", "", "failed"),
        (None, "no status at all", "failed"),
    ],
)
def test_errors_of_triton_have_one_meaning_each(status: str | None, message: str, wanted: str) -> None:
    assert outcome_of(status, message) == wanted


def test_only_what_another_triton_may_answer_goes_there() -> None:
    outcomes: tuple[Outcome, ...] = get_args(Outcome)
    assert [kind for kind in outcomes if goes_elsewhere(kind)] == [
        "rejected",
        "lost",
        "failed",
    ]


def test_rows_are_padded_to_few_widths_and_texts_of_two_widths_go_apart() -> None:
    shapes = shapes_of("triton", 512)
    assert [shapes.width(tokens) for tokens in (1, 32, 33, 200, 512)] == [32, 32, 64, 256, 512]
    # A model that reads less is never given more.
    assert shapes_of("triton", 400).width(300) == 400
    assert tuple(sorted(TRITON_WIDTHS)) == TRITON_WIDTHS

    class Text:
        def __init__(self, length: int) -> None:
            self.length = length

    batch = take_batch([Text(20), Text(40), Text(31), Text(8)], Limits(4096, 16, shapes))
    assert sorted(text.length for text in batch) == [8, 20, 31]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "ME5_TRITON_URLS"),
        ({"ME5_TRITON_URLS": "localhost:8001", "ME5_DEVICE": "cuda"}, "ME5_DEVICE"),
        ({"ME5_TRITON_URLS": "localhost:8001", "ME5_MODEL": "COPY"}, "whole number|by number"),
    ],
)
def test_settings_that_triton_could_never_serve_end_the_start(
    settings: dict[str, str], words: str, tmp_path: Path
) -> None:
    unnumbered = tmp_path / "unnumbered"
    unnumbered.symlink_to(SHIPPED)
    given = {name: str(unnumbered) if value == "COPY" else value for name, value in settings.items()}
    with pytest.raises(SettingsError, match=words):
        Embedder(load_settings({"ME5_ENGINE": "triton", **given}), Metrics())


def test_a_precision_that_can_only_be_said_of_triton_is_refused_elsewhere() -> None:
    async def start() -> None:
        await Embedder(load_settings({"ME5_PRECISION": "fp16"}), Metrics()).start()

    with pytest.raises(SettingsError, match="ME5_ENGINE=triton"):
        asyncio.run(start())
