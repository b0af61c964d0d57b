"""From a source as it comes to prepared pairs: read the columns, keep what passes the filters, count the rest."""

import gzip
import importlib
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from tqdm import tqdm

from training.config import FilterConfig, SourceConfig
from training.data import MANIFEST_FILE, is_licence_open, read_sources, split_languages
from training.errors import BadTrainingData
from training.pair_store import ABOUT_FILE, About, PairRow, PairStore, write_store
from training.scripts import is_written_in

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]

# Of one file, before the next one's turn.
TURN_RECORDS = 1000


def prepare(
    sources: Mapping[str, SourceConfig], filters: FilterConfig, *, data: Path | None, out: Path, again: bool = False
) -> list[About]:
    """Prepare every source of a stage under `out`; those that are there already stay, unless `again`.

    data: the folder of the sources' paths. Raises BadTrainingData with the file, the line and the column.
    """
    if not sources:
        raise BadTrainingData("the stage names no sources; add a section [pretrain.sources.NAME]")
    written = []
    for name, source in sources.items():
        if (out / name / ABOUT_FILE).is_file() and not again:
            check_settings(PairStore(out / name), source, filters)
            logger.info("%s is there already", name)
            continue
        if not is_licence_open(source.licence):
            raise BadTrainingData(
                f"source {name} has the licence {source.licence!r}: a model trained on it could not be given away; "
                "remove the source"
            )
        dropped: Counter[str] = Counter()
        pairs = tqdm(kept(records_of(name, source, data), source, filters, dropped), desc=name, unit=" pairs")
        about = write_store(
            out / name,
            pairs,
            name=name,
            pair=source.pair,
            roles=(source.query_role, source.positive_role),
            licence=source.licence,
            settings=settings_of(source, filters),
            dropped=dropped,
        )
        logger.info("%s: %d pairs, dropped %s", name, sum(about.languages.values()), about.dropped)
        written.append(about)
    return written


def settings_of(source: SourceConfig, filters: FilterConfig) -> dict[str, object]:
    """What decides which pairs a prepared source has, and how they are prompted."""
    chosen = source.model_dump(mode="json", exclude={"weight", "instruction"})
    return {**chosen, "filter": filters.model_dump(mode="json")}


def check_settings(store: PairStore, source: SourceConfig, filters: FilterConfig) -> None:
    """Raise BadTrainingData where a source was prepared with other settings than these."""
    # A store that was written before instructions were known has none, as a source that names no such column.
    before = {"instruction_column": SourceConfig.model_fields["instruction_column"].default, **store.about.settings}
    now = settings_of(source, filters)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise BadTrainingData(
            f"{store.folder} was prepared with other settings ({', '.join(changed)}); prepare it again with --again"
        )


def kept(
    records: Iterator[tuple[str, Record]], source: SourceConfig, filters: FilterConfig, dropped: Counter[str]
) -> Iterator[tuple[str, PairRow]]:
    """The pairs that pass, with their languages; the others are counted in `dropped`.

    records: where each stands (for errors), and its columns.
    """
    read = 0
    for place, record in records:
        language, row = pair_of(place, record, source)
        reason = why_not(language, row, filters, symmetric=source.query_role == source.positive_role)
        if reason is not None:
            dropped[reason] += 1
            continue
        limit = filters.characters_max
        negatives = [text[:limit] for text in row.negatives]
        yield language, replace(row, query=row.query[:limit], positive=row.positive[:limit], negatives=negatives)
        read += 1
        if read == source.pairs_max:
            return


def pair_of(place: str, record: Record, source: SourceConfig) -> tuple[str, PairRow]:
    """Language and texts of one record, as the source's columns say."""

    def text(columns: list[str]) -> str:
        return " ".join(part for column in columns if (part := str(_column(place, record, column)).strip()))

    fixed = source.language.startswith("=")
    language = source.language[1:] if fixed else str(_column(place, record, source.language))
    negatives, answers = (_texts(place, record, column) for column in (source.negatives, source.answers))
    try:
        scores = [float(score) for score in record.get(source.scores) or []]
    except (TypeError, ValueError) as error:
        raise BadTrainingData(f"{place}: column {source.scores!r} is no list of numbers: {error}") from error
    if scores and len(scores) != 1 + len(negatives):
        raise BadTrainingData(
            f"{place} has {len(scores)} scores and {len(negatives)} negatives; wanted is the positive's score and then "
            "one for each negative"
        )
    instruction = str(record.get(source.instruction_column) or "").strip()
    return language, PairRow(text(source.query), text(source.positive), negatives, scores, answers, instruction)


def _texts(place: str, record: Record, column: str) -> list[str]:
    """A column that holds one text, some, or nothing."""
    found = record.get(column) or []
    if isinstance(found, Mapping):
        raise BadTrainingData(f"{place}: column {column!r} holds {', '.join(map(repr, found))}; name a column of texts")
    items = [found] if isinstance(found, str) else found
    return [str(item) for item in items if item is not None and str(item).strip()]


def _column(place: str, record: Record, column: str) -> Any:
    if column not in record:
        raise BadTrainingData(f"{place} has no column {column!r}; there are {', '.join(map(repr, record)) or 'none'}")
    # An empty field, of which real tables have some: the pair is dropped as too short.
    return "" if record[column] is None else record[column]


def why_not(language: str, row: PairRow, filters: FilterConfig, *, symmetric: bool) -> str | None:
    """The reason to drop a pair, or None."""
    if filters.languages and language not in filters.languages:
        return "language"
    sides = zip((row.query, row.positive), split_languages(language), strict=True)
    if not all(is_written_in(text, side, filters.script_share_min) for text, side in sides):
        return "script"
    shorter, longer = sorted((len(row.query), len(row.positive)))
    if shorter < filters.characters_min:
        return "short"
    if row.query.casefold() == row.positive.casefold():
        return "identical"
    # A passage may be far longer than its question; a translation that is has lost or gained something.
    if symmetric and longer > filters.length_ratio_max * shorter:
        return "length ratio"
    return None


def records_of(name: str, source: SourceConfig, data: Path | None) -> Iterator[tuple[str, Record]]:
    """Every record of a source, with where it stands."""
    if source.dataset:
        yield from _streamed(source)
        return
    if data is None:
        raise BadTrainingData(f"source {name} is a file; give --data FOLDER, or set ME5_DATA")
    files = sorted(data.glob(source.path))
    if not files:
        raise BadTrainingData(f"source {name}: no file in {data} matches {source.path!r}")
    _refuse_closed(name, files, data)
    # In turn, for languages often have a file each and a source may be cut at its pairs_max.
    readers = [_reader_of(file)(file) for file in files]
    while readers:
        for reader in list(readers):
            found = list(islice(reader, TURN_RECORDS))
            yield from found
            if len(found) < TURN_RECORDS:
                readers.remove(reader)


def _refuse_closed(name: str, files: Sequence[Path], data: Path) -> None:
    """Raise BadTrainingData where the data folder's manifest says that a file is for research only."""
    if (data / MANIFEST_FILE).is_file():
        licences = {listed.path: listed.licence for listed in read_sources(data)}
        for file in files:
            if not is_licence_open(licences.get(file, "")):
                raise BadTrainingData(
                    f"source {name}: {file} has the licence {licences[file]!r}: a model trained on it could not be "
                    "given away; choose other files"
                )


def _reader_of(file: Path) -> Callable[[Path], Iterator[tuple[str, Record]]]:
    if file.name.endswith((".jsonl", ".jsonl.gz")):
        return _json_lines
    if file.suffix == ".parquet":
        return _parquet
    raise BadTrainingData(f"{file}: only .jsonl, .jsonl.gz and .parquet can be read")


def _json_lines(file: Path) -> Iterator[tuple[str, Record]]:
    number = 0
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                record = orjson.loads(line)
                if not isinstance(record, dict):
                    raise BadTrainingData(f"{file}, line {number} is no JSON object")
                yield f"{file}, line {number}", record
        except orjson.JSONDecodeError as error:
            raise BadTrainingData(f"{file}, line {number} is no JSON: {error}") from error
        except (OSError, EOFError, zlib.error) as error:
            raise BadTrainingData(f"{file} can't be read behind line {number}: {error}; fetch it again") from error


def _parquet(file: Path) -> Iterator[tuple[str, Record]]:
    parquet = _imported("pyarrow.parquet")
    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", record
    except (OSError, ValueError) as error:
        # pyarrow's errors for damaged files are ValueErrors.
        raise BadTrainingData(f"{file} can't be read behind row {number}: {error}; fetch it again") from error


def _streamed(source: SourceConfig) -> Iterator[tuple[str, Record]]:
    datasets = _imported("datasets")
    try:
        stream = datasets.load_dataset(
            source.dataset,
            source.subset or None,
            split=source.split,
            revision=source.revision or None,
            streaming=True,
        )
        for number, record in enumerate(stream):
            yield f"{source.dataset}, record {number}", record
    except (OSError, ValueError) as error:
        raise BadTrainingData(f"the data set {source.dataset} can't be read: {error}") from error


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise BadTrainingData(f"{name} is not installed; pip install -e '.[training]'") from error
