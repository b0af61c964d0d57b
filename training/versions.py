"""The folders of a model's versions: numbered, written once, seen when they are finished."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.errors import ExportError


def choose_version(model_folder: Path, wanted: int | None) -> Path:
    """The folder of the wanted version, which must be new; without one, of the number after the highest."""
    there = [int(path.name) for path in model_folder.glob("*") if path.name.isdecimal()]
    version = max(there, default=0) + 1 if wanted is None else wanted
    if version in there:
        raise ExportError(f"{model_folder / str(version)} exists, and versions are never edited; leave --version out")
    return model_folder / str(version)


@contextmanager
def unfinished_version(target: Path) -> Iterator[Path]:
    """A folder beside the target that becomes the target if the block succeeds, and is removed if it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name that is no number: neither the gateway nor Triton takes it for a version.
    staging = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=target.parent))
    try:
        yield staging
        staging.chmod(0o755)  # mkdtemp's folders are private; a server runs as another user
        try:
            staging.rename(target)
        except OSError as error:
            raise ExportError(f"can't rename {staging} to {target}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not any(target.parent.iterdir()):
            target.parent.rmdir()
