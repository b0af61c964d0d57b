"""All stages of a model, one after another, each by the command that a person would type.

What is done is remembered with what it was made from, so the same line goes on where it was stopped, and does again
only what a changed setting touches, and what stands on that.
"""

import hashlib
import json
import logging
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from training.checkpoint import write_json
from training.config import ModelConfig
from training.errors import BadTrainConfig, TrainingError

logger = logging.getLogger(__name__)

STATE_FILE = "road.json"
# How often a stage reports and saves changes nothing of what it makes.
_PACE = {"save_every_steps": True, "log_every_steps": True}
PACE: Any = dict.fromkeys(("pretrain", "teach", "finetune", "instruct"), _PACE)


@dataclass(frozen=True)
class Step:
    """One command of the road.

    arguments: behind `python -m training`.   reads: the parts of the configuration that decide what comes out, by name.
    run: the folder of a training, which belongs to one set of settings.   anew: what a command needs to do again what
    is there.   shared: whether several processes do it together, under torchrun.
    """

    name: str
    arguments: tuple[str, ...]
    reads: tuple[str, ...]
    run: Path | None = None
    anew: tuple[str, ...] = ()
    shared: bool = False

    def command(self, processes: int) -> list[str]:
        """What is run."""
        if self.shared and processes > 1:
            launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
            return [sys.executable, "-m", *launcher, "training", *self.arguments]
        return [sys.executable, "-m", "training", *self.arguments]

    def written(self, processes: int) -> str:
        """The same, as a person would type it."""
        return shlex.join(["python", *self.command(processes)[1:]])


def steps_of(config: ModelConfig, path: Path, data: Path, work: Path) -> list[Step]:
    """The road of a model whose settings are the file `path`, as far as it names sources for its stages."""
    pairs, runs = work / "data" / config.name, work / "runs" / config.name
    toml, mined, result = str(path), str(pairs / "mined"), runs / "evaluation.json"
    model = ("name", "seed", "backbone", "tokenizer")

    def prepare(stage: str) -> Step:
        arguments = ("prepare", toml, "--stage", stage, "--data", str(data), "--out", str(pairs / stage))
        return Step(f"prepare {stage}", arguments, (f"{stage}.sources", f"{stage}.filter"), anew=("--again",))

    def train(stage: str, *, pairs: str, start: Path | None) -> Step:
        begin = ("--start", str(start)) if start else ()
        arguments = (stage, toml, *begin, "--pairs", pairs, "--out", str(runs / stage), "--resume")
        return Step(stage, arguments, (*model, stage), run=runs / stage, shared=True)

    if not config.pretrain.sources:
        raise BadTrainConfig(
            f"{path} names no pretrain.sources, and the road begins with stage 1; give the stages by hand"
        )
    if config.mine.teacher_margin is not None:
        raise BadTrainConfig(
            f"{path} sets mine.teacher_margin, for which a teacher reads what mining found before it is mined again; "
            "give the stages by hand"
        )
    newest = runs / "pretrain" / "latest"
    steps = [prepare("pretrain"), train("pretrain", pairs=str(pairs / "pretrain"), start=None)]
    if config.labelled.sources:
        stage = config.second
        cache = ("--cache", str(pairs / "scores.sqlite3"))
        mine = ("mine", toml, "--model", str(newest), "--pairs", str(pairs / stage), "--out", mined, *cache)
        teach = (
            "teach",
            toml,
            "--start",
            config.teach.start or str(newest),
            "--pairs",
            mined,
            "--out",
            str(runs / "teach"),
            "--resume",
        )
        # A re-ranker that is named needs no training.
        teacher = () if config.teach.teacher else ("--teacher", str(runs / "teach" / "latest"))
        score = ("score", toml, *teacher, "--pairs", mined, *cache)
        taught = Step("teach", teach, (*model, "teach"), run=runs / "teach", shared=True)
        steps += [
            prepare(stage),
            Step("mine", mine, (*model, "mine")),
            *([] if config.teach.teacher else [taught]),
            Step("score", score, (*model, "teach")),
            train(stage, pairs=mined, start=newest),
        ]
        newest = runs / stage / "latest"
    tasks = ("--tasks", ",".join(config.evaluate.sets), "--protocol", config.evaluate.protocol)
    evaluate = ("evaluate", str(newest), "--data", str(data), *tasks, "--json", str(result))
    where = ("--name", config.name, "--out", str(work / "model_repo"))
    export = ("export", str(newest), *where, "--result", str(result))
    return [*steps, Step("evaluate", evaluate, ("evaluate",)), Step("export", export, ("name",))]


def run(
    steps: Sequence[Step],
    config: ModelConfig,
    folder: Path,
    *,
    processes: int = 1,
    say: Callable[[str], None] = print,
) -> bool:
    """Take the steps that are not done yet; whether the road came to its end.

    folder: of the model's runs; what was begun and what is done is kept there. A training that was begun with other
    settings is set aside, not overwritten. Raises TrainingError where a step fails.
    """
    state = read_state(folder)
    folder.mkdir(parents=True, exist_ok=True)
    before = ""
    for number, step in enumerate(steps, start=1):
        before = fingerprint(step, config, before)
        place = f"{number}/{len(steps)} {step.name}"
        if state.done.get(step.name) == before:
            say(f"{place}: done before")
            continue
        earlier = state.begun.get(step.name)
        changed = earlier is not None and earlier != before
        if changed and step.run is not None and step.run.exists():
            aside = step.run.with_name(f"{step.run.name}.before-{before[:8]}")
            step.run.rename(aside)
            say(f"{place}: its settings changed; what it had made is in {aside}")
        # What stands on it stands on something else now.
        for later in steps[number - 1 :]:
            state.done.pop(later.name, None)
        state.begun[step.name] = before
        state.save(folder)
        chosen = replace(step, arguments=(*step.arguments, *step.anew)) if changed else step
        say(f"{place}: {chosen.written(processes)}")
        began = time.monotonic()
        code, stopped = finished(chosen.command(processes))
        if code == 0:
            say(f"{place}: {time.monotonic() - began:.0f} s")
            state.done[step.name] = before
            state.save(folder)
        if stopped:
            return False
        if code:
            raise TrainingError(f"{step.name} failed, see above; mend it, and the same command goes on from there")
    return True


@dataclass(frozen=True)
class State:
    """Step → what it was made from: when it was begun last, and when it came to its end."""

    begun: dict[str, str]
    done: dict[str, str]

    def save(self, folder: Path) -> None:
        """Keep it."""
        write_json(folder / STATE_FILE, {"begun": self.begun, "done": self.done})


def read_state(folder: Path) -> State:
    """What was kept; nothing at the first start."""
    try:
        return State(**json.loads((folder / STATE_FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return State({}, {})


def fingerprint(step: Step, config: ModelConfig, before: str) -> str:
    """What a step's outcome depends on, and all that it stands on. Where files lie is not part of it."""
    settings = [_part(config.model_dump(mode="json", exclude=PACE), name) for name in step.reads]
    document = json.dumps([before, step.name, settings], sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()


def _part(settings: dict[str, Any], name: str) -> object:
    """A part of the configuration by its name, such as `finetune.sources`."""
    section, _, key = name.partition(".")
    return settings[section][key] if key else settings[section]


def finished(command: Sequence[str]) -> tuple[int, bool]:
    """Run to the end. Returns the exit status, and whether somebody asked for a stop meanwhile."""
    asked: list[int] = []
    # In a session of its own: Ctrl-C reaches it once, from here, and not a second time from the terminal.
    with subprocess.Popen(list(command), start_new_session=True) as child, passed_on(child, asked):
        code = child.wait()
    return code, bool(asked)


@contextmanager
def passed_on(child: "subprocess.Popen[bytes]", asked: list[int]) -> Iterator[None]:
    """Hand SIGTERM, Ctrl-C and the loss of the terminal to the child, which saves and ends."""

    def hand_on(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        child.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
