"""Fixtures of the clients' tests: gateways for them, what each client came to, and the vectors they have to get."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from client_table import REPORT_VARIABLE, keep
from gateway_process import Gateway, start_gateway
from numpy.typing import NDArray
from occupied import occupied_gateway
from running import Tried
from tokenizers import Tokenizer
from trying import Reference, try_all

from service.engine import open_engine
from service.recipe.spec import ModelSpec
from service.recipe.tokens import pad


@pytest.fixture(scope="session")
def reference(shipped: Path, spec: ModelSpec) -> Reference:
    """The vector of a text that begins with its prompt, by the tokenizer and the engine alone: no gateway."""
    tokenizer = Tokenizer.from_file(str(shipped / "tokenizer.json"))
    engine = open_engine(shipped, spec)

    def vector(text: str) -> NDArray[np.float32]:
        ids = np.array(tokenizer.encode(text).ids, dtype=np.int32)
        return engine.run(pad([ids], spec.pad_id))[0]

    return vector


@pytest.fixture(scope="session")
def plain() -> Iterator[Gateway]:
    """A gateway that computes in fp32: on some CPUs the default is coarser than these tests' tolerance."""
    with start_gateway(engine="onnx", precision="fp32") as started:
        yield started


@pytest.fixture(scope="session")
def tried(plain: Gateway) -> dict[str, Tried]:
    """What every client that is installed came to, by its script: asked in earnest, refused, and in an overload."""
    with ExitStack() as stack:
        strict = stack.enter_context(start_gateway(max_inputs=1))
        occupied = stack.enter_context(occupied_gateway())
        found = try_all(plain, strict, occupied.gateway)
    report = os.environ.get(REPORT_VARIABLE)
    if report:
        keep(found, Path(report))
    return found
