"""The file of keys on disk: read, watched over, and written by the command line."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from pathlib import Path

from service.errors import KeysError
from service.keys import Key, parse_keys

log = logging.getLogger("me5.keys")

HEADING = "# Keys of a me5 gateway, by their SHA-256. `python -m service keys --help`.\n"


def keys_in(content: bytes, path: Path) -> tuple[Key, ...]:
    """The keys of a file with this content. Raises KeysError with the path."""
    text = text_of(content, path)
    try:
        return parse_keys(text)
    except KeysError as error:
        raise KeysError(f"ME5_KEYS_FILE={path}: {error.message}") from error


def text_of(content: bytes, path: Path) -> str:
    """What the file says. Raises KeysError."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise KeysError(f"ME5_KEYS_FILE={path}: not UTF-8 at byte {error.start}") from error


def read_file(path: Path) -> bytes:
    """What the file holds. Raises KeysError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeysError(
            f"ME5_KEYS_FILE={path}: {error.strerror}; `python -m service keys add NAME` makes the file"
        ) from error


def warn_if_writable(path: Path) -> None:
    """Whoever can write the file can let himself in. To read it gives nothing: it holds hashes of random keys."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        log.warning(
            "ME5_KEYS_FILE=%s has mode %04o: others than its owner can add keys; chmod go-w %s", path, mode, path
        )


def write_file(path: Path, text: str) -> None:
    """Replace the file in one step, so that no gateway ever reads half of it. Raises KeysError."""
    try:
        # A gateway in a container is another user, and may read what is no secret.
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
        # Where the path is a link, what it points at is replaced.
        target = path.resolve()
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".keys-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, mode)
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise KeysError(f"ME5_KEYS_FILE={path} can't be written: {error.strerror}") from error
