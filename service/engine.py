"""Engine and EngineHost: the two Protocols behind which vectors are computed, and the choice of an engine."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.batching import Lane
from service.errors import SettingsError
from service.processor import cpu_flags
from service.recipe.golden import Precision
from service.recipe.pooling import l2_normalize, mean_pool
from service.recipe.spec import ModelSpec
from service.recipe.tokens import TokenBatch

if TYPE_CHECKING:
    # For its types alone: the engine's process reads no settings.
    from service.settings import Device, EngineName


class Engine(Protocol):
    """Computes a batch in whichever thread calls it; several threads may call at the same time."""

    name: str
    precision: Precision
    # What the engine itself says it computes on, such as CPUExecutionProvider.
    device: str
    # Whether `states` can be asked.
    gives_states: bool

    def run(self, batch: TokenBatch, *, unit: bool = True) -> NDArray[np.float32]:
        """[B, D] vectors where the graph pools, of length one with `unit`; [B, T, H] token states where it does not.

        `unit=False` needs a spec with raw_output, or a graph that gives token states.
        """

    def states(self, batch: TokenBatch) -> NDArray[np.float32]:
        """[B, T, H] token states, before pooling; those of padding are there too and mean nothing."""

    def close(self) -> None:
        """Free what the engine holds. Running after this is an error."""


class EngineHost(Protocol):
    """Where engines live, asked from the event loop: a process of their own, or another machine.

    name, precision, device, gives_states: as the engine's own.   streams: batches it computes at the same time.
    remote: whether it is elsewhere: a run may be cancelled, and it judges by itself who of its engines fails.
    lost: resolves with the reason once nothing can be computed here any more.
    """

    name: str
    precision: Precision
    device: str
    gives_states: bool
    streams: int
    remote: bool
    lost: asyncio.Future[str]

    async def run(
        self,
        rows: Sequence[NDArray[np.int32]],
        *,
        lane: Lane,
        unit: bool = True,
        wide: bool = False,
        deadline: float | None = None,
        traceparent: str | None = None,
    ) -> NDArray[np.float32]:
        """float32[B, D] for B rows of ids; of length one with `unit`. wide: all cores may work on this one batch.

        deadline: when the last one who waits for it gives up, on the monotonic clock.   traceparent: the batch's place
        in a trace, as W3C words it. A host that computes on another machine passes both on.

        At most `streams` batches a lane run at a time. Raises EngineFailed where the engine failed on the batch, and
        EngineLost where there is none any more. Cancelling leaves a host unusable unless it is remote: `kill` it.
        """

    async def states(
        self,
        rows: Sequence[NDArray[np.int32]],
        *,
        lane: Lane,
        deadline: float | None = None,
        traceparent: str | None = None,
    ) -> NDArray[np.float32]:
        """float32[tokens, H], the token states of B rows of ids, one row's after another's; else as `run`."""

    def kill(self, reason: str) -> None:
        """End it at once, whatever it does; batches that run there raise EngineLost."""

    async def close(self) -> None:
        """End it and wait for that."""


@dataclass(frozen=True)
class Choice:
    """An engine with the precision it would compute in."""

    engine: EngineName
    precision: Precision


class Widths(NamedTuple):
    """How many numbers an engine gives.   vector: D, for a text.   state: H, for a token."""

    vector: int
    state: int


@dataclass(frozen=True)
class EngineConfig:
    """All it takes to open a version's engines: one with every thread, and one whose streams have their share each.

    threads: of all streams together.   cache: a folder for optimised models, or None.
    """

    folder: str
    engine: EngineName
    precision: Precision
    device: Device
    threads: int
    streams: int
    cache: str | None = None


def choices(
    engine: Literal["auto", "onnx", "openvino"],
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"],
    *,
    device: Device = "auto",
    int8_engines: Collection[EngineName] = (),
    cpu_has_bf16: bool,
    cpu_has_vnni: bool = False,
    openvino_installed: bool,
    gpu_installed: bool = False,
) -> list[Choice]:
    """What to try, fastest first; the first that passes the golden proof serves.

    int8_engines: those for which the version has an int8 graph.   mE5-small's shape, texts a second of 24 tokens on two
    cores with AVX2 alone: ONNX Runtime int8 230, OpenVINO fp32 150, OpenVINO int8 and ONNX Runtime fp32 130. With VNNI
    and bf16: OpenVINO int8 500, bf16 375, fp32 235. Who installed onnxruntime-gpu wants the GPU.
    """
    on_cpu = device in ("auto", "cpu")
    if engine == "onnx" and precision == "bf16":
        raise SettingsError("ME5_PRECISION=bf16 needs ME5_ENGINE=openvino; the onnx engine computes in fp32 or int8")
    if engine == "openvino" and not on_cpu:
        raise SettingsError(f"ME5_DEVICE={device} needs ME5_ENGINE=onnx; the openvino engine computes on the CPU")
    if engine == "openvino" and not openvino_installed:
        raise SettingsError("ME5_ENGINE=openvino, but openvino is not installed; pip install -e '.[openvino]'")
    if precision == "bf16" and not (openvino_installed and on_cpu):
        raise SettingsError("ME5_PRECISION=bf16 needs openvino on the CPU; pip install -e '.[openvino]'")
    if precision == "fp16":
        raise SettingsError("ME5_PRECISION=fp16 says what Triton computes in, with ME5_ENGINE=triton; leave it out")
    if precision == "int8" and not on_cpu:
        raise SettingsError(f"ME5_PRECISION=int8 computes on the CPU; leave ME5_DEVICE={device} out")
    usable: set[EngineName] = {"onnx"} if not (openvino_installed and on_cpu) else {"onnx", "openvino"}
    if engine != "auto":
        usable &= {engine}
    if precision == "int8" and not usable & set(int8_engines):
        raise SettingsError(
            f"ME5_PRECISION=int8, but this version has no int8 graph for {' or '.join(sorted(usable))}; "
            "make one: python -m training quantize MODEL"
        )
    if engine == "auto" and device == "auto" and gpu_installed and precision in ("auto", "fp32"):
        return [Choice("onnx", "fp32")]
    int8: list[EngineName] = ["openvino", "onnx"] if cpu_has_vnni else ["onnx", "openvino"]
    ranked = [
        *(Choice(name, "int8") for name in int8 if name in int8_engines and on_cpu),
        # bf16 on a CPU without it is emulated, slow, and no closer to the model: only where asked for by name.
        *([Choice("openvino", "bf16")] if cpu_has_bf16 or precision == "bf16" else []),
        Choice("openvino", "fp32"),
        Choice("onnx", "fp32"),
    ]
    return [item for item in ranked if item.engine in usable and precision in ("auto", item.precision)]


def open_engine(
    folder: Path,
    spec: ModelSpec,
    *,
    engine: EngineName = "onnx",
    precision: Precision = "fp32",
    device: Device = "auto",
    threads: int = 0,
    streams: int = 1,
    cache: Path | None = None,
) -> Engine:
    """Load a model version into an engine. Raises ModelFileError where the graph can't be read or is not the spec's.

    threads: of all streams together, 0 for the cores there are.   streams: batches it is to compute at the same time.
    cache: a folder for the optimised model.
    """
    threads = threads or usable_cores()
    # Imported here, so that neither engine's package is needed by who uses the other.
    if engine == "openvino":
        from service.engine_openvino import OpenVinoEngine

        return OpenVinoEngine(folder, spec, precision=precision, threads=threads, streams=streams, cache=cache)
    from service.engine_onnx import OnnxEngine

    return OnnxEngine(folder, spec, precision=precision, device=device, threads=threads, streams=streams, cache=cache)


def vectors_of(output: NDArray[np.float32], batch: TokenBatch, *, unit: bool = True) -> NDArray[np.float32]:
    """Vectors [B, D] from what an engine gave for the same `unit`: pooled here where the graph does not pool."""
    if output.ndim == 3:
        output = mean_pool(output, batch.mask.astype(np.float32))
        return l2_normalize(output) if unit else output
    return output


def openvino_installed() -> bool:
    """Whether the openvino package can be imported."""
    return importlib.util.find_spec("openvino") is not None


def gpu_installed() -> bool:
    """Whether ONNX Runtime is the build for GPUs."""
    try:
        importlib.metadata.distribution("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bf16 by itself (AVX-512 BF16 or AMX); False where that can't be read."""
    return bool({"avx512_bf16", "amx_bf16"} & cpu_flags(cpuinfo))


def cpu_has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor sums products of bytes by itself (VNNI or AMX); False where that can't be read."""
    return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & cpu_flags(cpuinfo))


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may use: its CPU affinity, or less where the cgroup's quota is smaller."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
