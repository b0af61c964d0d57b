"""From settings and a model version to an engine host: what to try, how to configure it, and its proof."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.batching import Limits
from service.engine import (
    Choice,
    EngineConfig,
    EngineHost,
    choices,
    cpu_has_bf16,
    cpu_has_vnni,
    gpu_installed,
    openvino_installed,
    usable_cores,
)
from service.errors import SettingsError
from service.model import Model
from service.recipe.golden import prove
from service.recipe.prompts import format_text
from service.recipe.spec import ModelSpec
from service.recipe.tokens import tokenize
from service.settings import Settings
from service.shapes import shapes_of

# A core computes a batch of this size as fast as a larger one, and a query behind it waits less; a GPU needs more.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 384, 16384
# More streams than this would read the weights more often than the memory bus is quick.
STREAMS_MAX = 8


def candidates_for(settings: Settings, spec: ModelSpec) -> list[Choice]:
    """What to try on this machine, fastest first."""
    assert settings.engine != "triton"
    return choices(
        settings.engine,
        settings.precision,
        device=settings.device,
        int8_engines=spec.int8_engines,
        cpu_has_bf16=cpu_has_bf16(),
        cpu_has_vnni=cpu_has_vnni(),
        openvino_installed=openvino_installed(),
        gpu_installed=gpu_installed(),
    )


def config_of(settings: Settings, folder: Path, choice: Choice) -> EngineConfig:
    """How the engines of a choice are opened on this machine: one stream a core, and one in all on a GPU."""
    threads = settings.threads or usable_cores()
    on_gpu = settings.device not in ("auto", "cpu") or (settings.device == "auto" and gpu_installed())
    return EngineConfig(
        folder=str(folder),
        engine=choice.engine,
        precision=choice.precision,
        device=settings.device,
        threads=threads,
        streams=settings.streams or (1 if on_gpu else min(threads, STREAMS_MAX)),
        cache=None if settings.cache_dir is None else str(settings.cache_dir),
    )


def limits_of(settings: Settings, spec: ModelSpec, host: EngineHost) -> Limits:
    """The limits of a batch on this host."""
    default = CPU_BATCH_TOKENS if host.device.startswith("CPU") else GPU_BATCH_TOKENS
    return Limits(settings.max_batch_tokens or default, host.streams, shapes_of(host.name, spec.max_tokens))


def check_triton(settings: Settings, model: Model) -> None:
    """Raises SettingsError where Triton could never be asked with these settings."""
    if importlib.util.find_spec("tritonclient") is None:
        raise SettingsError("ME5_ENGINE=triton, but tritonclient is not installed; pip install -e '.[triton]'")
    if settings.device != "auto":
        raise SettingsError(f"ME5_DEVICE={settings.device}: Triton decides where it computes; leave it out")
    if not model.version.isdecimal():
        raise SettingsError(
            f"ME5_MODEL={settings.model} is version {model.version!r}, and Triton knows versions by number; "
            "set it to NAME or NAME/VERSION of ME5_MODEL_REPO"
        )
    from service.engine_triton import targets_of

    targets_of(settings.triton_urls)


def golden_rows(model: Model) -> list[NDArray[np.int32]]:
    """The golden texts as tokens, in order."""
    spec, items = model.spec, model.golden.items
    prompted = [format_text(item.text, spec.prompts, item.role, instruction=item.instruction) for item in items]
    return [row.ids for row in tokenize(model.tokenizer, prompted, spec.max_tokens)]


async def prove_host(host: EngineHost, model: Model) -> float:
    """Hold a host to the golden vectors, one text a batch. Returns the smallest cosine, raises GoldenMismatch."""
    found = [(await host.run([row], lane="interactive"))[0] for row in golden_rows(model)]
    return prove(model.golden, found, host.precision)
