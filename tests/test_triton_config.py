"""config.pbtxt: rendered from the spec, committed as rendered, and what Triton's own schema reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from faulty_engine import MODEL_REPO, SHIPPED
from gateway_process import run_service
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup, ModelQueuePolicy

from service.errors import InvalidInput
from service.recipe.spec import PUBLISHED, ModelSpec, load_spec
from service.settings import Settings
from service.shapes import TRITON_WIDTHS
from service.triton_config import (
    QUEUE_TIMEOUT_S,
    ROWS_MAX,
    VARIANTS,
    Variant,
    keep_config,
    plan_profiles,
    render,
    widths_of,
    write_config,
)
from training.tensorrt_profiles import ROWS_MAX as PLAN_ROWS_MAX
from training.tensorrt_profiles import default_profiles

NANO = load_spec(SHIPPED, verify=False)
SPECS = {spec.name: spec for spec in (NANO, *PUBLISHED.values())}


def parsed(spec: ModelSpec, variant: Variant = "onnx") -> ModelConfig:
    """The rendering as Triton reads it. Raises ParseError on a field that Triton does not know."""
    config: ModelConfig = text_format.Parse(render(spec, variant), ModelConfig())
    return config


def test_every_model_of_the_repository_has_a_config() -> None:
    assert sorted(path.parent.name for path in MODEL_REPO.glob("*/config.pbtxt")) == sorted(SPECS)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_a_committed_config_is_what_its_spec_renders(name: str) -> None:
    text = (MODEL_REPO / name / "config.pbtxt").read_text(encoding="utf-8")
    assert text == render(SPECS[name]), f"python -m service triton-config {name} --write"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", sorted(SPECS))
def test_tensors_are_the_specs(name: str, variant: Variant) -> None:
    spec, config = SPECS[name], parsed(SPECS[name], variant)
    assert config.name == name
    assert [(item.name, list(item.dims)) for item in config.input] == [(each, [-1]) for each in spec.inputs]
    dims = [spec.dimension] if spec.pooling == "graph" else [-1, spec.dimension]
    names = [spec.output] if spec.raw_output is None else [spec.output, spec.raw_output]
    assert [(item.name, list(item.dims)) for item in config.output] == [(each, dims) for each in names]


@pytest.mark.parametrize(
    ("variant", "backend", "file"),
    [
        ("onnx", "onnxruntime", "model.onnx"),
        ("onnx-fp16", "onnxruntime", "model_fp16.onnx"),
        ("tensorrt-accelerator", "onnxruntime", "model.onnx"),
        ("tensorrt-plan", "tensorrt", "model.plan"),
    ],
)
def test_a_variant_opens_its_own_file_by_its_own_backend(variant: Variant, backend: str, file: str) -> None:
    config = parsed(NANO, variant)
    assert (config.backend, config.default_model_filename) == (backend, file)
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [item.name for item in accelerators] == ["tensorrt"] * (variant == "tensorrt-accelerator")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_queue_has_a_bound_a_time_and_two_levels_and_keeps_every_version(variant: Variant) -> None:
    config = parsed(NANO, variant)
    batching = config.dynamic_batching
    policy = batching.default_queue_policy
    assert policy.timeout_action == ModelQueuePolicy.REJECT
    # Without a default Triton takes no time from a request either.
    assert 0 < policy.default_timeout_microseconds == QUEUE_TIMEOUT_S * 1_000_000
    assert policy.allow_timeout_override
    assert policy.max_queue_size > 0
    assert (batching.priority_levels, batching.default_priority_level) == (2, 2)
    assert not batching.priority_queue_policy
    assert config.version_policy.HasField("all")


def test_triton_gives_up_no_sooner_than_a_gateway_would() -> None:
    assert Settings().engine_timeout_s <= QUEUE_TIMEOUT_S


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("max_tokens", [32, 100, 512])
def test_every_width_is_warmed_up_alone_and_in_company(variant: Variant, max_tokens: int) -> None:
    config = parsed(replace(NANO, max_tokens=max_tokens), variant)
    found: dict[int, list[int]] = {}
    for sample in config.model_warmup:
        assert sorted(sample.inputs) == sorted(NANO.inputs)
        ((width,),) = {tuple(value.dims) for value in sample.inputs.values()}
        found.setdefault(width, []).append(sample.batch_size)
    assert tuple(found) == widths_of(max_tokens)
    for alone, company in found.values():
        assert alone == 1 < company <= ROWS_MAX == config.max_batch_size


@pytest.mark.parametrize(
    ("max_tokens", "widths"), [(512, TRITON_WIDTHS), (128, (32, 64, 128)), (100, (32, 64, 100)), (16, (16,))]
)
def test_widths_end_with_the_longest_input(max_tokens: int, widths: tuple[int, ...]) -> None:
    assert widths_of(max_tokens) == widths


@pytest.mark.parametrize("max_tokens", [16, 64, 65, 128, 511, 512])
def test_profiles_are_those_that_a_plan_is_built_with(max_tokens: int) -> None:
    built = [tuple((shape.rows, shape.tokens) for shape in each.shapes) for each in default_profiles(max_tokens)]
    assert plan_profiles(max_tokens) == built
    assert ROWS_MAX == PLAN_ROWS_MAX


def test_the_plans_variant_names_every_profile_and_wants_a_gpu() -> None:
    (group,) = parsed(NANO, "tensorrt-plan").instance_group
    assert (group.kind, list(group.profile)) == (ModelInstanceGroup.KIND_GPU, ["0", "1"])
    for variant in ("onnx", "onnx-fp16", "tensorrt-accelerator"):
        (group,) = parsed(NANO, variant).instance_group
        assert (group.kind, list(group.profile)) == (ModelInstanceGroup.KIND_AUTO, [])


def test_the_accelerators_one_profile_takes_every_warm_up_and_every_batch() -> None:
    # ONNX Runtime builds several profiles and computes with the first alone.
    spec = SPECS["me5_small"]
    config = parsed(spec, "tensorrt-accelerator")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    shapes = {}
    for kind in ("min", "opt", "max"):
        pairs = [each.split(":") for each in accelerator.parameters[f"trt_profile_{kind}_shapes"].split(",")]
        assert [name for name, _ in pairs] == list(spec.inputs)
        ((shape),) = {each for _, each in pairs}
        shapes[kind] = tuple(map(int, shape.split("x")))
    assert shapes == {"min": (1, 1), "opt": (32, 256), "max": (ROWS_MAX, spec.max_tokens)}
    assert accelerator.parameters["precision_mode"] == "FP32"
    assert accelerator.parameters["trt_engine_cache_enable"] == "1"
    half = render(spec, "tensorrt-accelerator", precision="fp16")
    assert 'key: "precision_mode" value: "FP16"' in half
    assert 'key: "trt_layer_norm_fp32_fallback" value: "1"' in half


@pytest.mark.parametrize("variant", [each for each in VARIANTS if each != "tensorrt-accelerator"])
def test_a_precision_is_refused_where_the_file_decides_it(variant: Variant) -> None:
    with pytest.raises(InvalidInput, match=f"--variant tensorrt-accelerator; what {variant} computes in"):
        render(NANO, variant, precision="fp16")


def test_threads_are_written_down_and_negative_ones_refused() -> None:
    assert parsed(NANO).parameters["intra_op_thread_count"].string_value == "0"
    assert 'key: "intra_op_thread_count" value: { string_value: "3" }' in render(NANO, threads=3)
    with pytest.raises(InvalidInput, match="--threads is -1; give 0"):
        render(NANO, threads=-1)


def test_a_config_that_is_there_is_kept(tmp_path: Path) -> None:
    write_config(tmp_path, "mine\n")
    keep_config(tmp_path, NANO)
    assert (tmp_path / "config.pbtxt").read_text(encoding="utf-8") == "mine\n"
    (tmp_path / "config.pbtxt").unlink()
    keep_config(tmp_path, NANO)
    assert (tmp_path / "config.pbtxt").read_text(encoding="utf-8") == render(NANO)
    assert [path.name for path in tmp_path.iterdir()] == ["config.pbtxt"]


def test_the_command_prints_a_config_or_writes_it_into_the_models_folder(tmp_path: Path) -> None:
    (tmp_path / "me5_nano").mkdir()
    (tmp_path / "me5_nano" / "1").symlink_to(SHIPPED)
    # Named by the model's name, by a version, by a published checkpoint's name.
    named = {"me5_nano": NANO, "me5_nano/1": NANO, "intfloat/multilingual-e5-base": SPECS["me5_base"]}
    for name, spec in named.items():
        done = run_service("triton-config", name, "--variant", "tensorrt-plan", model_repo=tmp_path)
        assert (done.returncode, done.stdout.decode()) == (0, render(spec, "tensorrt-plan"))
    assert not (tmp_path / "me5_nano" / "config.pbtxt").exists()
    done = run_service("triton-config", "me5_nano", "--write", model_repo=tmp_path)
    assert done.stdout.decode() == f"{tmp_path / 'me5_nano' / 'config.pbtxt'}\n"
    assert (tmp_path / "me5_nano" / "config.pbtxt").read_text(encoding="utf-8") == render(NANO)


def test_the_command_refuses_what_triton_would(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "1").symlink_to(SHIPPED)
    for name, message in {"other": "must be named me5_nano for Triton", "nothing": "no model 'nothing'"}.items():
        done = run_service("triton-config", name, model_repo=tmp_path)
        assert (done.returncode, done.stdout) == (2, b"")
        assert message in done.stderr.decode()
