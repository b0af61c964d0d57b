"""Settings: the shipped file is valid, a wrong key is named, and reading them costs no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from training.bootstrap_config import load_config
from training.errors import BadTrainConfig

ROOT = Path(__file__).parents[1]
NANO = ROOT / "training" / "configs" / "me5_nano.toml"


def test_the_shipped_settings_are_valid_and_use_the_temperature_of_e5():
    assert load_config(NANO).layers.temperature == 0.01


def test_an_unknown_key_is_refused_by_its_full_name(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(NANO.read_text(encoding="utf-8").replace("warmup_steps", "warm_up"), encoding="utf-8")
    with pytest.raises(BadTrainConfig, match="layers.warm_up"):
        load_config(path)


def test_a_value_out_of_bounds_is_refused_by_its_full_name(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(NANO.read_text(encoding="utf-8").replace("vocab_size = 60000", "vocab_size = 0"), encoding="utf-8")
    with pytest.raises(BadTrainConfig, match="tokenizer.vocab_size"):
        load_config(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadTrainConfig, match="absent.toml"):
        load_config(tmp_path / "absent.toml")


def test_reading_the_settings_does_not_import_torch():
    code = "import sys, training.bootstrap_config; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
