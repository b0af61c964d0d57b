"""What can be asked of a gateway that runs elsewhere, over HTTP alone: the golden proof, and whether it is at work."""

from __future__ import annotations

import time

import httpx
import numpy as np
from gateway_process import MODEL_REPO, SHIPPED_MODEL

from service.model import find_version
from service.recipe.golden import load_golden, prove
from service.recipe.prompts import format_text
from service.recipe.spec import load_spec


def golden_cosine(url: str) -> float:
    """The least cosine of what a gateway of the shipped model answers to its golden texts. Raises GoldenMismatch."""
    folder = find_version(SHIPPED_MODEL, MODEL_REPO)
    golden, prompts = load_golden(folder / "golden.json"), load_spec(folder, verify=False).prompts
    texts = [format_text(item.text, prompts, item.role, instruction=item.instruction).text for item in golden.items]
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        answer = client.post("/embed", json={"inputs": texts})
        assert answer.status_code == 200, answer.text
        return prove(golden, np.array(answer.json(), dtype=np.float32), client.get("/info").json()["precision"])


def wait_for_work(url: str) -> None:
    """Until tokens wait for the engine."""
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        page = httpx.get(f"{url}/metrics", timeout=5, trust_env=False).text
        waiting = [line for line in page.splitlines() if line.startswith("me5_queue_tokens{")]
        if any(float(line.split()[-1]) > 0 for line in waiting):
            return
        time.sleep(0.02)
    raise AssertionError(f"nothing waits for the engine\n{page}")
