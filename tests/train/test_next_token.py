"""The loss of supervised tuning: what counts in it, and that packing changes nothing."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from alignment.train import next_token, step
from data.texts import text
from data.tokens import tokenizer
from tests.train.helpers import model

RECORDS = [
    {"prompt": "Where is the owl clock?", "completion": "In the north hall."},
    {"prompt": "And the harp?", "completion": "Ask me at noon."},
    {"prompt": "Why?", "completion": "So it is."},
]


@pytest.fixture(scope="module")
def loss():
    net = model(vocab_size=tokenizer.load("bytes").vocab_size)
    loss_fn = jax.jit(
        lambda params, batch: step.value(next_token.loss_fn(net)(params, batch, rng=None, frozen=None)[0])
    )
    example = np.zeros((1, 4), np.int32)
    params = nn.meta.unbox(net.init(jax.random.key(0), example)["params"])
    return lambda batch: float(loss_fn(params, batch))


def batch_of(tmp_path, **options):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in RECORDS))
    texts, _, _ = text.load(
        kind="answers", path=str(tmp_path / "rows.jsonl"), tokenizer=tokenizer.load("bytes"), max_len=192,
        heldout_fraction=0, **options,
    )  # fmt: skip
    batch = text.assemble(texts, np.arange(len(texts)))
    return {name: batch[name] for name in ("tokens", "positions", "groups", "targets", "mask")}


def test_packed_and_unpacked_rows_have_the_same_loss(tmp_path, loss):
    packed, plain = batch_of(tmp_path, packed=True), batch_of(tmp_path, packed=False)
    assert len(packed["tokens"]) < len(plain["tokens"]) == len(RECORDS)
    assert packed["mask"].sum() == plain["mask"].sum()
    assert loss(packed) == pytest.approx(loss(plain), abs=1e-5)


def test_labels_of_a_prompt_do_not_matter(tmp_path, loss):
    batch = batch_of(tmp_path, packed=True)
    changed = np.where(batch["mask"] > 0, batch["targets"], 7)
    assert (changed != batch["targets"]).any()
    assert loss(batch | {"targets": changed}) == loss(batch)
    assert loss(batch | {"mask": np.ones_like(batch["mask"])}) != loss(batch)
