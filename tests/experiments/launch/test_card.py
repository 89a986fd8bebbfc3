"""A model card says what a run did, and nothing of where it lies."""

import json

import yaml

from experiments import dpo
from experiments.launch import card


def config():
    c = dpo.get_config("tiny")
    c.init_from = "hf:Qwen/Qwen2.5-0.5B@main"
    c.data.path = "/home/somebody/private/pairs.jsonl, more/b.jsonl"
    return c


def test_a_card_has_the_base_the_settings_and_the_values_of_its_own_step(tmp_path):
    rows = [{"step": 2, "heldout/loss": 0.25, "loss": 9.0}, {"step": 4, "heldout/loss": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = card.text(config(), tmp_path, 2)
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "Qwen/Qwen2.5-0.5B" and front["library_name"] == "transformers"
    assert "Trained for 2 updates, beginning from Qwen/Qwen2.5-0.5B" in text
    assert "| heldout/loss | 0.25 |" in text and "9" not in text.partition("Held-out")[2]
    assert "| objective.beta | 0.1 |" in text and "| data | pairs.jsonl, b.jsonl |" in text
    assert "adapter.rank" not in text
    assert "/home" not in text and str(tmp_path) not in text


def test_a_folder_is_no_id_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/mine").mkdir(parents=True)
    assert card.base_model("hf:models/mine") == "mine"
    assert card.base_model("run:/data/runs/first") == "first" and card.base_model("") == ""
    assert "from nothing" in card.text(dpo.get_config("tiny"), tmp_path, 4)
