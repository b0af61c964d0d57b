"""How far a job is, on stderr, where that is a terminal."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm


class Progress:
    """A bar with texts and tokens a second and the time that is left; nothing where nobody looks.

    total: records, None where that is not known.   done: those of runs before this one.
    """

    def __init__(self, total: int | None, done: int = 0) -> None:
        self._bar = tqdm(
            total=total, initial=done, unit=" texts", unit_scale=True, disable=not sys.stderr.isatty(), smoothing=0.05
        )
        self._started, self._tokens = time.monotonic(), 0

    def advance(self, texts: int, tokens: int) -> None:
        """So many more are computed."""
        self._tokens += tokens
        rate = self._tokens / max(time.monotonic() - self._started, 1e-3)
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._bar.update(texts)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
