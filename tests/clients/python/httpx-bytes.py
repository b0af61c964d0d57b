import httpx
import numpy as np

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]


def embed(texts, input_type):
    answer = httpx.post(
        "http://127.0.0.1:8080/embed",
        json={"inputs": texts, "input_type": input_type},
        headers={"accept": "application/octet-stream"},
    )
    if answer.is_error:
        raise RuntimeError(answer.json()["error"])
    return np.frombuffer(answer.content, "<f4").reshape(len(texts), -1)


question_vector = embed([question], "query")[0]
passage_vectors = embed(passages, "passage")
