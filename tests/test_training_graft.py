"""An English encoder under another vocabulary: what the translation table finds, and that English stays what it was."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel

from training.data import Corpus
from training.encoder import TokenRows, distinct_ids, embed_rows
from training.errors import TrainingError
from training.graft import english_shares, graft_encoder, graft_table, spell
from training.starting_model import StartingModel, load_starting_model
from training.teacher_vectors import TeacherVectors, open_rows
from training.token_store import TokenStore, tokenize_all
from training.tokenizer import SPECIAL_TOKENS, build_pre_tokenizer
from training.translation_table import translation_shares

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["the", "cat", "dog", "sleeps", "sings", "water", "under", "##ground"]


def store_of(rows: list[list[int]]) -> TokenStore:
    return TokenStore(np.concatenate([np.array(row, np.int32) for row in rows]), np.cumsum([0, *map(len, rows)]))


def test_a_token_stands_for_the_word_that_its_partners_share():
    # Tokens 10 to 19 mean 20 to 29; every sentence has three of them, in another order on each side.
    rng = np.random.default_rng(0)
    meanings = [rng.choice(10, 3, replace=False) for _ in range(300)]
    rows = [list(10 + words) for words in meanings] + [list(20 + rng.permutation(words)) for words in meanings]
    numbers = np.arange(300)
    shares = translation_shares(store_of(rows), numbers, numbers + 300, vocab_size=40)
    assert (shares[10:20].toarray().argmax(axis=1) == np.arange(20, 30)).all()
    assert shares[10:20].max(axis=1).toarray().min() > 0.9
    assert shares[:10].nnz == shares[20:].nnz == 0


def test_a_word_that_stands_in_every_sentence_takes_nothing_from_the_others():
    rng = np.random.default_rng(0)
    meanings = [rng.choice(10, 3, replace=False) for _ in range(300)]
    rows = [[9, *(10 + words)] for words in meanings] + [[30, *(20 + words)] for words in meanings]
    numbers = np.arange(300)
    shares = translation_shares(store_of(rows), numbers, numbers + 300, vocab_size=40)
    assert (shares[10:20].toarray().argmax(axis=1) == np.arange(20, 30)).all()
    assert shares[[9]].toarray().argmax() == 30


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> StartingModel:
    folder = tmp_path_factory.mktemp("start")
    vocabulary = {piece: number for number, piece in enumerate([*MARKS, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), initializer_range=0.3, **size)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return load_starting_model(str(folder))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokens = [*SPECIAL_TOKENS, "▁the", "▁cat", "▁sleeps", "▁underground", "▁katze", "▁schläft", "▁?"]
    tokenizer = Tokenizer(models.Unigram([(token, -1.0) for token in tokens], unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = build_pre_tokenizer()
    return tokenizer


def grafted(tokenizer: Tokenizer, start: StartingModel) -> tuple[torch.Tensor, dict[str, int]]:
    ids = tokenizer.get_vocab()
    english = np.ones(len(ids))
    english[[ids["▁katze"], ids["▁schläft"]]] = 0.0
    shares = csr_matrix(
        ([1.0, 0.5, 0.5], ([ids["▁katze"], ids["▁schläft"], ids["▁schläft"]], [ids["▁cat"], ids["▁the"], ids["▁cat"]])),
        shape=(len(ids), len(ids)),
    )
    return graft_table(tokenizer, start, english, shares), ids


def test_english_text_has_the_vector_that_the_starting_model_gives_it(tokenizer, start):
    table, _ = grafted(tokenizer, start)
    bert = graft_encoder(table, start).eval()
    rows = [np.array(tokenizer.encode("the cat sleeps").ids, np.int32)]
    rows = [np.concatenate([[0], rows[0], [2]]).astype(np.int32)]
    ids = distinct_ids(rows)
    ours = embed_rows(bert, rows, TokenRows(ids, bert.embeddings.word_embeddings.weight[ids]), 100)
    theirs = start.embed(tokenize_all(start.tokenizer, ["the cat sleeps"], 16), np.array([0]), 16)
    # atol: float32 sums in another order.
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_foreign_word_has_the_vector_of_what_it_stands_for_at_its_length(tokenizer, start):
    table, ids = grafted(tokenizer, start)
    torch.testing.assert_close(table[ids["▁katze"]], table[ids["▁cat"]])
    middle = table[ids["▁the"]] + table[ids["▁cat"]]
    both = table[ids["▁schläft"]]
    assert torch.cosine_similarity(both, middle, dim=0).item() == pytest.approx(1, abs=1e-5)
    mean_length = (table[ids["▁the"]].norm() + table[ids["▁cat"]].norm()) / 2
    assert both.norm().item() == pytest.approx(mean_length.item(), rel=1e-5)


def test_a_word_is_spelled_by_the_longest_pieces_and_what_has_none_by_nothing(start):
    pieces = start.tokenizer.get_vocab()
    assert spell("▁underground", pieces, 9) == (pieces["under"], pieces["##ground"])
    assert spell("ground", pieces, 9) == (pieces["##ground"],)
    assert spell("▁犬", pieces, 9) == ()


def test_a_token_met_in_english_alone_is_english_and_one_met_elsewhere_is_not():
    corpus = Corpus(
        texts=["a", "b"], languages=["de", "en"], sources=["s"], text_language=np.array([1, 0], np.int16),
        pairs=np.array([[0, 1]], np.int32), negatives=np.array([-1], np.int32), pair_source=np.array([0], np.int16),
        pair_language=np.array([0], np.int16),
    )  # fmt: skip
    shares = english_shares(store_of([[4, 5], [5, 6]]), corpus, vocab_size=8)
    assert shares[[4, 5, 6, 7]].tolist() == [1.0, 0.5, 0.0, 1.0]


def test_the_teacher_reads_a_text_once_and_the_file_keeps_its_vector(start, tmp_path: Path):
    store = tokenize_all(start.tokenizer, ["the cat sleeps", "", "the dog sings"], 16)
    first = TeacherVectors(start, store, 16, tmp_path / "teacher.npy")
    vectors = first.of(np.array([2, 0, 2, 1]))
    first.flush()
    wanted = start.embed(store, np.array([2, 0, 2, 1]), 16)
    # atol: kept as float16, computed in bfloat16.
    torch.testing.assert_close(vectors, wanted, atol=0.02, rtol=0)
    # A teacher who cannot read any more: what it gives comes from the file.
    unread = StartingModel(torch.nn.Identity(), start.tokenizer, 2, 3, 0, 1)
    unread.bert.config = start.bert.config
    again = TeacherVectors(unread, store, 16, tmp_path / "teacher.npy")
    assert torch.equal(again.of(np.array([2, 0, 2, 1])), vectors)


def test_a_row_that_was_half_written_is_computed_again(start, tmp_path: Path):
    store = tokenize_all(start.tokenizer, ["the cat sleeps", "the dog sings"], 16)
    first = TeacherVectors(start, store, 16, tmp_path / "teacher.npy")
    vectors = first.of(np.array([0, 1]))
    first.flush()
    rows = np.lib.format.open_memmap(tmp_path / "teacher.npy", mode="r+")
    rows[1, rows.shape[1] // 2 :] = 0
    rows.flush()
    again = TeacherVectors(start, store, 16, tmp_path / "teacher.npy")
    torch.testing.assert_close(again.of(np.array([0, 1])), vectors, atol=1e-3, rtol=0)


def test_a_file_of_other_texts_is_made_anew(start, tmp_path: Path):
    few, more = (tokenize_all(start.tokenizer, texts, 16) for texts in (["the cat"], ["the cat", "the dog"]))
    TeacherVectors(start, few, 16, tmp_path / "teacher.npy").of(np.array([0]))
    vectors = TeacherVectors(start, more, 16, tmp_path / "teacher.npy").of(np.array([0, 1]))
    torch.testing.assert_close(vectors, start.embed(more, np.array([0, 1]), 16), atol=0.02, rtol=0)


def test_a_full_disk_is_told_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(TrainingError, match="needs 80 bytes: No space left on device; make room"):
        open_rows(tmp_path / "teacher.npy", (10, 4))
    assert list(tmp_path.iterdir()) == []
