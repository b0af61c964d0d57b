"""Opening an engine while the tokenizer is read: what fails meanwhile leaves nothing behind."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import psutil
import pytest
from faulty_engine import SHIPPED
from tokenizers import Tokenizer

from service.embedder import Embedder
from service.engine import EngineConfig, EngineHost, Widths
from service.engine_process import EngineProcess
from service.errors import ModelFileError, SettingsError, StartupError
from service.metrics import Metrics
from service.recipe.spec import TOKENIZER_FILE, load_spec, save_spec
from service.recipe.tokens import load_tokenizer
from service.settings import load_settings


def refusal_of(folder: Path) -> tuple[Exception, int]:
    """Why a version is not served, and how many engines had opened until that was known; none is left."""
    opened: list[EngineHost] = []
    before = {child.pid for child in psutil.Process().children()}

    async def open_host(config: EngineConfig, widths: Widths) -> EngineHost:
        opened.append(await EngineProcess.open(config, widths=widths))
        return opened[-1]

    async def story() -> Exception:
        embedder = Embedder(load_settings({"ME5_MODEL": str(folder)}), Metrics(), open_host=open_host)
        with pytest.raises(StartupError) as refused:
            await embedder.start()
        # Killed, whether or not its exit code was fetched.
        running = {child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}
        assert running <= before
        await embedder.stop()
        return refused.value

    return asyncio.run(story()), len(opened)


def test_a_tokenizer_that_can_not_be_read_is_said_once_and_no_other_engine_is_tried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(SHIPPED, tmp_path / "1")
    (tmp_path / "1" / TOKENIZER_FILE).write_text("{}", encoding="utf-8")
    save_spec(tmp_path / "1", load_spec(SHIPPED))
    error, _ = refusal_of(tmp_path / "1")
    assert isinstance(error, ModelFileError)
    assert "can't read the tokenizer" in error.message
    assert "is not used" not in caplog.text


@pytest.mark.parametrize("reading_s", [0.0, 5.0])
def test_an_engine_that_opens_or_is_open_when_memory_is_found_too_small_is_ended(
    monkeypatch: pytest.MonkeyPatch, reading_s: float
) -> None:
    def slowly(path: Path) -> Tokenizer:
        time.sleep(reading_s)
        return load_tokenizer(path)

    monkeypatch.setattr("service.model.load_tokenizer", slowly)
    monkeypatch.setattr("service.embedder.memory_limit", lambda: 100 * 2**20)
    error, opened = refusal_of(SHIPPED)
    assert isinstance(error, SettingsError)
    assert "this machine gives 100" in error.message
    assert opened == (1 if reading_s else 0)
