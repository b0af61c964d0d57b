"""The shapes of batches that an engine is given: what one batch is padded to, and how many rows it may have.

OpenVINO prepares itself for each shape that it has not met lately (10 to 30 ms for mE5-small, a lone query computes in
4), and takes 2 to 3 ms to change from one shape it knows to another. A few shapes, met again and again, cost little
padding and save most of that. ONNX Runtime computes any shape at once.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

# About a sixteenth apart, so that texts are padded by half of that on average.
_WIDTHS = (*range(8, 40, 2), *range(40, 80, 4), *range(80, 160, 8), *range(160, 513, 16))
_ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)

# One thread a stream, mE5-small's shape: ONNX Runtime's int8 4 tokens. OpenVINO takes 5 ms for a batch of another shape
# than its last and 0.07 (int8 with VNNI), 0.11 (bf16) or 0.2 ms (fp32) a token: 70, 47 or 25 tokens.
_BATCH_COST, _OPENVINO_BATCH_COST = 4, 32

# Triton joins requests only where all shapes are equal: of texts as long as they are it would run each by itself. Its
# config.pbtxt warms these up.
TRITON_WIDTHS = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Shapes:
    """What the scheduler has to know of an engine.

    longest: the model's longest input.   batch_cost: what a batch costs before its first token, in tokens; padding is
    worth it up to that much, not more.   widths, rows: what a batch may have, ascending; none means any.
    """

    longest: int
    batch_cost: int
    widths: Sequence[int] = ()
    rows: Sequence[int] = ()

    def width(self, tokens: int) -> int:
        """What a row of so many tokens is padded to."""
        place = bisect_left(self.widths, tokens)
        return tokens if place == len(self.widths) else max(tokens, min(self.widths[place], self.longest))

    def fewer(self, count: int) -> int:
        """The most rows a batch may have where there are so many texts for it."""
        place = bisect_right(self.rows, count)
        return count if place in (0, len(self.rows)) else self.rows[place - 1]


def shapes_of(engine: str, longest: int) -> Shapes:
    """What an engine is best given."""
    if engine == "openvino":
        return Shapes(longest, _OPENVINO_BATCH_COST, _WIDTHS, _ROWS)
    if engine == "triton":
        # Texts of two widths in one batch would all be as wide as the wider; Triton computes two batches at a time.
        return Shapes(longest, 0, TRITON_WIDTHS)
    return Shapes(longest, _BATCH_COST)
