"""The bootstrap from end to end on toy pairs in ten languages, with a tiny starting model of random weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertConfig, BertModel

from service.errors import ModelFileError
from service.recipe.pooling import l2_normalize
from service.recipe.prompts import E5_PROMPTS, format_text
from service.recipe.spec import load_spec
from service.recipe.tokens import load_tokenizer, tokenize
from training.backbone import load_backbone
from training.bootstrap import TOKEN_VECTORS_FILE, RunExists, SettingsChanged, bootstrap
from training.bootstrap_config import (
    DistilConfig,
    TokenizerConfig,
    TokenVectorsConfig,
    TrainConfig,
    VocabularyConfig,
    WarmStartConfig,
)
from training.collection import Recipe, embed_collection
from training.data import keep_open_sources, read_corpus, read_sources
from training.encoder import TokenRows, chunk_by_length, distinct_ids, embed_rows
from training.errors import BadTrainConfig, StartingModelMissing
from training.export import export, run_of
from training.lexical_path import LexicalPath, load_lexical_path
from training.narrow import main_directions
from training.nibbles import rounded
from training.sentence_folder import LEXICAL_FILE, STATIC_FILE
from training.static_path import load_static_path

DATA = Path(__file__).parent / "data"
# Forty are too few to tell: after them one processor finds half of the translations, another three quarters.
STEPS = 60
LEXICAL_WIDTH = 48
TOKEN_VECTOR_STEPS = 10


@pytest.fixture(scope="module")
def starting_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    english = [text for text in read_corpus(keep_open_sources(read_sources(DATA))).texts if text.isascii()]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=marks, show_progress=False)
    tokenizer.train_from_iterator(english, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=512,
            initializer_range=0.1,
        ),
        add_pooling_layer=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def config(starting_model) -> TrainConfig:
    return TrainConfig(
        starting_model=str(starting_model),
        held_out_per_mille=0,
        warm_start=WarmStartConfig(
            tokenizer=TokenizerConfig(vocab_size=600, sample_strings=2000, min_character_count=1, min_word_count=1),
            vocabulary=VocabularyConfig(vocab_size=500, language_texts_min=1, starting_words=50, saving_words=50),
            token_vectors=TokenVectorsConfig(
                steps=TOKEN_VECTOR_STEPS,
                tokens_per_batch=800,
                batch_pairs_max=32,
                learning_rate=5e-3,
                matrix_learning_rate=2e-3,
                gain_learning_rate=0.02,
            ),
        ),
        distil=DistilConfig(
            steps=STEPS,
            warmup_steps=2,
            tokens_per_batch=400,
            batch_pairs_max=16,
            max_tokens=48,
            chunk_tokens=256,
            learning_rate=1e-3,
            token_learning_rate=5e-3,
            lexical_width=LEXICAL_WIDTH,
            save_every_steps=15,
            log_every_steps=4,
        ),
    )


@pytest.fixture(scope="module")
def checkpoint(config, tmp_path_factory) -> Path:
    folder = bootstrap(config, DATA, tmp_path_factory.mktemp("runs") / "whole", should_stop=lambda: False)
    assert folder is not None
    return folder


def embed(folder: Path, texts: list[str]) -> torch.Tensor:
    """All paths as the training computes them, put together."""
    tokenizer, static = load_tokenizer(folder / "tokenizer.json"), load_static_path(folder)
    lexical = load_lexical_path(folder)
    assert static is not None
    assert lexical is not None
    bert = BertModel.from_pretrained(folder, add_pooling_layer=False)
    prompted = [format_text(text, E5_PROMPTS, "query") for text in texts]
    rows = [tokens.ids for tokens in tokenize(tokenizer, prompted, 512)]
    ids = distinct_ids(rows)
    table = TokenRows(ids, bert.embeddings.word_embeddings.weight[ids])
    with torch.no_grad():
        meaning = static.beside(embed_rows(bert, rows, table, 256), static.of_rows(rows, ids, table.vectors))
        known = [lexical(torch.from_numpy(np.array([row])), torch.ones(1, len(row), dtype=torch.int64)) for row in rows]
        return l2_normalize(LexicalPath.behind(meaning, torch.cat(known)))


def test_a_translation_is_found_among_the_other_sentences_after_training(checkpoint):
    corpus = read_corpus(keep_open_sources(read_sources(DATA)))
    german = corpus.languages.index("de")
    pairs = corpus.pairs[(corpus.pair_language == german) & (corpus.text_language[corpus.pairs[:, 1]] == german)]
    english, german_side = (embed(checkpoint, [corpus.texts[number] for number in pairs[:, side]]) for side in (0, 1))
    found = (german_side @ english.T).argmax(dim=1).numpy() == np.arange(len(pairs))
    assert len(pairs) > 20
    # Chance is one in thirty.
    assert found.mean() > 0.5


def test_a_run_stopped_thrice_and_resumed_gives_the_weights_of_an_unbroken_run(config, checkpoint, tmp_path):
    out = tmp_path / "broken"
    # The parts before the steps ask three times, and once a step of the token vectors, which a resumed run finds done.
    for part, stop_behind in enumerate((2, 3 + TOKEN_VECTOR_STEPS + 7, 3 + 12)):
        polls = iter([False] * (stop_behind - 1) + [True])
        bootstrap(config, DATA, out, resume=part > 0, should_stop=lambda polls=polls: next(polls))
    resumed = bootstrap(config, DATA, out, resume=True, should_stop=lambda: False)
    assert resumed is not None
    manifests = [json.loads((folder / "run.json").read_text(encoding="utf-8")) for folder in (checkpoint, resumed)]
    assert manifests[0] == manifests[1]
    whole, broken = load_file(checkpoint / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert whole.keys() == broken.keys()
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    whole, broken = load_file(checkpoint / STATIC_FILE), load_file(resumed / STATIC_FILE)
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_a_checkpoint_is_the_average_and_in_part_what_training_began_with(checkpoint, config):
    saved = load_file(checkpoint / "model.safetensors")["embeddings.word_embeddings.weight"]
    state = torch.load(checkpoint / "training_state.pt", weights_only=True)
    late = state["averaged"]["bert.embeddings.word_embeddings.weight"]
    start = load_file(checkpoint.parent / TOKEN_VECTORS_FILE)["table"]
    assert (late - start).abs().max() > 1e-3
    share = config.distil.start_share
    assert share > 0
    torch.testing.assert_close(saved, (1 - share) * late + share * start)


def test_sentence_transformers_gives_the_vectors_of_both_paths(checkpoint, tmp_path):
    texts = ["The cat sleeps in the garden.", "犬は駅で歌っています。", "Le chien chante."]
    model = SentenceTransformer(str(checkpoint), device="cpu", trust_remote_code=True)
    theirs = model.encode(texts, prompt_name="query", convert_to_tensor=True)
    # atol: float32 sums in another order, for the batches are padded differently.
    torch.testing.assert_close(theirs.cpu(), embed(checkpoint, texts), atol=1e-5, rtol=0)
    model.save_pretrained(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu", trust_remote_code=True)
    torch.testing.assert_close(again.encode(texts, prompt_name="query", convert_to_tensor=True).cpu(), theirs.cpu())


def test_a_checkpoint_of_three_paths_is_exported_with_all_and_no_stage_begins_with_it(checkpoint, tmp_path):
    texts = ["The cat sleeps in the garden.", "犬は駅で歌っています。", "Le chien chante."]
    done = export(checkpoint, name="two", model_repo=tmp_path)
    spec = load_spec(done.folder)
    recipe = Recipe(load_tokenizer(checkpoint / "tokenizer.json"), spec.prompts, spec.max_tokens, spec.pad_id)
    vectors = embed_collection(run_of(done.folder, spec), recipe, texts, "query")
    torch.testing.assert_close(torch.from_numpy(vectors), embed(checkpoint, texts), atol=1e-5, rtol=0)
    with pytest.raises(StartingModelMissing, match="static path beside its layers"):
        load_backbone(str(checkpoint), "", torch.device("cpu"), freeze_positions=True)


def test_the_card_says_that_there_are_three_paths_and_how_to_load_them(checkpoint):
    card = (checkpoint / "README.md").read_text(encoding="utf-8")
    assert "trust_remote_code=True" in card
    assert "a vector of 80 numbers" in card
    assert "50% of it is the weighted sum of the token vectors" in card
    assert f"the last {LEXICAL_WIDTH} say which tokens the text holds" in card
    assert "`dimensions: 32` of the gateway" in card


def test_sentence_transformers_knows_how_long_the_vectors_are(checkpoint):
    model = SentenceTransformer(str(checkpoint), device="cpu", trust_remote_code=True)
    assert model.get_embedding_dimension() == 32 + LEXICAL_WIDTH


def test_the_manifest_names_the_data_the_settings_and_the_versions(checkpoint, config):
    manifest = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
    assert set(manifest["data"]) == {"translation_toy", "nli_toy", "qa_toy"}
    assert manifest["settings"] == config.model_dump(mode="json")
    assert manifest["finished"]
    assert manifest["steps"] == STEPS
    assert manifest["pairs_seen"] > STEPS
    assert manifest["versions"]["torch"]


def test_latest_names_the_last_checkpoint_and_only_that_one_keeps_the_state(checkpoint):
    out = checkpoint.parent
    assert (out / "latest").resolve() == checkpoint.resolve()
    assert [path.parent.name for path in out.glob("step_*/training_state.pt")] == [f"step_{STEPS:06d}"]


def test_resuming_where_nothing_is_begins_a_run_and_a_run_stopped_early_goes_on(config, tmp_path):
    out = tmp_path / "new"
    assert bootstrap(config, DATA, out, resume=True, should_stop=lambda: True) is None
    finished = bootstrap(config, DATA, out, resume=True, should_stop=lambda: False)
    assert finished is not None
    assert finished.name == f"step_{STEPS:06d}"


def test_a_run_stopped_during_the_token_vectors_learns_them_anew(config, checkpoint, tmp_path):
    out = tmp_path / "broken"
    polls = iter([False] * (2 + 3) + [True])
    assert bootstrap(config, DATA, out, should_stop=lambda: next(polls)) is None
    assert not (out / TOKEN_VECTORS_FILE).exists()
    finished = bootstrap(config, DATA, out, resume=True, should_stop=lambda: False)
    assert finished is not None
    whole, broken = load_file(checkpoint / "model.safetensors"), load_file(finished / "model.safetensors")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_a_run_stopped_during_the_warm_start_writes_no_checkpoint(config, tmp_path):
    assert bootstrap(config, DATA, tmp_path / "early", should_stop=lambda: True) is None
    assert not list((tmp_path / "early").glob("step_*"))


def test_a_folder_with_a_run_is_not_overwritten(config, checkpoint):
    with pytest.raises(RunExists, match="--resume"):
        bootstrap(config, DATA, checkpoint.parent, should_stop=lambda: False)


def test_a_run_is_not_continued_with_other_settings(config, checkpoint):
    other = config.model_copy(update={"distil": config.distil.model_copy(update={"learning_rate": 0.5})})
    with pytest.raises(SettingsChanged, match="run.json"):
        bootstrap(other, DATA, checkpoint.parent, resume=True, should_stop=lambda: False)


def further(config: TrainConfig, model: Path) -> TrainConfig:
    """The settings with which a finished model is trained further, four steps."""
    distil = config.distil.model_copy(update={"steps": 4, "start_share": 0.0})
    return config.model_copy(update={"warm_start": None, "begins_with": str(model), "distil": distil})


@pytest.mark.parametrize("kind", ["checkpoint", "version", "version in int8"])
def test_a_finished_model_is_trained_further_from_its_checkpoint_and_from_its_version(
    kind, config, checkpoint, tmp_path
):
    weights = "int8" if kind.endswith("int8") else "float32"
    begin = checkpoint if kind == "checkpoint" else export(
        checkpoint, name="two", model_repo=tmp_path / "repo", weights=weights
    ).folder  # fmt: skip
    finished = bootstrap(further(config, begin), DATA, tmp_path / "run", should_stop=lambda: False)
    assert finished is not None
    first, texts = finished.with_name("step_000000"), ["The cat sleeps in the garden.", "犬は駅で歌っています。"]
    assert (first / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()
    begun = (embed(first, texts) * embed(checkpoint, texts)).sum(dim=1)
    assert begun.min() > (0.999 if weights == "int8" else 0.99999)
    assert (embed(first, texts) * embed(finished, texts)).sum(dim=1).max() < 0.9999
    named = json.loads((finished / "run.json").read_text(encoding="utf-8"))["begin_with"]["model"]
    assert named.startswith(f"{begin.parent.name}/{begin.name}, weights ")


@pytest.mark.parametrize("kind", ["checkpoint", "version"])
def test_a_model_trained_further_keeps_its_codes_unless_others_are_wanted(kind, config, checkpoint, tmp_path):
    begin = checkpoint if kind == "checkpoint" else export(checkpoint, name="two", model_repo=tmp_path / "repo").folder
    own = load_lexical_path(checkpoint)
    assert own is not None
    for width in (LEXICAL_WIDTH, LEXICAL_WIDTH // 2):
        settings = further(config.model_copy(update={"seed": config.seed + 1}), begin)
        distil = settings.distil.model_copy(
            update={"lexical_width": width, "lexical_query_scale": 0.5, "lexical_passage_scale": 0.5}
        )
        settings = settings.model_copy(update={"distil": distil})
        finished = bootstrap(settings, DATA, tmp_path / f"run{width}", should_stop=lambda: False)
        assert finished is not None
        kept = load_lexical_path(finished)
        assert kept is not None
        assert kept.low.shape[1] == width
        assert torch.equal(kept.low, own.low) == (width == LEXICAL_WIDTH)
        torch.testing.assert_close(kept.scales, torch.full((2, 1), 0.5))
        torch.testing.assert_close(kept.weights, own.weights, atol=0.01, rtol=0)


@pytest.mark.parametrize("file", ["tokenizer.json", STATIC_FILE, LEXICAL_FILE])
def test_a_run_that_began_with_a_model_is_not_continued_when_that_is_another(file, config, checkpoint, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    polls = iter([False, False, False, True])
    bootstrap(further(config, model), DATA, tmp_path / "run", should_stop=lambda: next(polls, True))
    if file == "tokenizer.json":
        (model / file).write_text((model / file).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    else:
        tensors = load_file(model / file)
        save_file({**tensors, "weights": 2 * tensors["weights"]}, model / file)
    with pytest.raises(SettingsChanged, match="run.json"):
        bootstrap(further(config, model), DATA, tmp_path / "run", resume=True, should_stop=lambda: False)


def test_what_can_not_be_trained_further_is_refused_by_name(config, checkpoint, tmp_path):
    with pytest.raises(StartingModelMissing, match="begins_with must name a version"):
        bootstrap(further(config, tmp_path / "absent"), DATA, tmp_path / "a", should_stop=lambda: False)
    narrow = tmp_path / "narrow"
    shutil.copytree(checkpoint, narrow)
    weights = load_file(narrow / "model.safetensors")
    weights["embeddings.LayerNorm.weight"] = torch.ones(8)
    save_file(weights, narrow / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StartingModelMissing, match="narrow"):
        bootstrap(further(config, narrow), DATA, tmp_path / "b", should_stop=lambda: False)
    (narrow / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(StartingModelMissing, match="narrow can't be read"):
        bootstrap(further(config, narrow), DATA, tmp_path / "c", should_stop=lambda: False)


@pytest.mark.parametrize("file", [STATIC_FILE, LEXICAL_FILE])
def test_a_checkpoint_of_which_a_path_is_damaged_is_not_trained_further(file, config, checkpoint, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    whole = (model / file).read_bytes()
    (model / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StartingModelMissing, match="can't be read"):
        bootstrap(further(config, model), DATA, tmp_path / "run", should_stop=lambda: False)


@pytest.mark.parametrize("file", [STATIC_FILE, LEXICAL_FILE])
def test_a_checkpoint_of_which_a_path_is_of_another_vocabulary_is_not_trained_further(
    file, config, checkpoint, tmp_path
):
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    tensors = load_file(model / file)
    save_file({**tensors, "weights": tensors["weights"][:-1].clone()}, model / file)
    with pytest.raises(StartingModelMissing, match="are not of one model"):
        bootstrap(further(config, model), DATA, tmp_path / "run", should_stop=lambda: False)


def test_a_version_whose_graph_is_damaged_is_not_trained_further(config, checkpoint, tmp_path):
    version = export(checkpoint, name="two", model_repo=tmp_path).folder
    (version / "model.onnx").write_bytes((version / "model.onnx").read_bytes()[:-1])
    with pytest.raises(ModelFileError, match="model.onnx"):
        bootstrap(further(config, version), DATA, tmp_path / "run", should_stop=lambda: False)


def test_compiled_layers_are_trained_as_others_are(config, checkpoint, tmp_path):
    settings = further(config, checkpoint)
    plain = bootstrap(settings, DATA, tmp_path / "plain", should_stop=lambda: False)
    fast = settings.model_copy(update={"distil": settings.distil.model_copy(update={"compiled": True})})
    made = bootstrap(fast, DATA, tmp_path / "fast", should_stop=lambda: False)
    assert plain is not None
    assert made is not None
    texts = ["The cat sleeps in the garden.", "犬は駅で歌っています。", "Le chien chante."]
    assert (embed(plain, texts) * embed(made, texts)).sum(dim=1).min() > 0.99


@pytest.mark.parametrize("form", [{"table_bits": 4}, {"table_width": 12}])
def test_a_run_with_small_token_vectors_saves_them_so_and_resumes_exactly(form, config, tmp_path):
    small = config.model_copy(update=form)
    whole = bootstrap(small, DATA, tmp_path / "whole", should_stop=lambda: False)
    polls = iter([False] * (3 + TOKEN_VECTOR_STEPS + 7) + [True])
    bootstrap(small, DATA, tmp_path / "broken", should_stop=lambda: next(polls))
    resumed = bootstrap(small, DATA, tmp_path / "broken", resume=True, should_stop=lambda: False)
    assert whole is not None
    assert resumed is not None
    table, again = token_vectors(whole), token_vectors(resumed)
    assert torch.equal(table, again)
    if "table_bits" in form:
        assert torch.equal(rounded(table), table)
    else:
        assert len(main_directions(table.numpy())) == 12


def test_a_finished_model_is_made_narrow_when_that_is_wanted(config, checkpoint, tmp_path):
    narrow = further(config, checkpoint).model_copy(update={"table_width": 12})
    finished = bootstrap(narrow, DATA, tmp_path / "run", should_stop=lambda: False)
    assert finished is not None
    assert len(main_directions(token_vectors(checkpoint).numpy())) > 12
    assert len(main_directions(token_vectors(finished).numpy())) == 12


def token_vectors(checkpoint: Path) -> torch.Tensor:
    return load_file(checkpoint / "model.safetensors")["embeddings.word_embeddings.weight"]


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"table_width": 500}, "table_width = 500 is more than the 32 of the starting model"),
        ({"table_bits": 4}, "takes a width that 32 divides, the starting model's is 40"),
    ],
)
def test_token_vectors_that_the_layers_can_not_have_are_refused_before_anything_is_written(
    form, says, config, starting_model, tmp_path
):
    settings = config.model_copy(update=form)
    if "table_bits" in form:
        narrow = BertConfig.from_pretrained(starting_model)
        narrow.hidden_size = 40
        shutil.copytree(starting_model, tmp_path / "start")
        BertModel(narrow, add_pooling_layer=False).save_pretrained(tmp_path / "start")
        settings = settings.model_copy(update={"starting_model": str(tmp_path / "start")})
    with pytest.raises(BadTrainConfig, match=says):
        bootstrap(settings, DATA, tmp_path / "run", should_stop=lambda: False)
    assert not list((tmp_path / "run").iterdir())


def test_four_bits_take_whole_token_vectors(config):
    with pytest.raises(ValueError, match="takes whole token vectors; leave out table_width"):
        TrainConfig.model_validate({**config.model_dump(), "table_bits": 4, "table_width": 12})


@pytest.mark.parametrize("wrong", [{"begins_with": "runs/nano/latest"}, {"warm_start": None}])
def test_a_run_begins_either_with_a_model_or_with_nothing(config, wrong):
    with pytest.raises(ValueError, match="give either begins_with"):
        TrainConfig.model_validate({**config.model_dump(), **wrong})


def tiny_encoder() -> BertModel:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertModel(BertConfig(vocab_size=50, initializer_range=0.3, **size), add_pooling_layer=False).eval()


def test_rows_embedded_in_groups_of_like_length_keep_their_order():
    bert = tiny_encoder()
    rows = [np.arange(4, 4 + length, dtype=np.int32) for length in (9, 2, 5, 30, 2)]
    ids = distinct_ids(rows)
    table = TokenRows(ids, bert.embeddings.word_embeddings.weight[ids])
    together = embed_rows(bert, rows, table, chunk_tokens=20)
    alone = torch.cat([embed_rows(bert, [row], table, chunk_tokens=20) for row in rows])
    # atol: float32 sums in another order.
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_no_group_of_rows_exceeds_its_tokens_unless_one_row_does():
    lengths = np.array([9, 2, 5, 30, 2])
    chunks = chunk_by_length(lengths, 20)
    assert sorted(np.concatenate(chunks).tolist()) == list(range(5))
    assert all(lengths[chunk].max() * len(chunk) <= 20 or len(chunk) == 1 for chunk in chunks)


def test_the_rates_fall_over_the_share_of_the_steps_that_the_settings_name(config, checkpoint, tmp_path, monkeypatch):
    rates: list[float] = []

    def record(trainer, steps, *_):
        for number in steps:
            trainer.step(number)
            rates.append(trainer.layer_optimizer.param_groups[0]["lr"] / config.distil.learning_rate)

    monkeypatch.setattr("training.bootstrap.run_steps", record)
    settings = further(config, checkpoint)
    distil = settings.distil.model_copy(update={"steps": 8, "warmup_steps": 2, "decay_share": 0.5})
    bootstrap(settings.model_copy(update={"distil": distil}), DATA, tmp_path / "run", should_stop=lambda: False)
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25])
