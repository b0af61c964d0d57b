"""A float16 graph as a bfloat16 graph: for GPUs on which the range of float16 is too small for a model.

bfloat16 has float32's range with 8 bits of fraction in place of float16's 11. Weights are float16 values rounded once
more; LayerNorm and pooling stay float32, by the casts that the graph has.
"""

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper


def as_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with every float16 tensor, cast and described value in bfloat16."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    for tensor in graph.initializer:
        _retype(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _retype(attribute.t)
            elif attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    return found


def _retype(tensor: onnx.TensorProto) -> None:
    if tensor.data_type != TensorProto.FLOAT16:
        return
    values = numpy_helper.to_array(tensor).astype(np.float32)
    # float16's lowest number, which masks padding, is bfloat16's too after rounding: -65536.
    rounded = values.astype(ml_dtypes.bfloat16)
    name = tensor.name
    tensor.Clear()
    tensor.name, tensor.data_type = name, TensorProto.BFLOAT16
    tensor.dims.extend(values.shape)
    tensor.raw_data = rounded.tobytes()
