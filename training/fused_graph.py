"""An encoder written as the graph that ONNX Runtime computes fastest, in float32 or in static int8.

Attention is one operator and so is each residual sum with its LayerNorm; exporters' graphs can't be fused to this by
ONNX Runtime's own optimiser. In int8 every matrix product takes bytes:

    x → Mul(1 / smoothing) → QuantizeLinear(scale, zero: constants) → MatMulIntegerToFloat or QAttention → float32

The scales of the activations are constants, found on texts beforehand (calibration.py). ONNX Runtime's own dynamic
quantisation takes them from the batch at hand, and then a text's vector depends on the texts it was batched with.
Softmax, LayerNorm, GELU, pooling and every sum stay float32. The token table is stored as int8, see quantize.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.recipe.spec import ModelSpec
from training.graph_weights import Encoder, Floats, Layer, Lexical, Linear, Norm, Static
from training.lexical_path import LOW_ROWS
from training.quantize import DIRECTIONS, GROUP, narrowed, quantize_symmetric

OPSET = 18
MICROSOFT = "com.microsoft"
# AVX2 adds two products of bytes in 16 bits: 2 × 255 × 63 fits, 2 × 255 × 127 would saturate without a word.
WEIGHT_MAX = 63
# What padding adds to a score: enough for a weight of zero, and still a number after sums.
MASKED = -10000.0
# The matrix of the static path, which no int8 graph rounds.
STATIC_PRODUCT = "static.product"


@dataclass(frozen=True)
class InputScale:
    """How one activation becomes bytes: u8 = round(x / smoothing / scale) + zero, cut to 0..255.

    smoothing: [N], what each channel is divided by, with the weights' rows multiplied by it in return.
    """

    smoothing: Floats
    scale: float
    zero: int


@dataclass(frozen=True)
class Shape:
    """What a graph doesn't say about its encoder."""

    heads: int
    pad_id: int


def fused_graph(
    encoder: Encoder,
    shape: Shape,
    spec: ModelSpec,
    scales: Mapping[str, InputScale] | None = None,
    *,
    show: bool = False,
) -> onnx.ModelProto:
    """The whole graph: inputs and outputs as spec.json has them.

    scales: by activation name (`activation_names`); without them the graph is float32.   show: also give out every
    activation, for calibration.
    """
    return write_graph(Writer(scales), encoder, shape, spec, show=show)


def activation_names(encoder: Encoder) -> list[str]:
    """The inputs of matrix products, which are what int8 rounds; each [B, T, N]."""
    parts = ("attention_in", "attended_in", "inner_in", "outer_in")
    return [f"layer.{number}.{part}" for number in range(len(encoder.layers)) for part in parts]


class Writer:
    """Nodes and tensors as they are written, in order, with ONNX Runtime's own operators."""

    def __init__(self, scales: Mapping[str, InputScale] | None) -> None:
        self.scales = scales
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], output, domain=domain, **attributes))
        return output

    def tensor(self, name: str, values: NDArray[Any]) -> str:
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def floats(self, name: str, values: object) -> str:
        return self.tensor(name, np.asarray(values, dtype=np.float32))

    def bytes_of(self, activation: str) -> tuple[str, str, str]:
        """The activation as u8, and the names of its scale and zero."""
        found = (self.scales or {})[activation]
        divided = activation
        if not np.all(found.smoothing == 1):
            inverse = self.floats(f"{activation}.inverse", 1 / found.smoothing)
            divided = self.node("Mul", [activation, inverse], f"{activation}.smooth")
        scale = self.floats(f"{activation}.scale", found.scale)
        zero = self.tensor(f"{activation}.zero", np.asarray(found.zero, dtype=np.uint8))
        return self.node("QuantizeLinear", [divided, scale, zero], f"{activation}.bytes"), scale, zero

    def linear(self, activation: str, linear: Linear, output: str) -> str:
        bias = self.floats(f"{output}.bias", linear.bias)
        if self.scales is None:
            weight = self.floats(f"{output}.weight", linear.weight)
            return self.node("Add", [self.node("MatMul", [activation, weight], f"{output}.product"), bias], output)
        data, scale, zero = self.bytes_of(activation)
        weight, weight_scale, weight_zero = self.weight(output, linear.weight, activation)
        inputs = [data, weight, scale, weight_scale, zero, weight_zero, bias]
        return self.node("MatMulIntegerToFloat", inputs, output, MICROSOFT)

    def weight(self, name: str, weight: Floats, activation: str) -> tuple[str, str, str]:
        smoothed = weight * (self.scales or {})[activation].smoothing[:, None]
        rounded, scales = quantize_symmetric(smoothed, axis=0, largest_byte=WEIGHT_MAX)
        return (
            self.tensor(f"{name}.weight", rounded),
            self.floats(f"{name}.weight_scale", scales[0]),
            self.tensor(f"{name}.weight_zero", np.zeros(scales.shape[1], dtype=np.int8)),
        )

    def norm(self, states: str, norm: Norm, output: str, epsilon: float) -> str:
        names = [self.floats(f"{output}.gain", norm.gain), self.floats(f"{output}.offset", norm.offset)]
        return self.node("LayerNormalization", [states, *names], output, axis=-1, epsilon=epsilon)

    def residual_norm(self, states: str, residual: str, norm: Norm, output: str, epsilon: float) -> str:
        names = [self.floats(f"{output}.gain", norm.gain), self.floats(f"{output}.offset", norm.offset)]
        inputs = [states, residual, *names]
        return self.node("SkipLayerNormalization", inputs, output, MICROSOFT, epsilon=epsilon)

    def mask(self) -> str:
        """The mask as attention takes it, written once."""
        if not any("mask" in node.output for node in self.nodes):
            self.node("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)
        return "mask"

    def gelu(self, states: str, output: str) -> str:
        return self.node("Gelu", [states], output, MICROSOFT)

    def attention(self, layer: Layer, name: str, states: str, shape: Shape) -> str:
        output, weights, linear = f"{name}.attended_in", f"{name}.attention", joined(layer)
        bias = self.floats(f"{weights}.bias", linear.bias)
        attributes = {"num_heads": shape.heads, "mask_filter_value": MASKED}
        if self.scales is None:
            inputs = [states, self.floats(f"{weights}.weight", linear.weight), bias, self.mask()]
            return self.node("Attention", inputs, output, MICROSOFT, **attributes)
        data, scale, zero = self.bytes_of(states)
        rounded, weight_scale, weight_zero = self.weight(weights, linear.weight, states)
        inputs = [data, rounded, bias, scale, weight_scale, self.mask(), zero, weight_zero]
        return self.node("QAttention", inputs, output, MICROSOFT, **attributes)


def joined(layer: Layer) -> Linear:
    """Query, key and value as one product: [H, 3 × H]."""
    parts = (layer.query, layer.key, layer.value)
    return Linear(
        np.concatenate([part.weight for part in parts], axis=1), np.concatenate([part.bias for part in parts])
    )


def write_graph(
    writer: Writer, encoder: Encoder, shape: Shape, spec: ModelSpec, *, show: bool = False
) -> onnx.ModelProto:
    """The graph in the words of a writer."""
    states = _embed(writer, encoder, shape)
    for number, layer in enumerate(encoder.layers):
        states = _write_layer(writer, layer, f"layer.{number}", states, encoder, shape)
    _write_outputs(writer, states, encoder, spec)
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in spec.inputs]
    if spec.pooling == "graph":
        sides: list[str | int] = ["batch", spec.dimension]
    else:
        sides = ["batch", "sequence", spec.dimension]
    names = [spec.output, *([spec.raw_output] if spec.raw_output else [])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sides) for name in names]
    if show:
        outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in activation_names(encoder)]
    graph = helper.make_graph(writer.nodes, "fused", inputs, outputs, writer.tensors)
    domains = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10, producer_name="me5")


def _embed(writer: Writer, encoder: Encoder, shape: Shape) -> str:
    data = _write_words(writer, encoder.words)
    table = writer.floats("positions", encoder.positions)
    if encoder.counts_tokens:
        padding = writer.tensor("pad_id", np.array(shape.pad_id))
        is_padding = writer.node("Equal", ["input_ids", padding], "is_padding")
        is_token = writer.node("Cast", [writer.node("Not", [is_padding], "is_token")], "token", to=TensorProto.INT64)
        numbers = writer.node("CumSum", [is_token, writer.tensor("along", np.array(1))], "numbers")
        numbers = writer.node("Add", [writer.node("Mul", [numbers, is_token], "own"), padding], "position_ids")
        positions = writer.node("Gather", [table, numbers], "position_rows", axis=0)
    else:
        length = writer.node("Shape", ["input_ids"], "length", start=1, end=2)
        start = writer.tensor("first", np.array([0]))
        positions = writer.node("Slice", [table, start, length, start], "position_rows")
    summed = writer.node("Add", [data, positions], "embedded")
    return writer.norm(summed, encoder.norm, "layer.0.attention_in", encoder.epsilon)


def _write_words(writer: Writer, words: Floats) -> str:
    rows = len(words)
    if writer.scales is None:
        return writer.node("Gather", [writer.floats("words", words), "input_ids"], "words.rows", axis=0)
    words, directions = narrowed(words)
    width = words.shape[1]
    group = GROUP if width % GROUP == 0 else width
    rounded, scales = quantize_symmetric(words.reshape(-1, group), axis=1)
    table = writer.tensor("words", rounded.reshape(rows, -1, group))
    table_scales = writer.floats("words.scales", scales.reshape(rows, -1, 1))
    data = writer.node("Gather", [table, "input_ids"], "words.bytes", axis=0)
    data = writer.node("Cast", [data], "words.unscaled", to=TensorProto.FLOAT)
    factors = writer.node("Gather", [table_scales, "input_ids"], "words.factors", axis=0)
    data = writer.node("Mul", [data, factors], "words.grouped")
    narrow = "words.rows" if directions is None else "words.columns"
    columns = writer.node("Reshape", [data, writer.tensor("words.shape", np.array([0, 0, width]))], narrow)
    if directions is None:
        return columns
    return writer.node("MatMul", [columns, writer.floats(f"words.rows_{DIRECTIONS}", directions)], "words.rows")


def _write_layer(writer: Writer, layer: Layer, name: str, states: str, encoder: Encoder, shape: Shape) -> str:
    attended = writer.attention(layer, name, states, shape)
    attended = writer.linear(attended, layer.attended, f"{name}.attended")
    middle = writer.residual_norm(attended, states, layer.attention_norm, f"{name}.inner_in", encoder.epsilon)
    inner = writer.linear(middle, layer.inner, f"{name}.inner")
    inner = writer.gelu(inner, f"{name}.outer_in")
    outer = writer.linear(inner, layer.outer, f"{name}.outer")
    number = int(name.split(".")[1]) + 1
    output = f"layer.{number}.attention_in" if number < len(encoder.layers) else "states"
    return writer.residual_norm(outer, middle, layer.norm, output, encoder.epsilon)


def _write_outputs(writer: Writer, states: str, encoder: Encoder, spec: ModelSpec) -> None:
    """Pooling and length one in the words of service/recipe/pooling.py; token states where the gateway pools."""
    if spec.pooling == "mean":
        writer.node("Identity", [states], spec.output)
        return
    rows = writer.tensor("rows", np.array([1]))
    mask = writer.node("Cast", ["attention_mask"], "weights", to=TensorProto.FLOAT)
    column = writer.node("Unsqueeze", [mask, writer.tensor("last", np.array([-1]))], "weights.column")
    # In front of the pooling, whose product with the mask is the last: so graph_states.py finds the states.
    static = _write_static(writer, encoder.static, column) if encoder.static else None
    lexical = _write_lexical(writer, encoder.lexical, column) if encoder.lexical else None
    total = writer.node("ReduceSum", [writer.node("Mul", [states, column], "masked"), rows], "total", keepdims=0)
    count = writer.node("ReduceSum", [mask, rows], "count", keepdims=1)
    count = writer.node("Max", [count, writer.floats("one", 1)], "count.clipped")
    raw = spec.raw_output or "sentence_mean"
    mean = writer.node("Div", [total, count], raw if static is None else "mean")
    if encoder.static is not None and static is not None:
        layers = _write_unit(writer, mean, "mean.unit")
        layers = writer.node("Mul", [layers, writer.floats("layers.share", 1 - encoder.static.share)], "layers.part")
        static = writer.node("Mul", [static, writer.floats("static.share", encoder.static.share)], "static.part")
        mean = writer.node("Add", [layers, static], raw if lexical is None else "meaning")
    if lexical is not None:
        mean = writer.node("Concat", [_write_unit(writer, mean, "meaning.unit"), lexical], raw, axis=-1)
    _write_unit(writer, mean, spec.output)


def _write_static(writer: Writer, static: Static, mask: str) -> str:
    """The path beside the layers, in float32: unit(Σ weight · (token vector - middle) · matrix)."""
    weights = writer.floats("static.weights", static.weights)
    weights = writer.node("Gather", [weights, "input_ids"], "static.gathered", axis=0)
    weights = writer.node("Mul", [weights, mask], "static.masked")
    centred = writer.node("Sub", ["words.rows", writer.floats("static.middle", static.middle)], "static.centred")
    total = writer.node("Mul", [centred, weights], "static.weighed")
    total = writer.node("ReduceSum", [total, "rows"], "static.total", keepdims=0)
    product = writer.node("MatMul", [total, writer.floats("static.matrix", static.matrix)], STATIC_PRODUCT)
    return _write_unit(writer, product, "static.unit")


def _write_lexical(writer: Writer, lexical: Lexical, mask: str) -> str:
    """The path behind the meaning, in float32: scale · unit(Σ weight · low[id mod 512] * high[id div 512]), the scale
    being that of the role."""
    weights = writer.floats("lexical.weights", lexical.weights)
    weights = writer.node("Gather", [weights, "input_ids"], "lexical.gathered", axis=0)
    weights = writer.node("Mul", [weights, mask], "lexical.masked")
    numbers = writer.node("Cast", ["input_ids"], "lexical.numbers", to=TensorProto.FLOAT)
    rows = writer.floats("lexical.rows", LOW_ROWS)
    quotient = writer.node("Floor", [writer.node("Div", [numbers, rows], "lexical.ratio")], "lexical.quotient")
    whole = writer.node("Mul", [quotient, rows], "lexical.whole")
    rest = writer.node("Sub", [numbers, whole], "lexical.rest")
    low = _write_signs(writer, "lexical.low", lexical.low, rest)
    high = _write_signs(writer, "lexical.high", lexical.high, quotient)
    codes = writer.node("Mul", [low, high], "lexical.codes")
    total = writer.node("Mul", [codes, weights], "lexical.weighed")
    total = writer.node("ReduceSum", [total, "rows"], "lexical.total", keepdims=0)
    # An empty slice, of a text that is one token, sums up to no passage.
    ends = [writer.tensor(f"lexical.{name}", np.array([number])) for name, number in (("from", 1), ("to", 2))]
    second = writer.node("Slice", ["input_ids", *ends, "rows"], "lexical.second")
    is_passage = writer.node("Equal", [second, writer.tensor("lexical.passage_id", lexical.passage_id)], "lexical.is")
    is_passage = writer.node("Cast", [is_passage], "lexical.is_number", to=TensorProto.INT64)
    is_passage = writer.node("ReduceSum", [is_passage, "rows"], "lexical.is_passage", keepdims=0)
    scale = writer.node(
        "Gather", [writer.floats("lexical.scales", lexical.scales), is_passage], "lexical.scale", axis=0
    )
    return writer.node("Mul", [_write_unit(writer, total, "lexical.unit"), scale], "lexical.part")


def _write_signs(writer: Writer, name: str, table: NDArray[np.int8], rows: str) -> str:
    """Rows of a table of bytes as float32.   rows: the name of their numbers, as floats."""
    numbers = writer.node("Cast", [rows], f"{name}.ids", to=TensorProto.INT64)
    found = writer.node("Gather", [writer.tensor(name, table), numbers], f"{name}.bytes", axis=0)
    return writer.node("Cast", [found], f"{name}.signs", to=TensorProto.FLOAT)


def _write_unit(writer: Writer, vectors: str, output: str) -> str:
    """Each row of [B, H] scaled to length one."""
    squares = writer.node("Mul", [vectors, vectors], f"{output}.squared")
    squares = writer.node("ReduceSum", [squares, "last"], f"{output}.squares", keepdims=1)
    if not any(tensor.name == "smallest" for tensor in writer.tensors):
        writer.floats("smallest", 1e-24)
    squares = writer.node("Max", [squares, "smallest"], f"{output}.clipped")
    return writer.node("Div", [vectors, writer.node("Sqrt", [squares], f"{output}.length")], output)
