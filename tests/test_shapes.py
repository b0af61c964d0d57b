"""The shapes of batches that an engine is given."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.shapes import shapes_of

LONGEST = 512
OPENVINO = shapes_of("openvino", LONGEST)


def test_onnx_runtime_takes_every_shape_as_it_is() -> None:
    shapes = shapes_of("onnx", LONGEST)
    assert [shapes.width(17), shapes.width(513), shapes.fewer(7), shapes.fewer(999)] == [17, 513, 7, 999]


@given(st.integers(1, LONGEST))
def test_no_text_is_cut_and_padding_stays_below_a_quarter(tokens: int) -> None:
    width = OPENVINO.width(tokens)
    assert tokens <= width <= max(8, 1.25 * tokens)


@given(st.integers(1, 300))
def test_rows_are_only_ever_left_for_the_next_batch(count: int) -> None:
    assert 0 < OPENVINO.fewer(count) <= count


@pytest.mark.parametrize(("longest", "tokens", "width"), [(100, 98, 100), (100, 100, 100), (514, 513, 513)])
def test_a_batch_is_no_wider_than_the_model_has_positions(longest: int, tokens: int, width: int) -> None:
    assert shapes_of("openvino", longest).width(tokens) == width


def test_texts_are_padded_by_a_thirtieth_on_average() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(20, LONGEST) for _ in range(5000)]
    assert sum(map(OPENVINO.width, lengths)) / sum(lengths) < 1 + 1 / 30
