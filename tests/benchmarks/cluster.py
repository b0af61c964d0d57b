"""A simulation of gateways behind a Service, scaled by an autoscaler: every request, queue, refusal and scrape.

A replica works off tokens at a constant rate, in the order in which they came, so the moment at which a request will be
done is known when it is taken in. Whether it is, is decided by the gateway's own code (service/admission.py), and a
client that is refused comes back when it was told to. Seconds are simulated ones; the same seed gives the same run.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from autoscaler import SYNC_S, Autoscaler, Hpa, Target, wanted, wanted_in_all

from service.admission import Promises, refusal
from service.settings import Settings

Profile = Callable[[float], float]


@dataclass(frozen=True)
class Replica:
    """tokens_per_s: what one computes.   start_s: from the decision to the first request: scheduling, start, proof."""

    tokens_per_s: float
    start_s: float


@dataclass(frozen=True)
class Cluster:
    """The clocks of everything around the gateways.

    scrape_s: of Prometheus.   cpu_s: metrics-server's resolution, over which it averages.   endpoints_s: after a pod is
    told to end, how long requests still come to it.   grace_s: after which it is killed.
    """

    settings: Settings
    replica: Replica
    scrape_s: float
    grace_s: float
    cpu_s: float = 15.0
    endpoints_s: float = 5.0


@dataclass(frozen=True)
class Load:
    """tokens_per_s: offered at a moment.   peak: its maximum.   request_tokens: mean of a request.   clients: keys."""

    tokens_per_s: Profile
    peak: float
    request_tokens: float = 2000.0
    clients: int = 50
    # A client that is refused this often gives up.
    tries: int = 20


@dataclass(eq=False)
class Pod:
    """One replica. free_at: when all that was taken in is done.   worked_s: seconds of work taken in so far."""

    born: float
    ready_at: float
    ending_at: float | None = None
    free_at: float = 0.0
    worked_s: float = 0.0
    queue: deque[tuple[float, int, str]] = field(default_factory=deque)
    held: Counter[str] = field(default_factory=Counter)
    promises: Promises = field(default_factory=Promises)
    scraped: float | None = None
    cpu: float | None = None
    busy_before: float | None = None

    def settle(self, now: float) -> None:
        """Forget what is done."""
        while self.queue and self.queue[0][0] <= now:
            _, tokens, client = self.queue.popleft()
            self.held[client] -= tokens
            if not self.held[client]:
                del self.held[client]

    def busy_s(self, now: float) -> float:
        """Seconds it has computed until now."""
        return self.worked_s - max(0.0, self.free_at - now)


@dataclass
class Point:
    """The state at one decision of the autoscaler. wait_s: the longest of a request taken in since the last one."""

    at: float
    offered: float
    replicas: int
    ready: int
    queued: int
    utilisation: float
    wait_s: float
    refused: int


@dataclass
class Run:
    """What came of it. refused_at: when a try got 429.   lost: requests that got no vectors, by what they got."""

    points: list[Point] = field(default_factory=list)
    answered: int = 0
    requests: int = 0
    waits_s: list[float] = field(default_factory=list)
    refused_at: list[float] = field(default_factory=list)
    refused_requests: int = 0
    lost: Counter[str] = field(default_factory=Counter)

    @property
    def replicas(self) -> list[int]:
        """As decided, over time."""
        return [point.replicas for point in self.points]

    def turns(self, since: float = 0.0) -> int:
        """How often the number of replicas changed its direction, counted from a moment on."""
        counts = [point.replicas for point in self.points if point.at >= since]
        steps = [after - before for before, after in itertools.pairwise(counts) if after != before]
        return sum((one > 0) != (two > 0) for one, two in itertools.pairwise(steps))


class Simulation:
    """One run. The event heap holds (time, order, what to do)."""

    def __init__(self, hpa: Hpa, cluster: Cluster, load: Load, seed: int = 0) -> None:
        self.cluster, self.load, self.hpa = cluster, load, hpa
        self.autoscaler = Autoscaler(hpa)
        self.random = random.Random(seed)
        self.run = Run()
        self.pods: list[Pod] = []
        self._targets: list[Pod] = []
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._wait_s, self._refused, self._end = 0.0, 0, 0.0

    def until(self, end: float, replicas: int) -> Run:
        """Start with so many ready replicas, let requests come until the end, and wait for the last answer."""
        self._end = end
        for _ in range(replicas):
            self._start(ready_at=0.0)
        self._at(self.random.expovariate(self.load.peak / self.load.request_tokens), self._arrive)
        self._every(self.cluster.cpu_s, self._sample_cpu, end)
        self._every(SYNC_S, self._sync, end)
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            act()
        return self.run

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    def _every(self, period: float, act: Callable[[], None], end: float, first: float | None = None) -> None:
        def again() -> None:
            act()
            if self.now + period <= end:
                self._at(self.now + period, again)

        self._at(self.now + period if first is None else first, again)

    # Requests

    def _arrive(self) -> None:
        # Thinning (Lewis and Shedler, 1979): arrivals at the peak's rate, of which the profile's share is real.
        if self.random.random() * self.load.peak < self.load.tokens_per_s(self.now):
            tokens = max(1, round(self.random.expovariate(1 / self.load.request_tokens)))
            self.run.requests += 1
            self._send(tokens, f"client {self.random.randrange(self.load.clients)}", 1, self.now)
        gap = self.random.expovariate(self.load.peak / self.load.request_tokens)
        if self.now + gap < self._end:
            self._at(self.now + gap, self._arrive)

    def _send(self, tokens: int, client: str, tried: int, first_sent: float) -> None:
        settings, rate = self.cluster.settings, self.cluster.replica.tokens_per_s
        pod = self.random.choice(self._targets)
        if pod.ending_at is not None and self.now >= pod.ending_at + settings.drain_s:
            self.run.lost["connection refused"] += 1
            return
        pod.settle(self.now)
        timeout_s = settings.deadline_s + tokens / settings.deadline_tokens_per_s
        refused = refusal(
            pod.held, client, tokens, limit=settings.max_queued_tokens, tokens_per_s=rate, timeout_s=timeout_s
        )
        if not pod.held:
            pod.promises.forget()
        if refused is not None:
            self._refuse(pod, refused.excess, tokens, client, tried, first_sent)
            return
        done = max(self.now, pod.free_at) + tokens / rate
        if done - self.now > timeout_s:
            self.run.lost["504"] += 1
            return
        pod.worked_s += tokens / rate
        pod.free_at = done
        pod.queue.append((done, tokens, client))
        pod.held[client] += tokens
        self._wait_s = max(self._wait_s, done - self.now)
        self._at(done, lambda: self._answer(pod, first_sent))

    def _refuse(self, pod: Pod, excess: int, tokens: int, client: str, tried: int, first_sent: float) -> None:
        self.run.refused_at.append(self.now)
        self.run.refused_requests += tried == 1
        self._refused += 1
        if tried >= self.load.tries:
            self.run.lost["429, gave up"] += 1
            return
        wait_s = pod.promises.retry_after_s(excess, tokens, self.cluster.replica.tokens_per_s, self.now)
        self._at(self.now + wait_s, lambda: self._send(tokens, client, tried + 1, first_sent))

    def _answer(self, pod: Pod, first_sent: float) -> None:
        settings = self.cluster.settings
        if pod.ending_at is not None:
            if self.now > pod.ending_at + self.cluster.grace_s:
                self.run.lost["killed"] += 1
                return
            if self.now > pod.ending_at + settings.drain_s + settings.shutdown_s:
                self.run.lost["503"] += 1
                return
        self.run.answered += 1
        self.run.waits_s.append(self.now - first_sent)

    # Pods

    def _start(self, ready_at: float) -> None:
        pod = Pod(self.now, ready_at)
        self.pods.append(pod)
        self._at(ready_at, self._look_again)
        # Prometheus scrapes each target at a moment of its own.
        first = ready_at + self.random.random() * self.cluster.scrape_s

        def scrape() -> None:
            if pod.ending_at is None:
                pod.settle(self.now)
                pod.scraped = float(sum(pod.held.values()))

        self._every(self.cluster.scrape_s, scrape, self._end, first)

    def _alive(self) -> list[Pod]:
        return [pod for pod in self.pods if pod.ending_at is None]

    def _look_again(self) -> None:
        """Which pods requests are sent to: the ready ones, and for a while those that end."""
        self._targets = [
            pod
            for pod in self.pods
            if pod.ready_at <= self.now
            and (pod.ending_at is None or self.now < pod.ending_at + self.cluster.endpoints_s)
        ]

    # Metrics and the autoscaler

    def _sample_cpu(self) -> None:
        for pod in self._alive():
            if pod.ready_at > self.now:
                continue
            busy = pod.busy_s(self.now)
            if pod.busy_before is not None:
                pod.cpu = (busy - pod.busy_before) / self.cluster.cpu_s
            pod.busy_before = busy

    def _sync(self) -> None:
        pods = self._alive()
        ready = [pod for pod in pods if pod.ready_at <= self.now]
        for pod in ready:
            pod.settle(self.now)
        asked = [self._asked(target, pods) for target in self.hpa.targets]
        desired = self.autoscaler.decide(self.now, len(pods), asked)
        used = [pod.cpu for pod in ready if pod.cpu is not None]
        self.run.points.append(
            Point(
                at=self.now,
                offered=self.load.tokens_per_s(self.now),
                replicas=desired,
                ready=len(ready),
                queued=sum(sum(pod.held.values()) for pod in ready),
                utilisation=sum(used) / len(used) if used else 0.0,
                wait_s=self._wait_s,
                refused=self._refused,
            )
        )
        self._wait_s, self._refused = 0.0, 0
        for _ in range(desired - len(pods)):
            self._start(ready_at=self.now + self.cluster.replica.start_s)
        # The ReplicaSet takes those first that are not ready, then the youngest.
        for pod in sorted(pods, key=lambda pod: (pod.ready_at <= self.now, -pod.born))[: max(0, len(pods) - desired)]:
            pod.ending_at = self.now
            self._at(self.now + self.cluster.endpoints_s, self._look_again)

    def _asked(self, target: Target, pods: list[Pod]) -> int | None:
        if target.kind == "External":
            told = [pod.scraped for pod in pods if pod.scraped is not None]
            return wanted_in_all(target, sum(told) if told else None, len(pods))
        of_cpu = target.kind == "Resource"
        told = [value for pod in pods if (value := pod.cpu if of_cpu else pod.scraped) is not None]
        silent = len(pods) - len(told)
        return wanted(target, told, len(pods), missing=0 if of_cpu else silent, unready=silent if of_cpu else 0)


def steps(*levels: tuple[float, float]) -> Profile:
    """(from when, tokens a second), ascending."""
    return lambda now: next((level for start, level in reversed(levels) if now >= start), 0.0)


def maximum(profile: Profile, end: float, every: float = 5.0) -> float:
    """The largest value up to the end."""
    return max(profile(index * every) for index in range(int(end / every) + 1))


def percentile(values: Iterable[float], percent: float) -> float:
    """By nearest rank; 0 for none."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))] if ranked else 0.0
