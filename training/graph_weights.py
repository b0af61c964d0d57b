"""The weights of a BERT or XLM-R encoder, read out of the ONNX graph that somebody exported.

Exporters rename matrices and merge equal biases, but they keep the order of the program: in each layer the products of
query, key, value, attention output, and the two of the feed-forward part. So the weights are read by their places, and
only the three tables by name. Whether they were understood is proved by computing with them (fused_graph.py), where
what the graph doesn't say plainly, the number of heads, is tried out too. A static path (static_path.py) and a lexical
one (lexical_path.py) are our own exporter's, and known by their names.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from training.errors import ExportError
from training.nibbles import unpacked
from training.quantize import DIRECTIONS, NIBBLES

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    """x @ weight + bias.   weight: [N, M], bias: [M]."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True)
class Norm:
    """The gain and the offset of a LayerNorm, [H] each."""

    gain: Floats
    offset: Floats


@dataclass(frozen=True)
class Layer:
    """One layer of the encoder; each norm stands behind its residual sum."""

    query: Linear
    key: Linear
    value: Linear
    attended: Linear
    attention_norm: Norm
    inner: Linear
    outer: Linear
    norm: Norm


@dataclass(frozen=True)
class Static:
    """The path beside the layers.   weights: [V, 1].   middle: [H].   matrix: [H, H].   share: of the whole vector."""

    weights: Floats
    middle: Floats
    matrix: Floats
    share: float


@dataclass(frozen=True)
class Lexical:
    """The path behind the meaning.   weights: [V, 1].   low, high: int8[R, W], a code's rows.   scales: [2, 1], its
    length for a query and for a passage.   passage_id: int64[1, 1], the first token of a passage's prompt."""

    weights: Floats
    low: NDArray[np.int8]
    high: NDArray[np.int8]
    scales: Floats
    passage_id: NDArray[np.int64]


@dataclass(frozen=True)
class Encoder:
    """words: [V, H].   positions: [P, H], the vector of token type 0 added.   counts_tokens: positions are numbered
    over the ids that are not padding, from pad_id + 1, as XLM-R does; else over all, from 0, as BERT does."""

    words: Floats
    positions: Floats
    norm: Norm
    layers: tuple[Layer, ...]
    epsilon: float
    counts_tokens: bool
    static: Static | None = None
    lexical: Lexical | None = None

    @property
    def width(self) -> int:
        """H, the length of a token's state."""
        return self.words.shape[1]


STATIC_MATRIX = "static.matrix"
LINEARS_PER_LAYER = 6
NORMS_PER_LAYER = 2


def read_encoder(model: onnx.ModelProto) -> Encoder:
    """Raises ExportError where the graph is no such encoder, or was fused by an optimiser already."""
    reader = _Reader(model)
    linears, norms = reader.linears(), reader.norms()
    count = len(linears) // LINEARS_PER_LAYER
    if not count or len(linears) != count * LINEARS_PER_LAYER or len(norms) != count * NORMS_PER_LAYER + 1:
        raise ExportError(
            f"the graph has {len(linears)} matrix products with weights and {len(norms)} LayerNorms, wanted are "
            f"{LINEARS_PER_LAYER} and {NORMS_PER_LAYER} a layer and one LayerNorm more: it is no BERT or XLM-R "
            "encoder, or was optimised already; export or pull the plain graph"
        )
    types = reader.table("token_type_embeddings.weight")
    layers = (_layer(linears[6 * number :], norms[1 + 2 * number :]) for number in range(count))
    return Encoder(
        words=reader.table("word_embeddings.weight"),
        positions=reader.table("position_embeddings.weight") + types[0],
        norm=norms[0],
        layers=tuple(layers),
        epsilon=reader.epsilon(),
        counts_tokens=any(node.op_type == "CumSum" for node in model.graph.node),
        static=reader.static(),
        lexical=reader.lexical(),
    )


def _layer(linears: list[Linear], norms: list[Norm]) -> Layer:
    query, key, value, attended, inner, outer = linears[:LINEARS_PER_LAYER]
    return Layer(query, key, value, attended, norms[0], inner, outer, norms[1])


class _Reader:
    """A graph whose constants can be asked for, in the order of the program."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)

    def linears(self) -> list[Linear]:
        """Each product with a constant matrix, and the constant that is added to it."""
        found = []
        for node in self.nodes:
            weight = self.constant(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
            if weight is None or weight.ndim != 2 or node.input[1].startswith(STATIC_MATRIX):
                continue
            # Of a narrow table, see training/quantize.py.
            if node.input[1].endswith(f"_{DIRECTIONS}"):
                continue
            if any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
                weight = weight.T
            bias = self.constant(node.input[2]) if len(node.input) > 2 else self._added_to(node.output[0])
            found.append(Linear(weight, np.zeros(weight.shape[1], np.float32) if bias is None else bias))
        return found

    def norms(self) -> list[Norm]:
        """LayerNorms, as one operator or, in older graphs, by their last two: a product with the gain, and a sum."""
        found = []
        for node in self.nodes:
            if node.op_type == "LayerNormalization":
                gain, offset = self.constant(node.input[1]), self.constant(node.input[2])
            elif node.op_type == "Mul" and self._is_made_by(node.input, "Div"):
                gain = next((value for name in node.input if (value := self.constant(name)) is not None), None)
                offset = self._added_to(node.output[0])
            else:
                continue
            if gain is not None and offset is not None and gain.ndim == offset.ndim == 1:
                found.append(Norm(gain, offset))
        return found

    def table(self, ending: str) -> Floats:
        """A table of vectors, stored as floats or as training/quantize.py stores it."""
        if (floats := self._named(ending)) is not None:
            return floats
        nibbles, scales = self._raw(f"{ending}_{NIBBLES}"), self._raw(f"{ending}_scales")
        if nibbles is not None and scales is not None:
            return unpacked(nibbles, scales)
        rounded, scales = self._named(f"{ending}_int8"), self._named(f"{ending}_scales")
        if rounded is None or scales is None:
            raise ExportError(f"the graph has no tensor named …{ending}; export or pull the plain graph")
        columns = (rounded * scales).reshape(len(rounded), -1)
        directions = self._named(f"{ending}_{DIRECTIONS}")
        return columns if directions is None else np.asarray(columns @ directions)

    def static(self) -> Static | None:
        """The path beside the layers; None where there is none."""
        middle, share = self._named("static.middle"), self._named("static.share")
        matrix = self._named(STATIC_MATRIX)
        if matrix is None:
            matrix = self.constant(f"{STATIC_MATRIX}_unpacked")
        if middle is None or share is None or matrix is None:
            return None
        return Static(self.table("static.weights"), middle, matrix, float(share))

    def lexical(self) -> Lexical | None:
        """The path behind the meaning; None where there is none."""
        parts = [self._raw(f"lexical.{name}") for name in ("low", "high", "scales", "passage_id")]
        low, high, scales, passage_id = parts
        if low is None or high is None or scales is None or passage_id is None:
            return None
        return Lexical(self.table("lexical.weights"), low, high, scales, passage_id)

    def epsilon(self) -> float:
        """What a LayerNorm adds to the variance: its attribute, or in older graphs the constant before the root."""
        for node in self.nodes:
            if node.op_type == "LayerNormalization":
                return next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5)
            if node.op_type == "Sqrt" and (added := self._constant_operand(self.maker.get(node.input[0]))) is not None:
                return float(added)
        raise ExportError("the graph has no LayerNorm; export or pull the plain graph")

    def _named(self, ending: str) -> Floats | None:
        found = self._raw(ending)
        return None if found is None else found.astype(np.float32)

    def _raw(self, ending: str) -> NDArray[Any] | None:
        names = [name for name in self.tensors if name == ending or name.endswith(f".{ending}")]
        return np.asarray(numpy_helper.to_array(self.tensors[names[0]])) if names else None

    def _added_to(self, name: str) -> Floats | None:
        sums = [node for node in self.readers[name] if node.op_type == "Add"]
        return self._constant_operand(sums[0]) if sums else None

    def _constant_operand(self, node: onnx.NodeProto | None) -> Floats | None:
        if node is None or node.op_type != "Add":
            return None
        return next((value for name in node.input if (value := self.constant(name)) is not None), None)

    def _is_made_by(self, names: Iterable[str], kind: str) -> bool:
        return any(name in self.maker and self.maker[name].op_type == kind for name in names)

    def constant(self, name: str) -> Floats | None:
        """A tensor, or what the graph computes from tensors alone to unpack one; None for everything else."""
        if name in self.tensors:
            return numpy_helper.to_array(self.tensors[name]).astype(np.float32)
        node = self.maker.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            return numpy_helper.to_array(node.attribute[0].t).astype(np.float32)
        if node.op_type not in ("Cast", "Identity", "Mul", "Reshape", "Transpose"):
            return None
        parts = [part for name in node.input if (part := self.constant(name)) is not None]
        if len(parts) != len(node.input):
            return None
        if node.op_type == "Mul":
            return np.asarray(parts[0] * parts[1])
        if node.op_type == "Reshape":
            return parts[0].reshape(parts[1].astype(np.int64))
        if node.op_type == "Transpose":
            order = next((list(item.ints) for item in node.attribute if item.name == "perm"), None)
            return parts[0].transpose(order)
        return parts[0]
