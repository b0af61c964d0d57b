"""OpenVINO in this process, in bf16 on CPUs that have it."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import openvino
from numpy.typing import NDArray

from service.engine_cache import cache_key, open_cached
from service.errors import ModelFileError
from service.graph_states import states_tensor
from service.recipe.golden import Precision
from service.recipe.spec import ModelSpec, graph_file
from service.recipe.tokens import TokenBatch

# What an int8 graph leaves in floating point stays float32.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
_CACHED_BLOB = "model.blob"
# Goes up with every change of what `_read` makes of a graph: it is part of what a cached model is found by.
_REVISION = "3"
# By cache entry, as long as an engine uses them: two mappings of one file would count twice as this process's memory.
_mappings: WeakValueDictionary[Path, NDArray[np.uint8]] = WeakValueDictionary()


class OpenVinoEngine:
    """A model version compiled by OpenVINO. Each thread that runs it gets an infer request of its own."""

    name = "openvino"

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        *,
        precision: Precision = "fp32",
        threads: int = 1,
        streams: int = 1,
        cache: Path | None = None,
    ) -> None:
        """threads: of all streams together.   streams: calls of `run` that compute at the same time; more wait."""
        path = graph_file(folder, spec, "openvino", precision)
        states = states_tensor(path, spec)
        options = {
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            # int8 weights are for the file's size: activations stay as the precision says.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
            # What it prepares for each shape it meets, and keeps: 5000 parts by default, which texts of mixed lengths
            # fill by a megabyte a second. 300 are enough for the shapes that the gateway uses.
            "CPU_RUNTIME_CACHE_CAPACITY": "300",
        }
        options |= {"PERFORMANCE_HINT": "LATENCY"} if streams == 1 else {"NUM_STREAMS": str(streams)}
        try:
            core = openvino.Core()
            self._compiled, self._mapped = open_cached(
                cache,
                cache_key(spec, path.name, ["openvino", openvino.__version__, precision, _REVISION]),
                path,
                build=partial(_build, core, path, states, options),
                open_entry=partial(_open_entry, core, options),
                open_plain=lambda: (core.compile_model(_read(core, path, states), "CPU", options), None),
            )
            self._outputs = {
                True: self._compiled.output(spec.output),
                False: self._compiled.output(spec.raw_output or spec.output),
            }
            self._states = None if states is None else self._compiled.output(states)
            for name in spec.inputs:
                self._compiled.input(name)
        except Exception as error:  # OpenVINO raises plain RuntimeError for every fault
            raise ModelFileError(f"OpenVINO can't load {path}: {error}; export or pull the model again") from error
        self.precision: Precision = precision
        self.device = "CPU"
        self.gives_states = self._states is not None
        self._with_types = "token_type_ids" in spec.inputs
        self._thread = threading.local()
        # The binding prepares itself at the first run of a process, and two threads that do so at once wait for each
        # other for ever: one holds the interpreter and waits for the other's C++ initialisation, which waits for it.
        self.run(TokenBatch(np.full((1, 8), spec.pad_id, dtype=np.int64), np.ones((1, 8), dtype=np.int64)))

    def run(self, batch: TokenBatch, *, unit: bool = True) -> NDArray[np.float32]:
        """[B, D] or [B, T, H], as the graph gives it."""
        return self._run(self._outputs[unit], batch)

    def states(self, batch: TokenBatch) -> NDArray[np.float32]:
        """[B, T, H]."""
        assert self._states is not None
        return self._run(self._states, batch)

    def _run(self, wanted: openvino.ConstOutput, batch: TokenBatch) -> NDArray[np.float32]:
        request = getattr(self._thread, "request", None)
        if request is None:
            request = self._thread.request = self._compiled.create_infer_request()
        feed = {"input_ids": batch.ids, "attention_mask": batch.mask}
        if self._with_types:
            feed["token_type_ids"] = np.zeros_like(batch.ids)
        request.infer(feed, share_inputs=True)
        # The request's own buffer is written over by its next run.
        output: NDArray[np.float32] = np.array(request.get_tensor(wanted).data, dtype=np.float32)
        return output

    def close(self) -> None:
        """Free the compiled model."""
        self._thread = threading.local()
        del self._compiled, self._outputs, self._states, self._mapped


def _read(core: openvino.Core, path: Path, states: str | None) -> openvino.Model:
    """The graph with its token states as an output, and without PyTorch's guard against a row that attends to nothing.

    Every row here has a token, and Select(IsNaN(weights), 0, weights) keeps OpenVINO from computing attention in one
    piece.
    """
    model = core.read_model(str(path))
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Select":
            continue
        condition, weights = node.input_value(0).get_node(), node.input_value(2)
        if condition.get_type_name() == "IsNaN" and condition.input_value(0) == weights:
            for taker in node.output(0).get_target_inputs():
                taker.replace_source_output(weights)
    if states is not None and not any(states in output.get_names() for output in model.outputs):
        model.add_outputs(states)
    model.validate_nodes_and_infer_types()
    return model


def _build(core: openvino.Core, path: Path, states: str | None, options: dict[str, str], entry: Path) -> None:
    blob = core.compile_model(_read(core, path, states), "CPU", options).export_model()
    (entry / _CACHED_BLOB).write_bytes(blob.getbuffer())


def _open_entry(
    core: openvino.Core, options: dict[str, str], entry: Path
) -> tuple[openvino.CompiledModel, NDArray[np.uint8] | None]:
    # Mapped and not read: its weights are used where they lie, by both of a gateway's engines. Private to this process
    # ("c"), since OpenVINO takes only memory that it may write to. It does not keep the mapping: that is the caller's.
    mapped = _mappings.get(entry)
    if mapped is None:
        mapped = _mappings[entry] = np.memmap(entry / _CACHED_BLOB, dtype=np.uint8, mode="c")
    return core.import_model(openvino.Tensor(mapped, shared_memory=True), "CPU", options), mapped
