"""The keys that settings name, opened, and watched over while the gateway runs."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from service.callers import Callers
from service.keys import Key, plain_keys
from service.keys_file import keys_in, read_file, warn_if_writable
from service.metrics import KeyMetrics, Metrics
from service.settings import Settings
from service.watched import watch

log = logging.getLogger("me5.keys")


class Gate:
    """Callers, and the file they come from, if they come from one."""

    def __init__(self, callers: Callers, path: Path | None, content: bytes) -> None:
        self.callers = callers
        self._path = path
        self._begun_with = content

    async def watch(self) -> None:
        """Put what the file says in force whenever it changes; for ever, or not at all without a file."""
        if self._path is None:
            return
        path, callers = self._path, self.callers

        def use(keys: tuple[Key, ...]) -> None:
            callers.use(keys, time.monotonic())
            _say_how_many(callers)

        await watch(
            (path,),
            [self._begun_with],
            lambda contents: keys_in(contents[0], path),
            use,
            callers.metrics.file_valid.set,
        )


def open_gate(settings: Settings, metrics: Metrics) -> Gate:
    """The keys in force at start. Raises KeysError: a gateway never starts with fewer keys than it was given."""
    plain = settings.api_key.get_secret_value()
    callers = Callers(plain_keys(plain) if plain else (), KeyMetrics(metrics.registry), time.monotonic())
    path, content = settings.keys_file, b""
    if path is not None:
        content = read_file(path)
        callers.use(keys_in(content, path), time.monotonic())
        warn_if_writable(path)
    callers.metrics.file_valid.set(1)
    _say_how_many(callers)
    return Gate(callers, path, content)


def _say_how_many(callers: Callers) -> None:
    if callers.count:
        log.info("%d keys in force", callers.count)
    else:
        log.warning("no keys in force: every request that needs one is refused")
