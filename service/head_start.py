"""The engine that `serve` will ask for first, opened while the modules of the server are read."""

from __future__ import annotations

from service.embedder import OpenHost, open_process
from service.engine import EngineConfig, EngineHost, Widths
from service.engine_process import EngineProcess, order
from service.engine_start import Started
from service.errors import Me5Error
from service.model import find_version
from service.opening import candidates_for, config_of
from service.recipe.spec import load_spec
from service.settings import Settings


def head_start(settings: Settings, started: Started) -> OpenHost:
    """Have a process open the settings' first choice; what is returned gives it to who asks for that first.

    Everything else is opened in a new process. Faults are not said here: the embedder comes upon them too.
    """
    try:
        folder = find_version(settings.model, settings.model_repo)
        first = config_of(settings, folder, candidates_for(settings, load_spec(folder, verify=False))[0])
        waiting = [order(first, started)]
    except Me5Error:
        started.process.kill()
        return open_process

    async def open_host(config: EngineConfig, widths: Widths) -> EngineHost:
        if waiting:
            ordered = waiting.pop()
            if config == first:
                return await EngineProcess.opened(ordered, widths=widths)
            unwanted = EngineProcess(ordered, widths=widths)
            await unwanted.close()
        return await open_process(config, widths)

    return open_host
