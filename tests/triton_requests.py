"""Requests straight to a Triton, for tests that look at the server without a gateway."""

from __future__ import annotations

from bisect import bisect_left
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from service.recipe.golden import load_golden
from service.recipe.prompts import format_text
from service.recipe.spec import ModelSpec, load_spec
from service.recipe.tokens import TokenBatch, load_tokenizer, pad, tokenize
from service.triton_config import widths_of

ANSWER_MAX_S = 60.0


class Asker:
    """A connection to a Triton and one model of it. Used as a context manager."""

    def __init__(self, address: str, spec: ModelSpec) -> None:
        self._client = InferenceServerClient(address)
        self._spec = spec

    @property
    def name(self) -> str:
        """The model's."""
        return self._spec.name

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def send(
        self, batch: TokenBatch, *, version: int | None = None, priority: int = 0, timeout_s: float = 0
    ) -> Future[NDArray[np.float32]]:
        """Send a batch and wait for nothing; the future holds the output, or InferenceServerException.

        priority: 0 says nothing.   timeout_s: how long it may wait in the queue, 0 says nothing.
        """
        inputs = []
        for name in self._spec.inputs:
            values = {"input_ids": batch.ids, "attention_mask": batch.mask}.get(name, np.zeros_like(batch.ids))
            inputs.append(InferInput(name, list(values.shape), "INT64").set_data_from_numpy(values))
        answer: Future[NDArray[np.float32]] = Future()

        def done(result: InferResult | None, error: InferenceServerException | None) -> None:
            if error is not None:
                answer.set_exception(error)
            else:
                assert result is not None
                answer.set_result(result.as_numpy(self._spec.output))

        self._client.async_infer(
            self._spec.name,
            inputs,
            done,
            model_version="" if version is None else str(version),
            outputs=[InferRequestedOutput(self._spec.output)],
            priority=priority,
            timeout=int(timeout_s * 1e6) or None,
        )
        return answer

    def ask(self, batch: TokenBatch, *, version: int | None = None) -> NDArray[np.float32]:
        """Send a batch and wait for its output."""
        return self.send(batch, version=version).result(ANSWER_MAX_S)


def bucketed(row: NDArray[np.int32], spec: ModelSpec) -> TokenBatch:
    """One text, padded to the narrowest of the widths that Triton is sent."""
    widths = widths_of(spec.max_tokens)
    return pad([row], spec.pad_id, widths[bisect_left(widths, len(row))])


def of_shape(rows: int, width: int, spec: ModelSpec, *, first: int = 5) -> TokenBatch:
    """A batch without padding: row n is made of ids from first + n on."""
    ids = np.arange(width)[None, :] % 100 + np.arange(rows)[:, None] + first
    return pad(list(ids.astype(np.int32)), spec.pad_id)


def golden_rows(folder: Path) -> list[NDArray[np.int32]]:
    """The token ids of a version's golden texts."""
    spec, golden = load_spec(folder, verify=False), load_golden(folder / "golden.json")
    prompted = [format_text(item.text, spec.prompts, item.role, instruction=item.instruction) for item in golden.items]
    return [row.ids for row in tokenize(load_tokenizer(folder / "tokenizer.json"), prompted, spec.max_tokens)]
