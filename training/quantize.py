"""Weights stored as int8, computed as float32: a pass over the ONNX graph that makes the file four times smaller.

A table that was trained in four bits is stored in four. Symmetric, -127 to 127. Activations are not touched, so nothing
has to be calibrated and no language is treated worse than another by a calibration text.

    table    Gather(float)       →  Gather(int8) → Cast → Mul(Cast(Gather(scales))) → Reshape     stays int8 in memory
    narrow   Gather(float)       →  the same of fewer columns → MatMul(directions)            where they fill fewer
    nibbles  Gather(float)       →  two values a byte, taken apart by arithmetic              where they are rounded so
    matrix   MatMul(x, float)    →  MatMul(x, Mul(Reshape(Mul(Cast(int8), Cast(scales))), gains)) unpacked once, at load

One float16 scale serves 32 neighbours, of a row in a table, of an output channel in a matrix: a few values that stand
far out then cost their own group only. Measured on tables, 19 texts, worst cosine to float32: one scale a row 0.9941,
one for 128 values 0.9981, one for 32 0.9996. In a matrix each input channel is divided by its own gain before that:
BERT's feed-forward layers have a few input channels with large weights and huge activations, and rounding them on their
neighbours' scale is most of the error. Measured on six layers of 384, the error of a weight relative to the mean
weight: a scale for each output channel and gains 0.0078; a scale for each 32 weights 0.0056, with gains 0.0054.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from training.narrow import main_directions
from training.nibbles import LARGEST, packed

# Below this a tensor does not weigh in the file, and may well be something that tolerates no rounding.
SMALLEST_QUANTISED_VALUES = 4096
INT8_MAX = 127
GROUP = 32
# A table whose rows fill fewer dimensions is stored narrow where that makes it smaller by a tenth.
NARROW_SHARE_MAX = 0.9
DIRECTIONS, NIBBLES = "directions", "nibbles"

# From the node that read rows of a table, and the table's name, to the nodes that do it now.
Lookup = Callable[[onnx.NodeProto, str], list[onnx.NodeProto]]


def quantize_weights(
    model: onnx.ModelProto, *, smallest: int = SMALLEST_QUANTISED_VALUES, matrices: bool = True
) -> list[str]:
    """Replace the large tables, and the matrices, of the graph in place. Returns the names of what was replaced."""
    graph = model.graph
    uses: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in graph.node:
        for place, name in enumerate(node.input):
            uses[name].append((node, place))

    replaced: list[str] = []
    added: dict[int, list[onnx.NodeProto]] = defaultdict(list)  # by the id of the node that they stand in for
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2 or np.prod(tensor.dims) < smallest:
            continue
        users = uses[tensor.name]
        if users and all(_reads_rows(node, place) for node, place in users):
            lookup = _store_table(graph, tensor)
            for node, _ in users:
                added[id(node)] += lookup(node, tensor.name)
        elif matrices and users and all(node.op_type == "MatMul" and place == 1 for node, place in users):
            _store_matrix(graph, tensor)
            added[id(users[0][0])] += _unpacked_matrix(tensor.name)
            for node, place in users:
                node.input[place] = f"{tensor.name}_unpacked"
        else:
            continue
        replaced.append(tensor.name)

    # An unpacking node goes in front of the first that reads it, so the order stays topological.
    nodes = [new for node in graph.node for new in _in_order(node, added[id(node)])]
    del graph.node[:]
    graph.node.extend(nodes)
    return replaced


def quantize_symmetric(
    values: NDArray[np.float32], axis: int, largest_byte: int = INT8_MAX
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round to int8 with one scale for each slice: `axis` is the one that a scale is shared along.

    values: of any shape.   Returns int8 of that shape, -largest_byte to largest_byte, and float32 scales, of that shape
    but 1 along axis; their product differs from the values by half a scale at most. A slice of zeros has scale 1.
    """
    largest = np.abs(values).max(axis=axis, keepdims=True)
    scales = np.where(largest > 0, largest / largest_byte, 1).astype(np.float32)
    return np.clip(np.rint(values / scales), -largest_byte, largest_byte).astype(np.int8), scales


def _reads_rows(node: onnx.NodeProto, place: int) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return node.op_type == "Gather" and place == 0 and axis == 0


def input_gains(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """The root mean square of each input channel, relative to the mean over all: [N, M] → [N, 1], none of them zero."""
    gains = np.sqrt(np.mean(matrix**2, axis=1, keepdims=True))
    return np.where(gains > 0, gains / gains.mean(), 1).astype(np.float32) if gains.any() else np.ones_like(gains)


def narrowed(table: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """A table [V, H] as [V, E] and the directions [E, H] that its columns are of; None where that saves nothing."""
    directions = main_directions(table)
    if directions.size + len(table) * len(directions) > NARROW_SHARE_MAX * table.size:
        return table, None
    return table @ directions.T, directions


def _store_table(graph: onnx.GraphProto, tensor: onnx.TensorProto) -> Lookup:
    """Returns how it is read."""
    whole = numpy_helper.to_array(tensor)
    if (nibbles := packed(whole)) is not None:
        pairs, scales = nibbles
        shapes = {"shape": [0, 0, whole.shape[1]], "groups": [0, 0, scales.shape[1], GROUP]}
        parts: dict[str, np.ndarray] = {NIBBLES: pairs, "scales": scales}
        constants = {"half": np.float32(16), "zero": np.float32(LARGEST + 1)}
        parts |= {name: np.array(sides, dtype=np.int64) for name, sides in shapes.items()}
        _replace_initializer(graph, tensor, parts | {name: np.asarray(value) for name, value in constants.items()})
        return _nibbles_lookup
    table, directions = narrowed(whole)
    rows, width = table.shape
    group = GROUP if width % GROUP == 0 else width
    quantised, factors = quantize_symmetric(table.reshape(-1, group), axis=1)
    parts = {
        "int8": quantised.reshape(rows, -1, group),
        # Half of float32's size; eleven bits of a scale are four more than the bytes have.
        "scales": factors.reshape(rows, -1, 1).astype(np.float16),
        # Zeros keep what the ids' own shape [B, T] is.
        "shape": np.array([0, 0, width], dtype=np.int64),
    }
    if directions is not None:
        parts[DIRECTIONS] = directions
    _replace_initializer(graph, tensor, parts)
    return partial(_table_lookup, is_narrow=directions is not None)


def _store_matrix(graph: onnx.GraphProto, tensor: onnx.TensorProto) -> None:
    matrix = numpy_helper.to_array(tensor)
    inputs, outputs = matrix.shape
    gains = input_gains(matrix)
    group = GROUP if inputs % GROUP == 0 else inputs
    quantised, scales = quantize_symmetric((matrix / gains).reshape(-1, group, outputs), axis=1)
    parts: dict[str, np.ndarray] = {
        "int8": quantised,
        "scales": scales.astype(np.float16),
        "shape": np.array([inputs, outputs], dtype=np.int64),
        "gains": gains,
    }
    _replace_initializer(graph, tensor, parts)


def _replace_initializer(graph: onnx.GraphProto, tensor: onnx.TensorProto, parts: dict[str, np.ndarray]) -> None:
    name = tensor.name
    graph.initializer.remove(tensor)
    graph.initializer.extend(numpy_helper.from_array(values, f"{name}_{part}") for part, values in parts.items())
    for described in [info for info in graph.value_info if info.name == name]:
        graph.value_info.remove(described)


def _table_lookup(gather: onnx.NodeProto, table: str, *, is_narrow: bool) -> list[onnx.NodeProto]:
    """The nodes that compute what `gather` did, for ids [B, T]."""
    rows, output = gather.input[1], gather.output[0]
    grouped, columns = f"{output}_grouped", f"{output}_columns" if is_narrow else output
    nodes = [
        helper.make_node("Gather", [f"{table}_int8", rows], [f"{output}_int8"], f"{output}_rows", axis=0),
        helper.make_node("Cast", [f"{output}_int8"], [f"{output}_unscaled"], f"{output}_cast", to=TensorProto.FLOAT),
        *_scales_lookup(gather, table),
        helper.make_node("Mul", [f"{output}_unscaled", f"{output}_scales"], [grouped], f"{output}_scaled"),
        helper.make_node("Reshape", [grouped, f"{table}_shape"], [columns], f"{output}_reshaped"),
    ]
    if not is_narrow:
        return nodes
    return [*nodes, helper.make_node("MatMul", [columns, f"{table}_{DIRECTIONS}"], [output], widening(output))]


def _scales_lookup(gather: onnx.NodeProto, table: str) -> list[onnx.NodeProto]:
    rows, output = gather.input[1], gather.output[0]
    return [
        helper.make_node("Gather", [f"{table}_scales", rows], [f"{output}_halves"], f"{output}_halves", axis=0),
        helper.make_node("Cast", [f"{output}_halves"], [f"{output}_scales"], f"{output}_scales", to=TensorProto.FLOAT),
    ]


def _nibbles_lookup(gather: onnx.NodeProto, table: str) -> list[onnx.NodeProto]:
    """The same for two values a byte. By division and subtraction, which every engine has."""
    rows, output = gather.input[1], gather.output[0]

    def step(kind: str, inputs: list[str], made: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [f"{output}_{made}"], f"{output}_{made}", **attributes)

    pairs, upper, lower = f"{output}_pairs", f"{output}_upper", f"{output}_lower"
    return [
        step("Gather", [f"{table}_{NIBBLES}", rows], "bytes", axis=0),
        step("Cast", [f"{output}_bytes"], "pairs", to=TensorProto.FLOAT),
        step("Div", [pairs, f"{table}_half"], "shifted"),
        step("Floor", [f"{output}_shifted"], "upper"),
        step("Mul", [upper, f"{table}_half"], "above"),
        step("Sub", [pairs, f"{output}_above"], "lower"),
        step("Concat", [lower, upper], "steps", axis=-1),
        step("Sub", [f"{output}_steps", f"{table}_zero"], "signed"),
        step("Reshape", [f"{output}_signed", f"{table}_groups"], "unscaled"),
        *_scales_lookup(gather, table),
        step("Mul", [f"{output}_unscaled", f"{output}_scales"], "grouped"),
        helper.make_node("Reshape", [f"{output}_grouped", f"{table}_shape"], [output], f"{output}_reshaped"),
    ]


def widening(output: str) -> str:
    """The name of the product that makes whole vectors of a narrow table's rows."""
    return f"{output}_widened"


def _unpacked_matrix(name: str) -> list[onnx.NodeProto]:
    # Cast and Mul, and not DequantizeLinear: every engine folds these into a float32 constant by itself, where ONNX
    # Runtime keeps a DequantizeLinear and computes it in every call unless the session is told otherwise.
    unscaled, factors, scaled, whole = (f"{name}_{part}" for part in ("unscaled", "factors", "scaled", "whole"))
    output = f"{name}_unpacked"
    return [
        helper.make_node("Cast", [f"{name}_int8"], [unscaled], unscaled, to=TensorProto.FLOAT),
        helper.make_node("Cast", [f"{name}_scales"], [factors], factors, to=TensorProto.FLOAT),
        helper.make_node("Mul", [unscaled, factors], [scaled], scaled),
        helper.make_node("Reshape", [scaled, f"{name}_shape"], [whole], whole),
        helper.make_node("Mul", [whole, f"{name}_gains"], [output], output),
    ]


def _in_order(node: onnx.NodeProto, added: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return added if node.op_type == "Gather" and added else [*added, node]
