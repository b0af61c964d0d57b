"""Answer questions from passages in many languages: this gateway, Qdrant, and any OpenAI-compatible chat server.

    make serve                                                    # the gateway, in another terminal
    pip install qdrant-client
    python docs/examples/rag.py "When is the museum open on Sundays?"
    python docs/examples/rag.py "…" --chat http://127.0.0.1:11434/v1 --chat-model NAME

Without --chat it prints the prompt that a chat server would get. The passages are stored with the role `passage`, the
question is asked with the role `query`: E5 was trained with both, and finds less without. Qdrant runs in this process;
--store FOLDER keeps what it holds, and QdrantClient(url=…) is all it takes to use a server.
"""

from __future__ import annotations

import argparse
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

COLLECTION = "town"
# Some name for what ids are derived from, so that a passage stored twice is one.
IDS = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")

# What a town might tell its visitors, each thing in one language only.
PASSAGES = (
    (
        "museum",
        "de",
        "Das Stadtmuseum ist dienstags bis samstags von 10 bis 18 Uhr geöffnet, sonntags von 11 bis 16 Uhr.",
    ),
    ("museum", "de", "Der Eintritt ins Stadtmuseum kostet acht Euro; Kinder unter zwölf Jahren zahlen nichts."),
    ("ferry", "fr", "Le bac pour l'île part du quai numéro trois toutes les quarante minutes, de 7 h à 21 h."),
    ("ferry", "fr", "Les vélos sont acceptés à bord du bac moyennant un supplément de deux euros."),
    ("library", "es", "La biblioteca presta libros durante cuatro semanas y películas durante una semana."),
    ("library", "es", "Para sacar el carné de la biblioteca hay que presentar un documento de identidad."),
    ("pool", "ru", "Бассейн закрыт на ремонт до конца марта; сауна работает как обычно."),
    ("pool", "ru", "Шапочка для плавания в бассейне обязательна."),
    ("market", "en", "The farmers' market is held in the square by the church every Thursday and Saturday morning."),
    ("market", "en", "Dogs are welcome at the market if they are kept on a lead."),
    ("tower", "zh", "登上钟楼要走二百一十四级台阶，没有电梯。"),
    ("tower", "zh", "钟楼的门票可以在旅游咨询处购买。"),
    ("bus", "pt", "O autocarro noturno N2 liga a estação ao hospital de hora a hora depois da meia-noite."),
    ("bus", "pt", "Os bilhetes de autocarro comprados ao motorista custam mais cinquenta cêntimos."),
    ("doctor", "it", "La guardia medica è aperta tutte le notti e nei giorni festivi, in via dei Mulini 12."),
    ("waste", "tr", "Cam şişeler pazartesi günleri, kâğıt ise çarşamba günleri toplanır."),
)

INSTRUCTIONS = (
    "Answer the question in its own language, from the numbered passages alone. Put the number of each passage that "
    "you use in square brackets behind what you took from it, such as [2]. Where the passages do not say, say so."
)


@dataclass(frozen=True)
class Passage:
    """source: where a reader can look it up."""

    source: str
    language: str
    text: str


def embed(gateway: str, texts: Sequence[str], role: str) -> NDArray[np.float32]:
    """Unit vectors of texts, [N, D]. The gateway puts the role's prompt before each text, and cuts nothing unsaid."""
    headers = {"accept": "application/octet-stream"}
    if key := os.environ.get("GATEWAY_KEY"):
        headers["authorization"] = f"Bearer {key}"
    answer = httpx.post(
        f"{gateway}/embed",
        json={"inputs": list(texts), "input_type": role, "truncate": False},
        headers=headers,
        timeout=120,
    )
    answer.raise_for_status()
    return np.frombuffer(answer.content, dtype="<f4").reshape(len(texts), -1)


def model_of(gateway: str) -> str:
    """The name of the gateway's model, for the collection: vectors of two models can't be compared."""
    answer = httpx.get(f"{gateway}/info", timeout=30)
    answer.raise_for_status()
    return re.sub(r"\W+", "-", str(answer.json()["model_id"]))


def store(client: QdrantClient, collection: str, gateway: str, passages: Sequence[Passage]) -> None:
    """Put passages into a collection, which is made where there is none; one that is there already is replaced."""
    vectors = embed(gateway, [passage.text for passage in passages], "passage")
    if not client.collection_exists(collection):
        size = models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE)
        client.create_collection(collection, vectors_config=size)
    points = [
        models.PointStruct(
            id=str(uuid.uuid5(IDS, f"{passage.source} {passage.text}")),
            vector=vector.tolist(),
            payload={"source": passage.source, "language": passage.language, "text": passage.text},
        )
        for passage, vector in zip(passages, vectors, strict=True)
    ]
    client.upsert(collection, points)


def retrieve(
    client: QdrantClient, collection: str, gateway: str, question: str, count: int
) -> list[tuple[float, Passage]]:
    """The passages nearest to a question, in whatever language they are, with their cosines, best first."""
    vector = embed(gateway, [question], "query")[0]
    found = client.query_points(collection, query=vector.tolist(), limit=count, with_payload=True)
    return [(point.score, Passage(**(point.payload or {}))) for point in found.points]


def prompt_of(question: str, passages: Sequence[Passage]) -> list[dict[str, str]]:
    """The messages for a chat server: what to do, the passages by number, the question."""
    numbered = "\n".join(f"[{number}] ({item.source}) {item.text}" for number, item in enumerate(passages, 1))
    return [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": f"Passages:\n{numbered}\n\nQuestion: {question}"},
    ]


def ask(chat: str, model: str, messages: list[dict[str, str]]) -> str:
    """What a chat server answers. A key, where it wants one, is in CHAT_KEY."""
    headers = {"authorization": f"Bearer {key}"} if (key := os.environ.get("CHAT_KEY")) else {}
    body = {"model": model, "messages": messages, "temperature": 0}
    answer = httpx.post(f"{chat}/chat/completions", json=body, headers=headers, timeout=300)
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"])


def citations(answer: str, passages: Sequence[Passage]) -> tuple[list[int], list[int]]:
    """The numbers in square brackets of an answer: those that stand for passages, and those that are made up."""
    named = sorted({int(number) for number in re.findall(r"\[(\d+)\]", answer)})
    return [n for n in named if 1 <= n <= len(passages)], [n for n in named if not 1 <= n <= len(passages)]


def main() -> None:
    """Store the passages, find those for the question, and have it answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question")
    parser.add_argument("--gateway", default="http://127.0.0.1:8080")
    parser.add_argument("--store", type=Path, help="a folder for Qdrant; without one it forgets")
    parser.add_argument("--chat", help="a server with /chat/completions, up to and with /v1")
    parser.add_argument("--chat-model", default="default")
    parser.add_argument("-k", type=int, default=3, help="passages in the prompt")
    asked = parser.parse_args()
    client = QdrantClient(path=str(asked.store)) if asked.store else QdrantClient(":memory:")
    collection = f"{COLLECTION}-{model_of(asked.gateway)}"
    store(client, collection, asked.gateway, [Passage(*row) for row in PASSAGES])
    found = retrieve(client, collection, asked.gateway, asked.question, asked.k)
    passages = [passage for _, passage in found]
    messages = prompt_of(asked.question, passages)
    if not asked.chat:
        print("\n\n".join(f"{message['role']}:\n{message['content']}" for message in messages))
    else:
        answer = ask(asked.chat, asked.chat_model, messages)
        cited, made_up = citations(answer, passages)
        print(answer + "\n")
        for number in cited:
            print(f"[{number}] {passages[number - 1].source} ({passages[number - 1].language})")
        if made_up:
            print(f"no passage has the numbers {made_up}: what they stand behind has no source")
    print("\nfound:")
    for score, passage in found:
        print(f"  {score:.3f}  {passage.language}  {passage.text}")
    client.close()


if __name__ == "__main__":
    main()
