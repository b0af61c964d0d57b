"""What a gateway may take at its worst, and the check that it is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from faulty_engine import SHIPPED
from gateway_process import run_service

from service.engine import EngineConfig
from service.errors import SettingsError
from service.memory import MIB, check_memory, memory_limit, predicted_peak
from service.recipe.spec import load_spec
from service.settings import Settings, load_settings

SPEC = replace(load_spec(SHIPPED, verify=False), weights="float32", table_bits=None)
CONFIG = EngineConfig(str(SHIPPED), "onnx", "fp32", "cpu", 2, 2)


def peak(settings: Settings | None = None, config: EngineConfig = CONFIG, graph_mib: int = 200) -> int:
    settings = settings or load_settings({})
    return predicted_peak(settings, SPEC, config, vocabulary=60_000, graph_bytes=graph_mib * MIB).total


def test_every_setting_that_bounds_memory_is_in_the_formula() -> None:
    for name, less in (("MAX_BUFFERED_BYTES", 2**20), ("MAX_QUEUED_TOKENS", 1000)):
        assert peak(load_settings({f"ME5_{name}": str(less)})) < peak()
    assert peak(config=replace(CONFIG, streams=1)) < peak()
    assert peak(config=replace(CONFIG, precision="int8"), graph_mib=50) < peak()
    assert peak(graph_mib=400) > peak()


def test_a_table_in_four_bits_leaves_the_rest_of_the_file_to_the_matrices() -> None:
    config, values = replace(CONFIG, engine="openvino", precision="bf16"), 111_200 * SPEC.states_dimension

    def engine(graph_bytes: int, bits: Literal[4] | None) -> int:
        spec = replace(SPEC, weights="int8", table_bits=bits)
        return predicted_peak(load_settings({}), spec, config, vocabulary=111_200, graph_bytes=graph_bytes).engine

    eight, four, matrices = values * 17 // 16, values * 9 // 16, 40 * MIB
    # Two copies of the table, and five of the matrices either way.
    assert engine(eight + matrices, None) - engine(four + matrices, 4) == pytest.approx(2 * (eight - four), abs=100)
    assert engine(four + 2 * matrices, 4) - engine(four + matrices, 4) == pytest.approx(5 * matrices, abs=100)


def test_a_machine_with_less_is_refused_with_the_remedy() -> None:
    settings = load_settings({})
    whole = check_memory(settings, SPEC, CONFIG, vocabulary=60_000, limit_bytes=None)
    assert check_memory(settings, SPEC, CONFIG, vocabulary=60_000, limit_bytes=whole.total) == whole
    with pytest.raises(SettingsError, match=r"may take \d+ MiB .*gives 100; lower ME5_MAX_BUFFERED_BYTES"):
        check_memory(settings, SPEC, CONFIG, vocabulary=60_000, limit_bytes=100 * MIB)


def test_the_limit_is_the_cgroups_or_else_the_machines(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    assert memory_limit(tmp_path, meminfo) is None
    meminfo.write_text("MemTotal:       24000000 kB\n")
    assert memory_limit(tmp_path, meminfo) == 24_000_000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path, meminfo) == 24_000_000 * 1024
    (tmp_path / "memory.max").write_text("1073741824\n")
    assert memory_limit(tmp_path, meminfo) == 2**30


def test_a_queue_that_no_machine_could_hold_is_refused_at_start() -> None:
    done = run_service("check", max_buffered_bytes=2**45)
    assert done.returncode == 2
    assert b"may take" in done.stderr
    assert b"ME5_MAX_BUFFERED_BYTES" in done.stderr
