"""The model in the repository: small enough, whole, and it finds meaning across languages."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import numpy as np
import pytest
from faulty_engine import SHIPPED
from gateway_process import Gateway

from service.recipe.pooling import l2_normalize
from service.recipe.spec import load_spec

# Each topic: a question and a passage in several languages; no word of one language stands in another's text.
TOPICS = {
    "tea": {
        "zh": ("茶为什么会变苦？", "茶泡得太久就会变苦。"),
        "de": ("Warum schmeckt Tee bitter?", "Tee wird bitter, wenn er zu lange zieht."),
        "es": ("¿Por qué el té sabe amargo?", "El té se vuelve amargo si se deja reposar demasiado tiempo."),
        "ru": ("Почему чай становится горьким?", "Чай становится горьким, если заваривать его слишком долго."),
    },
    "war": {
        "zh": ("战争是什么时候结束的？", "经过六年的战斗，战争于春天结束，双方签署了和平协议。"),
        "de": ("Wann endete der Krieg?", "Nach sechs Jahren endete der Krieg im Frühling mit einem Friedensvertrag."),
        "es": ("¿Cuándo terminó la guerra?", "Tras seis años, la guerra terminó en primavera con un tratado de paz."),
        "ru": ("Когда закончилась война?", "Через шесть лет война закончилась весной мирным договором."),
    },
    "doctor": {
        "zh": ("发烧时应该吃什么药？", "医生建议发烧的病人多喝水，并服用退烧药。"),
        "de": ("Welches Medikament hilft gegen Fieber?", "Der Arzt rät Kranken mit Fieber, viel zu trinken."),
        "es": (
            "¿Qué medicina ayuda contra la fiebre?",
            "El médico aconseja a los enfermos con fiebre beber agua.",
        ),
        "ru": ("Какое лекарство помогает от температуры?", "Врач советует больным с высокой температурой много пить."),
    },
    "train": {
        "zh": ("去机场的火车几点开？", "开往机场的火车每小时从中央车站出发。"),
        "de": ("Wann fährt der Zug zum Flughafen?", "Der Zug zum Flughafen fährt jede Stunde vom Bahnhof ab."),
        "es": ("¿A qué hora sale el tren al aeropuerto?", "El tren al aeropuerto sale cada hora de la estación."),
        "ru": ("Когда отходит поезд в аэропорт?", "Поезд в аэропорт отправляется с вокзала каждый час."),
    },
    "school": {
        "zh": ("孩子们几岁开始上学？", "大多数孩子六岁开始上小学。"),
        "de": (
            "In welchem Alter kommen Kinder in die Schule?",
            "Die meisten Kinder gehen mit sechs zur Schule.",
        ),
        "es": (
            "¿A qué edad van los niños a la escuela?",
            "La mayoría de los niños va a la escuela a los seis años.",
        ),
        "ru": ("Во сколько лет дети идут в школу?", "Большинство детей идёт в школу в шесть лет."),
    },
    "money": {
        "zh": ("怎样在银行开账户？", "要在银行开账户，您需要护照和地址证明。"),
        "de": ("Wie eröffne ich ein Konto bei der Bank?", "Für ein Konto bei der Bank braucht man einen Ausweis."),
        "es": ("¿Cómo abro una cuenta en el banco?", "Para abrir una cuenta en el banco se necesita un pasaporte."),
        "ru": ("Как открыть счёт в банке?", "Чтобы открыть счёт в банке, нужен паспорт."),
    },
}
LANGUAGES = ("zh", "de", "es", "ru")

# Read here, for the fixtures take ME5_* out of every test's environment.
DATA = Path(os.environ.get("ME5_DATA", "/nonexistent"))


SYLLABLES = [
    "ka",
    "ro",
    "vi",
    "tel",
    "mun",
    "dra",
    "sho",
    "pel",
    "quin",
    "zor",
    "bru",
    "nel",
    "ti",
    "gos",
    "har",
    "lum",
]
NAMED = (
    ("Wofür ist {} bekannt?", "{} ist eine kleine Stadt am Fluss, bekannt für ihren Markt und die alte Brücke."),
    ("what is {} known for?", "{} is a small town by the river, known for its market and the old bridge."),
    ("Чем известен {}?", "{} — небольшой город у реки, известный своим рынком и старым мостом."),
)
# Of a vector, the numbers in front of those that say which words a text holds.
MEANING = 384


def nearest(asked: np.ndarray, told: np.ndarray) -> np.ndarray:
    return np.asarray((asked @ l2_normalize(told).T).argmax(axis=1))


def embed(gateway: Gateway, texts: list[str], role: str) -> np.ndarray:
    answer = httpx.post(f"{gateway.url}/embed", json={"inputs": texts, "input_type": role}, timeout=60)
    assert answer.status_code == 200
    return np.array(answer.json())


@pytest.fixture(scope="module")
def by_language(gateway: Gateway) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        language: (
            embed(gateway, [topic[language][0] for topic in TOPICS.values()], "query"),
            embed(gateway, [topic[language][1] for topic in TOPICS.values()], "passage"),
        )
        for language in LANGUAGES
    }


def test_the_version_is_whole_and_at_most_forty_megabytes() -> None:
    load_spec(SHIPPED, verify=True)
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 40_000_000


def test_its_graph_names_no_file_of_the_machine_that_exported_it() -> None:
    graph = (SHIPPED / "model.onnx").read_bytes()
    assert b"stack_trace" not in graph
    assert b"site-packages" not in graph


def test_a_question_in_chinese_finds_its_passage_in_german(
    by_language: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    found = (by_language["zh"][0] @ by_language["de"][1].T).argmax(axis=1)
    # Five of six, and one by chance.
    assert (found == np.arange(len(TOPICS))).sum() >= 5


def test_questions_find_their_passages_across_all_pairs_of_languages(
    by_language: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    right = [
        (by_language[asked][0] @ by_language[told][1].T).argmax(axis=1) == np.arange(len(TOPICS))
        for asked in LANGUAGES
        for told in LANGUAGES
    ]
    # One in six by chance.
    assert np.mean(right) >= 0.9


def test_a_translation_lies_closer_than_any_other_text(by_language: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    right = [
        (by_language[one][0] @ by_language[other][0].T).argmax(axis=1) == np.arange(len(TOPICS))
        for one in LANGUAGES
        for other in LANGUAGES
        if one != other
    ]
    assert np.mean(right) >= 0.9


def test_names_that_nobody_knows_find_their_passage_and_by_the_meaning_alone_fewer_do(gateway: Gateway) -> None:
    drawn = np.random.default_rng(7)
    names = ["".join(drawn.choice(SYLLABLES, 4)) for _ in range(60)]
    right, by_meaning = [], []
    for question, passage in NAMED:
        asked = embed(gateway, [question.format(name) for name in names], "query")
        told = embed(gateway, [passage.format(name) for name in names], "passage")
        right.append(nearest(asked, told) == np.arange(len(names)))
        by_meaning.append(nearest(asked[:, :MEANING], told[:, :MEANING]) == np.arange(len(names)))
    assert np.mean(right) >= 0.95
    assert np.mean(right) > np.mean(by_meaning)


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA / "eval").is_dir(),
    reason="ME5_DATA names no folder with eval/: the evaluation sets are not part of the repository",
)
@pytest.mark.timeout(900)
def test_the_shipped_model_reaches_its_published_figures() -> None:
    from training.evaluate import choose_sets, evaluate, open_model
    from training.protocol import PROTOCOLS
    from training.result import measures_of, summary

    result = evaluate(open_model(SHIPPED).system, DATA, choose_sets([], quick=True), PROTOCOLS["paper"])
    scores = {name: measures_of(scored) for name, scored in result.scored.items()}
    found = summary(scores)
    assert found["flores-core"]["accuracy"] >= 0.94
    assert found["xquad"]["ndcg@10"] >= 0.84
    similar = scores["stsb"]
    assert similar["en"]["spearman"] >= 0.79
    assert np.mean([value["spearman"] for name, value in similar.items() if name != "en"]) >= 0.70
