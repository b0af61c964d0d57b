"""The layout of a checkpoint of two paths, or three: that of Sentence Transformers, with modules of its own.

The library runs code that lies in a checkpoint only where it is told to: `trust_remote_code=True`.
"""

import json
import shutil
from pathlib import Path

from training.checkpoint import write_json, write_sentence_transformers_files
from training.lexical_path import LexicalPath, save_lexical_path
from training.sentence_folder import LEXICAL_FILE, STATIC_FILE
from training.static_path import StaticPath, save_static_path

CODE_FILE = "two_paths.py"
_MODULES_SOURCE = Path(__file__).with_name("two_paths_modules.py")


def write_two_paths(folder: Path, static: StaticPath, dimension: int, lexical: LexicalPath | None = None) -> None:
    """Write what `SentenceTransformer(folder, trust_remote_code=True)` reads beside the encoder.

    dimension: of the layers.
    """
    write_sentence_transformers_files(folder, dimension)
    shutil.copyfile(_MODULES_SOURCE, folder / CODE_FILE)
    encoder, pooling, normalize = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    encoder["type"] = f"{Path(CODE_FILE).stem}.EncoderWithTokenVectors"
    save_static_path(static, _own_folder(folder, STATIC_FILE, vocab_size=len(static.weights), dimension=dimension))
    paths = [_module(STATIC_FILE, "StaticPath")]
    if lexical is not None:
        sizes = {"vocab_size": len(lexical.weights), "high_rows": len(lexical.high)}
        sizes |= {"dimension": dimension, "width": lexical.low.shape[1]}
        save_lexical_path(lexical, _own_folder(folder, LEXICAL_FILE, **sizes))
        paths.append(_module(LEXICAL_FILE, "LexicalPath"))
    normalize["path"] = f"{2 + len(paths)}_Normalize"
    (folder / "2_Normalize").rename(folder / normalize["path"])
    modules = [encoder, pooling, *paths, normalize]
    write_json(folder / "modules.json", [{**each, "idx": n, "name": str(n)} for n, each in enumerate(modules)])


def _own_folder(folder: Path, file: str, **config: int) -> Path:
    """Make the folder of a module with what its constructor takes, and return where its tensors go."""
    path = folder / file
    path.parent.mkdir()
    write_json(path.with_name("config.json"), dict(config))
    return path


def _module(file: str, name: str) -> dict[str, object]:
    return {"path": Path(file).parent.name, "type": f"{Path(CODE_FILE).stem}.{name}"}
