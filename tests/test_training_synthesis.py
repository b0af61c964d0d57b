"""Synthetic pairs from a real server on the wire: what is kept, what is not and why, and ways to be interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import NOT_JSON, REFUSES, SAME_QUERY, ChatServer, start_chat_server
from tiny_checkpoint import write_tiny_checkpoint

from training.config import FilterConfig, InstructConfig, ModelConfig, SourceConfig, read_settings
from training.errors import BadTrainConfig, BadTrainingData, EndpointFailed, RunExists, SettingsChanged
from training.pair_store import open_stores
from training.prepare import prepare
from training.stages import train_stage
from training.synthesis.config import INVENTED, KINDS, SynthesisConfig
from training.synthesis.files import tasks_of
from training.synthesis.journal import Entry, Journal
from training.synthesis.plan import kind_of, plan_of, request_seed
from training.synthesis.run import JOURNAL_FILE, Server, synthesise

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = 180
SETTINGS = """
tasks_a_request = 4
languages = { en = 2, de = 1 }
kinds = { short_long = 3, long_short = 2, short_short = 1, long_long = 1, bitext = 2, sts = 2 }
"""
CONFIG = SynthesisConfig(
    tasks_a_request=4,
    languages={"en": 2, "de": 1},
    kinds={"short_long": 3, "long_short": 2, "short_short": 1, "long_long": 1, "bitext": 2, "sts": 2},
)
FILES = [*(f"{kind}.jsonl" for kind in KINDS), "rejected.jsonl", "statistics.json"]


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with start_chat_server() as running:
        yield running


@pytest.fixture(scope="module")
def whole(server: ChatServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthesis without interruption."""
    out = tmp_path_factory.mktemp("synthesis") / "whole"
    done = synthesise(CONFIG, Server(server.url, "toy", key="secret"), out, EXAMPLES)
    assert done.unanswered == 0
    assert done.retries > 0
    return out


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pairs_of(folder: Path) -> dict[int, dict[str, object]]:
    """Number → pair, with its kind."""
    return {row["number"]: {**row, "kind": kind} for kind in KINDS for row in rows(folder / f"{kind}.jsonl")}


def rejected_of(folder: Path) -> list[dict[str, object]]:
    return rows(folder / "rejected.jsonl")


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def command(url: str, out: Path, settings: Path, *more: str) -> list[str]:
    start = [sys.executable, "-m", "training", "synthesise", "--endpoint", url, "--model", "toy", "--out", str(out)]
    return [*start, "--settings", str(settings), "--limit", str(EXAMPLES), *more]


def test_pairs_are_what_their_numbers_plan_and_carry_their_instruction(whole: Path) -> None:
    pairs = pairs_of(whole)
    assert len(pairs) > EXAMPLES // 3
    for number, pair in pairs.items():
        plan = plan_of(number, CONFIG)
        assert pair["kind"] == plan.kind
        assert pair["lang"] == (f"{plan.language}-{plan.other}" if plan.kind == "bitext" else plan.language)
        assert pair["instruction"]
        assert len(pair["negative"]) == (0 if plan.kind in ("short_short", "long_long") else 1)
    assert {pair["kind"] for pair in pairs.values()} == set(KINDS)
    invented = {pair["instruction"] for pair in pairs.values() if pair["kind"] in INVENTED}
    assert len(invented) > 10
    assert {pair["instruction"] for pair in pairs.values() if pair["kind"] == "sts"} == {
        "Retrieve semantically similar text."
    }


def test_what_is_no_good_is_kept_aside_with_its_reason(whole: Path) -> None:
    reasons = Counter(row["reason"] for row in rejected_of(whole) if row["part"] == "example")
    assert {
        "not the JSON asked for",
        "refused: refusal",
        "refused: content_filter",
        "near duplicate",
        "unsafe: sexual",
        "personal data",
        "copied",
        "language: language",
    } <= set(reasons)
    # The server writes a placeholder into every list of tasks.
    tasks = Counter(row["reason"] for row in rejected_of(whole) if row["part"] == "tasks")
    assert tasks["leftover"] == sum(kind_of(unit, CONFIG) in INVENTED for unit in range(-(-EXAMPLES // 8)))


def test_every_number_is_accounted_for(whole: Path) -> None:
    statistics = json.loads((whole / "statistics.json").read_text())
    pairs, rejected = pairs_of(whole), rejected_of(whole)
    entries = rows(whole / JOURNAL_FILE)[1:]
    examples = {entry["number"] for entry in entries if entry["part"] == "example"}
    out = {row["number"] for row in rejected if row["part"] == "example"}
    assert set(pairs) | out == examples
    assert not set(pairs) & out
    # The last task of each list was no good, so nobody was asked for its examples.
    without_task = {n for n in range(EXAMPLES) if plan_of(n, CONFIG).kind in INVENTED and plan_of(n, CONFIG).place == 3}
    assert examples | without_task == set(range(EXAMPLES))
    assert statistics["examples"] == len(pairs)
    assert statistics["kinds"] == {kind: len(rows(whole / f"{kind}.jsonl")) for kind in KINDS}
    assert sum(statistics["rejected"]["example"].values()) == len(out)
    assert statistics["answers"] == len(entries)
    assert statistics["prompt_tokens"] == sum(entry["prompt_tokens"] for entry in entries) > 0
    assert statistics["instructions"] == len({pair["instruction"] for pair in pairs.values()})


def test_the_seed_says_which_answers_were_bad(whole: Path) -> None:
    wrong = {row["number"]: row["reason"] for row in rejected_of(whole) if row["part"] == "example"}
    examples = {row["number"] for row in rows(whole / JOURNAL_FILE)[1:] if row["part"] == "example"}
    seeds = {number: request_seed(number, CONFIG, tasks=False) for number in examples}
    assert {number for number, why in wrong.items() if why.startswith("refused")} == {
        number for number, seed in seeds.items() if seed % REFUSES == 0
    }
    assert {number for number, why in wrong.items() if why == "not the JSON asked for"} == {
        number for number, seed in seeds.items() if seed % NOT_JSON == 0 and seed % REFUSES
    }


def test_of_near_duplicates_one_stays(whole: Path) -> None:
    queries = [str(pair["query"]) for pair in pairs_of(whole).values()]
    for text in SAME_QUERY.values():
        assert sum(query.startswith(text) and query.count(text) == 1 for query in queries) <= 1
    assert len(set(queries)) == len(queries)


def test_the_key_goes_to_the_server_and_nowhere_else(whole: Path, server: ChatServer) -> None:
    assert "Bearer secret" in server.keys
    assert not [path for path in whole.iterdir() if b"secret" in path.read_bytes()]


def test_other_orders_of_the_answers_give_the_same_files(server: ChatServer, whole: Path, tmp_path: Path) -> None:
    synthesise(CONFIG, Server(server.url, "toy", concurrency=1), tmp_path, EXAMPLES)
    journals = [(folder / JOURNAL_FILE).read_bytes() for folder in (whole, tmp_path)]
    assert journals[0] != journals[1]
    assert files_of(tmp_path) == files_of(whole)


def test_killed_at_any_time_it_ends_in_the_same_files_and_pays_nothing_twice(whole: Path, tmp_path: Path) -> None:
    settings, out = tmp_path / "settings.toml", tmp_path / "out"
    settings.write_text(SETTINGS)
    journal = out / JOURNAL_FILE
    with start_chat_server(faults=False, delay_s=0.01) as server:
        for lines in (3, 60, 120):
            process = subprocess.Popen(command(server.url, out, settings), cwd=ROOT, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 60
            while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.wait(30)
            # As the kernel leaves it when the disk was full, or the power went.
            with journal.open("ab") as stream:
                stream.write(b'{"part": "example", "numb')
        known = {row["number"] for row in rows_but_the_last(journal) if row["part"] == "example"}
        server.asked.clear()
        done = subprocess.run(command(server.url, out, settings), cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        asked_again = {number for number in known if server.asked[request_seed(number, CONFIG, tasks=False)]}
    assert known
    assert not asked_again
    assert files_of(out) == files_of(whole)
    assert f"{out}: {json.loads((out / 'statistics.json').read_text())['examples']} pairs" in done.stdout


def rows_but_the_last(journal: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()[1:-1]]


def test_a_higher_limit_goes_on_and_leaves_what_there_was(server: ChatServer, whole: Path, tmp_path: Path) -> None:
    synthesise(CONFIG, Server(server.url, "toy"), tmp_path, 50)
    first = pairs_of(tmp_path)
    synthesise(CONFIG, Server(server.url, "toy"), tmp_path, EXAMPLES)
    assert {number: pair for number, pair in pairs_of(tmp_path).items() if number < 50} == first
    assert files_of(tmp_path) == files_of(whole)


def test_a_moderation_endpoint_judges_in_place_of_the_rules(server: ChatServer, tmp_path: Path) -> None:
    server.moderated.clear()
    judged = Server(server.url, "toy", "chat", server.url, "judge's", "judge")
    synthesise(CONFIG, judged, tmp_path, 60)
    texts = [text for pair in pairs_of(tmp_path).values() for text in (pair["query"], pair["positive"])]
    assert server.moderation_keys == {"Bearer judge's"}
    assert not [text for text in texts if "lantern" in text]
    assert [text for text in texts if "XXX" in text]
    assert "unsafe: light" in {row["reason"] for row in rejected_of(tmp_path)}
    asked = len(server.moderated)
    synthesise(CONFIG, judged, tmp_path, 60)
    assert len(server.moderated) == asked
    with pytest.raises(SettingsChanged, match="screen differ"):
        synthesise(CONFIG, Server(server.url, "toy"), tmp_path, 60)


def test_an_answer_that_nobody_judged_yet_is_judged_without_asking_again(tmp_path: Path) -> None:
    with start_chat_server(faults=False) as server:
        judged = Server(server.url, "toy", moderation_url=server.url)
        synthesise(CONFIG, judged, tmp_path, 30)
        wanted = files_of(tmp_path)
        # As if it had been killed between the two answers.
        journal = tmp_path / JOURNAL_FILE
        lines = [line for line in journal.read_text().splitlines() if '"unsafe": [' not in line]
        journal.write_text("\n".join(lines) + "\n")
        before = server.asked.total()
        synthesise(CONFIG, judged, tmp_path, 30)
        assert server.asked.total() == before
    assert files_of(tmp_path) == wanted


def test_a_list_that_comes_late_changes_no_pair_s_instruction(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"kinds": {"short_short": 1.0}})
    with start_chat_server(faults=False) as server:
        synthesise(config, Server(server.url, "toy"), tmp_path, 40)
        wanted = files_of(tmp_path)
        journal = tmp_path / JOURNAL_FILE
        lines = journal.read_text().splitlines()
        # As if the second unit's list had had no answer: nothing behind it may be asked for.
        journal.write_text("\n".join(line for line in lines if not is_behind_unit_0(line)) + "\n")
        with Journal(journal, json.loads(lines[0])) as known:
            assert set(tasks_of(known, 5, config).of) == {0}
        synthesise(config, Server(server.url, "toy"), tmp_path, 40)
    assert files_of(tmp_path) == wanted


def is_behind_unit_0(line: str) -> bool:
    entry = json.loads(line)
    return (entry.get("part"), entry.get("number")) == ("tasks", 1) or (
        entry.get("part") == "example" and entry["number"] >= 8
    )


@pytest.mark.parametrize(("status", "says"), [(401, "--key-variable"), (404, "--endpoint"), (422, "does not take")])
def test_a_server_that_will_never_answer_ends_it_at_once(tmp_path: Path, status: int, says: str) -> None:
    with start_chat_server(status=status) as server, pytest.raises(EndpointFailed, match=f"{status} no such.*{says}"):
        synthesise(CONFIG, Server(server.url, "toy"), tmp_path, 20)
    assert server.asked.total() <= 8


def test_a_server_that_goes_away_leaves_what_came_and_it_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.synthesis.endpoint.WAIT_MAX_S", 0.01)
    with start_chat_server(faults=False) as server:
        synthesise(CONFIG, Server(server.url, "toy"), tmp_path, 40)
        server.down = True
        with pytest.raises(EndpointFailed, match="gave no answer in 8 tries: 503.*what came is kept"):
            synthesise(CONFIG, Server(server.url, "toy"), tmp_path, EXAMPLES)
        server.down = False
        synthesise(CONFIG, Server(server.url, "toy"), tmp_path, EXAMPLES)
    assert files_of(tmp_path) == files_of(whole)


def test_requests_keep_the_pace_that_they_are_given(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"kinds": {"sts": 1.0}})
    with start_chat_server(faults=False) as server:
        synthesise(config, Server(server.url, "toy", requests_a_minute=1200), tmp_path, 21)
        # Twenty gaps of 50 ms; the server's clock starts a little late.
        assert server.times[-1] - server.times[0] > 0.9


def test_a_server_that_asks_for_patience_is_left_alone_by_all(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"kinds": {"sts": 1.0}})
    with start_chat_server(faults=False, first_retry_after="1.5", delay_s=0.05) as server:
        synthesise(config, Server(server.url, "toy", concurrency=2), tmp_path, 12)
        gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    # A request of the other worker may be under way, or just leave; then nobody asks.
    assert max(gaps[:4]) > 1.3


def test_another_synthesis_and_another_process_are_refused(whole: Path, server: ChatServer) -> None:
    other = CONFIG.model_copy(update={"seed": 7})
    with pytest.raises(SettingsChanged, match="model, seed differ from those in"):
        synthesise(other, Server(server.url, "other"), whole, EXAMPLES)
    made_by = json.loads((whole / JOURNAL_FILE).read_text().splitlines()[0])
    with (
        Journal(whole / JOURNAL_FILE, made_by),
        pytest.raises(RunExists, match="another process is writing"),
        Journal(whole / JOURNAL_FILE, made_by),
    ):
        pass


def test_a_damaged_line_is_named_and_a_half_written_one_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL_FILE
    with Journal(path, {"model": "m"}) as journal:
        for number in range(3):
            journal.add(Entry("example", number, f"answer {number}"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with Journal(path, {"model": "m"}) as journal:
        assert sorted(journal) == [("example", 0), ("example", 1)]
    path.write_bytes(whole.replace(b'"number": 1', b'"number": '))
    with pytest.raises(BadTrainingData, match="line 3 is damaged"), Journal(path, {"model": "m"}):
        pass


def test_the_pairs_are_prepared_and_train_the_instruct_stage(whole: Path, tmp_path: Path) -> None:
    roles = {"bitext": "query", "sts": "query"}
    sources = {
        f"synthetic_{kind}": SourceConfig(path=f"{kind}.jsonl", positive_role=roles.get(kind, "passage"))
        for kind in KINDS
    }
    prepare(sources, FilterConfig(), data=whole, out=tmp_path / "pairs")
    stores = {store.about.name: store for store in open_stores(tmp_path / "pairs")}
    about = stores["synthetic_short_long"].about
    assert (about.negatives, set(about.languages)) == (1, {"en", "de"})
    stage = InstructConfig(
        batch_pairs=8, epochs=1, warmup_steps=1, max_tokens=64, precision="fp32", hard_negatives=1, sources=sources
    )
    backbone = write_tiny_checkpoint(tmp_path / "backbone")
    config = ModelConfig(name="toy", backbone=str(backbone), instruct=stage)
    run = tmp_path / "run"
    assert train_stage(config, "instruct", pairs=tmp_path / "pairs", start=backbone, out=run, should_stop=lambda: False)
    assert set(json.loads((run / "latest" / "run.json").read_text())["data"]) == set(sources)


def test_a_dry_run_prints_prompts_and_asks_nobody(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(SETTINGS)
    url = "http://127.0.0.1:9/v1"
    done = subprocess.run(
        command(url, tmp_path / "out", settings, "--dry-run", "6"), cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "Think up 4" in done.stdout
    assert done.stdout.count("Answer with one JSON object") >= 6
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("languages = { xx = 1 }", "unknown languages xx"),
        ("kinds = { bitext = 1 }\nlanguages = { en = 1 }", "bitext needs two languages"),
        ("kinds = { sts = 0 }", "one above 0"),
        ("tasks = 3", "unknown key 'tasks'"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(BadTrainConfig, match=says):
        read_settings(tmp_path / "settings.toml", SynthesisConfig)


def test_an_address_that_is_none_is_one_line(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(SETTINGS)
    done = subprocess.run(
        command("nowhere", tmp_path / "out", settings), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: 'nowhere' is no address")
    assert "Traceback" not in done.stderr
