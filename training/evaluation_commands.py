"""The commands that measure: evaluate, compare, report, audit, mteb."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.terminal import Data, data_folder, one_line_errors

if TYPE_CHECKING:
    from training.open_system import OpenOptions

commands = typer.Typer()


# Typer wants enumerations for closed choices.
class ProtocolName(StrEnum):
    paper = "paper"
    mteb_current = "mteb-current"


class EngineChoice(StrEnum):
    onnx = "onnx"
    openvino = "openvino"


class PrecisionChoice(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"


class PoolingChoice(StrEnum):
    mean = "mean"
    cls = "cls"
    last = "last"


class DtypeChoice(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


System = Annotated[
    str,
    typer.Argument(
        help="A model version, a checkpoint, any model's folder or name on the hub, package:NAME, bm25, "
        "bm25:TOKENIZER.json, hybrid:A+B@WEIGHT, or a server: http://…, openai+https://…#MODEL, cohere+https://…, "
        "tei+http://…"
    ),
]
ProtocolOption = Annotated[ProtocolName, typer.Option("--protocol", help="Which prompts each task gets.")]
Engine = Annotated[EngineChoice, typer.Option(help="What computes a model version.")]
Precision = Annotated[PrecisionChoice, typer.Option(help="What a model version is computed in.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of a model version's engine; 0 takes all cores.")]
Pooling = Annotated[
    PoolingChoice | None, typer.Option(help="Of a plain transformer, where nothing says it.", show_default=False)
]
Dtype = Annotated[DtypeChoice, typer.Option(help="What a transformer is computed in.")]
Device = Annotated[
    str | None, typer.Option(help="Of a transformer: cpu, cuda; a GPU where there is one.", show_default=False)
]
QueryPrompt = Annotated[
    str | None, typer.Option(help="Put before queries, where the model is not known here.", show_default=False)
]
PassagePrompt = Annotated[str | None, typer.Option(help="The same before passages.", show_default=False)]
KeyVariable = Annotated[str, typer.Option(help="The environment variable with a server's API key.")]
Results = Annotated[list[Path], typer.Argument(help="JSON files written by `evaluate --json`.")]
OneResult = Annotated[Path, typer.Argument(help="A JSON file written by `evaluate --json`.")]


@commands.command()
def evaluate(
    system: System,
    data: Data = None,
    tasks: Annotated[str, typer.Option(help="Sets, separated by commas; all of them by default.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="FLORES in 13 languages, STS-B and XQuAD only.")] = False,
    protocol: Annotated[
        ProtocolName | None,
        typer.Option(
            help="Which prompts each task gets; paper by default, and mteb-current for models whose prompt is for "
            "retrieval alone.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write everything to this file.", show_default=False)] = None,
    engine: Engine = EngineChoice.onnx,
    precision: Precision = PrecisionChoice.fp32,
    threads: Threads = 0,
    pooling: Pooling = None,
    query_prompt: QueryPrompt = None,
    passage_prompt: PassagePrompt = None,
    dtype: Dtype = DtypeChoice.fp32,
    device: Device = None,
    key_variable: KeyVariable = "ME5_SERVER_KEY",
) -> None:
    """Score a system on bitext mining, similarity, retrieval, classification and clustering."""
    with one_line_errors():
        folder = data_folder(data)
        from training.evaluate import choose_sets
        from training.evaluate import evaluate as run_evaluation
        from training.open_system import open_system
        from training.protocol import PROTOCOLS, default_protocol
        from training.result import check_place, measures_of, table, write_result

        if json is not None:
            check_place(json)
        sets = choose_sets([task for task in tasks.split(",") if task], quick=quick)
        options = _options(
            engine, precision, threads, pooling, query_prompt, passage_prompt, dtype, device, key_variable
        )
        opened = open_system(system, options)
        chosen = default_protocol(opened.identity) if protocol is None else PROTOCOLS[protocol.value]
        typer.echo(f"{opened.identity.name}, {opened.identity.engine}, protocol {chosen.name}\n")
        result = run_evaluation(
            opened,
            folder,
            sets,
            chosen,
            lambda done, scored: typer.echo(table(done, measures_of(scored))),
        )
        if json is not None:
            write_result(json, result)


@commands.command()
def mteb(
    system: System,
    names: Annotated[list[str], typer.Argument(help='Tasks and benchmarks by mteb\'s names, such as "MTEB(eng, v1)".')],
    out: Annotated[Path, typer.Option(help="Folder of the results, one file a task.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A folder with a task's data in a folder of its name, in mteb's layout; else the hub or its cache.",
            show_default=False,
        ),
    ] = None,
    protocol: ProtocolOption = ProtocolName.paper,
    raw_classification: Annotated[
        bool,
        typer.Option("--raw-classification", help="Classify by vectors before they are scaled, as the report did."),
    ] = False,
    engine: Engine = EngineChoice.onnx,
    precision: Precision = PrecisionChoice.fp32,
    threads: Threads = 0,
    pooling: Pooling = None,
    query_prompt: QueryPrompt = None,
    passage_prompt: PassagePrompt = None,
    dtype: Dtype = DtypeChoice.fp32,
    device: Device = None,
    key_variable: KeyVariable = "ME5_SERVER_KEY",
) -> None:
    """Run mteb's own tasks on a system; beside each result lies the protocol that it was made by."""
    with one_line_errors():
        from training.mteb_bridge import run_mteb
        from training.mteb_protocols import MtebProtocol
        from training.open_system import open_system

        options = _options(
            engine, precision, threads, pooling, query_prompt, passage_prompt, dtype, device, key_variable
        )
        transformer = replace(options.transformer, raw_features=raw_classification)
        server = replace(options.server, raw_features=raw_classification)
        opened = open_system(system, replace(options, transformer=transformer, server=server))
        chosen = MtebProtocol(protocol.value, unit_classification=not raw_classification)
        for path in run_mteb(opened, names, chosen, out, data=data):
            typer.echo(f"{path}")


def _options(
    engine: EngineChoice,
    precision: PrecisionChoice,
    threads: int,
    pooling: PoolingChoice | None,
    query_prompt: str | None,
    passage_prompt: str | None,
    dtype: DtypeChoice,
    device: str | None,
    key_variable: str,
) -> "OpenOptions":
    from training.open_system import OpenOptions
    from training.server_system import ServerOptions
    from training.transformer_system import TransformerOptions

    return OpenOptions(
        engine=engine.value,
        precision=precision.value,
        threads=threads,
        progress=True,
        transformer=TransformerOptions(
            pooling=pooling.value if pooling else None,
            query_prompt=query_prompt,
            passage_prompt=passage_prompt,
            dtype=dtype.value,
            device=device,
        ),
        server=ServerOptions(query_prompt=query_prompt, passage_prompt=passage_prompt, key_variable=key_variable),
    )


@commands.command()
def compare(first: OneResult, second: OneResult) -> None:
    """Test the difference of two results, set by set, by a paired bootstrap over the examples."""
    with one_line_errors():
        from training.compare import compare as compare_results
        from training.compare import describe
        from training.result import read_result

        one, other = read_result(first), read_result(second)
        found = compare_results(one, other)
        typer.echo(describe(found, *(f"{each.system.name}, {each.system.engine}" for each in (one, other))), nl=False)


@commands.command()
def report(
    results: Results,
    out: Annotated[Path, typer.Option(help="Folder of the page and its figures.")] = Path("report"),
    into: Annotated[
        Path | None,
        typer.Option(
            help="Also the table and the figures into this page, between its lines evaluation:start and :end.",
            show_default=False,
        ),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(help="Also the table, and one a set by language, into this model card.", show_default=False),
    ] = None,
) -> None:
    """Write results side by side: a page with tables, figures and the audit of languages."""
    with one_line_errors():
        from training.report import write_report
        from training.result import read_result

        typer.echo(f"{write_report([read_result(each) for each in results], out, into, card)}")


@commands.command()
def audit(
    result: OneResult,
    before: Annotated[
        Path | None, typer.Option(help="An earlier result, such as before quantisation.", show_default=False)
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="A folder with tokenizer.json: what each language costs.", show_default=False)
    ] = None,
    data: Data = None,
) -> None:
    """Say how well each language is served: the worst, groups, what changed, and tokens per character."""
    with one_line_errors():
        from service.recipe.tokens import load_tokenizer
        from training.audit import audit as audit_result
        from training.audit import (
            describe_audit,
            describe_drops,
            describe_tokens,
            drops,
            texts_by_language,
            tokens_per_character,
        )
        from training.result import read_result

        texts = {} if model is None else texts_by_language(data_folder(data))
        measured = read_result(result)
        typer.echo(describe_audit(audit_result(measured)))
        if before is not None:
            typer.echo(describe_drops(drops(read_result(before), measured)))
        if model is not None:
            tokenizer = load_tokenizer(model / "tokenizer.json")
            costs = {name: tokens_per_character(tokenizer, each) for name, each in texts.items()}
            typer.echo(describe_tokens(costs), nl=False)
