"""An encoder as the graph of standard operators that OpenVINO computes fastest: what its int8 graph is made from.

An exporter's graph says the same with half as many nodes again, and each costs time whenever a batch has another shape
than the one before. Here query, key and value are one product, and attention is written as OpenVINO looks for it.
"""

import numpy as np
import onnx

from service.recipe.spec import ModelSpec
from training.fused_graph import MASKED, Shape, Writer, joined, write_graph
from training.graph_weights import Encoder, Layer, Norm


def plain_graph(encoder: Encoder, shape: Shape, spec: ModelSpec) -> onnx.ModelProto:
    """The whole graph in float32: inputs and outputs as spec.json has them."""
    return write_graph(_PlainWriter(None), encoder, shape, spec)


class _PlainWriter(Writer):
    """The same words in ONNX's standard operators."""

    def residual_norm(self, states: str, residual: str, norm: Norm, output: str, epsilon: float) -> str:
        return self.norm(self.node("Add", [states, residual], f"{output}.sum"), norm, output, epsilon)

    def gelu(self, states: str, output: str) -> str:
        ratio = self.node("Div", [states, self.floats(f"{output}.root", np.sqrt(2))], f"{output}.ratio")
        share = self.node("Erf", [ratio], f"{output}.erf")
        share = self.node("Add", [share, self.floats(f"{output}.one", 1)], f"{output}.share")
        half = self.node("Mul", [states, self.floats(f"{output}.half", 0.5)], f"{output}.halved")
        return self.node("Mul", [half, share], output)

    def attention(self, layer: Layer, name: str, states: str, shape: Shape) -> str:
        width = layer.query.bias.size
        head = width // shape.heads
        names = [f"{name}.{part}" for part in ("query", "key", "value")]
        together = self.linear(states, joined(layer), f"{name}.attention")
        self.split(together, names, width)
        apart = self.tensor(f"{name}.apart", np.array([0, 0, shape.heads, head]))
        query, key, value = (
            self.node(
                "Transpose",
                [self.node("Reshape", [part, apart], f"{part}.apart")],
                f"{part}.heads",
                perm=[0, 2, 3, 1] if part.endswith("key") else [0, 2, 1, 3],
            )
            for part in names
        )
        scores = self.node("MatMul", [query, key], f"{name}.products")
        scores = self.node("Mul", [scores, self.floats(f"{name}.scale", head**-0.5)], f"{name}.scaled")
        scores = self.node("Add", [scores, self.mask()], f"{name}.masked")
        weights = self.node("Softmax", [scores], f"{name}.weights", axis=-1)
        mixed = self.node("MatMul", [weights, value], f"{name}.mixed")
        mixed = self.node("Transpose", [mixed], f"{name}.together", perm=[0, 2, 1, 3])
        return self.node(
            "Reshape", [mixed, self.tensor(f"{name}.width", np.array([0, 0, width]))], f"{name}.attended_in"
        )

    def split(self, states: str, names: list[str], width: int) -> None:
        sizes = self.tensor(f"{states}.sizes", np.full(len(names), width))
        self.nodes.append(onnx.helper.make_node("Split", [states, sizes], names, states + ".split", axis=-1))

    def mask(self) -> str:
        """What is added to the scores of all layers: [B, 1, 1, T], 0 where there is a token."""
        if not any("mask" in node.output for node in self.nodes):
            mask = self.node("Cast", ["attention_mask"], "mask.floats", to=onnx.TensorProto.FLOAT)
            mask = self.node("Sub", [mask, self.floats("mask.one", 1)], "mask.less_one")
            mask = self.node("Mul", [mask, self.floats("mask.most", -MASKED)], "mask.flat")
            self.node("Unsqueeze", [mask, self.tensor("mask.axes", np.array([1, 2]))], "mask")
        return "mask"
