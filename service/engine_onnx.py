"""ONNX Runtime in this process: CPU, CUDA or TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.engine_cache import cache_key, open_cached
from service.errors import ModelFileError, SettingsError
from service.graph_states import states_tensor, with_output
from service.recipe.golden import Precision
from service.recipe.spec import ModelSpec, graph_file
from service.recipe.tokens import TokenBatch
from service.settings import Device

_PROVIDERS: dict[str, list[str]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}

# Goes up with every change of what is made of a graph: it is part of what a cached model is found by.
_REVISION = "2"
# In a cache entry. The weights lie beside the graph, where both of a gateway's sessions map the same pages.
_CACHED_GRAPH, _CACHED_WEIGHTS = "model.onnx", "weights.bin"


def providers_for(device: Device, available: list[str]) -> list[str]:
    """Execution providers in the order to try. "auto" takes the best there are; a named device must be there."""
    if device == "auto":
        return [name for name in _PROVIDERS["tensorrt"] if name in available]
    wanted = _PROVIDERS[device]
    if wanted[0] not in available:
        raise SettingsError(
            f"ME5_DEVICE={device} needs ONNX Runtime's {wanted[0]}, installed are {', '.join(available)}; "
            "pip install -e '.[gpu]' in place of '.[cpu]', or set ME5_DEVICE=auto"
        )
    return [name for name in wanted if name in available]


class OnnxEngine:
    """A model version in an ONNX Runtime session, which any number of threads may run at the same time."""

    name = "onnx"

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        *,
        precision: Precision = "fp32",
        device: Device = "auto",
        threads: int = 1,
        streams: int = 1,
        cache: Path | None = None,
    ) -> None:
        """threads: of all streams together.   streams: calls of `run` that are expected at the same time."""
        path = graph_file(folder, spec, "onnx", precision)
        # int8 graphs are made of the CPU's own operators.
        providers = providers_for("cpu" if precision == "int8" else device, onnxruntime.get_available_providers())
        self._states = states_tensor(path, spec)
        # Each caller computes in its own thread, and in this many more but one of the session's.
        options = partial(_options, max(1, threads // streams))
        try:
            if providers != _PROVIDERS["cpu"]:
                self._session = _open(_graph(path, spec, self._states), _beside(path, options()), providers)
            else:
                self._session = open_cached(
                    cache,
                    cache_key(spec, path.name, ["onnxruntime", onnxruntime.__version__, _REVISION]),
                    path,
                    build=partial(_build, partial(_graph, path, spec, self._states), partial(_beside, path), options),
                    open_entry=partial(_open_entry, options),
                    open_plain=lambda: _open(_graph(path, spec, self._states), _beside(path, options())),
                )
        except Exception as error:  # ONNX Runtime raises a dozen classes here, none of them public
            raise ModelFileError(f"ONNX Runtime can't load {path}: {error}; export or pull the model again") from error
        self.precision: Precision = precision
        self.device: str = self._session.get_providers()[0]
        if device != "auto" and self.device != _PROVIDERS[device][0]:
            # ONNX Runtime falls back in silence where the driver or a library is missing.
            raise SettingsError(
                f"ME5_DEVICE={device}, but ONNX Runtime could only open {self.device}; check the driver and the CUDA "
                "or TensorRT libraries, or set ME5_DEVICE=auto"
            )
        self.gives_states = self._states is not None
        self._with_types = "token_type_ids" in spec.inputs
        self._names = {True: spec.output, False: spec.raw_output or spec.output}
        _check_names(
            path,
            spec,
            [item.name for item in self._session.get_inputs()],
            [item.name for item in self._session.get_outputs()],
        )

    def run(self, batch: TokenBatch, *, unit: bool = True) -> NDArray[np.float32]:
        """[B, D] or [B, T, H], as the graph gives it."""
        return self._run(self._names[unit], batch)

    def states(self, batch: TokenBatch) -> NDArray[np.float32]:
        """[B, T, H]."""
        assert self._states is not None
        return self._run(self._states, batch)

    def _run(self, output: str, batch: TokenBatch) -> NDArray[np.float32]:
        feed = {"input_ids": batch.ids, "attention_mask": batch.mask}
        if self._with_types:
            feed["token_type_ids"] = np.zeros_like(batch.ids)
        found: NDArray[np.float32] = self._session.run([output], feed)[0]
        return found

    def close(self) -> None:
        """Free the session."""
        del self._session


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Idle threads sleep instead of spinning: the event loop and the tokenizer share these cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A plan of the memory is kept for every shape of a batch ever seen. Without them memory stays flat over mixed
    # lengths (94 MB in place of a growing 126, me5_nano), at no cost in time.
    options.enable_mem_pattern = False
    return options


def _graph(path: Path, spec: ModelSpec, states: str | None) -> bytes | Path:
    """The graph, with the token states as an output where they are none yet."""
    return path if states is None or states == spec.output else with_output(path.read_bytes(), states)


def _beside(path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.SessionOptions:
    """Options for a graph that is given as bytes: where the files are that hold its weights."""
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return options


def _open(
    graph: bytes | Path, options: onnxruntime.SessionOptions, providers: Sequence[str] = _PROVIDERS["cpu"]
) -> onnxruntime.InferenceSession:
    model = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(model, options, providers=list(providers))


def _build(
    graph: Callable[[], bytes | Path],
    beside: Callable[[onnxruntime.SessionOptions], onnxruntime.SessionOptions],
    options: partial[onnxruntime.SessionOptions],
    entry: Path,
) -> None:
    writing = beside(options())
    writing.optimized_model_filepath = str(entry / _CACHED_GRAPH)
    writing.add_session_config_entry("session.optimized_model_external_initializers_file_name", _CACHED_WEIGHTS)
    writing.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    # Not prepacked: in a file, matrices laid out for the CPU are not aligned as its instructions want them, and some
    # shapes crash.
    _open(graph(), writing)


def _open_entry(options: partial[onnxruntime.SessionOptions], entry: Path) -> onnxruntime.InferenceSession:
    reading = options()
    reading.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _open(entry / _CACHED_GRAPH, reading)


def _check_names(path: Path, spec: ModelSpec, inputs: list[str], outputs: list[str]) -> None:
    wanted = {spec.output, spec.raw_output or spec.output}
    if sorted(inputs) != sorted(spec.inputs) or not wanted <= set(outputs):
        raise ModelFileError(
            f"{path} takes {', '.join(inputs)} and gives {', '.join(outputs)}; spec.json says "
            f"{', '.join(spec.inputs)} and {', '.join(sorted(wanted))}; export or pull the model again"
        )
