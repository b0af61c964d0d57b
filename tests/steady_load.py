"""Clients that ask without a pause, and remember what they got."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx


class SteadyLoad:
    """threads that post one text after another.   statuses: how often each came, 0 where no answer came.

    longest_s: of all requests.   failures: the bodies that were no 200, the first few.
    """

    def __init__(self, url_of: Callable[[], str], texts: int = 1) -> None:
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self.longest_s = 0.0
        self.broken: BaseException | None = None
        self._url_of, self._texts = url_of, texts
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def work(self, number: int) -> None:
        """One client; what ends it otherwise than by `stop` is raised where the load ends."""
        try:
            self._ask_on(number)
        except BaseException as error:
            self.broken = error

    def _ask_on(self, number: int) -> None:
        """A connection for each base URL, a pause of a tenth of a second where it is refused."""
        clients: dict[str, httpx.Client] = {}
        turn = 0
        while not self._stop.is_set():
            turn += 1
            inputs = [f"client {number} asks for the {turn}th time, text {text}" for text in range(self._texts)]
            began, status, words = time.monotonic(), 0, ""
            url = self._url_of()
            if url not in clients:
                clients[url] = httpx.Client(base_url=url, timeout=60, verify=False)
            client = clients[url]
            try:
                answer = client.post("/embed", json={"inputs": inputs})
                status, words = answer.status_code, answer.text
                assert status != 200 or len(answer.json()) == len(inputs)
            except httpx.TransportError as error:
                words = repr(error)
            spent = time.monotonic() - began
            with self._lock:
                self.statuses[status] += 1
                self.longest_s = max(self.longest_s, spent)
                if status != 200 and len(self.failures) < 10:
                    self.failures.append(f"{status} {words[:200]}")
            if status != 200:
                time.sleep(0.1)
        for client in clients.values():
            client.close()

    @property
    def answered(self) -> int:
        """Requests that got a 200."""
        return self.statuses[200]

    def wait_for_more(self, count: int, within_s: float = 60.0) -> None:
        """Return once so many more requests got a 200."""
        wanted, give_up = self.answered + count, time.monotonic() + within_s
        while self.answered < wanted:
            assert self.broken is None, repr(self.broken)
            assert time.monotonic() < give_up, f"{self.statuses} {self.failures}"
            time.sleep(0.02)

    def stop(self) -> None:
        """No new requests."""
        self._stop.set()


@contextmanager
def steady_load(url: str | Callable[[], str], *, clients: int = 4, texts: int = 1) -> Iterator[SteadyLoad]:
    """So many clients under way, all ended when this has.   url: of the gateway, asked before each request."""
    load = SteadyLoad(url if callable(url) else lambda: url, texts)
    threads = [threading.Thread(target=load.work, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        load.wait_for_more(clients)
        yield load
    finally:
        load.stop()
        for thread in threads:
            thread.join(70)
            assert not thread.is_alive(), "a request hangs"
    assert load.broken is None, repr(load.broken)
