"""OpenVINO in this process, in bf16 on CPUs that have it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from service.errors import ModelFileError
from service.recipe.golden import Precision
from service.recipe.spec import MODEL_FILE, ModelSpec
from service.recipe.tokens import TokenBatch

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine:
    """A model version compiled by OpenVINO. Each thread that runs it gets an infer request of its own."""

    name = "openvino"

    def __init__(self, folder: Path, spec: ModelSpec, *, precision: Precision = "fp32", threads: int = 1) -> None:
        path = folder / MODEL_FILE
        try:
            core = openvino.Core()
            self._compiled = core.compile_model(
                str(path),
                "CPU",
                {
                    "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_NUM_THREADS": str(threads),
                    "INFERENCE_PRECISION_HINT": _HINTS[precision],
                    # int8 weights are for the file's size: activations stay as the precision says.
                    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
                },
            )
            self._outputs = {
                True: self._compiled.output(spec.output),
                False: self._compiled.output(spec.raw_output or spec.output),
            }
            for name in spec.inputs:
                self._compiled.input(name)
        except Exception as error:  # OpenVINO raises plain RuntimeError for every fault
            raise ModelFileError(f"OpenVINO can't load {path}: {error}; export or pull the model again") from error
        self.precision: Precision = precision
        self.device = "CPU"
        self._with_types = "token_type_ids" in spec.inputs
        self._thread = threading.local()

    def run(self, batch: TokenBatch, *, unit: bool = True) -> NDArray[np.float32]:
        """[B, D] or [B, T, H], as the graph gives it."""
        request = getattr(self._thread, "request", None)
        if request is None:
            request = self._thread.request = self._compiled.create_infer_request()
        feed = {"input_ids": batch.ids, "attention_mask": batch.mask}
        if self._with_types:
            feed["token_type_ids"] = np.zeros_like(batch.ids)
        request.infer(feed, share_inputs=True)
        # The request's own buffer is written over by its next run.
        output: NDArray[np.float32] = np.array(request.get_tensor(self._outputs[unit]).data, dtype=np.float32)
        return output

    def close(self) -> None:
        """Free the compiled model."""
        del self._compiled, self._outputs
        self._thread = threading.local()
