"""The commands on files of texts: python -m service mine | dedup | cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.applications.options import Format, IdField, Output, TextField, VectorsFile, extra
from service.errors import InvalidInput
from service.settings import load_settings

if TYPE_CHECKING:
    from service.applications.duplicates import Group
    from service.applications.texts import Texts, Vectors
    from service.applications.topics import Places, Topic


def mine(
    source: Annotated[str, typer.Argument(help="a file of sentences")],
    target: Annotated[str, typer.Argument(help="a file of sentences in another language, or in several")],
    margin: Annotated[
        Literal["ratio", "distance", "absolute"], typer.Option(help="how a pair's nearness is set against the usual")
    ] = "ratio",
    retrieval: Annotated[
        Literal["forward", "backward", "intersect", "max"], typer.Option(help="which pairs are looked at")
    ] = "max",
    k: Annotated[int, typer.Option(help="nearest neighbours that say what is usual")] = 4,
    threshold: Annotated[float | None, typer.Option(help="the least score of a pair that is written")] = None,
    gold: Annotated[
        Path | None,
        typer.Option(help="line numbers, source TAB target, empty where it has none: the threshold with the best F1"),
    ] = None,
    how: Annotated[
        Literal["auto", "exact", "cells"], typer.Option("--index", help="exact, or cells for more than 200,000")
    ] = "auto",
    source_vectors: Annotated[Path | None, typer.Option(help="the source's vectors: .npy or .parquet")] = None,
    target_vectors: Annotated[Path | None, typer.Option(help="the target's vectors: .npy or .parquet")] = None,
    text_field: TextField = "text",
    form: Format = None,
    to: Output = None,
) -> None:
    """Mine translations between two files: score, line numbers and texts, best first, tab-separated."""
    with extra("search"):
        from service.applications.mining_files import Asked, mine_files

    asked = Asked(margin, retrieval, k, threshold, gold, how)
    mine_files(load_settings(), (source, target), (source_vectors, target_vectors), asked, (text_field, form), to)


def dedup(
    file: Annotated[str, typer.Argument(help="a file of texts, in one language or many")],
    threshold: Annotated[
        float,
        typer.Option(help="the cosine above which two texts are duplicates; models differ: look at the groups"),
    ] = 0.9,
    keep: Annotated[
        Literal["first", "longest"], typer.Option(help="which text of a group stays: the first, or the longest")
    ] = "first",
    how: Annotated[
        Literal["auto", "exact", "cells"], typer.Option("--index", help="exact, or cells for more than 200,000")
    ] = "auto",
    to: Annotated[Path | None, typer.Option(help="where the texts that stay are written: .txt or .jsonl")] = None,
    vectors: VectorsFile = None,
    text_field: TextField = "text",
    id_field: IdField = None,
    form: Format = None,
) -> None:
    """Find near duplicates, across languages too: group, what happens, cosine with the kept text, line, id and text."""
    if not 0 < threshold < 1:
        raise InvalidInput(f"--threshold {threshold:g}: a cosine between 0 and 1, such as 0.9")
    if to is not None and to.suffix not in (".txt", ".jsonl"):
        raise InvalidInput(f"--to {to}: end its name in .txt or .jsonl")
    with extra("search"):
        from service.applications.duplicates import find_groups, groups_of
    import sys

    from service.applications.texts import embed_files, note, read_texts
    from service.applications.writing import write_table
    from service.bulk.records import Fields

    texts = read_texts(file, Fields(text_field, id_field), form)
    found = embed_files(load_settings(), [texts], "similarity", [vectors])[0]
    firsts, places = texts.distinct()
    # Of equal texts one is compared: a file of one line a million times is one text.
    numbers = find_groups(found if len(firsts) == len(found) else found[firsts], threshold, how)[places]
    groups = groups_of(numbers, texts.texts, keep)
    write_table(
        sys.stdout,
        ("group", "verdict", "cosine", "line", "id", "text"),
        (row for number, group in enumerate(groups) for row in _members(number, group, texts, found)),
    )
    dropped = {row for group in groups for row in group.rows if row != group.kept}
    if to is not None:
        _write_kept(to, texts, dropped)
    note(f"{len(texts.texts)} texts, {len(groups)} groups of duplicates, {len(dropped)} texts to drop")


def _members(number: int, group: Group, texts: Texts, vectors: Vectors) -> list[tuple[object, ...]]:
    """The rows of a group's table, the kept text first."""
    rows = [group.kept, *(row for row in group.rows if row != group.kept)]
    cosines = (vectors[rows] @ vectors[group.kept]).tolist()
    return [
        (number, "drop" if place else "keep", cosine, texts.lines[row], texts.ids[row], texts.texts[row])
        for place, (row, cosine) in enumerate(zip(rows, cosines, strict=True))
    ]


def _write_kept(path: Path, texts: Texts, dropped: set[int]) -> None:
    from service.applications.writing import open_output

    with open_output(path) as stream:
        for row, text in enumerate(texts.texts):
            if row not in dropped:
                record = {"id": texts.ids[row], "line": texts.lines[row], "text": text}
                line = (
                    json.dumps(record, ensure_ascii=False) if path.suffix == ".jsonl" else " ".join(text.splitlines())
                )
                stream.write(line + "\n")


def cluster(
    file: Annotated[str, typer.Argument(help="a file of texts, in one language or many")],
    method: Annotated[
        Literal["kmeans", "density"], typer.Option(help="k-means, or HDBSCAN, which leaves out what fits nowhere")
    ] = "kmeans",
    topics: Annotated[int | None, typer.Option(help="how many, for kmeans; without it the best of ten numbers")] = None,
    least_texts: Annotated[int, typer.Option(help="of a topic, for density")] = 10,
    language_field: Annotated[
        str | None,
        typer.Option(help="the field with the language, whose share in a vector is left out; without it guessed"),
    ] = None,
    to: Annotated[Path | None, typer.Option(help="where each text's topic is written: .tsv, or .json with all")] = None,
    picture: Annotated[Path | None, typer.Option("--map", help="a picture of the topics: .svg, .png or .pdf")] = None,
    vectors: VectorsFile = None,
    text_field: TextField = "text",
    id_field: IdField = None,
    form: Format = None,
) -> None:
    """Find topics across languages, each with its words: topic, number of texts, words and a typical text."""
    if to is not None and to.suffix not in (".tsv", ".json"):
        raise InvalidInput(f"--to {to}: end its name in .tsv or .json")
    with extra("search"):
        from service.applications import topics as finding
        from service.applications.languages import languages_of
    if picture is not None:
        with extra("plot"):
            from service.applications.topic_map import check_ending, draw_map
        check_ending(picture)
    import sys

    from service.applications.texts import embed_files, note, read_texts
    from service.applications.words import words_of
    from service.applications.writing import write_table
    from service.bulk.records import Fields
    from service.model import read_model

    settings = load_settings()
    texts = read_texts(file, Fields(text_field, id_field), form)
    languages = None if language_field is None else read_texts(file, Fields(language_field), form).texts
    found = embed_files(settings, [texts], "clustering", [vectors])[0]
    found = finding.centred(found, languages or languages_of(texts.texts))
    shown, places = _plane(found, method, picture)
    numbers = finding.by_kmeans(found, topics) if method == "kmeans" else finding.by_density(places, least_texts)
    words = list(words_of(read_model(settings.model, settings.model_repo).tokenizer, texts.texts))
    described = finding.describe(found, numbers, words)
    write_table(
        sys.stdout,
        ("topic", "texts", "words", "typical"),
        ((topic.number, len(topic.rows), topic.label, texts.texts[topic.rows[0]]) for topic in described),
    )
    if to is not None:
        _write_topics(to, texts, numbers.tolist(), described)
    if picture is not None:
        draw_map(picture, places, numbers[shown], described, f"{len(texts.texts):,} texts, {len(described)} topics")
    left = int((numbers == finding.NOISE).sum())
    note(f"{len(texts.texts)} texts, {len(described)} topics" + (f", {left} texts in none" if left else ""))


def _plane(vectors: Vectors, method: str, picture: Path | None) -> tuple[list[int], Places]:
    """Rows and their places in the plane: all of them, or for a picture of too many a sample; none where unwanted."""
    import numpy as np

    from service.applications import topics as finding

    if method == "kmeans" and picture is None:
        return [], np.empty((0, 2))
    rows = np.arange(len(vectors))
    if len(rows) > finding.PLANE_ROWS_MAX:
        if method == "density":
            return [], np.empty((len(rows), 2))
        rows = np.sort(np.random.default_rng(finding.SEED).permutation(len(rows))[: finding.PLANE_ROWS_MAX])
    return rows.tolist(), finding.lay_out(np.ascontiguousarray(vectors[rows]))


def _write_topics(path: Path, texts: Texts, numbers: list[int], topics: list[Topic]) -> None:
    from service.applications.writing import open_output, write_table

    labels = {topic.number: topic.label for topic in topics}
    rows = list(zip(numbers, texts.lines, texts.ids, texts.texts, strict=True))
    with open_output(path) as stream:
        if path.suffix == ".tsv":
            names = ("topic", "words", "line", "id", "text")
            write_table(stream, names, ((number, labels.get(number, ""), *rest) for number, *rest in rows))
            return
        found = {
            "topics": [
                {
                    "topic": topic.number,
                    "words": topic.words,
                    "texts": len(topic.rows),
                    "typical": [texts.texts[row] for row in topic.rows[:3]],
                }
                for topic in topics
            ],
            "texts": [dict(zip(("topic", "line", "id", "text"), row, strict=True)) for row in rows],
        }
        json.dump(found, stream, ensure_ascii=False, indent=1)
        stream.write("\n")
