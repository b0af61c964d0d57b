"""The teacher: a cross-encoder that learns to rank, and whose scores are read once, kept, and learnt from."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder as SentenceCrossEncoder
from tiny_checkpoint import tiny_tokenizer, write_tiny_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, XLMRobertaForSequenceClassification
from typer.testing import CliRunner

from training.__main__ import cli
from training.backbone import load_backbone
from training.config import FilterConfig, FinetuneConfig, ModelConfig, SourceConfig, TeachConfig
from training.cross_encoder import (
    CrossEncoder,
    PairTokens,
    begin_cross_encoder,
    identity_of,
    open_cross_encoder,
    with_pair_template,
)
from training.errors import BadTrainConfig, BadTrainingData, SettingsChanged, StartingModelMissing
from training.pair_store import PairStore, open_stores
from training.prepare import prepare
from training.processes import Processes
from training.score import pairs_of, score_pairs, score_store
from training.score_cache import open_cache
from training.stage_batches import StageBatches
from training.stages import train_stage
from training.teach import TeachBatches, train_teacher
from training.teach_step import TeachStepper, hardest_of, ranking_loss

CPU = torch.device("cpu")
LONGEST = 96
THINGS = ["boats", "bread", "harbour", "lantern", "violin", "garden", "bridge", "kettle"]
TEACH = TeachConfig(
    batch_queries=16,
    epochs=3,
    learning_rate=3e-3,
    negatives=3,
    forward_factor=1,
    r_drop=0.0,
    max_tokens=LONGEST,
    warmup_steps=4,
    precision="fp32",
    save_every_steps=1000,
    log_every_steps=5,
)


def question(number: int) -> dict[str, object]:
    """Where and when are answered by the same passages the other way round: a query has to be read with them."""
    thing = THINGS[number % 8]
    places = [f"{thing} {number} is behind the old mill", f"{thing} {number} is on the square"]
    times = [f"{thing} {number} came late in winter", f"{thing} {number} came early in spring"]
    right, wrong = (places, times) if number % 2 else (times, places)
    return {
        "query": f"{'where' if number % 2 else 'when'} is {thing} {number}?",
        "positive": right[number // 2 % 2],
        "negative": [*wrong, f"{wrong[0]} of course"],
        "lang": "en",
    }


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    (data / "train").mkdir()
    for name, numbers in (("taught", range(240)), ("unseen", range(500, 564))):
        lines = "".join(json.dumps(question(number)) + "\n" for number in numbers)
        (data / "train" / f"{name}.jsonl").write_text(lines)
        source = SourceConfig(path=f"train/{name}.jsonl")
        prepare({name: source}, FilterConfig(), data=data, out=data / f"prepared-{name}")
    return data


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("backbone") / "tiny", "xlm-roberta", spread=0.05)


@pytest.fixture(scope="module")
def config(backbone: Path) -> ModelConfig:
    return ModelConfig(name="toy", backbone=str(backbone), teach=TEACH)


@pytest.fixture(scope="module")
def whole(config: ModelConfig, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("teach") / "whole"
    assert train_teacher(config, pairs=pairs / "prepared-taught", out=run, should_stop=lambda: False)
    return run


def ranks_right(folder: Path, store: PairStore) -> float:
    """The share of the queries whose positive is scored above every negative; chance is 1 in 4."""
    encoder = open_cross_encoder(str(folder), CPU, LONGEST)
    rows = store.rows(np.arange(store.shape.rows))
    with torch.inference_mode():
        tokens = encoder.tokenize([pair for row in rows for pair in pairs_of(row)])
        scores = encoder.logits(tokens, "fp32").unflatten(0, (len(rows), 4))
    return float((scores.argmax(dim=1) == 0).float().mean())


def test_the_teacher_ranks_the_right_passage_of_questions_it_has_not_seen_first(whole: Path, pairs: Path) -> None:
    found = ranks_right(whole / "latest", open_stores(pairs / "prepared-unseen")[0])
    print(f"\nranked first: {found:.3f}")
    assert found > 0.75


def after(steps: int) -> Callable[[], bool]:
    """Asked behind every step: stop behind that many."""
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= steps


def weights_hash(run: Path) -> str:
    return hashlib.sha256((run / "latest" / "model.safetensors").read_bytes()).hexdigest()


def test_a_stopped_training_goes_on_to_the_same_bytes(config: ModelConfig, pairs: Path, tmp_path: Path) -> None:
    # With all that draws: dropout twice, and negatives of which the hardest are learnt from.
    drawn = TEACH.model_copy(update={"epochs": 1, "forward_factor": 2, "r_drop": 1.0, "negatives": 3})
    settings, mined = config.model_copy(update={"teach": drawn}), pairs / "prepared-taught"
    assert train_teacher(settings, pairs=mined, out=tmp_path / "whole", should_stop=lambda: False)
    assert not train_teacher(settings, pairs=mined, out=tmp_path / "again", should_stop=after(4))
    assert not train_teacher(settings, pairs=mined, out=tmp_path / "again", resume=True, should_stop=after(3))
    assert train_teacher(settings, pairs=mined, out=tmp_path / "again", resume=True, should_stop=lambda: False)
    assert weights_hash(tmp_path / "again") == weights_hash(tmp_path / "whole")
    other = settings.model_copy(update={"teach": drawn.model_copy(update={"learning_rate": 1e-4})})
    with pytest.raises(SettingsChanged, match=r"settings\.teach\.learning_rate"):
        train_teacher(other, pairs=mined, out=tmp_path / "again", resume=True)


class Apart(Processes):
    """One of several processes, that keeps its part of a sum to itself."""

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """Leave them."""


def test_the_gradients_of_processes_add_up_to_those_of_one(config: ModelConfig, pairs: Path) -> None:
    # Without clipping, which comes behind the sum, and without dropout, which falls differently in each process.
    teach = TEACH.model_copy(update={"gradient_norm_max": 1e9, "forward_factor": 2})
    stores = open_stores(pairs / "prepared-taught")
    found = []
    for rank, count in ((0, 1), (0, 2), (1, 2)):
        encoder = begin_cross_encoder(config.backbone, "", CPU, LONGEST, seed=1)
        for layer in encoder.model.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
        processes = Apart(rank, count, CPU)
        batches = TeachBatches(teach, stores, {}, encoder, steps=9, seed=3, processes=processes)
        report = TeachStepper(encoder, teach, 9, 3, processes).step(2, batches.of(2))
        gradients = {name: weight.grad for name, weight in encoder.model.named_parameters() if weight.grad is not None}
        found.append((report.loss, gradients))
    (loss, whole), (first_loss, first), (second_loss, second) = found
    assert first_loss + second_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in whole.items():
        # float32 adds up in another order.
        torch.testing.assert_close(first[name] + second[name], gradient, atol=1e-6, rtol=1e-3)


def test_what_can_not_begin_is_named(config: ModelConfig, pairs: Path, tmp_path: Path) -> None:
    mined = pairs / "prepared-taught"
    with pytest.raises(BadTrainConfig, match=r"teach\.warmup_steps 1000 leave nothing of the 45 steps"):
        train_teacher(
            config.model_copy(update={"teach": TEACH.model_copy(update={"warmup_steps": 1000})}),
            pairs=mined,
            out=tmp_path / "run",
        )
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "bare.jsonl").write_text('{"query": "a question", "positive": "its answer", "lang": "en"}\n')
    bare = SourceConfig(path="train/bare.jsonl")
    prepare({"bare": bare}, FilterConfig(), data=tmp_path, out=tmp_path / "prepared")
    with pytest.raises(BadTrainingData, match="no source in .* has negatives for each query; find them by"):
        train_teacher(config, pairs=tmp_path / "prepared", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_loss_is_the_closed_form() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    one, other = -math.log(math.e**2 / (math.e**2 + 2)), -math.log(1 / (math.e + 2))
    assert float(ranking_loss([logits], 0.0)) == pytest.approx(one + other, abs=1e-12)
    # Two readings that agree are no farther apart than nothing.
    assert float(ranking_loss([logits, logits], 5.0)) == pytest.approx(one + other, abs=1e-12)
    even, skewed = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    entropies = (math.log(2) - math.log(0.75)) / 2
    there = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    back = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    expected = entropies + 3 * (there + back) / 2
    assert float(ranking_loss([even, skewed], 3.0)) == pytest.approx(expected, abs=1e-12)


def test_the_positive_and_the_hardest_of_many_are_learnt_from(whole: Path) -> None:
    encoder = open_cross_encoder(str(whole / "latest"), CPU, LONGEST)
    texts = [f"the {thing} is behind the old mill" for thing in THINGS]
    group = encoder.tokenize([("where is the kettle?", text) for text in texts])
    (kept,) = hardest_of([group], encoder, TEACH.model_copy(update={"forward_factor": 2}))
    with torch.inference_mode():
        scores = encoder.logits(group, "fp32")[1:].tolist()
    best = sorted(range(7), key=lambda place: -scores[place])[:3]
    assert [row.ids.tolist() for row in kept] == [group[0].ids.tolist(), *(group[1 + n].ids.tolist() for n in best)]
    assert hardest_of([group], encoder, TEACH) == [group]


class Counting(CrossEncoder):
    """A real one that notes how many pairs it reads."""

    read: ClassVar[list[int]] = []

    def logits(self, rows: list[PairTokens], precision: str) -> torch.Tensor:
        self.read.append(len(rows))
        return super().logits(rows, precision)


def counting(folder: Path) -> Counting:
    found = open_cross_encoder(str(folder), CPU, LONGEST)
    counted = Counting(found.model, found.tokenizer, found.reader, found.max_tokens)
    Counting.read.clear()
    return counted


def test_scores_are_read_once_whatever_happens_and_the_second_stage_learns_from_them(
    config: ModelConfig, whole: Path, pairs: Path, tmp_path: Path
) -> None:
    folder, cache = shutil.copytree(pairs / "prepared-unseen", tmp_path / "mined"), tmp_path / "scores.sqlite3"
    teacher, name = counting(whole / "latest"), identity_of(str(whole / "latest"), TEACH)
    (store,) = open_stores(folder)
    assert not store.about.scored
    with open_cache(cache, name) as kept:
        # A killed run's: what it had read stays.
        begun = [pair for row in store.rows(np.arange(10)) for pair in pairs_of(row)]
        assert score_pairs(begun, teacher, kept, TEACH) == 40
        Counting.read.clear()
        assert score_store(store, teacher, kept, TEACH).scored
    assert sum(Counting.read) == 4 * 64 - 40
    (scored,) = open_stores(folder)
    rows = scored.rows(np.arange(64))
    direct = SentenceCrossEncoder(str(whole / "latest"), device="cpu", activation_fn=torch.nn.Identity())
    expected = direct.predict([pair for row in rows for pair in pairs_of(row)]).reshape(64, 4)
    np.testing.assert_allclose([row.scores for row in rows], expected, atol=1e-4)
    # Another mining of the same pairs: nothing is read.
    Counting.read.clear()
    with open_cache(cache, name) as kept:
        score_store(scored, teacher, kept, TEACH)
    assert Counting.read == []
    assert open_stores(folder)[0].about.pairs_sha256 == scored.about.pairs_sha256
    # Another teacher has scores of its own in the same file.
    with open_cache(cache, "another") as kept:
        assert np.isnan(kept.known([("where is bread 1?", "bread 1 is on the square")])).all()
    second = FinetuneConfig(batch_pairs=8, hard_negatives=2, epochs=1, warmup_steps=2, precision="fp32", max_tokens=48)
    alone = Processes(0, 1, CPU)
    backbone = load_backbone(config.backbone, "", CPU, freeze_positions=True)
    batch = StageBatches(second, [scored], {}, backbone, steps=8, seed=1, processes=alone).of(0)
    assert batch.teacher is not None
    assert batch.teacher.shape == (8, 3)
    first = {row.scores[0] for row in rows}
    assert set(batch.teacher[:, 0].tolist()) <= {float(np.float32(value)) for value in first}
    run = tmp_path / "run"
    settings = config.model_copy(update={"finetune": second})
    start = Path(config.backbone)
    assert train_stage(settings, "finetune", pairs=folder, start=start, out=run, should_stop=lambda: False)


def bert_ranker(folder: Path, labels: int) -> Path:
    """A re-ranker as transformers writes one, with BERT's marks and types."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *THINGS, "where", "is"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    shape.num_labels = labels
    BertForSequenceClassification(shape).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_any_ranker_of_transformers_with_one_label_is_a_teacher(tmp_path: Path) -> None:
    folder = bert_ranker(tmp_path / "one", 1)
    teacher = open_cross_encoder(str(folder), CPU, 32)
    (row,) = teacher.tokenize([("where is bread", "bread is boats")])
    assert teacher.tokenizer.decode(row.ids.tolist(), skip_special_tokens=False) == (
        "[CLS] where is bread [SEP] bread is boats [SEP]"
    )
    assert row.types.tolist() == [0] * 5 + [1] * 4
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    longer = teacher.tokenize([("where is bread", "bread"), ("where", "boats is bread is bread")])
    with torch.inference_mode():
        found = teacher.logits(longer, "fp32")
        for row, score in zip(longer, found, strict=True):
            alone = model(
                input_ids=torch.from_numpy(row.ids)[None].long(),
                token_type_ids=torch.from_numpy(row.types)[None].long(),
            )
            assert float(alone.logits) == pytest.approx(float(score), abs=1e-5)


def test_what_is_no_ranker_is_refused_by_name(tmp_path: Path, backbone: Path) -> None:
    with pytest.raises(StartingModelMissing, match=r"three' has 3 labels; a teacher has 1"):
        open_cross_encoder(str(bert_ranker(tmp_path / "three", 3)), CPU, 32)
    with pytest.raises(StartingModelMissing, match=r"is a XLMRobertaModel and no re-ranker; name one"):
        open_cross_encoder(str(backbone), CPU, 32)
    with pytest.raises(StartingModelMissing, match=r"can't read the model .*nowhere"):
        open_cross_encoder(str(tmp_path / "nowhere"), CPU, 32)


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path) -> None:
    folder = bert_ranker(tmp_path / "own", 1)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own-kind", "auto_map": {"AutoConfig": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import BertConfig as Own\n"
    )
    with pytest.raises(StartingModelMissing, match="can't read the model .*own"):
        open_cross_encoder(str(folder), CPU, 32)
    assert not (tmp_path / "ran").exists()


def test_pairs_of_a_tokenizer_that_only_knows_single_texts_are_set_apart(backbone: Path) -> None:
    encoder = begin_cross_encoder(str(backbone), "", CPU, 12, seed=1)
    (row,) = encoder.tokenize([("boats", "line 5 of the book is about the sea and line 6 of the book is not")])
    names = [encoder.tokenizer.id_to_token(number) for number in row.ids.tolist()]
    assert (names[0], names[-1], len(names)) == ("<s>", "</s>", 12)
    middle = names.index("</s>")
    assert names[middle : middle + 2] == ["</s>", "</s>"]
    # The longer one is cut.
    assert row.ids[1:middle].tolist() == tiny_tokenizer().encode("boats", add_special_tokens=False).ids
    bare = tiny_tokenizer()
    bare.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(StartingModelMissing, match="puts nothing between the two texts of a pair"):
        with_pair_template(bare, "bare")
    # The same seed gives the same new head.
    again = begin_cross_encoder(str(backbone), "", CPU, 12, seed=1).model.state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in encoder.model.state_dict().items())


def test_a_file_that_is_no_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "scores.sqlite3").write_text("not a database, but long enough to be looked at" * 40)
    with (
        pytest.raises(BadTrainingData, match=r"scores.sqlite3 can't be read or written.*remove the file"),
        open_cache(tmp_path / "scores.sqlite3", "any"),
    ):
        pass


def test_a_score_depends_on_weights_and_on_the_longest_input(whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree((whole / "latest").resolve(), tmp_path / "moved")
    assert (
        identity_of(str(copy), TEACH)
        == identity_of(str(whole / "latest"), TEACH)
        != identity_of(str(copy), TEACH.model_copy(update={"max_tokens": 64}))
    )
    model = XLMRobertaForSequenceClassification.from_pretrained(copy)
    with torch.no_grad():
        model.classifier.out_proj.bias.add_(1.0)
    model.save_pretrained(copy)
    assert identity_of(str(copy), TEACH) != identity_of(str(whole / "latest"), TEACH)


def test_mine_teach_score_mine_again_and_finetune_are_one_road(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = write_tiny_checkpoint(tmp_path / "backbone")
    shutil.copytree(pairs / "prepared-unseen", tmp_path / "data" / "toy" / "finetune")
    toy = Path("toy.toml")
    settings = f"""
        name = "toy"
        backbone = "{backbone}"
        [mine]
        negatives = 6
        filled_to = 2
        MARGIN
        [teach]
        batch_queries = 16
        epochs = 1
        negatives = 3
        forward_factor = 2
        warmup_steps = 1
        max_tokens = 96
        precision = "fp32"
        [finetune]
        batch_pairs = 16
        epochs = 1
        hard_negatives = 2
        warmup_steps = 1
        precision = "fp32"
        """
    toy.write_text(settings.replace("MARGIN", ""))

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(cli, list(arguments))
        assert done.exit_code == 0, (arguments, done.output, done.exception)
        return done.stdout

    mine = ["mine", "toy.toml", "--model", str(backbone)]
    assert run(*mine) == "data/toy/mined\n"
    assert not open_stores(Path("data/toy/mined"))[0].about.scored
    assert run("teach", "toy.toml") == "runs/toy/teach/latest\n"
    toy.write_text(settings.replace("MARGIN", "teacher_margin = 0.0"))
    refused = CliRunner().invoke(cli, mine)
    assert refused.exit_code == 2
    assert "mine.teacher_margin needs a teacher's scores" in refused.stderr
    run("score", "toy.toml", "--candidates")
    run(*mine)
    # Every candidate was read, so what is left is scored already; a source's own negatives are not candidates.
    assert run("score", "toy.toml") == "data/toy/mined\n"
    (store,) = open_stores(Path("data/toy/mined"))
    assert store.about.scored
    for row in store.rows(np.arange(64)):
        assert all(score < row.scores[0] for score in row.scores[4:])
    run(*mine)
    assert open_stores(Path("data/toy/mined"))[0].about.scored
    # Without the teacher that has read them: as before, by the search alone.
    shutil.move("runs/toy/teach", "elsewhere")
    toy.write_text(settings.replace("MARGIN", ""))
    run(*mine)
    assert not open_stores(Path("data/toy/mined"))[0].about.scored
    run(*mine, "--teacher", "elsewhere/latest")
    assert open_stores(Path("data/toy/mined"))[0].about.negatives >= 3
    run("finetune", "toy.toml", "--start", str(backbone), "--pairs", "data/toy/mined")
    run("filter", "toy.toml", "--model", str(backbone), "--stage", "finetune")
    assert open_stores(Path("data/toy/finetune-consistent"))[0].shape.rows <= 64
