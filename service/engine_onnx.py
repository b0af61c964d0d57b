"""ONNX Runtime in this process: CPU, CUDA or TensorRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.errors import ModelFileError, SettingsError
from service.recipe.golden import Precision
from service.recipe.spec import MODEL_FILE, ModelSpec
from service.recipe.tokens import TokenBatch
from service.settings import Device

_PROVIDERS: dict[str, list[str]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}


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
    """A model version in an ONNX Runtime session. Threads may run it at the same time."""

    name = "onnx"
    precision: Precision = "fp32"

    def __init__(self, folder: Path, spec: ModelSpec, *, device: Device = "auto", threads: int = 1) -> None:
        path = folder / MODEL_FILE
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Idle threads sleep instead of spinning: the event loop and the tokenizer share these cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = providers_for(device, onnxruntime.get_available_providers())
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime raises a dozen classes here, none of them public
            raise ModelFileError(f"ONNX Runtime can't load {path}: {error}; export or pull the model again") from error
        self.device: str = self._session.get_providers()[0]
        if device != "auto" and self.device != _PROVIDERS[device][0]:
            # ONNX Runtime falls back in silence where the driver or a library is missing.
            raise SettingsError(
                f"ME5_DEVICE={device}, but ONNX Runtime could only open {self.device}; check the driver and the CUDA "
                "or TensorRT libraries, or set ME5_DEVICE=auto"
            )
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
        feed = {"input_ids": batch.ids, "attention_mask": batch.mask}
        if self._with_types:
            feed["token_type_ids"] = np.zeros_like(batch.ids)
        output: NDArray[np.float32] = self._session.run([self._names[unit]], feed)[0]
        return output

    def close(self) -> None:
        """Free the session."""
        del self._session


def _check_names(path: Path, spec: ModelSpec, inputs: list[str], outputs: list[str]) -> None:
    wanted = {spec.output, spec.raw_output or spec.output}
    if sorted(inputs) != sorted(spec.inputs) or not wanted <= set(outputs):
        raise ModelFileError(
            f"{path} takes {', '.join(inputs)} and gives {', '.join(outputs)}; spec.json says "
            f"{', '.join(spec.inputs)} and {', '.join(sorted(wanted))}; export or pull the model again"
        )
