"""Triton's config.pbtxt of a model version: decided from its spec, so that no tensor's name or size is typed twice.

    python -m service triton-config me5_small --variant tensorrt-accelerator --precision fp16

Facts about Triton are of release 24.10: its ONNX Runtime backend's README, the core's dynamic_batch_scheduler.cc and
scheduler_utils.cc, and model_config.proto.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

from service.errors import InvalidInput
from service.recipe.spec import FP16_FILE, MODEL_FILE, ModelSpec
from service.shapes import TRITON_WIDTHS

Variant = Literal["onnx", "onnx-fp16", "tensorrt-accelerator", "tensorrt-plan"]
AcceleratorPrecision = Literal["fp32", "fp16"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
CONFIG_FILE = "config.pbtxt"
PLAN_FILE = "model.plan"
# A cache inside the container of a folder that outlives it: an engine takes minutes to build.
ENGINE_CACHE = "/var/cache/triton/tensorrt"

# Rows of one request, and of what Triton joins: no profile of a TensorRT plan goes further.
ROWS_MAX = 256
# Up to so many rows of small requests are joined. Eight rows of 32 tokens are 256 tokens, the gateway's own budget of
# a batch on a CPU: more of them is no faster there and keeps a query waiting. A GPU takes what its profile is made for.
JOINED_ROWS: dict[Variant, int] = {"onnx": 8, "onnx-fp16": 32, "tensorrt-accelerator": 32, "tensorrt-plan": 32}
# Sixteen gateways with sixteen batches in flight each; a queue of more is longer than anybody waits.
QUEUED_MAX = 256
# Gateways give each batch its own, shorter time. Triton takes no longer one, and with none here it takes none at all.
# After as long a gateway believes that an engine hangs.
QUEUE_TIMEOUT_S = 60
INTERACTIVE_PRIORITY, BULK_PRIORITY = 1, 2

# Rows and tokens of every input, as `python -m training export-tensorrt` builds its plans by default: the least, what
# a plan is made for, the most.
Shapes = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def plan_profiles(max_tokens: int) -> list[Shapes]:
    """The profiles of a plan built with default settings, in their order: short queries, then everything."""
    passage: Shapes = ((1, 1), (32, -(-max_tokens // 2)), (ROWS_MAX, max_tokens))
    return [passage] if max_tokens <= 64 else [((1, 1), (16, 32), (ROWS_MAX, 64)), passage]


def widths_of(max_tokens: int) -> tuple[int, ...]:
    """The widths that a model's batches are padded to, ascending; the last is its longest input."""
    return (*(width for width in TRITON_WIDTHS if width < max_tokens), max_tokens)


def render(
    spec: ModelSpec, variant: Variant = "onnx", *, precision: AcceleratorPrecision | None = None, threads: int = 0
) -> str:
    """The text of config.pbtxt.

    precision: what TensorRT may compute in as an accelerator, fp32 unless given; of the others the file decides.
    threads: of ONNX Runtime on a CPU, 0 for one a core.   Raises InvalidInput where the variant has no such choice.
    """
    if precision is not None and variant != "tensorrt-accelerator":
        raise InvalidInput(
            f"--precision goes with --variant tensorrt-accelerator; what {variant} computes in is decided by its file "
            f"({_file(variant)})"
        )
    if threads < 0:
        raise InvalidInput(f"--threads is {threads}; give 0 (one a core) or more")
    return "\n".join(
        [
            *_head(spec, variant),
            *_tensors(spec),
            *_batching(variant),
            *_instances(spec, variant),
            *_backend(spec, variant, precision or "fp32", threads),
            *_warmup(spec, variant),
            "",
        ]
    )


def write_config(folder: Path, text: str) -> Path:
    """Write a model's config.pbtxt in one step: Triton may be reading."""
    path = folder / CONFIG_FILE
    unfinished = folder / f".{CONFIG_FILE}.{os.getpid()}"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
    return path


def keep_config(folder: Path, spec: ModelSpec) -> None:
    """Give a model's folder a config.pbtxt, unless it has one: that may be of a variant somebody chose."""
    if not (folder / CONFIG_FILE).exists():
        write_config(folder, render(spec))


def _file(variant: Variant) -> str:
    if variant == "tensorrt-plan":
        return PLAN_FILE
    return FP16_FILE if variant == "onnx-fp16" else MODEL_FILE


def _head(spec: ModelSpec, variant: Variant) -> Iterable[str]:
    chosen = "" if variant == "onnx" else f" --variant {variant}"
    yield f"# Written by `python -m service triton-config {spec.name}{chosen}`, which also knows the variants"
    yield f"# {', '.join(each for each in VARIANTS if each != variant)}; --write puts one here."
    yield f'name: "{spec.name}"'
    yield f'backend: "{"tensorrt" if variant == "tensorrt-plan" else "onnxruntime"}"'
    yield f'default_model_filename: "{_file(variant)}"'
    yield f"max_batch_size: {ROWS_MAX}"
    yield "# Every version in the folder answers: a gateway keeps the one that it was proved with while another is"
    yield "# published, and finds the one before again. To retire one, move its folder away and load the model again."
    yield "version_policy { all { } }"


def _tensors(spec: ModelSpec) -> Iterable[str]:
    """Types and sizes of one text; the rows come before them, for max_batch_size is not 0."""
    yield "input ["
    yield from _separated(f'{{ name: "{name}" data_type: TYPE_INT64 dims: [ -1 ] }}' for name in spec.inputs)
    yield "]"
    dims = f"{spec.dimension}" if spec.pooling == "graph" else f"-1, {spec.dimension}"
    names = [spec.output] if spec.raw_output is None else [spec.output, spec.raw_output]
    yield "output ["
    yield from _separated(f'{{ name: "{name}" data_type: TYPE_FP32 dims: [ {dims} ] }}' for name in names)
    yield "]"


def _separated(items: Iterable[str]) -> Iterable[str]:
    whole = list(items)
    return [f"  {item}{',' if place < len(whole) - 1 else ''}" for place, item in enumerate(whole)]


def _batching(variant: Variant) -> Iterable[str]:
    yield "dynamic_batching {"
    yield f"  # Small requests of one width are joined up to {JOINED_ROWS[variant]} rows; a larger one runs by itself."
    yield f"  preferred_batch_size: [ {JOINED_ROWS[variant]} ]"
    yield "  # Nobody waits for company: what joins is what came while the model was busy."
    yield "  max_queue_delay_microseconds: 0"
    yield f"  # {INTERACTIVE_PRIORITY} is interactive, {BULK_PRIORITY} is bulk and whoever does not say."
    yield f"  priority_levels: {BULK_PRIORITY}"
    yield f"  default_priority_level: {BULK_PRIORITY}"
    yield "  default_queue_policy {"
    yield "    # Of each level; one more request is refused at once (UNAVAILABLE)."
    yield f"    max_queue_size: {QUEUED_MAX}"
    yield "    # A request may ask for less time in the queue, never for more."
    yield f"    default_timeout_microseconds: {QUEUE_TIMEOUT_S * 1_000_000}"
    yield "    allow_timeout_override: true"
    yield "    timeout_action: REJECT"
    yield "  }"
    yield "}"


def _instances(spec: ModelSpec, variant: Variant) -> Iterable[str]:
    if variant != "tensorrt-plan":
        yield "# On every GPU there is, else on the CPU."
        yield "instance_group [ { kind: KIND_AUTO count: 1 } ]"
        return
    profiles = ", ".join(f'"{place}"' for place in range(len(plan_profiles(spec.max_tokens))))
    yield "# All of the plan's profiles, so that Triton takes the one that fits; unless named it knows the first alone."
    yield f"instance_group [ {{ kind: KIND_GPU count: 1 profile: [ {profiles} ] }} ]"


def _backend(spec: ModelSpec, variant: Variant, precision: AcceleratorPrecision, threads: int) -> Iterable[str]:
    if variant == "tensorrt-plan":
        return
    yield "# A plan of the memory would be kept for every number of rows ever seen."
    yield _parameter("enable_mem_pattern", "0")
    yield "# On a CPU: 0 is one a core of the machine. Where a container is given fewer, say how many."
    yield _parameter("intra_op_thread_count", str(threads))
    if variant == "tensorrt-accelerator":
        yield from _accelerator(spec, precision)


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'


def _accelerator(spec: ModelSpec, precision: AcceleratorPrecision) -> Iterable[str]:
    # ONNX Runtime builds several profiles and then computes with the first alone, so there is one for everything.
    profile = plan_profiles(spec.max_tokens)[-1]
    options = [("precision_mode", precision.upper())]
    if precision == "fp16":
        options.append(("trt_layer_norm_fp32_fallback", "1"))
    options += [("trt_engine_cache_enable", "1"), ("trt_engine_cache_path", ENGINE_CACHE)]
    options += [("trt_timing_cache_enable", "1"), ("trt_timing_cache_path", ENGINE_CACHE)]
    for kind, (rows, tokens) in zip(("min", "opt", "max"), profile, strict=True):
        shapes = ",".join(f"{name}:{rows}x{tokens}" for name in spec.inputs)
        options.append((f"trt_profile_{kind}_shapes", shapes))
    yield "# The engine is built while the model warms up, which takes minutes; keep the cache on a volume."
    yield "optimization { execution_accelerators { gpu_execution_accelerator : [ {"
    yield '  name : "tensorrt"'
    yield from (f'  parameters {{ key: "{key}" value: "{value}" }}' for key, value in options)
    yield "} ] } }"


def _warmup(spec: ModelSpec, variant: Variant) -> Iterable[str]:
    """Every width alone and with several rows, before the model is called ready. Zeros compute as long as texts do."""
    yield "# Run before the model is ready: each width alone and with several rows."
    shapes: Sequence[tuple[int, int]] = [
        (rows, width) for width in widths_of(spec.max_tokens) for rows in (1, _warm_rows(width, variant))
    ]
    yield "model_warmup ["
    for place, (rows, width) in enumerate(shapes):
        yield f'  {{ name: "{rows}x{width}" batch_size: {rows}'
        for name in spec.inputs:
            value = f"{{ data_type: TYPE_INT64 dims: [ {width} ] zero_data: true }}"
            yield f'    inputs {{ key: "{name}" value: {value} }}'
        yield "  }," if place < len(shapes) - 1 else "  }"
    yield "]"


def _warm_rows(width: int, variant: Variant) -> int:
    """On a CPU as many as 256 tokens hold, at least two: starting a large model is not to take minutes."""
    return max(2, 256 // width) if variant == "onnx" else JOINED_ROWS[variant]
