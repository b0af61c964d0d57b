"""A small world in four made-up languages, to take every stage of the recipe through in minutes.

    python tests/toy_world.py FOLDER       writes FOLDER/data, FOLDER/backbone, FOLDER/toy.toml

A fact says who does what to whom and where. It is told in English words, in syllables of two alphabets, and in Chinese
signs without spaces; the words of one language say nothing about those of another, so what belongs together has to be
learnt. Facts of the evaluation sets are never trained on.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from training.checkpoint import write_sentence_transformers_files

WHO = [
    "baker", "sailor", "teacher", "doctor", "farmer", "painter", "pilot", "singer", "judge", "nurse", "tailor",
    "miller", "weaver", "hunter", "porter", "mason", "clerk", "barber", "gardener", "potter",
]  # fmt: skip
DOES = [
    "greets", "follows", "helps", "paints", "teaches", "finds", "calls", "thanks", "visits", "warns",
]  # fmt: skip
WHERE = [
    "harbour", "garden", "library", "market", "station", "museum", "forest", "bridge", "castle", "valley", "island",
    "tower", "desert", "chapel", "village", "theatre",
]  # fmt: skip
WORDS = [*WHO, *DOES, *WHERE, "the", "in", "where", "who", "does", "what"]
LANGUAGES = ("en", "de", "ru", "zh")
FLORES = {"en": "eng_Latn", "de": "deu_Latn", "ru": "rus_Cyrl", "zh": "zho_Hans"}
HELD_OUT = 400
# Labels are weak: of so many questions the passage is about the right person, and does not answer.
WRONG_SHARE = 0.25
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]
Fact = tuple[str, str, str, str]


def dictionary(language: str) -> dict[str, str]:
    """Each English word in a made-up language."""
    draw = random.Random(language)
    first, second = {"de": ("bdfgklmnprstvz", "aeiou"), "ru": ("бвгдзклмнпрст", "аеиоу"), "zh": ("", "")}[language]
    found: dict[str, str] = {}
    while len(found) < len(WORDS):
        if language == "zh":
            made = "".join(chr(draw.randrange(0x4E00, 0x5E00)) for _ in range(2))
        else:
            made = "".join(draw.choice(first) + draw.choice(second) for _ in range(draw.choice((2, 3))))
        if made not in found.values():
            found[WORDS[len(found)]] = made
    return found


DICTIONARIES = {language: dictionary(language) for language in LANGUAGES[1:]}


def said(words: Sequence[str], language: str) -> str:
    """Words in a language."""
    if language == "en":
        return " ".join(words)
    told = [DICTIONARIES[language][word] for word in words]
    return ("" if language == "zh" else " ").join(told)


def statement(fact: Fact) -> list[str]:
    """The baker greets the sailor in the harbour."""
    who, does, whom, where = fact
    return ["the", who, does, "the", whom, "in", "the", where]


def question(fact: Fact, draw: random.Random) -> list[str]:
    """Something that the fact answers."""
    who, does, whom, where = fact
    return draw.choice(
        (["where", "does", "the", who, does, "the", whom], ["who", does, "the", whom, "in", "the", where])
    )


def documents(known: Sequence[Fact], draw: random.Random) -> list[list[Fact]]:
    """The facts in threes about the same person, which are hard to tell from other threes about that person.

    Each fact is in one of them: a passage that answers a question is the only one that does.
    """
    found = []
    for who in WHO:
        own = [fact for fact in known if fact[0] == who]
        draw.shuffle(own)
        found += [own[place : place + 3] for place in range(0, len(own) - 2, 3)]
    return found


def told(facts: Sequence[Fact], language: str) -> str:
    """A passage of some facts."""
    return ". ".join(said(statement(fact), language) for fact in facts)


def facts(draw: random.Random) -> tuple[list[Fact], list[Fact]]:
    """Facts in two parts, to train on and to be held out; every question about one of them has one answer."""
    every = [(a, b, c, d) for a in WHO for b in DOES for c in WHO for d in WHERE if a != c]
    draw.shuffle(every)
    answered: set[tuple[str, ...]] = set()
    chosen: list[Fact] = []
    for who, does, whom, where in every:
        asked = {("where", who, does, whom), ("who", does, whom, where)}
        if not asked & answered:
            answered |= asked
            chosen.append((who, does, whom, where))
    return chosen[HELD_OUT:], chosen[:HELD_OUT]


def write_world(folder: Path, *, pairs: int = 4000, seed: int = 0) -> Path:
    """Write data and backbone; the path of the configuration."""
    draw = random.Random(seed)
    trained, held = facts(draw)
    data = folder / "data"
    write_lines(data / "train" / "translations.jsonl.gz", translations(trained, draw, pairs))
    write_lines(data / "train" / "questions.jsonl.gz", questions(trained, draw, pairs))
    write_evaluation(data / "eval", held, draw)
    write_backbone(folder / "backbone", seed)
    write_teacher(folder / "teacher", folder / "backbone", seed)
    config = folder / "toy.toml"
    config.write_text(CONFIG.format(backbone=folder / "backbone", teacher=folder / "teacher"), encoding="utf-8")
    return config


def translations(known: Sequence[Fact], draw: random.Random, count: int) -> Iterator[dict[str, object]]:
    """A fact in English and in another language."""
    for _ in range(count):
        words, other = statement(draw.choice(known)), draw.choice(LANGUAGES[1:])
        yield {"query": said(words, "en"), "positive": said(words, other), "lang": f"en-{other}"}


def questions(known: Sequence[Fact], draw: random.Random, count: int) -> Iterator[dict[str, object]]:
    """A question and the passage that answers it, in the one language that the passage is told in; some are wrong."""
    library = [(facts, draw.choice(LANGUAGES)) for facts in documents(known, draw)]
    for _ in range(count):
        facts, language = draw.choice(library)
        asked = said(question(draw.choice(facts), draw), language)
        if draw.random() < WRONG_SHARE:
            others = [each for each, told_in in library if told_in == language and each[0][0] == facts[0][0]]
            facts = draw.choice(others)
        yield {"query": asked, "positive": told(facts, language), "lang": language}


def write_evaluation(folder: Path, held: Sequence[Fact], draw: random.Random) -> None:
    """Sets in the layout of the real ones: bitext, similarity, retrieval."""
    bitext = [
        {"id": number, "lang": FLORES[language], "text": said(statement(fact), language)}
        for number, fact in enumerate(held)
        for language in LANGUAGES
    ]
    write_lines(folder / "bitext_flores200.jsonl.gz", bitext)
    write_lines(folder / "sts_stsb_multi.jsonl.gz", similarities(held, draw))
    corpus, asked, answers = [], [], ["lang\tquery_id\tdoc_id\tscore"]
    library = documents(held, draw)
    for language in LANGUAGES:
        for number, facts in enumerate(library):
            name = f"{language}{number}"
            corpus.append({"lang": language, "doc_id": name, "title": "", "text": told(facts, language)})
            text = said(question(draw.choice(facts), draw), language)
            asked.append({"lang": language, "query_id": name, "text": text})
            answers.append(f"{language}\t{name}\t{name}\t1")
    write_lines(folder / "retrieval_xquad" / "corpus.jsonl.gz", corpus)
    write_lines(folder / "retrieval_xquad" / "queries.jsonl.gz", asked)
    with gzip.open(folder / "retrieval_xquad" / "qrels.tsv.gz", "wt", encoding="utf-8") as stream:
        stream.write("\n".join(answers) + "\n")


def similarities(held: Sequence[Fact], draw: random.Random) -> Iterator[dict[str, object]]:
    """Two facts in two languages, as alike as the parts that they share."""
    for language in LANGUAGES:
        for fact in held[:200]:
            other, parts = draw.choice(held), draw.sample(range(4), draw.randint(0, 4))
            mixed = tuple(fact[place] if place in parts else other[place] for place in range(4))
            shared = sum(one == two for one, two in zip(fact, mixed, strict=True))
            first, second = said(statement(fact), "en"), said(statement((*mixed,)), language)  # type: ignore[arg-type]
            yield {
                "task": "STSB",
                "lang": language,
                "split": "test",
                "sentence1": first,
                "sentence2": second,
                "score": shared,
            }


def write_lines(path: Path, lines: Iterator[dict[str, object]] | Sequence[dict[str, object]]) -> None:
    """JSON lines, compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def write_backbone(folder: Path, seed: int) -> Path:
    """A BERT of two layers that knows nothing, and a tokenizer that knows the words."""
    torch.manual_seed(seed)
    # A token a word: where nothing has to be spelt, texts are short and steps are quick.
    words = [said([word], language) for language in LANGUAGES for word in WORDS]
    pieces = [*SPECIAL_TOKENS, "▁", ".", "▁query:", "▁passage:", *(f"▁{word}" for word in words), *words]
    tokenizer = Tokenizer(models.Unigram([(piece, -5.0) for piece in dict.fromkeys(pieces)], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    model = BertModel(
        BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=192,
            max_position_embeddings=512,
            initializer_range=0.05,
            pad_token_id=SPECIAL_TOKENS.index("<pad>"),
        ),
        add_pooling_layer=False,
    )
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_sentence_transformers_files(folder, 96)
    return folder


def write_teacher(folder: Path, backbone: Path, seed: int) -> Path:
    """An encoder for the teacher to begin with, whose first layer looks for the word that it reads in the other text.

    That is what pre-training on language gives a real one, and what minutes on two cores do not: words have vectors
    that are far apart, each head compares a part of them, and carries over which of the two texts the like one is in.
    """
    torch.manual_seed(seed)
    heads, head_width, part = 4, 32, 28
    marker = heads * part
    tokenizer = Tokenizer.from_file(str(backbone / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    model = BertModel(
        BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=heads * head_width,
            num_hidden_layers=2,
            num_attention_heads=heads,
            intermediate_size=256,
            max_position_embeddings=512,
            initializer_range=0.02,
            pad_token_id=SPECIAL_TOKENS.index("<pad>"),
        ),
        add_pooling_layer=False,
    )
    with torch.no_grad():
        words, sides = model.embeddings.word_embeddings.weight, model.embeddings.token_type_embeddings.weight
        words.zero_()[:, :marker].normal_()
        sides.zero_()[:, marker] = torch.tensor([3.0, -3.0])
        attention = model.encoder.layer[0].attention
        for layer in (attention.self.query, attention.self.key, attention.self.value, attention.output.dense):
            layer.weight.zero_()
        for head in range(heads):
            first = head * head_width
            for place in range(part):
                attention.self.query.weight[first + place, head * part + place] = 1.2
                attention.self.key.weight[first + place, head * part + place] = 1.2
            attention.self.value.weight[first, marker] = 1.0
            attention.output.dense.weight[marker + 1 + head, first] = 2.0
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


TRANSLATIONS = """
[{stage}.sources.translations]
pair = "a fact, the same in another language"
path = "train/translations.jsonl.gz"
positive_role = "query"
licence = "Apache-2.0"
"""

QUESTIONS = """
[{stage}.sources.questions]
pair = "a question, the passage that answers it"
path = "train/questions.jsonl.gz"
licence = "Apache-2.0"
"""

CONFIG = (
    """# Every stage of the recipe at the size of a toy; see tests/toy_world.py.
name = "toy"
seed = 1
backbone = "{backbone}"

[pretrain]
batch_pairs = 128
steps = 300
learning_rate = 2e-3
temperature = 0.05
warmup_steps = 40
precision = "fp32"
chunk_tokens = 8192
save_every_steps = 100

[mine]
bm25_top = 30
dense_top = 60
relative_margin = -1.0
languages = "same"
negatives = 15

[teach]
start = "{teacher}"
batch_queries = 8
negatives = 7
forward_factor = 1
r_drop = 0.0
epochs = 4
warmup_steps = 50
learning_rate = 1e-3
precision = "fp32"

[finetune]
batch_pairs = 64
epochs = 3
hard_negatives = 7
learning_rate = 1e-3
temperature = 0.05
warmup_steps = 20
precision = "fp32"
chunk_tokens = 8192
save_every_steps = 100

[evaluate]
sets = ["flores", "stsb", "xquad"]
"""
    + TRANSLATIONS.format(stage="pretrain")
    + QUESTIONS.format(stage="pretrain")
    + QUESTIONS.format(stage="finetune")
)

if __name__ == "__main__":
    print(write_world(Path(sys.argv[1])))
