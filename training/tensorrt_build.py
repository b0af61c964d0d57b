"""Building a TensorRT plan and running it: what needs a GPU and the tensorrt package."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorrt
import torch
from numpy.typing import NDArray

from service.engine import vectors_of
from service.recipe.spec import ModelSpec
from service.recipe.tokens import TokenBatch
from training.collection import Run
from training.errors import ExportError
from training.graph_run import feed_of
from training.tensorrt_profiles import Profile, profile_for


def build_plan(graph: Path, inputs: Sequence[str], profiles: Sequence[Profile], path: Path) -> None:
    """Write the plan. Raises ExportError with what the parser or the builder says."""
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    # The only kind of network from TensorRT 11 on, where the flag says nothing any more.
    typed = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        faults = "; ".join(parser.get_error(number).desc() for number in range(parser.num_errors))
        raise ExportError(f"TensorRT {tensorrt.__version__} can't read {graph}: {faults}")
    config = builder.create_builder_config()
    for profile in profiles:
        optimized = builder.create_optimization_profile()
        for name in inputs:
            optimized.set_shape(name, *((shape.rows, shape.tokens) for shape in profile.shapes))
        config.add_optimization_profile(optimized)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"TensorRT {tensorrt.__version__} can't build {graph}; its log above says why")
    path.write_bytes(bytes(plan))


def plan_run(path: Path, spec: ModelSpec, profiles: Sequence[Profile]) -> Run:
    """Batch → vectors float32[B, D], each batch in the narrowest profile that takes it."""
    engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING)).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ExportError(f"{path} was built for another GPU or TensorRT; build it here")
    context = engine.create_execution_context()
    stream = torch.cuda.Stream()

    def run(batch: TokenBatch) -> NDArray[np.float32]:
        rows, tokens = batch.ids.shape
        number = profile_for(profiles, rows, tokens)
        if number is None:
            raise ExportError(f"no profile takes {rows} rows of {tokens} tokens: {', '.join(map(str, profiles))}")
        context.set_optimization_profile_async(number, stream.cuda_stream)
        tensors = {name: torch.from_numpy(values).cuda() for name, values in feed_of(spec.inputs, batch).items()}
        for name, tensor in tensors.items():
            context.set_input_shape(name, tuple(tensor.shape))
        # Every output needs an address, also those that nobody reads.
        sides = (rows, spec.dimension) if spec.pooling == "graph" else (rows, tokens, spec.dimension)
        for output in filter(None, (spec.output, spec.raw_output)):
            tensors[output] = torch.empty(sides, dtype=torch.float32, device="cuda")
        for name, tensor in tensors.items():
            context.set_tensor_address(name, tensor.data_ptr())
        torch.cuda.synchronize()
        if not context.execute_async_v3(stream.cuda_stream):
            raise ExportError(f"{path} failed on {rows} rows of {tokens} tokens")
        stream.synchronize()
        return vectors_of(tensors[spec.output].cpu().numpy(), batch)

    return run
