"""Weights stored as int8, computed as float32: a pass over the ONNX graph that makes the file four times smaller.

Symmetric, -127 to 127. Activations are not touched, so nothing has to be calibrated and no language is treated worse
than another by a calibration text.

    table    Gather(float)       →  Gather(int8) → Cast → Mul(Gather(scales)) → Reshape     stays int8 in memory
    matrix   MatMul(x, float)    →  MatMul(x, Mul(Mul(Cast(int8), scales), gains))          unpacked once, at load

A table has one scale for each 32 neighbours of a row: a few coordinates that stand far out then cost their own group
only. Measured on me5_nano, 19 texts, worst cosine to float32: one scale a row 0.9941, one for 128 values 0.9981, one
for 32 0.9996, for 2.9 MB more. A matrix has one for each output channel, and before that each input channel is
divided by its own gain: BERT's feed-forward layers have a few input channels with large weights and huge activations,
and rounding them on their neighbours' scale is most of the error. Measured on the layers of all-MiniLM-L6-v2, 27
sentences, cosine to float32: output scales alone 0.9987 at worst and 0.99937 on average; with gains 0.9993 and 0.99972.
"""

from collections import defaultdict

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

# Below this a tensor does not weigh in the file, and may well be something that tolerates no rounding.
SMALLEST_QUANTISED_VALUES = 4096
INT8_MAX = 127
GROUP = 32


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
            _store_table(graph, tensor)
            for node, _ in users:
                added[id(node)] += _table_lookup(node, tensor.name)
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

    values: [N, M].   Returns int8[N, M], -largest_byte to largest_byte, and float32 scales, [N, 1] for axis 1 and
    [1, M] for axis 0; their product differs from the values by half a scale at most. A slice of zeros has scale 1.
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


def _store_table(graph: onnx.GraphProto, tensor: onnx.TensorProto) -> None:
    table = numpy_helper.to_array(tensor)
    rows, width = table.shape
    group = GROUP if width % GROUP == 0 else width
    quantised, scales = quantize_symmetric(table.reshape(-1, group), axis=1)
    parts: dict[str, np.ndarray] = {
        "int8": quantised.reshape(rows, -1, group),
        "scales": scales.reshape(rows, -1, 1),
        # Zeros keep what the ids' own shape [B, T] is.
        "shape": np.array([0, 0, width], dtype=np.int64),
    }
    _replace_initializer(graph, tensor, parts)


def _store_matrix(graph: onnx.GraphProto, tensor: onnx.TensorProto) -> None:
    matrix = numpy_helper.to_array(tensor)
    gains = input_gains(matrix)
    quantised, scales = quantize_symmetric(matrix / gains, axis=0)
    _replace_initializer(graph, tensor, {"int8": quantised, "scales": scales, "gains": gains})


def _replace_initializer(graph: onnx.GraphProto, tensor: onnx.TensorProto, parts: dict[str, np.ndarray]) -> None:
    name = tensor.name
    graph.initializer.remove(tensor)
    graph.initializer.extend(numpy_helper.from_array(values, f"{name}_{part}") for part, values in parts.items())
    for described in [info for info in graph.value_info if info.name == name]:
        graph.value_info.remove(described)


def _table_lookup(gather: onnx.NodeProto, table: str) -> list[onnx.NodeProto]:
    """The nodes that compute what `gather` did, for ids [B, T]."""
    rows, output = gather.input[1], gather.output[0]
    grouped = f"{output}_grouped"
    return [
        helper.make_node("Gather", [f"{table}_int8", rows], [f"{output}_int8"], f"{output}_rows", axis=0),
        helper.make_node("Cast", [f"{output}_int8"], [f"{output}_unscaled"], f"{output}_cast", to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{table}_scales", rows], [f"{output}_scales"], f"{output}_scales", axis=0),
        helper.make_node("Mul", [f"{output}_unscaled", f"{output}_scales"], [grouped], f"{output}_scaled"),
        helper.make_node("Reshape", [grouped, f"{table}_shape"], [output], f"{output}_reshaped"),
    ]


def _unpacked_matrix(name: str) -> list[onnx.NodeProto]:
    # Cast and Mul, and not DequantizeLinear: every engine folds these into a float32 constant by itself, where ONNX
    # Runtime keeps a DequantizeLinear and computes it in every call unless the session is told otherwise.
    unscaled, scaled, output = f"{name}_unscaled", f"{name}_scaled", f"{name}_unpacked"
    return [
        helper.make_node("Cast", [f"{name}_int8"], [unscaled], unscaled, to=TensorProto.FLOAT),
        helper.make_node("Mul", [unscaled, f"{name}_scales"], [scaled], scaled),
        helper.make_node("Mul", [scaled, f"{name}_gains"], [output], output),
    ]


def _in_order(node: onnx.NodeProto, added: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return added if node.op_type == "Gather" and added else [*added, node]
