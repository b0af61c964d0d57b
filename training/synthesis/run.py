"""Ask for every number that has no answer yet, many at a time, and write the files when all have one."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import httpx
from tqdm import tqdm

from training.errors import EndpointFailed
from training.synthesis.config import INVENTED, SynthesisConfig
from training.synthesis.endpoint import Answer, Endpoint, NoAnswer, Pace, complete, moderate
from training.synthesis.files import read_answer, tasks_of, write_files
from training.synthesis.journal import Entry, Journal, Part
from training.synthesis.plan import ExamplePlan, kind_of, plan_of, request_seed
from training.synthesis.templates import example_prompt, tasks_prompt

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

JOURNAL_FILE = "journal.jsonl"
# So many requests in a row that failed in every try: the endpoint is down and not one prompt at fault.
FAILURES_MAX = 10
STAND_IN_TASK = "(one of the tasks that the request above gives)"


@dataclass(frozen=True)
class Server:
    """Who is asked, and how. url: with the version, such as http://127.0.0.1:8000/v1.   key: sent as a bearer token.

    moderation_url: of a server with /moderations; "" for the rules alone.
    """

    url: str
    model: str
    key: str | None = None
    moderation_url: str = ""
    moderation_key: str | None = None
    moderation_model: str = ""
    concurrency: int = 8
    requests_a_minute: float | None = None
    timeout_s: float = 120.0


@dataclass(frozen=True)
class Synthesised:
    """unanswered: numbers to ask again.   retries: of this run's requests.   statistics: as in the file."""

    unanswered: int
    retries: int
    statistics: dict[str, object]


def prompts_of(config: SynthesisConfig, units: int) -> Iterator[str]:
    """The first prompts of some units as they would be sent; a task that nobody has thought up yet has a stand-in."""
    for unit in range(units):
        plan = plan_of(unit * config.examples_a_unit, config)
        if plan.kind in INVENTED:
            yield tasks_prompt(unit, config)
        yield example_prompt(plan, STAND_IN_TASK)


def synthesise(config: SynthesisConfig, server: Server, out: Path, examples: int) -> Synthesised:
    """Ask for the first `examples` numbers and write `out`. What was answered before is not asked again.

    Raises EndpointFailed where the endpoint can't be used; what came until then stays in the journal.
    """
    screen = f"moderations {server.moderation_model}".strip() if server.moderation_url else "rules"
    made_by: dict[str, object] = {"model": server.model, "screen": screen, **config.model_dump(mode="json")}
    with Journal(out / JOURNAL_FILE, made_by) as journal:
        unanswered, retries = asyncio.run(_Run(config, server, journal).all_of(examples))
        statistics = write_files(out, journal, examples, config, moderated=bool(server.moderation_url))
    return Synthesised(unanswered, retries, statistics)


class _Run:
    """One process's asking. The endpoints live as long as `all_of`."""

    def __init__(self, config: SynthesisConfig, server: Server, journal: Journal) -> None:
        self._config, self._server, self._journal = config, server, journal
        self._failed_in_a_row, self._answered = 0, False
        self._unanswered = 0
        # Of this run.
        self._tokens = 0

    async def all_of(self, examples: int) -> tuple[int, int]:
        """Ask for lists of tasks, then for examples. Returns numbers without an answer, and retries."""
        server, config, entries = self._server, self._config, self._journal
        limits = httpx.Limits(max_connections=server.concurrency)
        async with httpx.AsyncClient(timeout=server.timeout_s, limits=limits) as client:
            self._chat = Endpoint(client, server.url, server.key, Pace(server.requests_a_minute))
            self._moderation = (
                Endpoint(client, server.moderation_url, server.moderation_key, Pace(server.requests_a_minute))
                if server.moderation_url
                else None
            )
            units = -(-examples // config.examples_a_unit)
            lists = [
                unit for unit in range(units) if kind_of(unit, config) in INVENTED and ("tasks", unit) not in entries
            ]
            await self._each(lists, self._ask_tasks, "lists of tasks")
            tasks = tasks_of(entries, units, config)
            missing = filter(self._is_missing, range(examples))
            plans = (plan_of(number, config) for number in missing)
            wanted = [(plan, task) for plan in plans if (task := tasks.of_example(plan)) is not None]
            await self._each(wanted, self._ask_example, "examples")
            retries = self._chat.retries + (self._moderation.retries if self._moderation else 0)
        return self._unanswered, retries

    async def _each(self, items: list[Item], ask: Callable[[Item], Awaitable[None]], what: str) -> None:
        """Ask for each, so many at a time. The first EndpointFailed ends all."""
        waiting = iter(items)
        with tqdm(total=len(items), desc=what, unit="") as bar:
            workers = [asyncio.create_task(self._work(waiting, ask, bar)) for _ in range(self._server.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, waiting: Iterator[Item], ask: Callable[[Item], Awaitable[None]], bar: tqdm) -> None:
        for item in waiting:
            try:
                await ask(item)
            except NoAnswer as error:
                self._unanswered += 1
                self._failed_in_a_row += 1
                if self._failed_in_a_row >= FAILURES_MAX or not self._answered:
                    raise EndpointFailed(
                        f"{error.message}; check the endpoint, and give the same command again: what came is kept"
                    ) from error
                logger.warning("%s", error.message)
                continue
            self._failed_in_a_row, self._answered = 0, True
            bar.update()
            bar.set_postfix(tokens=self._tokens, refresh=False)

    async def _ask_tasks(self, unit: int) -> None:
        answer = await self._complete(tasks_prompt(unit, self._config), unit, tasks=True)
        self._keep(_entry_of(answer, "tasks", unit))

    async def _ask_example(self, wanted: tuple[ExamplePlan, str]) -> None:
        plan, task = wanted
        entry = self._journal.get(("example", plan.number))
        if entry is None:
            answer = await self._complete(example_prompt(plan, task), plan.number, tasks=False)
            entry = _entry_of(answer, "example", plan.number, task)
            # Before anybody judges it: it is paid for.
            self._keep(entry)
        if self._moderation is not None and (example := read_answer(entry, plan)).reason is None:
            seed = request_seed(plan.number, self._config, tasks=False)
            texts = [entry.task, *example.texts]
            unsafe = await moderate(self._moderation, self._server.moderation_model, texts, seed)
            self._journal.add(replace(entry, unsafe=unsafe))

    def _keep(self, entry: Entry) -> None:
        self._journal.add(entry)
        self._tokens += entry.prompt_tokens + entry.answer_tokens

    def _is_missing(self, number: int) -> bool:
        """Whether an example has no answer, or one that the moderation has not seen."""
        entry = self._journal.get(("example", number))
        if entry is None or self._moderation is None or entry.unsafe is not None:
            return entry is None
        return read_answer(entry, plan_of(number, self._config)).reason is None

    async def _complete(self, prompt: str, number: int, *, tasks: bool) -> Answer:
        config, seed = self._config, request_seed(number, self._config, tasks=tasks)
        body: dict[str, object] = {
            "model": self._server.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": config.answer_tokens_max,
            "seed": seed,
        }
        if config.json_mode:
            body["response_format"] = {"type": "json_object"}
        return await complete(self._chat, body, seed)


def _entry_of(answer: Answer, part: Part, number: int, task: str = "") -> Entry:
    return Entry(
        part,
        number,
        answer.text,
        task,
        answer.refused,
        prompt_tokens=answer.prompt_tokens,
        answer_tokens=answer.answer_tokens,
    )
