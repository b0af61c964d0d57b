"""What a model card says of a model, read from the files that training and evaluation wrote."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.errors import ExportError
from training.sentence_folder import weights_identity

# Beside a checkpoint's weights; and in a model version, what of it a card needs.
MANIFEST_FILE, FACTS_FILE = "run.json", "training.json"
RESULT_FILE = "evaluation.json"
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")
# Settings of a run that a reader asks for first; each is shown where the run has it.
SHOWN_SETTINGS = (
    "batch_pairs", "tokens_per_batch", "learning_rate", "temperature", "warmup_steps", "epochs", "hard_negatives",
    "max_tokens", "passage_tokens", "precision", "alpha", "distillation_temperature", "distillation_weight",
    "static_share", "lexical_width", "lexical_query_scale", "lexical_passage_scale", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class SourceFacts:
    """One source of pairs; None is what the run did not write down."""

    name: str
    pairs: int | None
    licence: str | None


@dataclass(frozen=True)
class TrainingFacts:
    """What a checkpoint was made from.   languages: ISO 639 codes, as far as the sources state them."""

    name: str | None
    stage: str | None
    begins_with: str | None
    steps: int | None
    pairs_seen: int | None
    settings: dict[str, object] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    languages: list[str] = field(default_factory=list)
    sources: list[SourceFacts] = field(default_factory=list)


@dataclass(frozen=True)
class Figures:
    """Means of an evaluation: set → measure → value, and what they were measured with."""

    protocol: str
    engine: str
    means: dict[str, dict[str, float]]


def facts_of_run(manifest: Mapping[str, object]) -> TrainingFacts:
    """The facts in a checkpoint's run.json."""
    settings = _object(manifest, "settings")
    stage = manifest.get("stage")
    own = _object(settings, str(stage)) if stage else _object(settings, "distil")
    flat = {key: value for key, value in {**settings, **own}.items() if not isinstance(value, dict | list)}
    begin = _object(manifest, "begin_with").get("model") or settings.get("starting_model") or settings.get("backbone")
    # Without counts and licences in older manifests.
    sources = _object(manifest, "sources") or _object(manifest, "data")
    steps = manifest.get("step", manifest.get("steps"))
    versions = _object(manifest, "versions") or _object(_object(manifest, "made_with"), "versions")
    return TrainingFacts(
        name=str(settings["name"]) if settings.get("name") else None,
        stage=str(stage) if stage else None,
        begins_with=_without_folders(str(begin)) if begin else None,
        steps=steps if isinstance(steps, int) else None,
        pairs_seen=seen if isinstance(seen := manifest.get("pairs_seen"), int) else None,
        settings={
            key: flat[key]
            for key in SHOWN_SETTINGS
            if flat.get(key) is not None and (flat.get("lexical_width") or not key.startswith("lexical_"))
        },
        versions={key: str(value) for key, value in versions.items()},
        languages=language_codes(
            language for name in sources for language in _list(_object(sources, name), "languages")
        ),
        sources=[_source(name, _object(sources, name)) for name in sorted(sources)],
    )


def read_facts(path: Path) -> TrainingFacts | None:
    """What `write_facts` wrote; None where it wrote nothing."""
    if not path.is_file():
        return None
    raw: dict[str, Any] = _read(path)
    try:
        sources = [SourceFacts(**item) for item in _list(raw, "sources")]
        return TrainingFacts(**{**raw, "sources": sources})
    except TypeError as error:
        raise ExportError(f"{path} does not say what a model was trained on: {error}; export it again") from error


def write_facts(checkpoint: Path, path: Path) -> None:
    """What of a checkpoint's run.json a card needs; nothing where the checkpoint has none. No path of this machine."""
    if (checkpoint / MANIFEST_FILE).is_file():
        facts = facts_of_run(_read(checkpoint / MANIFEST_FILE))
        path.write_text(json.dumps(asdict(facts), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_figures(path: Path, known_hashes: Iterable[str] = ()) -> Figures:
    """The means in a file of `python -m training evaluate --json`.

    known_hashes: SHA-256 of the model's graphs, and checkpoint_identity of its checkpoint. Raises ExportError where
    the figures are of none of them.
    """
    raw = _read(path)
    model, means = _object(raw, "system"), _object(raw, "means")
    if not means:
        raise ExportError(f"{path} holds no figures; make them by `python -m training evaluate MODEL --json {path}`")
    hashes, files = set(known_hashes), {name: str(sha256) for name, sha256 in _object(model, "files").items()}
    # One path of a checkpoint may be another's too; all of them are not.
    of_checkpoint = weights_identity(files)
    measured = {of_checkpoint} if of_checkpoint else set(files.values())
    if hashes and not hashes & measured:
        raise ExportError(
            f"{path} measured another model ({model.get('name')}): none of its hashes is a file of this one; "
            "evaluate this model and give that file"
        )
    return Figures(
        protocol=str(_object(raw, "protocol").get("name", "unknown")),
        engine=str(model.get("engine", "unknown")),
        means={
            name: {key: float(value) for key, value in _object(means, name).items() if isinstance(value, int | float)}
            for name in means
        },
    )


def language_codes(names: Iterable[str]) -> list[str]:
    """ISO 639 codes in names such as "en-de", "zh-Hant" or "deu_Latn", sorted; scripts and the rest fall away."""
    parts = {part for name in names for part in re.split(r"[-_]", name)}
    return sorted(part for part in parts if LANGUAGE_CODE.fullmatch(part))


def _source(name: str, about: Mapping[str, object]) -> SourceFacts:
    pairs, licence = about.get("pairs"), about.get("licence")
    return SourceFacts(name, pairs if isinstance(pairs, int) else None, str(licence) if licence else None)


def _without_folders(name: str) -> str:
    """A model's name; of a path only its end, which means something elsewhere too."""
    return f"checkpoint {Path(name).name}" if name.startswith((".", "/")) else name


def _object(values: Mapping[str, object], key: str) -> dict[str, object]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _list(values: Mapping[str, object], key: str) -> list[Any]:
    found = values.get(key)
    return found if isinstance(found, list) else []


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ExportError(f"can't read {path}: {error}; it must be a JSON object") from error
