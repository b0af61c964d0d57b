"""The texts of one lane, in an order that is fair to every client."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from service.batching import WINDOW, Limits, Waiting, take_batch


class Turn(Waiting, Protocol):
    """A text with its place in the order."""

    turn: float


T = TypeVar("T", bound=Turn)

_BY_TURN = attrgetter("turn")


class FairQueue(Generic[T]):
    """Start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996), a token being the unit of service.

    Each client's texts follow one another on a clock that advances by their tokens; who asks for little is soon at
    the front, however much another client has queued. With one client the order is that of arrival.
    """

    def __init__(self) -> None:
        self._texts: list[T] = []
        # Where on the virtual clock the batch taken last began, and where each client's last text ends.
        self._now = 0.0
        self._ends: dict[str, float] = {}
        # Tokens of the texts that wait.
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, client: str, texts: list[T]) -> None:
        """Queue a request's texts behind those its client has already."""
        at = max(self._now, self._ends.get(client, 0.0))
        for text in texts:
            text.turn = at
            at += text.length
            self.tokens += text.length
            if self._texts and text.turn < self._texts[-1].turn:
                insort(self._texts, text, key=_BY_TURN)
            else:
                self._texts.append(text)
        self._ends[client] = at

    def take(self, limits: Limits) -> list[T]:
        """Remove and return the next batch."""
        batch = take_batch(self._texts, limits)
        self._now = max(self._now, self._texts[0].turn)
        taken = set(map(id, batch))
        # Only the window was looked at: the rest of a long queue is moved, not walked.
        self._texts[:WINDOW] = [text for text in self._texts[:WINDOW] if id(text) not in taken]
        self.tokens -= sum(text.length for text in batch)
        return batch

    def keep(self, wanted: Callable[[T], bool]) -> None:
        """Drop every text that is not wanted any more."""
        self._texts = [text for text in self._texts if wanted(text)]
        self.tokens = sum(text.length for text in self._texts)

    def close_books(self, client: str) -> None:
        """For a client that has nothing queued any more: an empty lane makes everyone even, in a busy one who is ahead
        of its share stays so."""
        if not self._texts:
            self._ends.clear()
        elif self._ends.get(client, 0.0) <= self._now:
            self._ends.pop(client, None)
