"""The layout of a checkpoint of two paths: that of Sentence Transformers, with two modules of its own.

The library runs code that lies in a checkpoint only where it is told to: `trust_remote_code=True`.
"""

import json
import shutil
from pathlib import Path

from training.checkpoint import write_json, write_sentence_transformers_files
from training.sentence_folder import STATIC_FILE
from training.static_path import StaticPath, save_static_path

CODE_FILE = "two_paths.py"
_MODULES_SOURCE = Path(__file__).with_name("two_paths_modules.py")


def write_two_paths(folder: Path, static: StaticPath, dimension: int) -> None:
    """Write what `SentenceTransformer(folder, trust_remote_code=True)` reads beside the encoder."""
    write_sentence_transformers_files(folder, dimension)
    shutil.copyfile(_MODULES_SOURCE, folder / CODE_FILE)
    file = folder / STATIC_FILE
    file.parent.mkdir()
    save_static_path(static, file)
    write_json(file.with_name("config.json"), {"vocab_size": len(static.weights), "dimension": dimension})
    (folder / "2_Normalize").rename(folder / "3_Normalize")
    encoder, pooling, normalize = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    encoder["type"] = f"{Path(CODE_FILE).stem}.EncoderWithTokenVectors"
    normalize["path"] = "3_Normalize"
    path = {"path": file.parent.name, "type": f"{Path(CODE_FILE).stem}.StaticPath"}
    modules = [encoder, pooling, path, normalize]
    write_json(folder / "modules.json", [{**each, "idx": n, "name": str(n)} for n, each in enumerate(modules)])
