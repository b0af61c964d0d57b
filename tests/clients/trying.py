"""Every client that is installed, tried: asked in earnest, refused for what it asks, and in an overload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import numpy as np
from catalogue import CLIENTS, SIMILARITY, Client
from gateway_process import Gateway
from numpy.typing import NDArray
from running import Ask, Tried, changed, filled, missing, run_sources, source_of

# The vector that a text with its prompt has to get.
Reference = Callable[[str], NDArray[np.float32]]

# The question is also the first passage: only the role tells the two vectors apart.
QUESTION = "Wie hoch ist der Fernsehturm?"
PASSAGES = (QUESTION, "东京的人口约为一千四百万。")

# Trying them all takes about a minute, but the machine may be busy with something else.
TRY_MAX_S = 900
# Most of the time a client loads its package, which takes a core, or waits before it comes again, which takes none.
AT_ONCE = 4


def try_all(plain: Gateway, strict: Gateway, occupied: Gateway) -> dict[str, Tried]:
    """What every client that is installed came to, by its script. Those of one family share a process."""
    there = [client for client in (*CLIENTS, SIMILARITY) if not missing(client.place)]
    groups = [list(group) for _, group in groupby(there, key=_family)]

    def try_group(clients: Sequence[Client]) -> dict[str, Tried]:
        sources = [source for client in clients for source in _sources(client, plain, strict, occupied)]
        outcomes = iter(run_sources(clients[0].place, sources))
        return {client.script: Tried(next(outcomes), next(outcomes), next(outcomes)) for client in clients}

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return {script: tried for found in pool.map(try_group, groups) for script, tried in found.items()}


def _family(client: Client) -> str:
    """python/langchain for all of LangChain's."""
    return client.script.split("-")[0]


def _sources(client: Client, plain: Gateway, strict: Gateway, occupied: Gateway) -> list[str]:
    own = source_of(client)
    # A client that goes on trying for minutes is told not to, where it is not asked in earnest.
    hasty = changed(own, client.hasty)
    return [
        filled(source, Ask(gateway.url, QUESTION, PASSAGES))
        for source, gateway in ((own, plain), (hasty, strict), (hasty, occupied))
    ]
