"""Files that are read again when they change, while the process runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from service.errors import Me5Error

log = logging.getLogger("me5.watched")

T = TypeVar("T")

# A change is in force after two to three looks.
LOOK_EVERY_S = 0.5


def read_all(paths: Sequence[Path]) -> list[bytes]:
    """What the files hold. Raises OSError."""
    return [path.read_bytes() for path in paths]


async def watch(
    paths: Sequence[Path],
    begun_with: list[bytes],
    parse: Callable[[list[bytes]], T],
    use: Callable[[T], None],
    tell: Callable[[bool], None],
    *,
    every_s: float = LOOK_EVERY_S,
) -> None:
    """For ever: when the files hold something else, parse it, off the event loop, and use it.

    What can't be read, parsed or used is logged once, and `tell` is told False until the files hold something good
    again; not even a fault of our own ends the watch, or a key could not be revoked any more.
    Content is compared and not a time: a Kubernetes volume swaps a symbolic link, an editor may keep times, and
    some disks round them. Something new has to be the same twice, so that a file is not taken half written.
    """
    # Broken content is handled too: it is not looked at again until it changes.
    handled: list[bytes] | str = begun_with
    seen = handled
    names = ", ".join(map(str, paths))
    while True:
        await asyncio.sleep(every_s)
        found = await _read_or_say_why(paths)
        settled, seen = found == seen, found
        if not settled or found == handled:
            continue
        handled = found
        try:
            if isinstance(found, str):
                raise Me5Error(found)
            use(await asyncio.to_thread(parse, found))
        except Me5Error as error:
            log.error("%s changed and is not used, what was in force stays: %s", names, error.message)
            tell(False)
        except Exception:
            log.exception("%s changed and is not used, what was in force stays; a fault of this program", names)
            tell(False)
        else:
            log.info("%s changed and is in force", names)
            tell(True)


async def _read_or_say_why(paths: Sequence[Path]) -> list[bytes] | str:
    try:
        return await asyncio.to_thread(read_all, paths)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except Exception as error:
        # No thread to be had, or no memory: it may be better at the next look.
        return f"{type(error).__name__}: {error}"
