"""TensorRT without a GPU: profiles and commands are decided and checked, and the build is skipped in plain words."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from tiny_checkpoint import write_tiny_checkpoint
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from service.recipe.spec import FP16_FILE, MODEL_FILE, load_spec
from service.triton_config import Variant, render
from training.bfloat16 import as_bfloat16
from training.errors import ExportError
from training.export import export
from training.float16_forms import write_float16
from training.sentence_model import load_sentence_model
from training.tensorrt_plan import Machine, Request, builder_for, export_tensorrt, plan_name
from training.tensorrt_profiles import (
    Profile,
    Shape,
    check_profiles,
    default_profiles,
    parse_profile,
    polygraphy_command,
    profile_for,
    trtexec_command,
)
from training.tracing import OPSET, in_float16

INPUTS = ("input_ids", "attention_mask")


class GatherElements(OpRun):
    """In place of ONNX's own, which fails where the index is narrower than the data."""

    op_domain = ""

    def _run(self, data: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        return (np.take_along_axis(data, indices, axis),)


NO_GPU = Machine(gpu=None, tensorrt=None, trtexec=False)


@pytest.mark.parametrize("max_tokens", [16, 64, 65, 512])
def test_the_default_profiles_take_every_text_of_the_model(max_tokens: int) -> None:
    profiles = default_profiles(max_tokens)
    check_profiles(profiles, max_tokens)
    assert profile_for(profiles, 1, 1) == 0
    assert profile_for(profiles, 256, max_tokens) == len(profiles) - 1
    assert profile_for(profiles, 1, max_tokens + 1) is None


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        (["a=1x1:64x32:16x512"], "has rows 1, 64, 16; wanted is 1 ≤ min ≤ opt ≤ max"),
        (["a=1x9:8x4:16x512"], "has tokens 9, 4, 512"),
        (["a=0x1:8x4:16x512"], "has rows 0, 8, 16"),
        (["a=1x1:8x64:16x513"], "up to 513 tokens, the model to 512; lower its max"),
        (["a=2x1:8x64:16x512"], "begins with 2 rows; a single text must fit"),
        (["a=1x1:8x64:16x256"], "no profile takes a text of 257 tokens"),
        (["a=1x1:8x16:16x32", "b=1x40:8x64:16x512"], "no profile takes a text of 33 tokens"),
        (["a=1x1:8x64:16x512", "a=1x1:8x64:16x512"], "its own name"),
        ([], "give at least one"),
    ],
)
def test_profiles_that_contradict_themselves_or_leave_texts_out_are_refused(profiles: list[str], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_profiles([parse_profile(text) for text in profiles], 512)


def test_a_profile_is_read_as_it_is_written() -> None:
    profile = parse_profile("query=1x1:16x32:256x64")
    assert profile == Profile("query", Shape(1, 1), Shape(16, 32), Shape(256, 64))
    assert parse_profile(str(profile)) == profile
    with pytest.raises(ExportError, match="write NAME=MIN:OPT:MAX"):
        parse_profile("query=1x1:16x32")


def test_a_batch_goes_to_the_narrowest_profile_that_takes_it() -> None:
    profiles = default_profiles(512)
    assert [profile_for(profiles, *batch) for batch in ((1, 8), (256, 64), (1, 65), (257, 8))] == [0, 0, 1, None]


def test_commands_name_every_input_of_every_profile_and_are_strongly_typed() -> None:
    profiles = default_profiles(512)
    command = polygraphy_command("m.onnx", "m.plan", INPUTS, profiles)
    assert "--strongly-typed" in command
    assert command.count("--trt-min-shapes") == command.count("--trt-max-shapes") == len(profiles)
    at = command.index("--trt-opt-shapes")
    assert command[at + 1 : at + 3] == ["input_ids:[16,32]", "attention_mask:[16,32]"]
    assert trtexec_command("m.onnx", "m.plan", INPUTS, profiles[1]) == [
        "trtexec",
        "--onnx=m.onnx",
        "--saveEngine=m.plan",
        "--stronglyTyped",
        "--skipInference",
        "--minShapes=input_ids:1x1,attention_mask:1x1",
        "--optShapes=input_ids:32x256,attention_mask:32x256",
        "--maxShapes=input_ids:256x512,attention_mask:256x512",
    ]


@pytest.mark.parametrize(
    ("machine", "profiles", "builder"),
    [
        (NO_GPU, 1, "skip"),
        (Machine(None, "11.4.0", True), 2, "skip"),
        (Machine("NVIDIA H200", "11.4.0", True), 2, "python"),
        (Machine("NVIDIA H200", None, True), 1, "trtexec"),
        (Machine("NVIDIA H200", None, True), 2, "skip"),
        (Machine("NVIDIA H200", None, False), 1, "skip"),
    ],
)
def test_what_builds_is_decided_by_what_is_there(machine: Machine, profiles: int, builder: str) -> None:
    assert builder_for(machine, profiles) == builder


def test_a_plans_name_says_gpu_and_release_and_changes_with_what_it_is_made_from() -> None:
    request = Request(
        Path("a/model_fp16.onnx"), {"model_fp16.onnx": "0" * 64}, INPUTS, "fp16", tuple(default_profiles(512))
    )
    name = plan_name(request, "NVIDIA H200", "11.4.0")
    assert name == f"fp16-NVIDIA-H200-trt-11.4.0-{request.key}.plan"
    elsewhere = Request(Path("b/model_fp16.onnx"), request.sha256, INPUTS, "fp16", request.profiles)
    assert elsewhere.key == request.key
    others = [
        Request(request.graph, {"model_fp16.onnx": "1" * 64}, INPUTS, "fp16", request.profiles),
        Request(request.graph, request.sha256, INPUTS, "bf16", request.profiles),
        Request(request.graph, request.sha256, INPUTS, "fp16", request.profiles[1:]),
    ]
    assert len({request.key, *(other.key for other in others)}) == 4


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny version with a float16 graph, written without the gate, which test_float16.py is about."""
    root = tmp_path_factory.mktemp("tensorrt")
    checkpoint = write_tiny_checkpoint(root / "checkpoint", "xlm-roberta")
    folder = export(checkpoint, name="tiny", model_repo=root / "repo").folder
    write_float16(in_float16(load_sentence_model(checkpoint)), load_spec(folder), folder / FP16_FILE, OPSET)
    return folder


@pytest.mark.parametrize(("variant", "file"), [("onnx", MODEL_FILE), ("onnx-fp16", FP16_FILE)])
def test_tritons_config_names_the_tensors_of_either_graph(version: Path, variant: Variant, file: str) -> None:
    config = text_format.Parse(render(load_spec(version), variant), ModelConfig())
    assert config.default_model_filename == file
    graph = onnx.load(version / file).graph
    types = {TensorProto.INT64: DataType.TYPE_INT64, TensorProto.FLOAT: DataType.TYPE_FP32}
    for tensors, items in ((graph.input, config.input), (graph.output, config.output)):
        found = {
            # Without the batch, and -1 for what has a name in place of a number.
            tensor.name: (
                types[tensor.type.tensor_type.elem_type],
                [dim.dim_value or -1 for dim in tensor.type.tensor_type.shape.dim][1:],
            )
            for tensor in tensors
        }
        assert {item.name: (item.data_type, list(item.dims)) for item in items} == found


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_without_a_gpu_everything_is_written_and_the_build_is_skipped_in_plain_words(
    version: Path, tmp_path: Path, precision: str
) -> None:
    profiles = [parse_profile("short=1x1:2x8:4x32"), parse_profile("long=1x1:2x64:4x512")]
    outcome = export_tensorrt(version, precision=precision, profiles=profiles, out=tmp_path, machine=NO_GPU)
    assert outcome.plan is None
    assert "the plan is not built, this machine has no GPU" in outcome.describe()
    assert outcome.commands[0] in outcome.describe()
    assert outcome.commands[0] in (tmp_path / "build.sh").read_text(encoding="utf-8")
    request = json.loads((tmp_path / "tensorrt.json").read_text(encoding="utf-8"))
    assert request["profiles"] == [str(profile) for profile in profiles]
    assert (tmp_path / request["graph"]).is_file()
    assert request["graph"] in outcome.commands[0]
    assert subprocess.run(["sh", "-n", str(tmp_path / "build.sh")], check=False).returncode == 0


def test_a_version_without_a_float16_graph_says_how_to_make_one(version: Path, tmp_path: Path) -> None:
    plain = tmp_path / "1"
    shutil.copytree(version, plain)
    (plain / FP16_FILE).unlink()
    with pytest.raises(ExportError, match="model_fp16.onnx is missing.*export the checkpoint with --fp16"):
        export_tensorrt(plain, precision="bf16", profiles=[], out=tmp_path / "out", machine=NO_GPU)


def test_a_bfloat16_graph_has_no_float16_left_and_nearly_the_same_vectors(version: Path) -> None:
    half = onnx.load(version / FP16_FILE)
    model = as_bfloat16(half)
    onnx.checker.check_model(model, full_check=True)
    types = {tensor.data_type for tensor in model.graph.initializer}
    assert TensorProto.BFLOAT16 in types
    assert TensorProto.FLOAT16 not in types
    feed = {
        "input_ids": np.array([[0, 5, 6, 7, 2], [0, 8, 2, 1, 1]]),
        "attention_mask": np.array([[1] * 5, [1] * 3 + [0] * 2]),
    }
    # ONNX Runtime computes no bfloat16 on the CPU; ONNX's own reference does.
    found, wanted = (
        ReferenceEvaluator(graph, new_ops=[GatherElements]).run(["sentence_embedding"], feed)[0]
        for graph in (model, half)
    )
    assert found.dtype == np.float32
    # 8 bits of fraction through two layers.
    assert (found * wanted).sum(axis=1).min() > 0.999
