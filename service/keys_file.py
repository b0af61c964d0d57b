"""The file of keys on disk: read, watched over, and written by the command line."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def rewrite(path: Path, change: Callable[[str], str], *, new: str | None = None) -> None:
    """Change what the file says; whoever else does so meanwhile waits, and nobody's change is lost. Raises KeysError.

    new: what a file that is not there yet is taken to say; None where there has to be one.
    """
    with _alone(path):
        text = new if new is not None and not path.exists() else text_of(read_file(path), path)
        write_file(path, change(text))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock on the folder: the file itself is replaced, and one beside it would belong to whoever came first."""
    try:
        descriptor = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KeysError(f"ME5_KEYS_FILE={path} can't be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            # NFS locks no folders.
            log.warning("%s can't be locked (%s): change the keys from one place at a time", path, error.strerror)
        yield
    finally:
        os.close(descriptor)


def write_file(path: Path, text: str) -> None:
    """Replace the file in one step, so that no gateway ever reads half of it. Raises KeysError."""
    try:
        # A gateway in a container is another user, and may read what is no secret.
        before = path.stat() if path.exists() else None
        # Where the path is a link, what it points at is replaced.
        target = path.resolve()
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".keys-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            if before is not None:
                _keep_owner(name, before, path)
            os.chmod(name, 0o644 if before is None else stat.S_IMODE(before.st_mode))
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise KeysError(f"ME5_KEYS_FILE={path} can't be written: {error.strerror}") from error


def _keep_owner(name: str, before: os.stat_result, path: Path) -> None:
    try:
        os.chown(name, before.st_uid, before.st_gid)
    except OSError as error:
        log.warning(
            "ME5_KEYS_FILE=%s belonged to user %d, group %d and now to you (%s); see that the gateway can read it",
            *(path, before.st_uid, before.st_gid, error.strerror),
        )
