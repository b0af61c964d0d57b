"""Settings from the environment, and the choice of an engine from them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from service_links import links_of

from service.engine import Choice, choices, cpu_has_bf16, usable_cores
from service.errors import SettingsError
from service.settings import exposure, load_settings


def test_the_defaults_need_no_environment() -> None:
    assert load_settings({}).model == "me5_nano"


def test_a_setting_is_read_from_its_variable_and_other_variables_are_left_alone() -> None:
    settings = load_settings({"ME5_PORT": "9000", "ME5_ENGINE": "onnx", "ME5_DATA": "x", "PORT": "1", "HOME": "/"})
    assert (settings.port, settings.engine) == (9000, "onnx")


def test_an_unknown_name_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(SettingsError, match=r"ME5_MODLE='x'; did you mean ME5_MODEL\?"):
        load_settings({"ME5_MODLE": "x"})
    with pytest.raises(SettingsError, match="known are ME5_API_KEY, .*ME5_TRUNCATE"):
        load_settings({"ME5_ZZZZZZZZZ": "x"})


@pytest.mark.parametrize("service", ["me5", "me5-gateway", "me5-triton", "me5-port", "me5-service"])
def test_what_kubernetes_says_of_services_is_left_out_with_the_remedy(
    service: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_settings(links_of(service) | {"ME5_MODEL": "me5_small"}) == load_settings({"ME5_MODEL": "me5_small"})
    assert "enableServiceLinks: false" in caplog.text
    assert all(name in caplog.text for name in links_of(service))


def test_a_port_that_was_set_stays_beside_service_links() -> None:
    assert load_settings(links_of("me5") | {"ME5_PORT": "9000"}).port == 9000


@pytest.mark.parametrize("name", ["ME5_SERVICE_PORT", "ME5_X_PORT", "ME5_PORT_8080_TCP", "ME5_SERVICE_HOSTS"])
def test_a_name_that_only_resembles_a_service_link_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"unknown setting {name}"):
        load_settings({name: "9000"})


def test_an_address_alone_is_no_port() -> None:
    with pytest.raises(SettingsError, match="ME5_PORT='tcp://10.0.0.1:8080'.*integer"):
        load_settings({"ME5_PORT": "tcp://10.0.0.1:8080"})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ME5_PORT", "99999", "65535"),
        ("ME5_PORT", "http", "integer"),
        ("ME5_MAX_BATCH_TOKENS", "-1", "0"),
        ("ME5_ENGINE", "tpu", "'onnx'"),
        ("ME5_DEFAULT_ROLE", "document", "'query' or 'passage'"),
        ("ME5_TRUNCATE", "perhaps", "boolean"),
        ("ME5_MODEL", "", "at least 1"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_value_and_limit(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}='{value}'.*{says}"):
        load_settings({name: value})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load_settings({}).port = 1  # type: ignore[misc]


FP32 = [Choice("openvino", "fp32"), Choice("onnx", "fp32")]


def test_auto_takes_openvino_in_bf16_only_where_the_cpu_has_it() -> None:
    assert choices("auto", "auto", cpu_has_bf16=True, openvino_installed=True) == [Choice("openvino", "bf16"), *FP32]
    assert choices("auto", "auto", cpu_has_bf16=False, openvino_installed=True) == FP32
    assert choices("auto", "auto", cpu_has_bf16=True, openvino_installed=False) == [Choice("onnx", "fp32")]


def test_an_int8_graph_is_tried_first_on_the_engine_that_is_fastest_here() -> None:
    both = {"cpu_has_bf16": False, "openvino_installed": True, "int8_engines": ["onnx", "openvino"]}
    int8 = [Choice("onnx", "int8"), Choice("openvino", "int8")]
    assert choices("auto", "auto", **both) == [*int8, *FP32]  # type: ignore[arg-type]
    assert choices("auto", "int8", **both, cpu_has_vnni=True) == int8[::-1]  # type: ignore[arg-type]
    assert choices("onnx", "int8", **both) == int8[:1]  # type: ignore[arg-type]
    assert choices("auto", "fp32", **both) == FP32  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="no int8 graph.*python -m training quantize"):
        choices("auto", "int8", cpu_has_bf16=False, openvino_installed=True)


def test_an_engine_named_is_the_only_one_tried() -> None:
    both = {"cpu_has_bf16": True, "openvino_installed": True}
    assert choices("onnx", "auto", **both) == [Choice("onnx", "fp32")]
    assert choices("openvino", "auto", **both) == [Choice("openvino", "bf16"), Choice("openvino", "fp32")]
    assert choices("openvino", "fp32", **both) == [Choice("openvino", "fp32")]
    assert choices("auto", "fp32", **both) == FP32


def test_a_gpu_build_of_onnx_runtime_goes_before_openvino_unless_that_was_named() -> None:
    gpu = {"cpu_has_bf16": True, "openvino_installed": True, "gpu_installed": True}
    assert choices("auto", "auto", **gpu) == [Choice("onnx", "fp32")]
    assert choices("auto", "auto", device="cpu", **gpu)[0] == Choice("openvino", "bf16")
    assert choices("openvino", "auto", **gpu)[0] == Choice("openvino", "bf16")


def test_a_gpu_named_leaves_openvino_out() -> None:
    found = choices("auto", "auto", device="cuda", cpu_has_bf16=True, openvino_installed=True)
    assert found == [Choice("onnx", "fp32")]


@pytest.mark.parametrize(
    ("engine", "precision", "device", "installed", "says"),
    [
        ("onnx", "bf16", "auto", True, "needs ME5_ENGINE=openvino"),
        ("openvino", "auto", "cuda", True, "needs ME5_ENGINE=onnx"),
        ("openvino", "auto", "auto", False, "not installed"),
        ("auto", "bf16", "auto", False, "needs openvino"),
        ("auto", "bf16", "cuda", True, "needs openvino"),
    ],
)
def test_combinations_that_can_not_be_are_refused_with_the_remedy(
    engine: str, precision: str, device: str, installed: bool, says: str
) -> None:
    with pytest.raises(SettingsError, match=says):
        choices(engine, precision, device=device, cpu_has_bf16=True, openvino_installed=installed)  # type: ignore[arg-type]


def test_bf16_is_read_from_the_cpu_flags(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor: 0\nflags\t\t: fpu avx2 avx512_bf16\n")
    assert cpu_has_bf16(cpuinfo)
    cpuinfo.write_text("processor: 0\nflags\t\t: fpu avx2\n")
    assert not cpu_has_bf16(cpuinfo)
    assert not cpu_has_bf16(tmp_path / "missing")


def test_a_cgroup_quota_limits_the_cores(tmp_path: Path) -> None:
    whole = usable_cores(tmp_path)
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert usable_cores(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path) == whole


KEY = "0123456789abcdef0123"


def test_no_message_and_no_print_of_the_settings_holds_a_key() -> None:
    assert KEY not in str(load_settings({"ME5_API_KEY": KEY}).model_dump())
    for environ in (
        {"ME5_API_KEY": f"{KEY},short"},
        {"ME5_API_KEY": f"{KEY} with spaces in it"},
        {"ME5_API_KEY": f"{KEY},{KEY}"},
        {"ME5_API_KEYS": KEY},
        {"ME5_APIKEY": KEY},
    ):
        with pytest.raises(SettingsError) as raised:
            load_settings(environ)
        assert KEY not in str(raised.value)
        assert "ME5_API_KEY" in str(raised.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "192.168.0.1", "gateway.example.org"])
def test_an_address_others_can_reach_without_keys_is_warned_of(host: str) -> None:
    said = exposure(load_settings({"ME5_HOST": host}))
    assert said is not None
    assert f"ME5_HOST={host}" in said
    assert exposure(load_settings({"ME5_HOST": host, "ME5_API_KEY": KEY})) is None
    assert exposure(load_settings({"ME5_HOST": host, "ME5_KEYS_FILE": "keys.toml"})) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_an_address_of_this_machine_alone_needs_no_keys(host: str) -> None:
    assert exposure(load_settings({"ME5_HOST": host})) is None


@pytest.mark.parametrize(
    "origins", ["*", "https://*.example.org", "example.org", "https://example.org/", "https://EXAMPLE.org", "null"]
)
def test_only_whole_origins_may_be_named(origins: str) -> None:
    with pytest.raises(SettingsError, match="ME5_CORS_ORIGINS.*is no origin"):
        load_settings({"ME5_CORS_ORIGINS": f"https://example.org, {origins}"})


def test_a_certificate_and_its_key_are_given_together() -> None:
    with pytest.raises(SettingsError, match="ME5_TLS_CERT and ME5_TLS_KEY go together"):
        load_settings({"ME5_TLS_CERT": "tls.crt"})
    assert load_settings({"ME5_TLS_CERT": "", "ME5_TLS_KEY": ""}).tls_cert is None
