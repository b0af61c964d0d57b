"""TLS: the certificate, read again when it is renewed, and handshakes that hold no connection for long."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from service.errors import SettingsError
from service.settings import Settings
from service.watched import read_all, watch

log = logging.getLogger("me5.tls")

# How long a closing connection waits for the other side's goodbye; asyncio's own is 30.
SHUTDOWN_S = 5.0
# Where accepting fails, it would fail again at once.
ACCEPT_PAUSE_S = 0.1


class Certificate:
    """A certificate and its key in an SSLContext, TLS 1.2 or newer. Raises SettingsError.

    context: for the handshakes that begin now; another one after each renewal. A context keeps one pair for each type
    of key, so that in a single one an EC pair would still be shown after it was replaced by an RSA pair.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert, self._key = cert, key
        self._begun_with = self._read()
        self.context = _load(new_context(), cert, key)
        mode = stat.S_IMODE(key.stat().st_mode)
        if mode & (stat.S_IRWXO | stat.S_IWGRP):
            log.warning("ME5_TLS_KEY=%s has mode %04o: others can use it; chmod go-w,o= %s", key, mode, key)

    async def watch(self) -> None:
        """For ever: take a renewed pair into use for the handshakes to come."""
        await watch((self._cert, self._key), self._begun_with, self._renewed, self._use, lambda _: None)

    def _read(self) -> list[bytes]:
        try:
            return read_all((self._cert, self._key))
        except OSError as error:
            name = "ME5_TLS_CERT" if error.filename == str(self._cert) else "ME5_TLS_KEY"
            raise SettingsError(f"{name}={error.filename}: {error.strerror}") from error

    def _renewed(self, _: list[bytes]) -> ssl.SSLContext:
        return _load(new_context(), self._cert, self._key)

    def _use(self, context: ssl.SSLContext) -> None:
        self.context = context


def open_certificate(settings: Settings) -> Certificate | None:
    """The certificate that settings name, if they name one. Raises SettingsError."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return Certificate(settings.tls_cert, settings.tls_key)


def new_context() -> ssl.SSLContext:
    """A server's, by Python's own choice of ciphers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load(context: ssl.SSLContext, cert: Path, key: Path) -> ssl.SSLContext:
    def no_password() -> str:
        raise SettingsError(f"ME5_TLS_KEY={key} is encrypted; openssl pkey -in {key} -out FILE decrypts it")

    pair = f"ME5_TLS_CERT={cert}, ME5_TLS_KEY={key}"
    try:
        context.load_cert_chain(cert, key, password=no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise SettingsError(f"{pair}: the key is not the certificate's") from error
        raise SettingsError(f"{pair}: no certificate and key in PEM ({error.reason or error})") from error
    except OSError as error:
        raise SettingsError(f"{pair}: {error.strerror}") from error
    return context


class Handshakes:
    """Accepts connections and shakes hands. Each counts among the connections from its first moment.

    asyncio's own server tells of a connection after its handshake only: clients that never finish theirs would hold
    files that nobody counts, for a minute each. certificate: asked for its context at each handshake. connections:
    uvicorn's own set, whose size is the count. new_protocol: of a connection, as uvicorn makes it.
    """

    def __init__(
        self,
        listener: socket.socket,
        certificate: Certificate,
        connections: set[Any],
        new_protocol: Callable[[], asyncio.Protocol],
        *,
        most: int,
        timeout_s: float,
        count_refused: Callable[[str], None],
    ) -> None:
        self._listener, self._certificate = listener, certificate
        self._connections, self._new_protocol = connections, new_protocol
        self._most, self._timeout_s, self._count_refused = most, timeout_s, count_refused
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, backlog: int) -> None:
        """Listen."""
        self._listener.listen(backlog)
        self._listener.setblocking(False)
        self._begin(self._accept())

    async def stop(self) -> None:
        """Accept no more, and drop those that have not asked anything yet."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                # No file left to accept with, or a client that was gone already.
                log.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if len(self._connections) >= self._most:
                self._count_refused("too_many")
                connection.close()
            else:
                self._begin(self._shake_hands(connection))

    async def _shake_hands(self, connection: socket.socket) -> None:
        protocol = self._new_protocol()
        self._connections.add(protocol)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._certificate.context,
                ssl_handshake_timeout=self._timeout_s,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except BaseException as error:
            self._connections.discard(protocol)
            if not isinstance(error, OSError):
                raise
            # Plain HTTP, an old version of TLS, a client that does not trust the certificate, or silence.
            log.debug("no TLS: %s", error)
            self._count_refused("tls_handshake")
