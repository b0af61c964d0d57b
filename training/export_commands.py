"""The commands that make model versions from checkpoints, and further forms of them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from training.terminal import Data, data_folder, one_line_errors

commands = typer.Typer()


# Typer wants enumerations for closed choices.
class StoredWeights(StrEnum):
    int8 = "int8"
    float32 = "float32"


class Int8MethodName(StrEnum):
    static = "static"
    dynamic = "dynamic"


class PlanPrecisionName(StrEnum):
    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


INT8_HELP = (
    "static: the scales of activations are found on texts beforehand, so a text has one vector whatever it is batched "
    "with. dynamic: each batch finds its own, so a text's vector depends on its neighbours; it needs no calibration."
)

TextsFile = Annotated[
    Path | None,
    typer.Option(
        help='In place of --data: JSON lines {"text", "lang"}, and "id" where texts are translations of each other; '
        "half of them held out.",
        show_default=False,
    ),
]
Result = Annotated[
    Path | None,
    typer.Option(help="What `evaluate --json` wrote of this model, for the card.", show_default=False),
]
Licence = Annotated[
    str | None, typer.Option(help="The licence of the weights, for the card, such as apache-2.0.", show_default=False)
]


@commands.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint in the Sentence Transformers layout.")],
    name: Annotated[str, typer.Option(help="The model's name in the repository, such as me5_nano.")],
    out: Annotated[Path, typer.Option(help="The model repository.")] = Path("model_repo"),
    weights: Annotated[StoredWeights, typer.Option(help="How the weights are stored.")] = StoredWeights.float32,
    version: Annotated[int | None, typer.Option(min=1, help="Its number; by default the next free one.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Refuse a version larger than this.")] = None,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Also a float16 graph for GPUs and TensorRT, LayerNorm and pooling in fp32.")
    ] = False,
    fp16_attention: Annotated[
        bool, typer.Option("--fp16-attention", help="Also one with ONNX's own Attention operator (opset 23).")
    ] = False,
    int8: Annotated[
        Int8MethodName | None, typer.Option(help=f"Also int8 graphs for CPUs. {INT8_HELP}", show_default=False)
    ] = None,
    data: Data = None,
    texts: TextsFile = None,
    result: Result = None,
    licence: Licence = None,
) -> None:
    """Write a checkpoint as a model version, proved against the checkpoint; every further form is held to texts."""
    with one_line_errors():
        from training.export import Forms
        from training.export import export as run_export
        from training.gate_texts import texts_of_data, texts_of_file

        forms = Forms(
            float16=(*(("fp16",) if fp16 else ()), *(("fp16-attention",) if fp16_attention else ())),
            int8=None if int8 is None else int8.value,
        )
        held = None
        if forms.needs_texts:
            held = texts_of_file(texts) if texts is not None else texts_of_data(data_folder(data))
        exported = run_export(
            checkpoint,
            name=name,
            model_repo=out,
            weights=weights.value,
            version=version,
            max_bytes=max_bytes,
            forms=forms,
            texts=held,
            result=result,
            licence=licence,
        )
        typer.echo(exported.describe())


@commands.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="A model version (model_repo/NAME/VERSION).")],
    data: Data = None,
    texts: TextsFile = None,
    method: Annotated[
        Int8MethodName, typer.Option(help=f"Of the graph for ONNX Runtime. {INT8_HELP}")
    ] = Int8MethodName.static,
) -> None:
    """Write the next version: the same model, and graphs that compute in int8."""
    with one_line_errors():
        from training.gate_texts import texts_of_data, texts_of_file
        from training.int8 import quantize as run_quantization

        chosen = texts_of_data(data_folder(data)) if texts is None else texts_of_file(texts)
        typer.echo(run_quantization(model, chosen, method=method.value).describe())


@commands.command("export-tensorrt")
def export_tensorrt(
    model: Annotated[Path, typer.Argument(help="A model version (model_repo/NAME/VERSION).")],
    precision: Annotated[
        PlanPrecisionName, typer.Option(help="fp16 and bf16 are made from the version's float16 graph.")
    ] = PlanPrecisionName.fp16,
    profile: Annotated[
        list[str] | None,
        typer.Option(help="NAME=MIN:OPT:MAX, shapes as ROWSxTOKENS; may be repeated.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the plan; build/tensorrt/NAME/VERSION by default.", show_default=False),
    ] = None,
) -> None:
    """Check a version for TensorRT, and build and prove its plan where there is a GPU; elsewhere say what to run."""
    with one_line_errors():
        from training.tensorrt_plan import export_tensorrt as run_build
        from training.tensorrt_profiles import parse_profile

        folder = out or Path("build") / "tensorrt" / model.resolve().parent.name / model.resolve().name
        profiles = [parse_profile(text) for text in profile or []]
        typer.echo(run_build(model, precision=precision.value, profiles=profiles, out=folder).describe())


@commands.command()
def card(
    model: Annotated[Path, typer.Argument(help="A model version (model_repo/NAME/VERSION) or a checkpoint folder.")],
    result: Result = None,
    licence: Licence = None,
) -> None:
    """Write the model card (README.md) anew, such as when the model was evaluated."""
    with one_line_errors():
        from service.recipe.spec import SPEC_FILE, load_spec
        from training.model_card import rewrite_card

        spec = load_spec(model) if (model / SPEC_FILE).is_file() else None
        typer.echo(f"{rewrite_card(model, spec, licence=licence, result=result)}")


@commands.command("gate-optimum")
def gate_optimum(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint that was exported.")],
    graphs: Annotated[Path, typer.Argument(help="The folder that training/optimum_export.py wrote.")],
    data: Data = None,
    texts: TextsFile = None,
) -> None:
    """Hold what optimum wrote of a checkpoint to the parity gate; exit with 2 where a graph fails."""
    with one_line_errors():
        from training.gate_texts import texts_of_data, texts_of_file
        from training.optimum_gate import gate

        held = texts_of_file(texts) if texts is not None else texts_of_data(data_folder(data))
        typer.echo(gate(checkpoint, graphs, held.gate).describe())
