"""A torch model becomes an ONNX file: in float32, or in float16 for GPUs.

float16 is traced, not converted: the encoder's weights and products are float16, each LayerNorm and the pooling compute
in float32, and the constant that masks padding is the one that float16 has. The casts are in the file, so an engine
that takes precision from the file (TensorRT's strongly typed networks) can't compute them otherwise.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from training.sentence_model import SentenceModel

# 18 is the newest that every server at hand reads: Triton's stock backend ships an ONNX Runtime of 2024.
OPSET = 18
# The first with an Attention operator: one node a layer in place of a dozen. Not for int8: ONNX Runtime's
# quantize_dynamic makes an invalid node of it.
ATTENTION_OPSET = 23
# Protocol buffers end at 2 GiB; above, weights go to a file beside the graph.
EXTERNAL_ABOVE_BYTES = 2_000_000_000


def trace(model: SentenceModel, pad_id: int, path: Path, *, external: bool, opset: int = OPSET) -> None:
    """Write the graph of the model in the precision that its weights have.

    input_ids, attention_mask: int64[batch, sequence].   sentence_embedding: float32[batch, D], of length one.
    sentence_mean: the same before it is scaled.
    """
    # Two rows and some padding: an example of one row, or without padding, is traced as if it were always so.
    ids = torch.full((2, 8), pad_id, dtype=torch.int64)
    ids[0, :] = ids[1, :5] = 0
    axes = {0: "batch", 1: "sequence"}
    with quiet_exporter():
        program = torch.onnx.export(
            model.eval(),
            (ids, (ids != pad_id).long()),
            dynamo=True,
            opset_version=opset,
            input_names=["input_ids", "attention_mask"],
            # "embedding" as an output's name collides with a node's and makes an invalid file.
            output_names=["sentence_embedding", "sentence_mean"],
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            verbose=False,
        )
    assert program is not None
    _forget_origin(program)
    program.save(path, external_data=external)


def _forget_origin(program: torch.onnx.ONNXProgram) -> None:
    """Take out the exporter's notes on every node: stack traces, which name files of the machine that exports."""
    graph = program.model.graph
    graph.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


def in_float16(model: SentenceModel) -> SentenceModel:
    """A copy in float16 with LayerNorms in float32; its pooling is in float32 as it always is."""
    encoder = copy.deepcopy(model.encoder).half()
    for name, module in list(encoder.named_modules()):
        if isinstance(module, torch.nn.LayerNorm):
            parent, _, own = name.rpartition(".")
            setattr(encoder.get_submodule(parent), own, _Float32Norm(module))
    lexical = copy.deepcopy(model.lexical)
    if lexical is not None:
        # To TensorRT a whole number of 8 bits is a rounded one, with a scale.
        lexical.low, lexical.high = lexical.low.half(), lexical.high.half()
    return SentenceModel(encoder, copy.deepcopy(model.static), lexical).eval()


class _Float32Norm(torch.nn.Module):
    """A LayerNorm between two casts: squares of large float16 activations would leave its range."""

    def __init__(self, norm: torch.nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """states: [B, T, H], any precision; returned in the same."""
        return self.norm(states.float()).to(states.dtype)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says about packages and axis names; none of it is about this graph."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
