"""HTTPS by the gateway itself: real certificates, renewed while it runs, and handshakes that are never finished."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from gateway_process import ROOT, Gateway, run_service, start_gateway
from metric_series import scrape, series

from service.errors import SettingsError
from service.tls import Certificate

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")

HEADER_TIMEOUT_S, WRITE_TIMEOUT_S, CONNECTIONS = 1.0, 0.8, 8
# service.http_protocol.SPARE_CONNECTIONS more are accepted, to be told why they are refused.
SPARE = 64
PATIENCE_S = 30.0
BODY = {"inputs": "how deep is the harbour?"}


EC = ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
RSA = ("rsa:2048",)


def make_pair(folder: Path, name: str, kind: Sequence[str] = EC) -> tuple[Path, Path]:
    """A certificate for this machine that is its own authority, and its key of this kind."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", *kind, "-nodes"),
            *("-keyout", key, "-out", cert, "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


@dataclass(frozen=True)
class Secure:
    """A gateway that speaks TLS.   cert, key: what it was started with.   folder: where they are."""

    gateway: Gateway
    folder: Path

    def put(self, pair: tuple[Path, Path]) -> None:
        """Another certificate and key in place of those there, each in one step, as renewing programs do it."""
        for source, name in zip(pair, ("tls.crt", "tls.key"), strict=True):
            shutil.copy(source, self.folder / "next")
            os.replace(self.folder / "next", self.folder / name)

    def common_name(self) -> str:
        """Of the certificate that a new connection is shown."""
        found = ssl.get_server_certificate(self.address)
        done = subprocess.run(
            ["openssl", "x509", "-noout", "-subject"], input=found, capture_output=True, text=True, check=True
        )
        return done.stdout.strip().rpartition("CN")[2].strip(" =")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.gateway.url.removeprefix("https://").rsplit(":", 1)
        return host, int(port)

    def refused(self, reason: str) -> float:
        """How many connections were refused for this."""
        with self.gateway.client() as client:
            return scrape(client)[series("me5_refused_connections_total", reason=reason)]

    @contextmanager
    def connect(self) -> Iterator[ssl.SSLSocket]:
        """A bare connection with its handshake done."""
        trust = self.gateway.trust
        assert isinstance(trust, ssl.SSLContext)
        with (
            socket.create_connection(self.address, PATIENCE_S) as plain,
            trust.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            yield secured


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Certificates by name."""
    folder = tmp_path_factory.mktemp("pairs")
    return {name: make_pair(folder, name, kind) for name, kind in (("first", EC), ("second", EC), ("rsa", RSA))}


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, pairs: dict[str, tuple[Path, Path]]) -> Iterator[Secure]:
    """One on an address that others could reach, without keys, with little patience and little room."""
    folder = tmp_path_factory.mktemp("tls")
    for source, name in zip(pairs["first"], ("tls.crt", "tls.key"), strict=True):
        shutil.copy(source, folder / name)
    (folder / "tls.key").chmod(0o644)
    with start_gateway(
        host="0.0.0.0",
        tls_cert=folder / "tls.crt",
        tls_key=folder / "tls.key",
        header_timeout_s=HEADER_TIMEOUT_S,
        write_timeout_s=WRITE_TIMEOUT_S,
        max_connections=CONNECTIONS,
        drain_s=0,
    ) as gateway:
        yield Secure(gateway, folder)
        assert "Traceback" not in gateway.log_text(), gateway.log_text()


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether this comes true within a bounded time."""
    give_up = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return True


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed it; it must have said nothing before."""
    connection.settimeout(0)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_requests_are_answered_over_tls_and_large_ones_too(secure: Secure) -> None:
    with secure.gateway.client() as over_tls:
        texts = {"inputs": [f"{number} ships" for number in range(600)]}
        found = over_tls.post("/embed", json=texts)
        assert found.status_code == 200
        assert len(found.json()) == 600
        assert len(over_tls.post("/embed", json={"inputs": "a" * 3_000_000}).json()) == 1
    assert "listening on https://" in secure.gateway.log_text()


def test_an_open_port_without_keys_is_warned_of_once_and_by_check_too(secure: Secure) -> None:
    said = "ME5_HOST=0.0.0.0 and no keys: whoever reaches the port can use this server"
    assert secure.gateway.log_text().count(said) == 1
    cert, key = secure.folder / "tls.crt", secure.folder / "tls.key"
    checked = run_service("check", host="0.0.0.0", model="nope", tls_cert=cert, tls_key=key).stderr.decode()
    assert checked.count(said) == 1


def test_a_private_key_that_others_can_read_is_warned_of(secure: Secure) -> None:
    assert secure.gateway.log_text().count("has mode 0644: others can use it") == 1


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_plain_http_and_old_versions_of_tls_are_refused(secure: Secure) -> None:
    before = secure.refused("tls_handshake")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{secure.address[0]}:{secure.address[1]}/readyz", timeout=PATIENCE_S)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with socket.create_connection(secure.address, PATIENCE_S) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain)
    assert secure.refused("tls_handshake") == before + 2


def test_handshakes_that_are_never_finished_hold_no_connection_for_long(secure: Secure) -> None:
    before = secure.refused("tls_handshake")
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(secure.address)) for _ in range(CONNECTIONS // 2)]
        silent[0].sendall(b"\x16\x03\x01")
        with secure.gateway.client() as other:
            assert other.post("/embed", json=BODY).status_code == 200
        assert eventually(lambda: all(map(is_closed, silent)))
    assert secure.refused("tls_handshake") == before + CONNECTIONS // 2


def test_handshakes_count_as_connections_from_their_first_moment(secure: Secure) -> None:
    before = secure.refused("too_many")
    with ExitStack() as stack:
        many = CONNECTIONS + SPARE + 20
        silent = [stack.enter_context(socket.create_connection(secure.address)) for _ in range(many)]
        # What is above the limit is closed without any waiting, what is below it when its time is over.
        assert eventually(lambda: sum(map(is_closed, silent)) >= 20)
        assert eventually(lambda: all(map(is_closed, silent)))
    assert secure.refused("too_many") - before >= 20
    with secure.gateway.client() as other:
        assert other.post("/embed", json=BODY).status_code == 200


def test_after_the_handshake_slow_headers_and_unread_answers_are_cut_as_ever(secure: Secure) -> None:
    with secure.connect() as connection:
        connection.sendall(b"POST /embed HTTP/1.1\r\nhost: me5\r\nx-slow: a")
        connection.settimeout(PATIENCE_S)
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    before = secure.refused("not_reading")
    texts = json.dumps({"inputs": [f"{number} ships" for number in range(1500)]}).encode()
    with secure.connect() as connection:
        head = b"POST /embed HTTP/1.1\r\nhost: me5\r\ncontent-length: %d\r\n\r\n" % len(texts)
        connection.sendall((head + texts) * 3)
        assert eventually(lambda: secure.refused("not_reading") == before + 1)


def test_a_renewed_certificate_is_shown_to_new_connections_and_the_old_ones_go_on(
    secure: Secure, pairs: dict[str, tuple[Path, Path]]
) -> None:
    assert secure.common_name() == "first"
    with secure.gateway.client() as opened_before:
        assert opened_before.post("/embed", json=BODY).status_code == 200
        # One half of a renewal: nothing is taken, and the log says why.
        secure.put((pairs["second"][0], pairs["first"][1]))
        assert eventually(lambda: "the key is not the certificate's" in secure.gateway.log_text())
        assert secure.common_name() == "first"
        secure.put(pairs["second"])
        assert eventually(lambda: secure.common_name() == "second")
        assert opened_before.post("/embed", json=BODY).status_code == 200
    secure.put(pairs["first"])
    assert eventually(lambda: secure.common_name() == "first")


def test_a_pair_of_another_type_of_key_replaces_the_one_before(
    secure: Secure, pairs: dict[str, tuple[Path, Path]]
) -> None:
    # OpenSSL would show an EC pair rather than an RSA one, if the two were in one context.
    for name in ("rsa", "first"):
        secure.put(pairs[name])
        assert eventually(lambda name=name: secure.common_name() == name)  # type: ignore[misc]


def test_a_pair_that_can_not_be_used_is_refused_with_what_is_wrong(
    tmp_path: Path, pairs: dict[str, tuple[Path, Path]]
) -> None:
    cert, key = pairs["first"]
    locked, text = tmp_path / "locked.key", tmp_path / "text"
    subprocess.run(["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", locked], check=True)
    text.write_text("no PEM")
    for pair, says in (
        ((tmp_path / "none", key), "ME5_TLS_CERT=.*none: No such file"),
        ((cert, tmp_path / "none"), "ME5_TLS_KEY=.*none: No such file"),
        ((cert, pairs["second"][1]), "the key is not the certificate's"),
        ((text, key), "no certificate and key in PEM"),
        ((cert, locked), "is encrypted; openssl pkey"),
    ):
        with pytest.raises(SettingsError, match=says):
            Certificate(*pair)
    ended = run_service("serve", tls_cert=cert, tls_key=pairs["second"][1], port=0)
    assert ended.returncode == 2
    assert ended.stderr.decode().splitlines()[-1].endswith("the key is not the certificate's")


def test_the_containers_healthcheck_asks_by_https_where_the_gateway_speaks_it(secure: Secure) -> None:
    found = {**os.environ, "ME5_PORT": str(secure.address[1]), "ME5_TLS_CERT": str(secure.folder / "tls.crt")}
    program = [sys.executable, "-I", "-S", ROOT / "docker" / "healthcheck.py"]
    done = subprocess.run(program, env=found, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, '{"status":"ready"}\n')
    del found["ME5_TLS_CERT"]
    assert subprocess.run(program, env=found, capture_output=True, check=False).returncode == 1
