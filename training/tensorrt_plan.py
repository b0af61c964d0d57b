"""A TensorRT plan of a model version: profiles and command decided, graph checked, plan built where there is a GPU.

    python -m training export-tensorrt model_repo/me5_small/2 --precision fp16

A plan fits one type of GPU and one release of TensorRT, so it is no part of a version: it is built where it runs, its
name says for what, and it is found again by the hash of what it was made from. Networks are strongly typed: precision
is what the graph says, so LayerNorm and pooling are float32 whatever else is not.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch

from service.recipe.golden import load_golden, prove
from service.recipe.spec import FP16_FILE, GOLDEN_FILE, MODEL_FILE, TOKENIZER_FILE, ModelSpec, file_sha256, load_spec
from service.recipe.tokens import TokenBatch, load_tokenizer, pad
from training.bfloat16 import as_bfloat16
from training.collection import Recipe
from training.errors import ExportError
from training.graph_run import graph_run
from training.tensorrt_profiles import (
    Profile,
    check_profiles,
    default_profiles,
    polygraphy_command,
    trtexec_command,
)

PlanPrecision = Literal["fp16", "bf16", "fp32"]
GRAPHS: dict[PlanPrecision, str] = {"fp16": FP16_FILE, "bf16": "model_bf16.onnx", "fp32": MODEL_FILE}
REQUEST_FILE, SCRIPT_FILE = "tensorrt.json", "build.sh"
# Width is what a model runs out of; rows cost time alone.
CHECKED_ROWS_MAX = 2


@dataclass(frozen=True)
class Machine:
    """gpu: its name, None without one.   tensorrt: the Python package's version.   trtexec: whether it is there."""

    gpu: str | None
    tensorrt: str | None
    trtexec: bool


@dataclass(frozen=True)
class Request:
    """Everything that decides a plan.   graph: the file it is made from.   sha256: of that file and those beside it."""

    graph: Path
    sha256: dict[str, str]
    inputs: tuple[str, ...]
    precision: PlanPrecision
    profiles: tuple[Profile, ...]

    @property
    def key(self) -> str:
        """A hash over all of it but where the files lie."""
        depends = [sorted(self.sha256.items()), self.inputs, self.precision, [str(item) for item in self.profiles]]
        return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Outcome:
    """What came of it.   plan: None where the build was skipped.   worst_cosine: of the golden proof, where it ran."""

    folder: Path
    commands: list[str]
    plan: Path | None
    worst_cosine: float | None
    told: str

    def describe(self) -> str:
        """For the terminal."""
        return "\n".join(
            [self.told, *(f"    {command}" for command in self.commands)] if self.plan is None else [self.told]
        )


def plan_name(request: Request, gpu: str, tensorrt: str) -> str:
    """The file of a plan: precision, GPU, release, and what it was made from."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{request.precision} {gpu} trt {tensorrt}").strip("-")
    return f"{words}-{request.key}.plan"


def builder_for(machine: Machine, profiles: int) -> Literal["python", "trtexec", "skip"]:
    """What builds here: the Python package, or trtexec, which is asked for a single profile only."""
    if machine.gpu is None:
        return "skip"
    if machine.tensorrt is not None:
        return "python"
    return "trtexec" if machine.trtexec and profiles == 1 else "skip"


def commands_for(request: Request, plan: str) -> list[str]:
    """What to run by hand on the GPU machine: polygraphy for several profiles, and trtexec for a single one."""
    graph = request.graph.name
    commands = [polygraphy_command(graph, plan, request.inputs, request.profiles)]
    if len(request.profiles) == 1:
        commands.append(trtexec_command(graph, plan, request.inputs, request.profiles[0]))
    return [shlex.join(command) for command in commands]


def export_tensorrt(
    folder: Path, *, precision: PlanPrecision, profiles: Sequence[Profile], out: Path, machine: Machine | None = None
) -> Outcome:
    """Check, write what to build, and build and prove it where there is a GPU.

    profiles: none takes the default ones.   Raises ExportError for a graph or a profile that can't work anywhere, and
    GoldenMismatch for a plan that gives other vectors; such a plan is removed.
    """
    spec = load_spec(folder)
    chosen = tuple(profiles or default_profiles(spec.max_tokens))
    check_profiles(chosen, spec.max_tokens)
    out.mkdir(parents=True, exist_ok=True)
    graph = place_graph(folder, precision, out)
    hashes = {path.name: file_sha256(path) for path in sorted(out.glob(f"{graph.name}*"))}
    request = Request(graph, hashes, spec.inputs, precision, chosen)
    check_graph(graph, folder / (FP16_FILE if precision == "bf16" else GRAPHS[precision]), spec, chosen)
    here = machine or this_machine()
    plan = out / plan_name(request, here.gpu or "GPU", here.tensorrt or "VERSION")
    commands = commands_for(request, plan.name)
    _write_request(out, request, commands)
    builder = builder_for(here, len(chosen))
    if builder == "skip":
        return Outcome(out, commands, None, None, _why_skipped(here, out))
    if not plan.is_file():
        unproven = plan.with_suffix(".unproven")
        if builder == "python":
            from training.tensorrt_build import build_plan

            build_plan(graph, request.inputs, chosen, unproven)
        else:
            command = trtexec_command(str(graph), str(unproven), request.inputs, chosen[0])
            subprocess.run(command, check=True)
            return Outcome(
                out, commands, unproven, None, f"{unproven}: built and not proved, tensorrt is not installed"
            )
        worst = prove_plan(unproven, folder, spec, request)
        unproven.rename(plan)
        return Outcome(out, commands, plan, worst, f"{plan}: golden cosine ≥ {worst:.6f}")
    worst = prove_plan(plan, folder, spec, request)
    return Outcome(out, commands, plan, worst, f"{plan} was there: golden cosine ≥ {worst:.6f}")


def place_graph(folder: Path, precision: PlanPrecision, out: Path) -> Path:
    """The graph of a precision beside the plan-to-be. Raises ExportError where the version has none."""
    source = folder / (FP16_FILE if precision == "bf16" else GRAPHS[precision])
    if not source.is_file():
        raise ExportError(
            f"{source} is missing, and {precision} is made from it; export the checkpoint with --fp16, or build "
            "--precision fp32"
        )
    target = out / GRAPHS[precision]
    if precision == "bf16":
        onnx.save(as_bfloat16(onnx.load(source)), target)
    else:
        for path in folder.glob(f"{source.name}*"):
            target.with_name(path.name).write_bytes(path.read_bytes())
    return target


def check_graph(graph: Path, runnable: Path, spec: ModelSpec, profiles: Sequence[Profile]) -> None:
    """As much of a build as needs no GPU: the file is valid, its shapes can be inferred, and every width runs.

    runnable: what ONNX Runtime runs on the CPU; it computes no bfloat16, so of that it is the float16 file.
    """
    try:
        onnx.checker.check_model(str(graph), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{graph} is no valid graph: {error}; export the version again") from error
    run = graph_run(runnable, spec)
    for profile in profiles:
        for shape in profile.shapes:
            rows = min(shape.rows, CHECKED_ROWS_MAX)
            ids = np.full((rows, shape.tokens), spec.pad_id + 1, dtype=np.int64)
            vectors = run(TokenBatch(ids, np.ones_like(ids)))
            if vectors.shape != (rows, spec.dimension) or not np.isfinite(vectors).all():
                raise ExportError(
                    f"{runnable} gives no {rows} finite vectors of {spec.dimension} numbers for {shape.tokens} tokens "
                    f"(profile {profile}); export the version again"
                )


def prove_plan(plan: Path, folder: Path, spec: ModelSpec, request: Request) -> float:
    """Hold a plan to the golden vectors, one text a batch. A plan that fails is removed."""
    from training.tensorrt_build import plan_run

    run = plan_run(plan, spec, request.profiles)
    golden = load_golden(folder / GOLDEN_FILE)
    recipe = Recipe(load_tokenizer(folder / TOKENIZER_FILE), spec.prompts, spec.max_tokens, spec.pad_id)
    rows = [recipe.rows([item.text], item.role)[0] for item in golden.items]
    try:
        return prove(golden, np.concatenate([run(pad([row], spec.pad_id)) for row in rows]), request.precision)
    except Exception:
        plan.unlink()
        raise


def this_machine() -> Machine:
    """What is here."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    version = importlib.metadata.version("tensorrt") if importlib.util.find_spec("tensorrt") else None
    return Machine(gpu, version, shutil.which("trtexec") is not None)


def _why_skipped(machine: Machine, out: Path) -> str:
    lacking = (
        "this machine has no GPU" if machine.gpu is None else "neither tensorrt nor (for one profile) trtexec is here"
    )
    return (
        f"{out}: graph and profiles are checked; the plan is not built, {lacking}. Run this command again on the "
        "machine that serves (pip install tensorrt), or copy the folder there and run in it:"
    )


def _write_request(out: Path, request: Request, commands: Sequence[str]) -> None:
    document = {
        "format": 1,
        "graph": request.graph.name,
        "sha256": request.sha256,
        "precision": request.precision,
        "profiles": [str(profile) for profile in request.profiles],
        "key": request.key,
    }
    (out / REQUEST_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    others = "".join(f"# or: {command}\n" for command in commands[1:])
    (out / SCRIPT_FILE).write_text(f"#!/bin/sh -e\n{commands[0]}\n{others}", encoding="utf-8")
