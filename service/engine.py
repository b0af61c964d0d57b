"""Engine: the one Protocol behind which vectors are computed, and the choice of one."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import SettingsError
from service.recipe.golden import Precision
from service.recipe.pooling import l2_normalize, mean_pool
from service.recipe.spec import ModelSpec
from service.recipe.tokens import TokenBatch
from service.settings import Device, EngineName


class Engine(Protocol):
    """Computes one batch at a time, in whichever thread calls it."""

    name: str
    precision: Precision
    # What the engine itself says it computes on, such as CPUExecutionProvider.
    device: str

    def run(self, batch: TokenBatch, *, unit: bool = True) -> NDArray[np.float32]:
        """[B, D] vectors where the graph pools, of length one with `unit`; [B, T, H] token states where it does not.

        `unit=False` needs a spec with raw_output, or a graph that gives token states.
        """

    def close(self) -> None:
        """Free what the engine holds. Running after this is an error."""


@dataclass(frozen=True)
class Choice:
    """An engine with the precision it would compute in."""

    engine: EngineName
    precision: Precision


def choices(
    engine: Literal["auto", "onnx", "openvino"],
    precision: Literal["auto", "fp32", "bf16"],
    *,
    device: Device = "auto",
    cpu_has_bf16: bool,
    openvino_installed: bool,
    gpu_installed: bool = False,
) -> list[Choice]:
    """What to try, best first; the first that passes the golden proof serves.

    OpenVINO in bf16 runs mE5 about three times as fast as ONNX Runtime in fp32, on CPUs that have bf16; without
    bf16 the two are close, and ONNX Runtime loads faster. Who installed onnxruntime-gpu wants the GPU.
    """
    if engine == "onnx" and precision == "bf16":
        raise SettingsError("ME5_PRECISION=bf16 needs ME5_ENGINE=openvino; the onnx engine computes in fp32")
    if engine == "openvino" and device not in ("auto", "cpu"):
        raise SettingsError(f"ME5_DEVICE={device} needs ME5_ENGINE=onnx; the openvino engine computes on the CPU")
    if engine == "openvino" and not openvino_installed:
        raise SettingsError("ME5_ENGINE=openvino, but openvino is not installed; pip install -e '.[openvino]'")
    if precision == "bf16" and not (openvino_installed and device in ("auto", "cpu")):
        raise SettingsError("ME5_PRECISION=bf16 needs openvino on the CPU; pip install -e '.[openvino]'")
    found: list[Choice] = []
    openvino = openvino_installed and engine != "onnx" and device in ("auto", "cpu")
    if engine == "auto" and device == "auto" and gpu_installed and precision != "bf16":
        openvino = False
    # bf16 on a CPU without it is emulated, slow, and no closer to the model: only where it was asked for by name.
    if openvino and precision != "fp32" and (cpu_has_bf16 or precision == "bf16"):
        found.append(Choice("openvino", "bf16"))
    if engine == "openvino" and precision != "bf16":
        found.append(Choice("openvino", "fp32"))
    if engine != "openvino" and precision != "bf16":
        found.append(Choice("onnx", "fp32"))
    return found


def open_engine(
    folder: Path,
    spec: ModelSpec,
    *,
    engine: EngineName = "onnx",
    precision: Precision = "fp32",
    device: Device = "auto",
    threads: int = 0,
) -> Engine:
    """Load a model version into an engine. Raises ModelFileError where the graph can't be read or is not the spec's."""
    threads = threads or usable_cores()
    # Imported here, so that neither engine's package is needed by who uses the other.
    if engine == "openvino":
        from service.engine_openvino import OpenVinoEngine

        return OpenVinoEngine(folder, spec, precision=precision, threads=threads)
    from service.engine_onnx import OnnxEngine

    return OnnxEngine(folder, spec, device=device, threads=threads)


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
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    flags: Iterable[str] = next((line.split() for line in lines if line.startswith("flags")), ())
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may use: its CPU affinity, or less where the cgroup's quota is smaller."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
