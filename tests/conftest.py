"""Fixtures of all tests: a clean environment, and one real gateway that the HTTP tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from exact_gateway import start_exact_gateway
from gateway_process import MODEL_REPO, SHIPPED_MODEL, Gateway, start_gateway

from service.model import find_version
from service.recipe.spec import ModelSpec, load_spec


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings change no result."""
    for name in list(os.environ):
        if name.startswith("ME5_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The folder of the model version in the repository."""
    return find_version(SHIPPED_MODEL, MODEL_REPO)


@pytest.fixture(scope="session")
def spec(shipped: Path) -> ModelSpec:
    """Its spec.json."""
    return load_spec(shipped, verify=False)


@pytest.fixture(scope="session")
def gateway() -> Iterator[Gateway]:
    """A gateway with default settings and the shipped model."""
    with start_gateway() as started:
        yield started


@pytest.fixture(scope="session")
def client(gateway: Gateway) -> Iterator[httpx.Client]:
    """A client of the shared gateway."""
    with gateway.client() as opened:
        yield opened


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a gateway in float32, with what is off unless asked for."""
    with start_exact_gateway(tmp_path_factory.mktemp("exact")) as started, started.client() as opened:
        yield opened


@pytest.fixture(scope="session")
def least_cosine(client: httpx.Client) -> float:
    """How close two vectors of one text must be when their batches differ.

    fp32 sums in another order; bf16 also rounds to 8 bits of mantissa.
    """
    return 0.9999 if client.get("/info").json()["precision"] == "fp32" else 0.999


@pytest.fixture(
    params=[(base, more) for base in ("cpu-embedded", "gpu-triton") for more in ("", "pull-model", "model-volume")]
)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, Any], ...]:
    """What kubectl builds of each overlay in k8s/, as it is and with each source of models."""
    from manifests import derived, overlay

    base, component = request.param
    return derived(tmp_path / "own", base, component) if component else overlay(base)
