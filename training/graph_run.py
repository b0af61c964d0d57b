"""An ONNX file as a function of a batch, by ONNX Runtime on the CPU: what the parity gate runs."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.engine import vectors_of
from service.recipe.spec import ModelSpec
from service.recipe.tokens import TokenBatch
from training.collection import Run
from training.errors import ExportError

# What a graph may give vectors by, beside the name in the spec: optimum's exporter has names of its own.
OUTPUTS = ("sentence_embedding", "last_hidden_state")


def feed_of(names: list[str] | tuple[str, ...], batch: TokenBatch) -> dict[str, NDArray[np.int64]]:
    """The inputs by their names; every token is of type 0."""
    feed = {"input_ids": batch.ids, "attention_mask": batch.mask, "token_type_ids": np.zeros_like(batch.ids)}
    return {name: feed[name] for name in names}


def graph_run(path: Path, spec: ModelSpec | None = None, *, threads: int = 0) -> Run:
    """Batch → vectors float32[B, D] of length one; token states are pooled here.

    spec: says which output; without it one of OUTPUTS.   Raises ExportError where the file can't be opened.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen classes here, none of them public
        raise ExportError(f"ONNX Runtime can't open {path}: {error}") from error
    inputs = [item.name for item in session.get_inputs()]
    outputs = [item.name for item in session.get_outputs()]
    wanted = [spec.output] if spec else [name for name in OUTPUTS if name in outputs]
    if not wanted or wanted[0] not in outputs or not set(inputs) <= {"input_ids", "attention_mask", "token_type_ids"}:
        raise ExportError(
            f"{path} takes {', '.join(inputs)} and gives {', '.join(outputs)}; wanted are input_ids, attention_mask, "
            f"perhaps token_type_ids, and {' or '.join(wanted or OUTPUTS)}"
        )

    def run(batch: TokenBatch) -> NDArray[np.float32]:
        output: NDArray[np.float32] = session.run([wanted[0]], feed_of(inputs, batch))[0]
        return vectors_of(output, batch)

    return run
