"""The address that a gateway listens on, taken before anything that takes long."""

from __future__ import annotations

import socket

from service.errors import SettingsError


def bind(host: str, port: int) -> socket.socket:
    """A socket on this address that does not listen yet. Raises SettingsError where the address can't be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise SettingsError(
            f"can't listen on ME5_HOST={host}, ME5_PORT={port}: {error.strerror}; choose another, or stop what has it"
        ) from error
    return listener
