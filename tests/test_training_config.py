"""Settings: the shipped file is valid, a wrong key is named, and reading them costs no torch."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from training import config as stages
from training.bootstrap_config import load_config
from training.errors import BadTrainConfig

ROOT = Path(__file__).parents[1]
NANO = ROOT / "training" / "configs" / "me5_nano.toml"


def test_the_shipped_settings_are_valid_and_hold_pairs_back():
    assert load_config(NANO).held_out_per_mille == 5


def test_settings_that_begin_with_nothing_are_told_what_they_lack(tmp_path):
    path = tmp_path / "run.toml"
    settings = NANO.read_text(encoding="utf-8")
    start, end = settings.index("[warm_start.tokenizer]"), settings.index("[distil]")
    path.write_text(settings[:start] + settings[end:], encoding="utf-8")
    with pytest.raises(BadTrainConfig, match="run.toml: give either begins_with, a model to train further, or"):
        load_config(path)


def test_an_unknown_key_is_refused_by_its_full_name(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(NANO.read_text(encoding="utf-8").replace("warmup_steps", "warm_up"), encoding="utf-8")
    with pytest.raises(BadTrainConfig, match="distil.warm_up"):
        load_config(path)


def test_a_value_out_of_bounds_is_refused_by_its_full_name(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(NANO.read_text(encoding="utf-8").replace("vocab_size = 116600", "vocab_size = 0"), encoding="utf-8")
    with pytest.raises(BadTrainConfig, match="tokenizer.vocab_size"):
        load_config(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadTrainConfig, match="absent.toml"):
        load_config(tmp_path / "absent.toml")


def test_reading_the_settings_does_not_import_torch():
    code = "import sys, training.bootstrap_config; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# arXiv 2402.05672: section 2, Tables 1 and 2.
TABLE_1 = {"wikipedia", "mc4", "ccnews", "nllb", "reddit", "s2orc", "stackexchange", "xp3", "sbert"}
TABLE_2_PAIRS = {
    "msmarco_passage": 500_000,
    "nli": 275_000,
    "nq_triviaqa_squad": 220_000,
    "eli5": 100_000,
    "nllb": 100_000,
    "dureader": 86_000,
    "msmarco_document": 70_000,
    "fever": 70_000,
    "hotpotqa": 70_000,
    "mr_tydi": 50_000,
    "miracl": 40_000,
    "quora": 15_000,
}


@pytest.mark.parametrize(
    ("size", "first_rate", "second_rate"), [("small", 3e-4, 3e-5), ("base", 2e-4, 2e-5), ("large", 1e-4, 1e-5)]
)
def test_each_size_is_trained_by_the_published_numbers(size, first_rate, second_rate):
    path = ROOT / "training" / "configs" / f"me5_{size}.toml"
    model, written = stages.load_config(path), tomllib.loads(path.read_text(encoding="utf-8"))
    first, second = model.pretrain, model.finetune
    assert (first.batch_pairs, first.steps, first.temperature, first.learning_rate) == (
        32_768,
        30_000,
        0.01,
        first_rate,
    )
    assert (second.batch_pairs, second.epochs, second.temperature) == (512, 2, 0.01)
    assert second.learning_rate == second_rate
    assert set(first.sources) == TABLE_1
    assert {name: source.pairs_max for name, source in second.sources.items()} == TABLE_2_PAIRS
    assert all(source.pair for stage in (first, second) for source in stage.sources.values())
    # Written out, not left to defaults that may move.
    for stage, keys in (("pretrain", ["batch_pairs", "steps"]), ("finetune", ["batch_pairs", "epochs"])):
        assert {*keys, "learning_rate", "temperature"} <= set(written[stage])


# arXiv 2401.00368, table 14: the instructions of the training data. Bitext: of the evaluation, unilm/e5.
INSTRUCTIONS = {
    "msmarco_passage": ["Given a web search query, retrieve relevant passages that answer the query"],
    "nli": [
        "Given a premise, retrieve a hypothesis that is entailed by the premise",
        "Retrieve semantically similar text",
    ],
    "nq_triviaqa_squad": [
        "Given a question, retrieve Wikipedia passages that answer the question",
        "Retrieve Wikipedia passages that answer the question",
    ],
    "eli5": ["Provided a user question, retrieve the highest voted answers on Reddit ELI5 forum"],
    "nllb": ["Retrieve parallel sentences."],
    "dureader": ["Given a Chinese search query, retrieve web passages that answer the question"],
    "msmarco_document": ["Given a web search query, retrieve relevant documents that answer the query"],
    "fever": ["Given a claim, retrieve documents that support or refute the claim"],
    "hotpotqa": ["Given a multi-hop question, retrieve documents that can help answer the question"],
    "mr_tydi": ["Given a question, retrieve Wikipedia passages that answer the question"],
    "miracl": ["Given a question, retrieve Wikipedia passages that answer the question"],
    "quora": [
        "Given a question, retrieve questions that are semantically equivalent to the given question",
        "Find questions that have the same meaning as the input question",
    ],
}
# Figure 2 of the same paper, in thousands.
SYNTHETIC = {"short_long": 167, "long_short": 122, "short_short": 13, "long_long": 17, "bitext": 89, "sts": 99}


def test_large_instruct_is_stage_2_of_large_with_instructions_and_synthetic_pairs():
    folder = ROOT / "training" / "configs"
    path = folder / "me5_large_instruct.toml"
    model, written = stages.load_config(path), tomllib.loads(path.read_text(encoding="utf-8"))
    stage, large = model.instruct, stages.load_config(folder / "me5_large.toml")
    assert (stage.batch_pairs, stage.epochs, stage.temperature, stage.learning_rate) == (512, 2, 0.01, 1e-5)
    assert {"batch_pairs", "epochs", "learning_rate", "temperature"} <= set(written["instruct"])
    # Stage 1 is the same, and so is every number of stage 2 that the report does not name again.
    assert (model.backbone, model.seed, model.pretrain) == (large.backbone, large.seed, large.pretrain)
    assert {"batch_pairs", "steps", "learning_rate", "temperature"} <= set(written["pretrain"])
    kept = {"sources", "generic_instruction_share"}
    assert stage.model_dump(exclude=kept) == large.finetune.model_dump(exclude=kept)
    assert stage.generic_instruction_share == 0
    labelled = {name: source for name, source in stage.sources.items() if not name.startswith("synthetic_")}
    assert {name: source.pairs_max for name, source in labelled.items()} == TABLE_2_PAIRS
    assert {name: source.instruction for name, source in labelled.items()} == INSTRUCTIONS
    for name, source in labelled.items():
        # Files that are prepared, mined and scored for stage 2 serve here as well.
        assert source.model_copy(update={"instruction": []}) == large.finetune.sources[name]
    made = {name: source for name, source in stage.sources.items() if name.startswith("synthetic_")}
    assert {name: source.pairs_max for name, source in made.items()} == {
        f"synthetic_{kind}": 1000 * count for kind, count in SYNTHETIC.items()
    }
    symmetric = {name for name, source in made.items() if source.positive_role == "query"}
    assert symmetric == {"synthetic_bitext", "synthetic_sts"}


def test_the_defaults_are_the_published_numbers():
    first, second = stages.PretrainConfig(), stages.FinetuneConfig()
    assert (first.batch_pairs, first.steps, first.temperature, first.learning_rate) == (32_768, 30_000, 0.01, 3e-4)
    assert (second.batch_pairs, second.epochs, second.temperature, second.learning_rate) == (512, 2, 0.01, 3e-5)
    assert first.mixture.source_cap == 160_000_000
    # SimLM's re-ranker, and English E5's filter.
    teach, consistency = stages.TeachConfig(), stages.ConsistencyConfig()
    assert (teach.learning_rate, teach.epochs, teach.max_tokens) == (3e-5, 3, 192)
    assert (1 + teach.negatives, teach.forward_factor) == (64, 4)
    assert (consistency.top, consistency.passages) == (2, 1_000_000)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('backbone = "b"\n', "key 'name'"),
        ('name = "n"\nbackbone = "b"\n[pretrain]\nstep = 3\n', "unknown key 'pretrain.step'; remove it"),
        ('name = "n"\nbackbone = "b"\n[pretrain]\ntemperature = 0\n', "key 'pretrain.temperature'"),
        ('name = "n"\nbackbone = "b"\n[pretrain.sources.x]\npair = "q, a"\n', "give one of `path` and `dataset`"),
        ("name = ", "is not valid TOML"),
    ],
)
def test_a_model_s_file_names_the_key_that_is_wrong(tmp_path, text, says):
    path = tmp_path / "model.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadTrainConfig, match=re.escape(says)):
        stages.load_config(path)


def test_a_mixture_of_epochs_keeps_what_is_not_said_otherwise():
    mixture = stages.FinetuneConfig.model_validate({"mixture": {"one_source_a_batch": False}}).mixture
    assert (mixture.source_cap, mixture.language_exponent, mixture.one_source_a_batch) == (None, 1.0, False)


def test_a_model_has_one_second_stage():
    source = {"questions": {"path": "q.jsonl"}}
    with pytest.raises(ValidationError, match="second stage is `finetune` or `instruct`"):
        stages.ModelConfig.model_validate(
            {"name": "toy", "backbone": "b", "finetune": {"sources": source}, "instruct": {"sources": source}}
        )


def test_a_window_of_ranks_that_holds_none_is_refused():
    with pytest.raises(ValidationError, match="rank_from 210 is not below rank_to 200"):
        stages.MineConfig(rank_from=210)
