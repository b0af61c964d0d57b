"""What one writes in ten minutes: FastAPI around SentenceTransformer.encode. Here only to be measured against.

    python tests/benchmarks/plain_server.py FOLDER PORT

Runs in an environment of its own and imports nothing of this project.
"""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Body(BaseModel):
    inputs: list[str]


def create_app(folder: str) -> FastAPI:
    model = SentenceTransformer(folder, device="cpu")
    app = FastAPI()

    @app.get("/health")
    def health() -> str:
        return "ok"

    # A sync route, as the framework's guide has it for work that blocks: each request gets a thread of the pool.
    @app.post("/embed")
    def embed(body: Body) -> list[list[float]]:
        return model.encode(body.inputs, normalize_embeddings=True).tolist()

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
