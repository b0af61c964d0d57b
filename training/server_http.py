"""One request to a server that is measured: patient with a busy server, plain about everything else."""

import time
from email.utils import parsedate_to_datetime

import httpx

from training.errors import ServerFailed
from training.server_wires import Json

# A full queue, a gateway before a server that is not there yet, a server that is starting, one that was too slow.
COME_BACK = (429, 502, 503, 504)
TRIES = 8
WAIT_MAX_S = 120.0


def post(client: httpx.Client, path: str, body: dict[str, Json]) -> Json:
    """The answer's JSON. Waits and tries again where the server says that it is busy, as long as it says."""
    address = f"{client.base_url}".rstrip("/") + path
    for attempt in range(TRIES):
        wait_s = min(0.5 * 2**attempt, 30.0)
        try:
            response = client.post(path, json=body)
        except httpx.TransportError as error:
            found = f"{type(error).__name__}: {error}"
        else:
            if response.is_success:
                return _json(response, address)
            found = f"status {response.status_code}: {message_of(response)}"
            if response.status_code not in COME_BACK:
                raise ServerFailed(f"{address} answered {found}")
            asked_s = retry_after_s(response)
            if asked_s is not None and asked_s > WAIT_MAX_S:
                raise ServerFailed(f"{address} answered {found}; it wants to be left alone for {asked_s:.0f} s")
            wait_s = wait_s if asked_s is None else asked_s
        if attempt < TRIES - 1:
            time.sleep(wait_s)
    raise ServerFailed(
        f"{address} failed {TRIES} times, at last with {found}; is the server there, and is it its load?"
    )


def message_of(response: httpx.Response) -> str:
    """What an error's body says, in any of the four contracts' shapes."""
    try:
        body = response.json()
    except ValueError:
        return response.text[:300] or "an empty body"
    if isinstance(body, dict):
        for key in ("error", "message", "detail"):
            value = body.get(key)
            if isinstance(value, dict):
                value = value.get("message")
            if value:
                return str(value)[:300]
    return response.text[:300]


def retry_after_s(response: httpx.Response) -> float | None:
    """Retry-After in seconds, whichever of its two forms it has; None without one."""
    given = response.headers.get("retry-after")
    if given is None:
        return None
    try:
        return max(0.0, float(given))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    except ValueError:
        return None


def _json(response: httpx.Response, address: str) -> Json:
    try:
        return response.json()
    except ValueError as error:
        raise ServerFailed(
            f"{address} answered {response.status_code} with no JSON: {response.text[:100]!r}"
        ) from error
