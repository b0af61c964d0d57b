"""The manifests with keys and certificates, as a user adds them."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifests import Objects, derived, named, pod, probes, settings_of

from service.settings import load_settings


@pytest.fixture(params=["cpu-embedded", "gpu-triton"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """An overlay with both components."""
    return derived(tmp_path / "own", request.param, "keys", "tls")


def secrets_of(objects: Objects) -> dict[str, dict[str, object]]:
    """The gateway's volumes that are Secrets, by where they are mounted."""
    spec = pod(objects, "me5-gateway").spec
    volumes = {volume["name"]: volume["secret"] for volume in spec["volumes"] if "secret" in volume}
    (container,) = spec["containers"]
    mounts = [mount for mount in container["volumeMounts"] if mount["name"] in volumes]
    assert all(mount["readOnly"] and "subPath" not in mount for mount in mounts)
    return {mount["mountPath"]: volumes[mount["name"]] for mount in mounts}


def test_keys_and_certificates_come_from_secrets_that_must_be_there(guarded: Objects) -> None:
    settings = load_settings(settings_of(guarded))
    secrets = secrets_of(guarded)
    for path, name in ((settings.keys_file, "me5-keys"), (settings.tls_cert, "me5-tls"), (settings.tls_key, "me5-tls")):
        assert path is not None
        found = secrets[str(path.parent)]
        assert found["secretName"] == name
        # A pod without its keys would let everybody in.
        assert found["optional"] is False
        # Read by the gateway's group, which fsGroup gives it, and written by nobody.
        assert found["defaultMode"] == 0o440
    # What cert-manager, and kubectl create secret tls, put into it.
    assert settings.tls_cert is not None
    assert settings.tls_key is not None
    assert (settings.tls_cert.name, settings.tls_key.name) == ("tls.crt", "tls.key")


def test_probes_speak_https_where_the_gateway_does_and_change_in_nothing_else(guarded: Objects, tmp_path: Path) -> None:
    plain = derived(tmp_path / "plain", "cpu-embedded", "keys")
    assert {probe["httpGet"].get("scheme", "HTTP") for probe in probes(pod(plain, "me5-gateway").main)} == {"HTTP"}
    for secured, before in zip(
        probes(pod(guarded, "me5-gateway").main), probes(pod(plain, "me5-gateway").main), strict=True
    ):
        assert secured["httpGet"] == {**before["httpGet"], "scheme": "HTTPS"}
        assert {**secured, "httpGet": None} == {**before, "httpGet": None}


def test_no_key_and_no_certificate_is_in_the_manifests(guarded: Objects) -> None:
    assert not [item for item in guarded if item["kind"] == "Secret"]
    assert named(guarded, "Deployment", "me5-gateway")
