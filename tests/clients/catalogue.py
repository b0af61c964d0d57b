"""The clients that are tried, and what their users write to say what a text is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Place = Literal["sdks", "frameworks", "node", "shell"]


@dataclass(frozen=True)
class Client:
    """A client package, used as its own documentation does.

    script: the user's program, beside this file.   place: the environment that it runs in.   packages: whose versions
    the table shows.   writes: words of the script that say where the gateway is and what a text is.
    """

    name: str
    script: str
    place: Place
    packages: tuple[str, ...]
    writes: tuple[str, ...]
