"""TLS: the certificate, read again when it is renewed, and handshakes that hold no connection for long."""

from __future__ import annotations

import asyncio
import logging
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.errors import SettingsError
from service.settings import Settings
from service.watched import read_all, watch

log = logging.getLogger("me5.tls")

# How long a closing connection waits for the other side's goodbye; asyncio's own is 30.
SHUTDOWN_S = 5.0


class Certificate:
    """A certificate and its key in an SSLContext, TLS 1.2 or newer. Raises SettingsError."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert, self._key = cert, key
        self._begun_with = self._read()
        self.context = _load(new_context(), cert, key)
        mode = stat.S_IMODE(key.stat().st_mode)
        if mode & (stat.S_IRWXO | stat.S_IWGRP):
            log.warning("ME5_TLS_KEY=%s has mode %04o: others can use it; chmod go-w,o= %s", key, mode, key)

    async def watch(self) -> None:
        """For ever: take a renewed pair into use for the handshakes to come."""
        await watch((self._cert, self._key), self._begun_with, self._try, self._use, lambda _: None)

    def _read(self) -> list[bytes]:
        try:
            return read_all((self._cert, self._key))
        except OSError as error:
            name = "ME5_TLS_CERT" if error.filename == str(self._cert) else "ME5_TLS_KEY"
            raise SettingsError(f"{name}={error.filename}: {error.strerror}") from error

    def _try(self, _: list[bytes]) -> None:
        # A certificate without its key would stay in a context that is in use.
        _load(new_context(), self._cert, self._key)

    def _use(self, _: None) -> None:
        _load(self.context, self._cert, self._key)


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


class Handshake(asyncio.Protocol):
    """A connection before it has spoken TLS. It counts among the connections from its first moment.

    asyncio tells a protocol of a connection after its handshake only: clients that never finish theirs would hold
    files that nobody counts. connections: uvicorn's own set.   inner: makes the protocol of what comes after it.
    """

    def __init__(
        self,
        connections: set[Any],
        inner: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        *,
        most: int,
        timeout_s: float,
        count_refused: Callable[[str], None],
    ) -> None:
        self._connections, self._inner, self._context = connections, inner, context
        self._most, self._timeout_s, self._count_refused = most, timeout_s, count_refused
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake, unless there are too many connections."""
        assert isinstance(transport, asyncio.Transport)
        if len(self._connections) >= self._most:
            self._count_refused("too_many")
            transport.abort()
            return
        # What has arrived is for the handshake to read.
        transport.pause_reading()
        self._transport = transport
        self._connections.add(self)
        self._task = asyncio.get_running_loop().create_task(self._shake_hands(transport))

    def shutdown(self) -> None:
        """uvicorn ends: nothing was asked yet."""
        if self._transport is not None:
            self._transport.abort()

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        early = _Early()
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                early,
                self._context,
                server_side=True,
                ssl_handshake_timeout=self._timeout_s,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except (OSError, ConnectionError) as error:
            # Plain HTTP, an old version of TLS, a certificate the client doesn't trust, or silence.
            log.debug("no TLS: %s", error)
            self._count_refused("tls_handshake")
            transport.abort()
            return
        finally:
            self._connections.discard(self)
        if secured is None or early.lost:
            return
        protocol = self._inner()
        secured.set_protocol(protocol)
        protocol.connection_made(secured)
        if early.data:
            protocol.data_received(bytes(early.data))


class _Early(asyncio.Protocol):
    """Keeps what comes with the handshake's last bytes, before the connection has its protocol."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.lost = True
