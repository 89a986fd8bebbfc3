"""What the experiments that train a language model share."""

import json
import math
import types

import pytest

from experiments.launch import lm
from tests.experiments.conftest import launch


def test_the_loss_by_bytes_is_the_sum_of_nats_over_the_bytes():
    heldout = types.SimpleNamespace(num_targets=20, num_bytes=80)
    numbers = lm.of_bytes({"heldout/loss": 2 * math.log(2)}, heldout)
    assert numbers["heldout/bits_per_byte"] == pytest.approx(20 * 2 / 80)
    assert numbers["heldout/perplexity_per_byte"] == pytest.approx(2**0.5)
    assert (numbers["heldout/num_tokens"], numbers["heldout/num_bytes"]) == (20, 80)
    assert lm.of_bytes({}, heldout) == {}


def test_a_checkpoint_is_measured_on_a_file_without_training_or_saving(tiny, tmp_path):
    rows = [{"text": f"Text number {i} on rivers"} for i in range(9)]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = tiny("pretrain").workdir
    flags = ["--config.steps=0", f"--config.init_from=run:{first}", "--config.export=", "--config.samples.num=0"]
    flags += ["--config.data.path=", f"--config.data.heldout_path={tmp_path / 'eval.jsonl'}", "--config.sinks=()"]
    ended = launch("pretrain.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 0, ended.err
    numbers = json.loads((tmp_path / "run/summary.json").read_text())
    assert numbers["heldout/num_bytes"] == sum(len(row["text"]) for row in rows)
    assert numbers["heldout/num_tokens"] == numbers["heldout/num_bytes"] + 9  # of bytes, each with an end
    nats = numbers["heldout/loss"] * numbers["heldout/num_tokens"]
    assert math.log(numbers["heldout/perplexity_per_byte"]) == pytest.approx(nats / numbers["heldout/num_bytes"])
    assert not list((tmp_path / "run/checkpoints").glob("[0-9]*"))
    about = json.loads((tmp_path / "run/about.json").read_text())
    assert about["headline"].startswith("The model's perplexity on held-out text is")
    same = ["--config.steps=0", f"--config.init_from=run:{first}", "--config.export=", "--config.sinks=()"]
    launch("pretrain.py:tiny", tmp_path / "same", *same)
    measured, trained = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path / "same", first))
    assert measured["heldout/loss"] == pytest.approx(trained["heldout/loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.data.path="], "data.path is empty"),
        (["--config.data.path=", "--config.data.heldout_path=synthetic"], "data.path is empty and steps=4"),
        (["--config.steps=0", "--config.data.heldout_fraction=0"], "nothing of synthetic"),
        (["--config.loop.best=heldout/loss", "--config.data.heldout_fraction=0"], "is nothing here"),
    ],
)
def test_nothing_to_train_on_or_to_measure_is_refused(flags, said, tmp_path):
    ended = launch("pretrain.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 2 and said in ended.err
