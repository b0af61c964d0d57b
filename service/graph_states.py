"""The token states of an ONNX graph that pools inside: where they are, and how the graph is made to give them out.

A few fields of ONNX's protobuf are read here by hand (onnx/onnx, onnx/onnx.proto3), since the gateway does without the
onnx package. Weights are stepped over and never copied.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.recipe.spec import ModelSpec

# Field numbers of onnx.proto3.
MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_OUTPUT = 1, 12
NODE_INPUT, NODE_OUTPUT, NODE_OP_TYPE = 1, 2, 4
VALUE_NAME, VALUE_TYPE, TYPE_TENSOR, TENSOR_ELEMENT, TENSOR_SHAPE, SHAPE_SIDE = 1, 2, 1, 1, 2, 1
FLOAT = 1
# Protobuf's wire types.
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class _Node:
    kind: str
    inputs: list[str]
    outputs: list[str]


def states_tensor(path: Path, spec: ModelSpec) -> str | None:
    """The name of the token states [B, T, H] in a version's graph; None where they can't be told from other tensors.

    In a graph that pools they are what the last product with the mask alone takes: pool = Σ states · mask / Σ mask.
    """
    if spec.pooling == "mean":
        return spec.output
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            nodes = _nodes_of(data)
    except (OSError, ValueError, IndexError):
        # The engine that opens it says better what is wrong with the file.
        return None
    # What each tensor depends on, the graph's inputs; nodes are in an order in which each follows what it takes.
    depends: dict[str, frozenset[str]] = {name: frozenset([name]) for name in spec.inputs}
    for node in nodes:
        found = frozenset[str]().union(*(depends.get(name, frozenset()) for name in node.inputs))
        depends.update(dict.fromkeys(node.outputs, found))
    for node in reversed(nodes):
        masks = [name for name in node.inputs if depends.get(name) == frozenset(["attention_mask"])]
        states = [name for name in node.inputs if "input_ids" in depends.get(name, ())]
        if node.kind == "Mul" and len(masks) == len(states) == 1:
            return states[0]
    return None


def with_output(graph: bytes, name: str) -> bytes:
    """The graph with a float32 tensor of its own as one output more.

    Protobuf joins the fields of a message that comes twice, so a second graph with nothing but the output is appended.
    """
    # Of three sides that are not said.
    shape = _field(TENSOR_SHAPE, 3 * _field(SHAPE_SIDE, b""))
    tensor = _field(VALUE_TYPE, _field(TYPE_TENSOR, bytes([TENSOR_ELEMENT << 3 | VARINT, FLOAT]) + shape))
    output = _field(VALUE_NAME, name.encode("utf-8")) + tensor
    return graph + _field(MODEL_GRAPH, _field(GRAPH_OUTPUT, output))


def _nodes_of(data: mmap.mmap) -> list[_Node]:
    nodes = []
    for number, start, end in _fields(data, 0, len(data)):
        if number != MODEL_GRAPH:
            continue
        for part, first, last in _fields(data, start, end):
            if part != GRAPH_NODE:
                continue
            texts: dict[int, list[str]] = {NODE_INPUT: [], NODE_OUTPUT: [], NODE_OP_TYPE: []}
            for field, begin, stop in _fields(data, first, last):
                if field in texts:
                    texts[field].append(data[begin:stop].decode("utf-8"))
            nodes.append(_Node("".join(texts[NODE_OP_TYPE]), texts[NODE_INPUT], texts[NODE_OUTPUT]))
    return nodes


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message that have a length: number, and where their bytes begin and end."""
    while start < end:
        key, start = _varint(data, start)
        kind = key & 7
        if kind == VARINT:
            _, start = _varint(data, start)
        elif kind == LENGTH:
            size, start = _varint(data, start)
            yield key >> 3, start, start + size
            start += size
        elif kind in (FIXED32, FIXED64):
            start += 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"byte {start} is of no protobuf message")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _field(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | LENGTH) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
