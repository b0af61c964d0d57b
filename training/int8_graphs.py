"""The graphs that compute in int8, one writer for each engine and method.

static, for ONNX Runtime: the fused graph (fused_graph.py), its scales found on texts (calibration.py).
dynamic, for ONNX Runtime: its own quantize_dynamic on the plain graph (plain_graph.py).
static, for OpenVINO: the plain graph, quantised by nncf with SmoothQuant.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from service.engine import vectors_of
from service.recipe.spec import MODEL_FILE, ModelSpec
from service.recipe.tokens import TokenBatch
from training.calibration import input_scales, observe
from training.collection import Vectors
from training.errors import ExportError
from training.fused_graph import STATIC_PRODUCT, Shape, activation_names, fused_graph
from training.graph_run import feed_of, graph_run
from training.graph_weights import Encoder, read_encoder
from training.plain_graph import plain_graph
from training.quantize import quantize_weights, widening

# The fused graph in float32 has to be the same function as the graph it was read from.
FUSED_ERROR_MAX = 1e-4
# Rounding alone: with this number of heads no other has to be tried.
FUSED_ERROR_SURE = 1e-5
HEAD_WIDTHS = (64, 32, 128, 16, 8)
# nncf gets so many of the texts at most, each alone.
FEEDS_MAX = 128
# How far SmoothQuant moves large activations into the weights. nncf's own 0.95 is too far for BERT's layers: mean
# cosine to float32 over 240 sentences in eight languages 0.9962, worst 0.987; with 0.7 0.9976, 0.993; with 0.6 0.9967.
SMOOTHING_ALPHA = 0.7
# Products alone: of ONNX's own Attention operator quantize_dynamic makes a node that can't be loaded.
DYNAMIC_OPERATORS = ["MatMul", "Gemm"]


def write_onnx_int8(folder: Path, spec: ModelSpec, batches: list[TokenBatch], path: Path) -> None:
    """The fused graph for ONNX Runtime, its scales found on the batches."""
    encoder = read_encoder(onnx.load(folder / MODEL_FILE))
    with tempfile.TemporaryDirectory(prefix="me5-int8-") as scratch:
        shape = find_shape(encoder, folder, spec, batches[0], Path(scratch))
        names = activation_names(encoder)
        run = _session(fused_graph(encoder, shape, spec, show=True), spec, Path(scratch), names)
        seen = observe(lambda batch: dict(zip(names, run(batch), strict=True)), batches)
    onnx.save(fused_graph(encoder, shape, spec, input_scales(encoder, seen)), path)


def write_onnx_dynamic(folder: Path, spec: ModelSpec, batches: list[TokenBatch], path: Path) -> None:
    """ONNX Runtime's quantize_dynamic: weights as int8 by channel, activations as each batch has them."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="me5-int8-") as scratch:
        model = _plain(folder, spec, batches, Path(scratch))
        plain = Path(scratch) / "plain.onnx"
        onnx.save(model, plain, save_as_external_data=True, location="plain.bin")
        quantize_dynamic(
            plain,
            path,
            op_types_to_quantize=DYNAMIC_OPERATORS,
            nodes_to_exclude=[widening("words.rows")],
            per_channel=True,
            # 7 bits for weights, see fused_graph.WEIGHT_MAX.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            # Graphs whose shapes were not inferred: what is not known to be something else is float32.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )


def _plain(folder: Path, spec: ModelSpec, batches: list[TokenBatch], scratch: Path) -> onnx.ModelProto:
    """The plain graph of a version, its token table stored as int8."""
    encoder = read_encoder(onnx.load(folder / MODEL_FILE))
    model = plain_graph(encoder, find_shape(encoder, folder, spec, batches[0], scratch), spec)
    quantize_weights(model, matrices=False)
    return model


def find_shape(encoder: Encoder, folder: Path, spec: ModelSpec, batch: TokenBatch, scratch: Path) -> Shape:
    """The number of heads with which the fused float32 graph gives what the version's own graph gives."""
    wanted = graph_run(folder / MODEL_FILE, spec)(batch)
    errors: dict[int, float] = {}
    for width in HEAD_WIDTHS:
        if encoder.width % width == 0:
            shape = Shape(encoder.width // width, spec.pad_id)
            found = vectors_of(
                _session(fused_graph(encoder, shape, spec), spec, scratch, [spec.output])(batch)[0], batch
            )
            errors[shape.heads] = float(np.abs(found - wanted).max())
            if errors[shape.heads] <= FUSED_ERROR_SURE:
                break
    best = min(errors, key=lambda heads: errors[heads])
    if not errors[best] <= FUSED_ERROR_MAX:
        raise ExportError(
            f"the graph was not understood: rebuilt with {best} heads its vectors are off by {errors[best]:.1e}, "
            f"allowed is {FUSED_ERROR_MAX}; export or pull the plain graph"
        )
    return Shape(best, spec.pad_id)


def write_openvino_int8(folder: Path, spec: ModelSpec, batches: list[TokenBatch], path: Path) -> None:
    """nncf's static quantisation with SmoothQuant of the version's own graph; token tables stay as int8 tables."""
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters

    with tempfile.TemporaryDirectory(prefix="me5-int8-") as scratch:
        model = _plain(folder, spec, batches, Path(scratch))
    # Each alone and without padding, which nncf would count as text.
    rows = [_row(batch, row) for batch in batches for row in range(batch.rows)]
    feeds = [feed_of(spec.inputs, row) for row in rows[:: -(-len(rows) // FEEDS_MAX)]]
    quantised = nncf.quantize(
        model,
        nncf.Dataset(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(feeds),
        fast_bias_correction=True,
        # A sum over a text's tokens grows with its length: one scale for all would round short ones away. One product a
        # text costs nothing in float32.
        # And the token vectors are what everything else is made of.
        ignored_scope=nncf.IgnoredScope(names=[STATIC_PRODUCT, widening("words.rows")], validate=False),
        advanced_parameters=AdvancedQuantizationParameters(
            smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=SMOOTHING_ALPHA)
        ),
    )
    onnx.save(quantised, path)


def _session(
    model: onnx.ModelProto, spec: ModelSpec, scratch: Path, names: list[str]
) -> Callable[[TokenBatch], list[Vectors]]:
    """A graph of any size as a function of a batch: its weights lie in a file, since protobuf ends at 2 GiB."""
    import onnxruntime

    path = scratch / "fused.onnx"
    path.unlink(missing_ok=True)
    (scratch / "fused.bin").unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location="fused.bin")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    return lambda batch: session.run(names, feed_of(spec.inputs, batch))


def _row(batch: TokenBatch, row: int) -> TokenBatch:
    size = int(batch.mask[row].sum())
    return TokenBatch(batch.ids[row : row + 1, :size], batch.mask[row : row + 1, :size])
