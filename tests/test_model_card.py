"""Model cards: generated from what training, export and evaluation wrote, in YAML and Markdown that hold any text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from faulty_engine import SHIPPED
from sentence_transformers import SentenceTransformer
from tiny_checkpoint import write_tiny_checkpoint

from service.recipe.prompts import E5_PROMPTS
from service.recipe.spec import file_sha256, load_spec, save_spec
from training.card_facts import FACTS_FILE, SourceFacts, TrainingFacts, facts_of_run, language_codes, read_figures
from training.errors import ExportError
from training.export import export
from training.model_card import Card, cell, render, rewrite_card, write_checkpoint_card
from training.sentence_folder import STATIC_FILE, weights_identity

RUN = {
    "stage": "pretrain",
    "settings": {
        "name": "me5_small", "backbone": "intfloat/x", "seed": 7,
        "pretrain": {"learning_rate": 3e-4, "sources": {"a": {}}},
    },
    "begin_with": {"model": "microsoft/Multilingual-MiniLM-L12-H384", "weights_sha256": None},
    "data": {"a": "0" * 64},
    "sources": {
        "a | b": {"pairs": 1234567, "licence": "CC BY 4.0 <b>`x`</b>", "languages": ["en-no", "zh-Hant"]},
        "c": {"pairs": 5, "licence": "MIT", "languages": ["deu_Latn"]},
    },
    "step": 500,
    "pairs_seen": 16000,
    "made_with": {"versions": {"torch": "2.13.0"}},
}  # fmt: skip


def head_of(text: str) -> dict[str, object]:
    _, head, _ = text.split("---\n", 2)
    found: dict[str, object] = yaml.safe_load(head)
    return found


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = write_tiny_checkpoint(tmp_path / "checkpoint")
    (folder / "run.json").write_text(json.dumps(RUN), encoding="utf-8")
    return folder


def result_of(path: Path, sha256: str) -> Path:
    document = {
        "system": {"name": "x/1", "engine": "torch fp32", "files": {"model.safetensors": sha256}},
        "protocol": {"name": "paper"},
        "means": {"flores": {"accuracy": 0.91234}, "stsb": {"spearman": 0.5}},
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_the_head_is_yaml_whose_language_no_is_not_false(checkpoint: Path) -> None:
    write_checkpoint_card(checkpoint, licence="apache-2.0")
    head = head_of((checkpoint / "README.md").read_text(encoding="utf-8"))
    assert head["language"] == ["deu", "en", "no", "zh"]
    assert head["license"] == "apache-2.0"
    assert head["pipeline_tag"] == "sentence-similarity"
    assert head["library_name"] == "sentence-transformers"
    assert head["base_model"] == "microsoft/Multilingual-MiniLM-L12-H384"
    assert {"sentence-transformers", "feature-extraction"} <= set(head["tags"])  # type: ignore[call-overload]


def test_the_card_says_prompts_sources_licences_steps_and_versions(checkpoint: Path) -> None:
    write_checkpoint_card(checkpoint)
    text = (checkpoint / "README.md").read_text(encoding="utf-8")
    for said in (
        "# me5_small",
        '`"query: "`',
        '`"passage: "`',
        "| steps | 500 |",
        "| pairs seen | 16,000 |",
        "torch 2.13.0",
    ):
        assert said in text
    assert "| learning rate | 0.0003 |" in text
    # Its own signs are no markup and no further column.
    assert r"| a \| b | 1,234,567 | CC BY 4.0 \<b>\`x\`\</b> |" in text
    assert "licence of the weights is not decided" in text
    assert "## Evaluation" not in text


def test_lexical_settings_are_told_of_models_that_have_such_a_path_alone() -> None:
    scales = {"lexical_query_scale": 0.25, "lexical_passage_scale": 1.05, "static_share": 0.4}
    for width, told in ((384, {"lexical_width", *scales}), (0, {"static_share"})):
        facts = facts_of_run({"settings": {"distil": {"lexical_width": width, **scales}}})
        assert set(facts.settings) == told


def test_figures_come_from_an_evaluation_of_this_model_and_of_no_other(checkpoint: Path, tmp_path: Path) -> None:
    own = result_of(tmp_path / "own.json", file_sha256(checkpoint / "model.safetensors"))
    write_checkpoint_card(checkpoint, result=own)
    text = (checkpoint / "README.md").read_text(encoding="utf-8")
    assert "| flores | accuracy | 0.9123 |" in text
    assert "protocol paper, computed by torch fp32" in text
    with pytest.raises(ExportError, match="other.json measured another model.*evaluate this model"):
        write_checkpoint_card(checkpoint, result=result_of(tmp_path / "other.json", "0" * 64))


def test_of_two_checkpoints_with_the_same_layers_figures_are_of_the_one_whose_other_paths_were_measured(
    tmp_path: Path,
) -> None:
    layers, static, other = "1" * 64, "2" * 64, "3" * 64
    measured = result_of(tmp_path / "measured.json", layers)
    document = json.loads(measured.read_text(encoding="utf-8"))
    document["system"]["files"] |= {"model.safetensors": layers, STATIC_FILE: static}
    measured.write_text(json.dumps(document), encoding="utf-8")
    identity = weights_identity({"model.safetensors": layers, STATIC_FILE: static})
    assert identity is not None
    assert read_figures(measured, [identity]).means
    for another in (layers, static, weights_identity({"model.safetensors": layers, STATIC_FILE: other})):
        assert another is not None
        with pytest.raises(ExportError, match="measured another model"):
            read_figures(measured, [another])


def test_a_version_keeps_what_its_checkpoint_was_made_from_and_takes_figures_later(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = export(checkpoint, name="tiny", model_repo=tmp_path / "repo", licence="mit").folder
    spec = load_spec(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert head_of(text)["license"] == "mit"
    assert "library_name" not in head_of(text)
    assert "| c | 5 | MIT |" in text
    assert "| `model.onnx` | float32" in text
    assert str(tmp_path) not in text + (folder / "training.json").read_text(encoding="utf-8")
    result = result_of(tmp_path / "result.json", file_sha256(checkpoint / "model.safetensors"))
    rewrite_card(folder, spec, licence=None, result=result)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "| stsb | spearman | 0.5000 |" in text
    assert head_of(text)["license"] == "mit"
    # The version is still the one that was published.
    assert load_spec(folder) == spec


def test_a_version_without_training_facts_gets_a_card_that_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "me5_nano" / "1"
    shutil.copytree(SHIPPED, folder)
    spec = load_spec(folder)
    (folder / FACTS_FILE).unlink(missing_ok=True)
    card = rewrite_card(folder, save_spec(folder, spec), licence=None, result=None)
    text = card.read_text(encoding="utf-8")
    assert head_of(text)["language"] == ["multilingual"]
    assert "Nothing was written down about how these weights were trained" in text


def test_a_checkpoint_with_its_card_is_loaded_by_sentence_transformers(checkpoint: Path) -> None:
    before = SentenceTransformer(str(checkpoint), device="cpu").encode(["boats"], prompt_name="query")
    write_checkpoint_card(checkpoint)
    after = SentenceTransformer(str(checkpoint), device="cpu").encode(["boats"], prompt_name="query")
    assert (before == after).all()


def test_a_run_that_began_with_a_local_folder_tells_no_path_of_this_machine() -> None:
    facts = facts_of_run({"begin_with": {"model": "/home/someone/runs/x/step_000100"}, "data": {"a": "0"}})
    assert facts.begins_with == "checkpoint step_000100"
    assert facts.sources == [SourceFacts("a", None, None)]
    card = Card("x", 64, 512, E5_PROMPTS, "other", facts, None)
    assert "base_model" not in head_of(render(card))


def test_language_codes_drop_scripts_and_markup_is_escaped() -> None:
    assert language_codes(["en-zh-Hant", "deu_Latn", "mixed languages", ""]) == ["deu", "en", "zh"]
    assert cell("a|b\n*c* [d] `e` \\") == r"a\|b \*c\* \[d] \`e\` \\"
    assert TrainingFacts(None, None, None, None, None).sources == []
