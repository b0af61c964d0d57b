"""python -m service …, or `me5 …`."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys

from service.engine_start import start_worker


def main() -> None:
    """The command line. For `serve` the engine's process starts before all else, and reads its modules beside this."""
    started = None
    if sys.argv[1:] == ["serve"]:
        # To look for garbage in what is imported takes a quarter of the imports' time; garbage.py takes over later.
        gc.disable()
        # As a container's first process it would not hear the signal: Linux gives process 1 no default actions.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if sys.argv[1:] == ["serve"] and os.environ.get("ME5_ENGINE") != "triton":
        # Where none can be started, the gateway says so when it needs one.
        with contextlib.suppress(OSError):
            started = start_worker()
    from service.commands import app

    app(obj=started)


if __name__ == "__main__":
    main()
