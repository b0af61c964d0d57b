"""python -m service index | search: a small search engine in a folder."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.applications.options import Format, IdField, TextField, VectorsFile, extra
from service.errors import InvalidInput
from service.settings import load_settings

if TYPE_CHECKING:
    from service.applications.passage_index import Addition
    from service.applications.searching import Hit
    from service.applications.texts import Vectors
    from service.bulk.records import Record
    from service.embedder import Embedder

# Passages read, embedded and stored at a time.
PART = 2048
# A hit is a line on a terminal; --json has all of it.
SHOWN_CHARS = 160


def index(
    file: Annotated[str, typer.Argument(help="a file of passages: jsonl, csv, tsv, parquet, or plain lines; .gz too")],
    to: Annotated[Path, typer.Option(help="the index's folder; one that is there is added to")],
    text_field: TextField = "text",
    id_field: IdField = None,
    title_field: Annotated[str | None, typer.Option(help="the field with a title, put before the text")] = None,
    skip_known: Annotated[
        bool, typer.Option("--skip-known", help="pass over ids that the index has, instead of an error")
    ] = False,
    words: Annotated[bool, typer.Option("--words", help="also rank by words (BM25), for search --hybrid")] = False,
    form: Format = None,
    vectors: VectorsFile = None,
) -> None:
    """Put passages into a search index, or add them to it."""
    with extra("search"):
        from service.applications.searching import kind_for, with_nearest, with_words
    from service.applications.origins import check_model
    from service.applications.passage_index import adding, publish
    from service.applications.texts import check_count, note, read_vectors, records_of
    from service.bulk.records import Fields
    from service.model import read_model

    settings = load_settings()
    model = read_model(settings.model, settings.model_repo)
    fields = Fields(text_field, id_field, title_field)
    ready = None if vectors is None else read_vectors(vectors, "passage")
    if vectors is not None:
        check_model(vectors, model.spec)
    if ready is not None and ready.shape[1] != model.spec.dimension:
        raise InvalidInput(f"{vectors} has {ready.shape[1]} components, {model.spec.name} gives {model.spec.dimension}")
    records = records_of(file, fields, form)
    prefix = None if id_field else f"{Path(file).name}:"
    with adding(to, model) as addition:
        before = addition.count
        filling = Filling(addition, prefix, skip_known)
        if vectors is None or ready is None:
            asyncio.run(_embed_into(filling, records))
        else:
            read = 0
            for start, part in enumerate_parts(records):
                read = start + len(part)
                check_count(vectors, min(len(ready), read), file, read)
                filling.store(part, filling.wanted(part), ready[start:read])
            check_count(vectors, len(ready), file, read)
        if not addition.count:
            raise InvalidInput(f"{file} holds no text; give a file with one passage a line, or a row")
        finished = addition.finish()
        found, recall = with_nearest(finished, kind_for(finished.manifest.count))
        if words or found.manifest.words is not None:
            found = with_words(found, model.tokenizer)
        publish(found)
    kind = (
        "all vectors compared" if found.manifest.nearest is None else f"{found.manifest.nearest}, recall {recall:.3f}"
    )
    note(f"{found.manifest.count} passages in {to}, {found.manifest.count - before} of them new ({kind})")


class Filling:
    """Parts of a file on their way into an index. prefix: put before a line's number where lines have no id."""

    def __init__(self, addition: Addition, prefix: str | None, skip_known: bool) -> None:
        self._addition, self._prefix, self._skip_known = addition, prefix, skip_known

    def id_of(self, record: Record) -> str:
        """The id that a record gets."""
        return record.id if self._prefix is None else f"{self._prefix}{record.line}"

    def wanted(self, part: list[Record]) -> list[int]:
        """Places of the records to be stored. Raises InvalidInput for an id that is there already, or twice."""
        seen = self._addition.known([self.id_of(record) for record in part])
        places = []
        for place, record in enumerate(part):
            name = self.id_of(record)
            if name not in seen:
                places.append(place)
                seen.add(name)
            elif not self._skip_known:
                raise InvalidInput(
                    f"line {record.line}: id {name!r} is in the index, or in this file, already; ids must differ, or "
                    "say --skip-known to pass over those that are there"
                )
        return places

    def store(self, part: list[Record], wanted: list[int], vectors: Vectors) -> None:
        """Store the wanted records of a part. vectors: of all its records, or of the wanted alone."""
        rows = vectors if len(vectors) == len(wanted) else vectors[wanted]
        chosen = [part[place] for place in wanted]
        self._addition.add([self.id_of(record) for record in chosen], [record.text for record in chosen], rows)


def enumerate_parts(records: Iterator[Record]) -> Iterator[tuple[int, list[Record]]]:
    """Records, PART at a time, with the place of the first."""
    start = 0
    while part := list(islice(records, PART)):
        yield start, part
        start += len(part)


async def _embed_into(filling: Filling, records: Iterator[Record]) -> None:
    from service.applications.texts import embed
    from service.ready import opened

    parts = ((start, part, filling.wanted(part)) for start, part in enumerate_parts(records))
    # Looked at before the model is opened: what is wrong with a file is mostly wrong with its first lines.
    first = next(parts, None)
    if first is None:
        return
    async with opened(load_settings()) as embedder:
        for start, part, wanted in chain([first], parts):
            if wanted:
                texts = [part[place].text for place in wanted]
                filling.store(part, wanted, await embed(embedder, texts, "passage", f"from passage {start}"))


def search(
    folder: Annotated[Path, typer.Argument(help="an index's folder")],
    questions: Annotated[list[str] | None, typer.Argument(help="without any, lines of standard input")] = None,
    count: Annotated[int, typer.Option("-k", help="hits a question")] = 10,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="rank by words as well; the index needs --words")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="a line of JSON a question")] = False,
) -> None:
    """Search an index: the passages nearest to a question, in whatever language they are."""
    with extra("search"):
        from service.applications.searching import Searcher
    from service.applications.passage_index import PassageIndex
    from service.applications.words import pieces_of
    from service.model import read_model
    from service.ready import opened

    asked = questions or [
        line for line in sys.stdin.buffer.read().decode("utf-8", "replace").splitlines() if line.strip()
    ]
    if not all(question.strip() for question in asked):
        raise InvalidInput("a question is empty; ask something")
    settings = load_settings()
    model = read_model(settings.model, settings.model_repo)
    found = PassageIndex.open(folder)
    found.check_model(model)
    searcher = Searcher(found, hybrid=hybrid)

    async def ask() -> None:
        async with opened(settings) as embedder:
            for start in range(0, len(asked), PART):
                part = asked[start : start + PART]
                vectors = await _question_vectors(embedder, part)
                words = list(pieces_of(model.tokenizer, part)) if hybrid else [[] for _ in part]
                for question, hits in zip(part, searcher.search(vectors, words, count), strict=True):
                    _print(question, hits, as_json=as_json, named=len(asked) > 1)

    asyncio.run(ask())


async def _question_vectors(embedder: Embedder, questions: list[str]) -> Vectors:
    from service.asking import Ask

    answer = await embedder.embed(Ask([*questions], role="query", input_type="query", timeout_s=86_400))
    return answer.vectors


def _print(question: str, hits: list[Hit], *, as_json: bool, named: bool) -> None:
    if as_json:
        rows = [{"score": round(hit.score, 6), "id": hit.passage.id, "text": hit.passage.text} for hit in hits]
        print(json.dumps({"question": question, "hits": rows}, ensure_ascii=False))
        return
    if named:
        print(f"# {question}")
    for rank, hit in enumerate(hits, 1):
        text = " ".join(hit.passage.text.split())
        if len(text) > SHOWN_CHARS:
            text = text[: SHOWN_CHARS - 1] + "…"
        print(f"{rank:2}  {hit.score:.4f}  {hit.passage.id}  {text}")
