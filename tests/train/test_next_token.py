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


def sharing_texts(rng):
    """Conversations of two turns behind one system prompt, some of which share their first turn, and two long ones."""
    system, turn = rng.integers(1, 60, 20), rng.integers(1, 60, 9)
    ids = [np.concatenate([system, *([turn] if i % 2 else []), rng.integers(1, 60, 5 + 3 * i)]) for i in range(6)]
    ids += [ids[1][:25], ids[3], rng.integers(1, 60, 70), np.concatenate([system, rng.integers(1, 60, 70)])]
    counts = [rng.integers(0, 2, len(one)) for one in ids]
    for one in counts[1:6:2]:
        one[20:29] = counts[1][20:29]
    return [one.astype(np.int32) for one in ids], [one.astype(np.int8) for one in counts]


def test_shared_beginnings_change_neither_loss_nor_gradient_in_float64():
    ids, counts = sharing_texts(np.random.default_rng(0))
    plain, shared = (text.pack(ids, counts, max_len=64, pad_id=0, share_prefixes=flag) for flag in (False, True))
    assert len(shared) < len(plain) and shared.digest != plain.digest
    assert sorted(piece for row in shared.rows for piece in row) == sorted(piece for row in plain.rows for piece in row)
    with jax.enable_x64(True):
        net = model(vocab_size=64, dtype="float64", param_dtype="float64")
        params = nn.meta.unbox(net.init(jax.random.key(0), np.zeros((1, 4), np.int32))["params"])

        @jax.jit
        def total(params, batch):
            mean, _ = next_token.loss_fn(net)(params, batch, rng=None, frozen=None)
            return mean.total / 100, mean.count

        grad_fn = jax.value_and_grad(total, has_aux=True)
        ours, twin = (grad_fn(params, text.assemble(texts, np.arange(len(texts)))) for texts in (shared, plain))
    assert ours[0][1] == twin[0][1]  # as many targets count
    np.testing.assert_allclose(ours[0][0], twin[0][0], rtol=1e-12)
    for a, b in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(twin[1])):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_labels_of_a_prompt_do_not_matter(tmp_path, loss):
    batch = batch_of(tmp_path, packed=True)
    changed = np.where(batch["mask"] > 0, batch["targets"], 7)
    assert (changed != batch["targets"]).any()
    assert loss(batch | {"targets": changed}) == loss(batch)
    assert loss(batch | {"mask": np.ones_like(batch["mask"])}) != loss(batch)
