"""The instruct stage: which text gets which instruction, and that what is served is what was trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faulty_engine import SHIPPED
from gateway_process import ROOT, environment
from pair_files import write_pairs
from sentence_transformers import SentenceTransformer
from tiny_checkpoint import write_tiny_checkpoint

from service.recipe.prompts import E5_INSTRUCT_PROMPTS, E5_PROMPTS, Prompts, Role
from service.recipe.spec import load_spec
from service.recipe.tokens import load_tokenizer
from training.collate import Collator
from training.config import FilterConfig, FinetuneConfig, InstructConfig, ModelConfig, SourceConfig, load_config
from training.errors import BadTrainConfig, BadTrainingData
from training.export import export
from training.instructions import choose_instruction
from training.pair_store import ABOUT_FILE, PairRow, PairStore, open_stores
from training.prepare import check_settings, prepare
from training.sentence_folder import read_sentence_folder
from training.stage_batches import choose_negatives
from training.stages import train_stage

TASK = "Find where the thing is kept"
WORDINGS = ["Retrieve parallel sentences.", "Find the translation"]
SOURCES = {
    "translation": SourceConfig(path="train/translation.jsonl.gz", positive_role="query", instruction=WORDINGS),
    "questions": SourceConfig(path="train/questions.jsonl", instruction=TASK),
}
TOKENIZER = load_tokenizer(SHIPPED / "tokenizer.json")
DEFAULT = E5_INSTRUCT_PROMPTS.instructions["query"]
SIMILAR = E5_INSTRUCT_PROMPTS.instructions["similarity"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data"), rows=72)


@pytest.fixture(scope="module")
def pairs(data: Path) -> Path:
    prepare(SOURCES, FilterConfig(), data=data, out=data / "prepared")
    return data / "prepared"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    stage = InstructConfig(
        batch_pairs=24,
        epochs=4,
        learning_rate=2e-3,
        hard_negatives=1,
        sources=SOURCES,
        temperature=0.05,
        max_tokens=96,
        chunk_tokens=512,
        precision="fp32",
        warmup_steps=2,
        log_every_steps=1,
    )
    backbone = write_tiny_checkpoint(tmp_path_factory.mktemp("backbone") / "tiny")
    return ModelConfig(name="toy", backbone=str(backbone), instruct=stage)


@pytest.fixture(scope="module")
def trained(config: ModelConfig, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "instruct"
    start = Path(config.backbone)
    assert train_stage(config, "instruct", pairs=pairs, start=start, out=run, should_stop=lambda: False)
    return run


@pytest.fixture(scope="module")
def repo(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repo = tmp_path_factory.mktemp("repo")
    export(trained / "latest", name="toy_instruct", model_repo=repo)
    return repo


def collated(prompts: Prompts, roles: tuple[Role, Role], row: PairRow) -> list[list[int]]:
    """The token ids of a pair's texts: query, positive, negatives."""
    collator = Collator(TOKENIZER, prompts, pad_id=1, max_tokens=128, chunk_tokens=512)
    found = collator.collate([row], [roles])
    rows = [ids[mask > 0].tolist() for chunk in found.chunks for ids, mask in zip(chunk.ids, chunk.mask, strict=True)]
    return [rows[place] for place in found.order.tolist()]


def as_read(text: str) -> list[int]:
    return list(TOKENIZER.encode(text).ids)


def test_a_query_carries_its_instruction_and_passages_nothing() -> None:
    row = PairRow("the sea", "about boats", ["bread"], instruction=TASK)
    found = collated(E5_INSTRUCT_PROMPTS, ("query", "passage"), row)
    assert found == [as_read(f"Instruct: {TASK}\nQuery: the sea"), as_read("about boats"), as_read("bread")]


def test_symmetric_pairs_carry_the_same_instruction_on_every_side() -> None:
    row = PairRow("the sea", "about boats", ["bread"], instruction=TASK)
    found = collated(E5_INSTRUCT_PROMPTS, ("query", "query"), row)
    assert found == [as_read(f"Instruct: {TASK}\nQuery: {text}") for text in ("the sea", "about boats", "bread")]


def test_without_an_instruction_the_generic_one_of_the_pair_s_kind_applies() -> None:
    row = PairRow("the sea", "about boats")
    asked = collated(E5_INSTRUCT_PROMPTS, ("query", "passage"), row)
    assert asked == [as_read(f"Instruct: {DEFAULT}\nQuery: the sea"), as_read("about boats")]
    alike = collated(E5_INSTRUCT_PROMPTS, ("query", "query"), row)
    assert alike == [as_read(f"Instruct: {SIMILAR}\nQuery: {text}") for text in ("the sea", "about boats")]


def test_a_model_without_instructions_reads_the_same_pair_as_before() -> None:
    row = PairRow("the sea", "about boats", instruction=TASK)
    assert collated(E5_PROMPTS, ("query", "passage"), row) == [
        as_read("query: the sea"),
        as_read("passage: about boats"),
    ]


def test_every_visit_draws_a_wording_and_a_pair_s_own_comes_before_them() -> None:
    row = PairRow("q", "p")
    drawn = [choose_instruction(row, WORDINGS, key).instruction for key in range(400)]
    # A fair coin, 400 times: within five standard deviations.
    assert 150 < drawn.count(WORDINGS[0]) < 250
    assert set(drawn) == set(WORDINGS)
    own = PairRow("q", "p", instruction=TASK)
    assert choose_instruction(own, WORDINGS, 1).instruction == TASK
    assert choose_instruction(row, [], 1) == row


def test_the_generic_instruction_takes_its_share_of_visits() -> None:
    row = PairRow("q", "p", instruction=TASK)
    drawn = [choose_instruction(row, WORDINGS, key, 0.25).instruction for key in range(400)]
    assert 57 < drawn.count("") < 143
    assert set(drawn) == {"", TASK}


def test_negatives_are_chosen_and_the_instruction_stays() -> None:
    row = PairRow("q", "p", ["a", "b"], instruction=TASK)
    assert choose_negatives(row, 1, 3).instruction == choose_negatives(row, 0, 3).instruction == TASK


def test_a_column_gives_pairs_their_own_instructions_and_survives_on_disk(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    rows = [
        {"query": "one of them", "positive": "its answer", "lang": "en", "task": f" {TASK} "},
        {"query": "another one", "positive": "its answer too", "lang": "en", "task": None},
    ]
    (tmp_path / "train" / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(path="train/own.jsonl", instruction_column="task")
    prepare({"own": source}, FilterConfig(), data=tmp_path, out=tmp_path / "out")
    (store,) = open_stores(tmp_path / "out")
    assert [row.instruction for row in store.rows(np.arange(2))] == [TASK, ""]


def test_other_wordings_need_no_new_preparation_and_another_column_does(pairs: Path) -> None:
    store = PairStore(pairs / "questions")
    check_settings(store, SOURCES["questions"].model_copy(update={"instruction": ["Otherwise"]}), FilterConfig())
    with pytest.raises(BadTrainingData, match=r"other settings \(instruction_column\)"):
        check_settings(store, SOURCES["questions"].model_copy(update={"instruction_column": "task"}), FilterConfig())


def test_a_store_from_before_instructions_still_opens(data: Path, tmp_path: Path) -> None:
    prepare({"questions": SOURCES["questions"]}, FilterConfig(), data=data, out=tmp_path)
    about = tmp_path / "questions" / ABOUT_FILE
    content = json.loads(about.read_text())
    del content["settings"]["instruction_column"]
    about.write_text(json.dumps(content))
    store = PairStore(tmp_path / "questions")
    check_settings(store, SOURCES["questions"], FilterConfig())
    assert store.rows(np.array([0]))[0].instruction == ""


def test_the_stage_learns_with_instructions(trained: Path) -> None:
    losses = [json.loads(line)["loss"] for line in (trained / "curve.jsonl").read_text().splitlines()]
    # Batches of two sources, one with hard negatives: eight steps see both.
    assert np.mean(losses[-8:]) < 0.85 * np.mean(losses[:8])
    manifest = json.loads((trained / "latest" / "run.json").read_text())
    assert manifest["settings"]["instruct"]["sources"]["questions"]["instruction"] == [TASK]
    assert "finetune" not in manifest["settings"]


def test_the_checkpoint_says_what_its_queries_begin_with(trained: Path) -> None:
    prompts = json.loads((trained / "latest" / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts["query"] == f"Instruct: {DEFAULT}\nQuery: "
    assert prompts["passage"] == ""
    assert prompts["similarity"] == f"Instruct: {SIMILAR}\nQuery: "
    assert read_sentence_folder(trained / "latest").prompts == E5_INSTRUCT_PROMPTS


def test_an_instruct_checkpoint_is_exported_with_its_prompts(repo: Path) -> None:
    assert load_spec(repo / "toy_instruct" / "1").prompts == E5_INSTRUCT_PROMPTS


@pytest.mark.parametrize("role", ["query", "passage"])
def test_the_gateway_gives_the_vector_of_the_trained_model(trained: Path, repo: Path, role: Role) -> None:
    text = "where is bread number 7 of Oslo?"
    done = subprocess.run(
        [sys.executable, "-m", "service", "embed", "--role", role, "--instruction", TASK, text],
        cwd=ROOT,
        env=environment(model="toy_instruct", model_repo=repo, engine="onnx"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    served = np.array(json.loads(done.stdout)["vector"])
    model = SentenceTransformer(str(trained / "latest"), device="cpu")
    prompted = f"Instruct: {TASK}\nQuery: {text}" if role == "query" else text
    wanted, other = model.encode([prompted, text if role == "query" else f"passage: {text}"])
    # float32 sums in another order.
    assert served @ wanted >= 0.9999
    assert served @ other < 0.9999


def test_a_run_stopped_and_resumed_draws_the_same_instructions(
    config: ModelConfig, pairs: Path, trained: Path, tmp_path: Path
) -> None:
    asked = iter(range(10**6))
    start, run = Path(config.backbone), tmp_path / "again"
    assert not train_stage(config, "instruct", pairs=pairs, start=start, out=run, should_stop=lambda: next(asked) == 5)
    assert train_stage(config, "instruct", pairs=pairs, start=start, out=run, resume=True, should_stop=lambda: False)
    whole, again = (folder / "latest" / "model.safetensors" for folder in (trained, run))
    assert whole.read_bytes() == again.read_bytes()


def test_an_instruction_setting_that_makes_no_sense_is_named(tmp_path: Path) -> None:
    path = tmp_path / "toy.toml"
    path.write_text('name = "n"\nbackbone = "b"\n[instruct]\ngeneric_instruction_share = 1.5\n')
    with pytest.raises(BadTrainConfig, match="instruct.generic_instruction_share"):
        load_config(path)
    assert isinstance(ModelConfig(name="n", backbone="b").instruct, FinetuneConfig)
