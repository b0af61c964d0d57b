"""The variables by which Kubernetes tells a pod of a Service."""

from __future__ import annotations


def links_of(service: str, port: int = 8080) -> dict[str, str]:
    """What Kubernetes puts into a pod's environment for a Service with one port named http (its documentation's
    "Environment variables", under "Service")."""
    prefix = service.upper().replace("-", "_")
    address = f"tcp://10.0.0.1:{port}"
    return {
        f"{prefix}_SERVICE_HOST": "10.0.0.1",
        f"{prefix}_SERVICE_PORT": str(port),
        f"{prefix}_SERVICE_PORT_HTTP": str(port),
        f"{prefix}_PORT": address,
        f"{prefix}_PORT_{port}_TCP": address,
        f"{prefix}_PORT_{port}_TCP_PROTO": "tcp",
        f"{prefix}_PORT_{port}_TCP_PORT": str(port),
        f"{prefix}_PORT_{port}_TCP_ADDR": "10.0.0.1",
    }
