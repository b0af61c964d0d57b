"""The sub-word tokenizer: a lower-cased Unigram model trained on a sample balanced over languages."""

import json
from collections import Counter

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from training.bootstrap_config import TokenizerConfig

# XLM-R's numbers, so that tools which know XLM-R's tokenizer find the padding where they expect it.
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]
BOS_ID, PAD_ID, EOS_ID = range(3)
# Keeps a few very long passages from dominating the statistics.
SAMPLE_CHARACTERS = 300
# A private-use character that no text holds; see repeat_frequent_words.
WORD_END = "\ue000"


def build_normalizer() -> normalizers.Normalizer:
    """NFKC, lower case, one space for any run of white space."""
    return normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )


def build_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Split at spaces and punctuation, then mark every piece as a word start.

    `l'eau` gives `▁l ▁' ▁eau`: a word behind an apostrophe shares its token with the same word behind a space.
    """
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(behavior="isolated"),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False),
        ]
    )


def share_by_temperature(counts: np.ndarray, exponent: float, total: int) -> np.ndarray:
    """Divide `total` over classes in proportion to counts ** exponent, none above what it has.

    counts: int[K].  Returns int64[K]. Exponent 1 keeps the proportions, 0 gives all classes the same.
    """
    weights = counts.astype(np.float64) ** exponent * (counts > 0)
    return np.minimum(counts, np.ceil(total * weights / weights.sum())).astype(np.int64)


def sample_texts(texts: list[str], text_language: np.ndarray, config: TokenizerConfig, seed: int) -> list[str]:
    """Draw the strings that the tokenizer learns from, balanced over languages.

    text_language: int[T]. Returns strings of at most SAMPLE_CHARACTERS characters.
    """
    rng = np.random.default_rng(seed)
    counts = np.bincount(text_language)
    shares = share_by_temperature(counts, config.language_exponent, config.sample_strings)
    order = np.argsort(text_language, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])
    chosen = [
        rng.choice(order[starts[language] : starts[language + 1]], share, replace=False)
        for language, share in enumerate(shares)
        if share
    ]
    return [texts[number][:SAMPLE_CHARACTERS] for number in np.concatenate(chosen)]


def blank_rare_characters(strings: list[str], min_count: int) -> list[str]:
    """Replace characters seen fewer than min_count times by spaces.

    The trainer keeps every character of its sample as an entry of its own; without this, thousands of entries of a
    small vocabulary would go to characters that are never met again.
    """
    counts = Counter(character for string in strings for character in string)
    blanks = {ord(character): " " for character, count in counts.items() if count < min_count}
    return [string.translate(blanks) for string in strings]


def repeat_frequent_words(tokenizer: Tokenizer, strings: list[str], min_count: int) -> list[str]:
    """Spell every word seen at least min_count times once more, with WORD_END behind it.

    The trainer seeds its vocabulary with the substrings that occur in two or more *different* words, so a frequent word
    that is part of no other word (`weather`) would never become a token. Its second spelling makes it a repeated
    substring; the counts that decide later are those of the sample.
    """
    pieces = (piece for string in strings for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(string))
    counts = Counter(pieces)
    return [piece.removeprefix("▁") + WORD_END for piece, count in counts.items() if count >= min_count]


def join_marks_to_punctuation(tokenizer: Tokenizer) -> Tokenizer:
    """Rename each punctuation token `:` to `▁:`, for the pre-tokenizer gives every punctuation sign a mark of its own.

    The trainer prefers two frequent tokens to one, and a comma would cost two positions in every sentence.
    """
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    known = {token for token, _ in vocab}

    def is_isolated(token: str) -> bool:
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str(f"a{token}a")
        return [piece for piece, _ in pieces] == ["▁a", f"▁{token}", "▁a"]

    content["model"]["vocab"] = [
        [f"▁{token}" if len(token) == 1 and f"▁{token}" not in known and is_isolated(token) else token, score]
        for token, score in vocab
    ]
    return Tokenizer.from_str(json.dumps(content))


def is_character(token: str) -> bool:
    """Say whether a token is one character, with or without a word mark."""
    return len(token.replace("▁", "")) <= 1


def order_vocabulary(tokenizer: Tokenizer) -> Tokenizer:
    """Number the tokens by falling score, then by text, the special ones first.

    The trainer walks over hash maps: its order, the last digits of its scores, and the scores that it hands out to
    characters it has to keep though no count speaks for them, change from run to run. The latter lie at the lower
    end of those of longer tokens and become one score here.
    """
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    special, learnt = vocab[: len(SPECIAL_TOKENS)], vocab[len(SPECIAL_TOKENS) :]
    rounded = [(token, round(score, 4)) for token, score in learnt]
    lowest = min((score for token, score in rounded if not is_character(token)), default=0.0)
    leveled = [
        (token, lowest - 0.1 if is_character(token) and score < lowest + 0.1 else score) for token, score in rounded
    ]
    content["model"]["vocab"] = special + sorted(leveled, key=lambda entry: (-entry[1], entry[0]))
    return Tokenizer.from_str(json.dumps(content))


def train_tokenizer(texts: list[str], text_language: np.ndarray, config: TokenizerConfig, seed: int) -> Tokenizer:
    """Train the Unigram tokenizer; its post-processor writes `<s> text </s>`."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = build_normalizer()
    tokenizer.pre_tokenizer = build_pre_tokenizer()
    sample = sample_texts(texts, text_language, config, seed)
    normalised = [tokenizer.normalizer.normalize_str(string) for string in sample]
    strings = blank_rare_characters(normalised, config.min_character_count)
    strings += repeat_frequent_words(tokenizer, strings, config.min_word_count)
    trainer = trainers.UnigramTrainer(
        vocab_size=config.vocab_size,
        special_tokens=SPECIAL_TOKENS,
        unk_token="<unk>",
        max_piece_length=16,
        # A faster way down from a million seeds than the default 0.75; half the time, hardly another vocabulary.
        shrinking_factor=0.6,
        show_progress=False,
    )
    tokenizer.train_from_iterator(strings, trainer)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", BOS_ID), ("</s>", EOS_ID)],
    )
    return order_vocabulary(join_marks_to_punctuation(tokenizer))
