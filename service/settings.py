"""The settings of a gateway: ME5_* variables of the environment, read here.

But for one word: __main__ looks whether Triton computes, before this can be imported.
"""

from __future__ import annotations

import difflib
import importlib.util
import ipaddress
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from service.errors import SettingsError
from service.keys import plain_keys
from service.recipe.prompts import Role

EngineName = Literal["onnx", "openvino"]
Device = Literal["auto", "cpu", "cuda", "tensorrt"]

PREFIX = "ME5_"
log = logging.getLogger("me5.settings")

# What Kubernetes tells every pod of a Service of its namespace, and docker of a linked container. A Service named me5
# gives ME5_PORT=tcp://10.0.0.1:8080, ME5_SERVICE_HOST, ME5_PORT_8080_TCP_ADDR and more; one named me5-x, ME5_X_….
_SERVICE_LINK = r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)?)"
_SERVICE_HOST = "_SERVICE_HOST"
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")
# Read by the commands of `training`, on the same machine and often in the same shell.
_OTHERS = frozenset({"ME5_DATA"})


class Settings(BaseModel):
    """Every setting of the gateway, frozen once read. The environment's name is ME5_ and the field's, upper case."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    model: str = Field("me5_nano", min_length=1, description="NAME, NAME/VERSION, or a folder with a spec.json")
    model_repo: Path = Field(
        Path(__file__).resolve().parent.parent / "model_repo", description="folder of model versions"
    )

    engine: Literal["auto", "onnx", "openvino", "triton"] = Field("auto", description="what computes")
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"] = Field(
        "auto", description="what it computes in; of Triton it can only be said: fp32 unless given"
    )
    triton_urls: str = Field(
        "", description="host:port of Triton's gRPC, or several, separated by commas; a name may have many addresses"
    )
    device: Device = Field("auto", description="where ONNX Runtime computes")
    threads: int = Field(0, ge=0, le=1024, description="threads of the engine; 0 takes the cores of the cgroup")
    streams: int = Field(
        0, ge=0, le=256, description="batches computed at a time under load; 0: one a core, up to 8; 16 with Triton"
    )
    cache_dir: Path | None = Field(
        Path(tempfile.gettempdir()) / "me5-cache", description="folder for optimised models; empty for none"
    )

    default_role: Role = Field("query", description="role of a text that neither names one nor begins with a prompt")
    truncate: bool = Field(True, description="cut over-long texts where the request does not say (TEI: auto-truncate)")

    too_long_status: Literal["422", "413"] = Field(
        "422", description="status of a text that is too long where nothing may be cut; 413 as TEI had it before 1.9"
    )

    openai_tokens: Path | None = Field(
        None, description="a .tiktoken file, such as cl100k_base's: token ids on OpenAI's route are read by it"
    )

    max_inputs: int = Field(2048, ge=1, description="texts a request")
    max_body_bytes: int = Field(10 * 1024 * 1024, ge=1024, description="bytes a request body")
    max_batch_tokens: int = Field(
        0,
        ge=0,
        description="padded tokens (rows × longest) a batch of several texts; 0: 384, on a GPU 16384, with Triton 2048",
    )
    max_queued_tokens: int = Field(200_000, ge=1, description="tokens waiting before requests are refused with 429")

    max_connections: int = Field(4096, ge=1, description="open connections before new ones are refused with 503")
    max_buffered_bytes: int = Field(
        64 * 1024 * 1024, ge=1024, description="bytes of all bodies read or waiting before requests get 429"
    )
    header_timeout_s: float = Field(10.0, gt=0, description="time a connection has for a request's headers")
    body_timeout_s: float = Field(30.0, gt=0, description="time a request's body has to arrive")
    write_timeout_s: float = Field(30.0, gt=0, description="time a client has to take 48 KiB of its answer")

    deadline_s: float = Field(30.0, gt=0, description="default time a request may take, before its tokens count")
    deadline_tokens_per_s: float = Field(200.0, gt=0, description="the default deadline grows by tokens over this rate")
    engine_timeout_s: float = Field(60.0, gt=0, description="a batch running longer means that the engine hangs")
    engine_failures: int = Field(3, ge=1, description="failed batches in a row before the engine is reopened")
    drain_s: float = Field(1.0, ge=0, description="after SIGTERM, time between red readiness and the closed port")
    shutdown_s: float = Field(30.0, gt=0, description="after that, time for accepted requests to be answered")

    api_key: SecretStr = Field(
        SecretStr(""), description="the key that requests need, or several, separated by commas; empty for none"
    )
    keys_file: Path | None = Field(
        None, description="file of keys by `python -m service keys`, read again when it changes; empty for none"
    )
    metrics_open: bool = Field(True, description="whether /metrics is answered without a key")
    cors_origins: str = Field(
        "", description="https://HOST[:PORT] of pages whose scripts may ask, separated by commas; empty for none"
    )
    tls_cert: Path | None = Field(None, description="file of the certificate chain (PEM), read again when it changes")
    tls_key: Path | None = Field(None, description="file of its private key (PEM)")

    otlp_endpoint: str = Field(
        "", description="where traces go by OTLP over gRPC, such as http://HOST:4317; empty for no tracing"
    )
    trace_sample_ratio: float = Field(
        1.0, ge=0, le=1, description="share of requests traced, of those that come without a traceparent"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")

    @field_validator("cache_dir", "openai_tokens", "keys_file", "tls_cert", "tls_key", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("api_key")
    @classmethod
    def _are_keys(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value():
            plain_keys(value.get_secret_value())
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        for origin in origins_of(value):
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin; give https://HOST or http://HOST:PORT, in lower case, without a path; "
                    "`*` is not taken: name the pages"
                )
        return value

    @model_validator(mode="after")
    def _has_both_files(self) -> Settings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("ME5_TLS_CERT and ME5_TLS_KEY go together: give both, or neither")
        return self

    @property
    def needs_keys(self) -> bool:
        """Whether requests need a key."""
        return bool(self.api_key.get_secret_value()) or self.keys_file is not None

    @field_validator("otlp_endpoint")
    @classmethod
    def _takes_traces(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not (parts.hostname and parts.port) or parts.path.strip("/"):
            raise ValueError("give http://HOST:PORT or https://HOST:PORT, without a path")
        if not _tracing_installed():
            raise ValueError("opentelemetry is not installed; pip install -e '.[tracing]'")
        return value


def origins_of(value: str) -> frozenset[str]:
    """The origins in ME5_CORS_ORIGINS."""
    return frozenset(origin.strip() for origin in value.split(",") if origin.strip())


def exposure(settings: Settings) -> str | None:
    """What to warn of where others than this machine's own programs can reach the port without a key."""
    if settings.needs_keys or _is_loopback(settings.host):
        return None
    return (
        f"ME5_HOST={settings.host} and no keys: whoever reaches the port can use this server; "
        "set ME5_KEYS_FILE (python -m service keys add NAME) or ME5_API_KEY, unless something before it asks for keys"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tracing_installed() -> bool:
    """Whether what the extra brings is there; FastAPI brings a part of it."""
    try:
        return all(
            importlib.util.find_spec(name) for name in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")
        )
    except ModuleNotFoundError:
        return False


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment. Unknown ME5_* names are refused with the nearest known one.

    What Kubernetes says of Services whose names begin with me5 is no setting of anybody's: it is left out, with a
    warning. Else the next start of every pod would fail because somebody made such a Service.
    """
    environ = os.environ if environ is None else environ
    links = _service_links(environ)
    if links:
        log.warning(
            "%s: about a Service, not settings; enableServiceLinks: false spares them", ", ".join(sorted(links))
        )
        environ = {name: value for name, value in environ.items() if name not in links}
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    values: dict[str, str] = {}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or variable in _OTHERS:
            continue
        if variable not in known:
            near = difflib.get_close_matches(variable, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            # Perhaps a misspelt ME5_API_KEY.
            shown = "…" if "KEY" in variable else repr(value)
            raise SettingsError(f"unknown setting {variable}={shown}; {remedy}")
        values[known[variable]] = value
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from error


def _service_links(environ: Mapping[str, str]) -> set[str]:
    """The names of what is said of Services. ME5_PORT is among them only where it holds an address."""
    services = [
        name.removesuffix(_SERVICE_HOST) for name in environ if re.fullmatch(rf"ME5(_\w+)?{_SERVICE_HOST}", name)
    ]
    return {
        name
        for name, value in environ.items()
        for service in services
        if re.fullmatch(f"{service}_{_SERVICE_LINK}", name) and (name != f"{PREFIX}PORT" or "://" in value)
    }


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        if not item["loc"]:
            lines.append(str(item["ctx"]["error"]))
            continue
        field = str(item["loc"][0])
        about = Settings.model_fields[field].description
        shown = "…" if field == "api_key" else repr(item["input"])
        lines.append(f"{PREFIX}{field.upper()}={shown}: {item['msg'].lower()} ({about})")
    return "; ".join(lines)
