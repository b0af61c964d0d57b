"""The commands embed and merge, as a user types them."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from service.errors import InvalidInput, SettingsError
from service.recipe.prompts import role_of
from service.settings import load_settings

if TYPE_CHECKING:
    from service.bulk.gateways import Fleet
    from service.bulk.job import Job

# What the packages of these extras are imported as.
_EXTRAS = {"bulk": ("httpx", "pyarrow", "tqdm"), "ray": ("ray",)}

OnError = Literal["stop", "skip"]
Option = typer.Option


def embed(
    texts: Annotated[list[str] | None, typer.Argument(help="texts; without any, lines of standard input")] = None,
    role: Annotated[str | None, Option(help="query or passage, or an alias; a file's has to be said")] = None,
    instruction: Annotated[str | None, Option(help="for instruct models, on the query side")] = None,
    source: Annotated[
        str | None, Option("--input", help=".jsonl, .parquet, .csv, .tsv or .txt, also with .gz or .zst; - for stdin")
    ] = None,
    output: Annotated[Path | None, Option(help="FILE.parquet, FILE.npy or FILE.safetensors")] = None,
    form: Annotated[str | None, Option("--format", help="of the input, such as csv or jsonl.gz")] = None,
    text_field: Annotated[str, Option(help="field, or column, of the text")] = "text",
    id_field: Annotated[str | None, Option(help="of the id; without one, records are numbered from 0")] = None,
    title_field: Annotated[str | None, Option(help="put before the text, with a blank between")] = None,
    truncate: Annotated[bool | None, Option(help="whether over-long texts are cut, or bad; else ME5_TRUNCATE")] = None,
    dimensions: Annotated[int | None, Option(help="components kept of each vector")] = None,
    dtype: Annotated[str, Option(help="float32, float16, or int8 by the model's one scale")] = "float32",
    columns: Annotated[str, Option("--with", help="beside id and vector: text,tokens,truncated")] = "",
    window: Annotated[int | None, Option(help="records sorted, computed and stored together")] = None,
    shard: Annotated[str | None, Option(help="a worker's part, such as 3/16, numbered from 0")] = None,
    on_error: Annotated[str, Option(help="stop at a bad record, or skip it and list it in the manifest")] = "stop",
    overwrite: Annotated[bool, Option("--overwrite", help="begin anew, over what is there")] = False,
    url: Annotated[list[str] | None, Option(help="a gateway that computes; several share the work")] = None,
    key_file: Annotated[Path | None, Option(help="holds the key that gateways are sent")] = None,
    in_flight: Annotated[int, Option(min=1, help="requests at a time to each gateway")] = 4,
    patience_s: Annotated[float, Option(help="how long gateways may refuse a batch")] = 600.0,
    ray_workers: Annotated[int, Option("--ray", min=0, help="compute by so many workers of a Ray cluster")] = 0,
) -> None:
    """Embed texts without a server: a line of JSON each. With --input and --output: a file of them, to a file of
    vectors; the same command again goes on where it was cut off."""
    if source is None and output is None:
        embed_texts(texts, role or "query", instruction)
        return
    if source is None or output is None or texts:
        raise InvalidInput("a bulk job takes --input and --output, and no texts beside them")
    if role is None:
        raise InvalidInput("say what the texts are: --role passage for what is searched in, --role query for questions")
    if on_error not in get_args(OnError):
        raise InvalidInput(f"--on-error {on_error}: give {' or '.join(get_args(OnError))}")
    _need("bulk")
    from service.bulk.job import WINDOW, Job, Wish, columns_of, dtype_of
    from service.bulk.records import Fields
    from service.bulk.windows import shard_of

    job = Job(
        source=source,
        output=output,
        wish=Wish(role_of(role), role, instruction, truncate, dimensions, dtype_of(dtype)),
        fields=Fields(text_field, id_field, title_field),
        form=form,
        columns=columns_of(columns),
        window=WINDOW if window is None else window,
        shard=None if shard is None else shard_of(shard),
        skip_bad=on_error == "skip",
    )
    if url:
        from service.bulk.gateways import Fleet

        manifest = asyncio.run(_by_gateways(job, Fleet(url, _key(key_file), in_flight, patience_s), overwrite))
    elif ray_workers:
        _need("ray")
        from service.bulk.ray_job import run_on_ray

        manifest = run_on_ray(job, load_settings(), workers=ray_workers, overwrite=overwrite)
    else:
        manifest = asyncio.run(_here(job, overwrite))
    print(json.dumps({name: manifest[name] for name in _TOLD}, indent=2))


# Of the manifest, what a person wants to see at once.
_TOLD = ("file", "rows", "counts", "duration_s", "texts_per_s", "tokens_per_s")


def merge(
    output: Annotated[
        Path, typer.Argument(help="FILE.parquet, FILE.npy or FILE.safetensors, as the shards were given")
    ],
    overwrite: Annotated[bool, Option("--overwrite", help="write over what is there")] = False,
) -> None:
    """Join the shards of a bulk job, FILE-00000-of-00016 and so on, to the file that one worker would have written."""
    _need("bulk")
    from service.bulk.merging import merge_shards

    manifest = merge_shards(output, overwrite=overwrite)
    print(json.dumps({name: manifest[name] for name in _TOLD}, indent=2))


def embed_texts(texts: list[str] | None, role: str, instruction: str | None) -> None:
    """A line of JSON with text, tokens, truncated and vector for each text, or line of standard input."""
    from service.asking import Ask
    from service.ready import opened

    chosen = role_of(role)
    try:
        inputs = texts or [line for line in sys.stdin.buffer.read().decode("utf-8").split("\n") if line.strip()]
        "".join(inputs).encode("utf-8")
    except UnicodeError as error:
        raise InvalidInput(f"texts must be UTF-8: {error}") from error
    settings = load_settings()

    async def run() -> None:
        async with opened(settings) as embedder:
            for start in range(0, len(inputs), settings.max_inputs):
                part = inputs[start : start + settings.max_inputs]
                answer = await embedder.embed(
                    Ask([*part], role=chosen, input_type=role, instruction=instruction, timeout_s=86_400)
                )
                for index, text in enumerate(part):
                    row = {
                        "text": text,
                        "tokens": answer.tokens[index],
                        "truncated": index in answer.truncated,
                        "vector": [round(float(part), 7) for part in answer.vectors[index]],
                    }
                    print(json.dumps(row, ensure_ascii=False))

    asyncio.run(run())


async def _here(job: Job, overwrite: bool) -> dict[str, object]:
    from service.bulk.embedded import Embedded
    from service.bulk.running import compute_here, plan_of, run_plan
    from service.ready import opened

    async with opened(load_settings()) as embedder:
        vectorizer = Embedded(embedder, job.wish)
        plan = plan_of(job, vectorizer.about(), exact=True)
        return await run_plan(plan, lambda plan, done: compute_here(plan, done, vectorizer), overwrite=overwrite)


async def _by_gateways(job: Job, fleet: Fleet, overwrite: bool) -> dict[str, object]:
    from service.bulk.gateways import opened_gateways
    from service.bulk.running import compute_here, plan_of, run_plan

    if "tokens" in job.columns:
        raise InvalidInput("--with tokens: a gateway tells how many tokens a request has, not a text; leave it out")
    async with opened_gateways(fleet, job.wish) as vectorizer:
        plan = plan_of(job, vectorizer.about(), exact=False)
        return await run_plan(plan, lambda plan, done: compute_here(plan, done, vectorizer), overwrite=overwrite)


def _key(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"can't read the key in {path}: {error}") from error


def _need(extra: str) -> None:
    missing = [name for name in _EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(f"{', '.join(missing)} not installed; pip install -e '.[{extra}]'")
