"""Classifiers on made-up reviews with a known shortcut: bag of words, small encoder, and the heads of peers."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment.concepts import bag, bias, encoder, heads, rebalance
from alignment.errors import InputError
from alignment.train import sharding
from alignment.train.train_state import TrainState
from data.toys import concept_reviews


def reviews(num, seed, **options):
    rows = concept_reviews.reviews(num, seed, **options)
    has_N = np.array(["music" in row["concepts"] for row in rows])
    return [row["text"] for row in rows], np.array([row["label"] for row in rows]), has_N


def test_bias_follows_the_shortcut_of_the_training_texts():
    test = reviews(6_000, 1, shortcuts={"music": 0.5})

    def bag_bias(q):
        train = reviews(6_000, 0, shortcuts={"music": q})
        fitted = bag.fit(train[0], train[1], bag.Options(ngrams=1))
        return 100 * bias.measure(fitted.predict(test[0]) == test[1], *test[1:], num_labels=2, resamples=0).bias

    none, weak, strong, inverse = (bag_bias(q) for q in (0.5, 0.7, 0.9, 0.1))
    assert abs(none) < 3 < weak < strong and inverse < -3


@pytest.fixture(scope="module")
def shortcut():
    """Training texts with a strong shortcut, and test texts without."""
    train = reviews(3_000, 0, shortcuts={"music": 0.95})
    return train, reviews(3_000, 1, shortcuts={"music": 0.5})


def measured(fitted, test):
    return bias.measure(fitted.predict(test[0]) == test[1], *test[1:], num_labels=2, resamples=0).bias


def test_group_dro_dfr_and_leace_take_a_bag_s_shortcut_away(shortcut):
    train, test = shortcut
    options = bag.Options(ngrams=1)
    plain = bag.fit(train[0], train[1], options)
    before = measured(plain, test)
    assert before > 0.15
    robust = bag.fit(train[0], train[1], options, groups_N=rebalance.groups(*train[1:]))
    held = reviews(2_000, 2, shortcuts={"music": 0.9})
    last = heads.last_layer(plain, *held, rng=np.random.default_rng(0))
    erased = heads.without_concept(plain, *train)
    assert measured(erased, test) < 0.1  # it goes beyond 0: the label that went along with the concept is erased too
    assert max(abs(measured(fitted, test)) for fitted in (robust, last)) < before / 2
    for fitted in (robust, last, erased):
        assert (fitted.predict(test[0]) == test[1]).mean() > 0.6


@pytest.fixture(scope="module")
def small():
    train = reviews(256, 0, shortcuts={"music": 0.9})
    sizes = dict(num_layers=1, model_dim=16, num_heads=2, ffn_dim=16)
    start = encoder.small(train[0], num_words=60, max_len=32, seed=0, **sizes)
    options = encoder.Options(epochs=2, batch_size=32, peak_lr=1e-2, dropout=0.1)
    return encoder.Trainer(start, 2, options, sharding.make_mesh()), train


def training(train):
    return dict(texts=train[0], labels_N=train[1], heldout=(train[0][:64], train[1][:64]))


def test_an_encoder_learns_the_opinions_and_the_same_seed_gives_the_same_one(small):
    trainer, train = small
    fitted = [trainer.fit(**training(train), seed=seed) for seed in (0, 0, 1)]
    assert (fitted[0].predict(train[0]) == train[1]).mean() > 0.6
    logits = [trainer.apply(one.params, train[0][:8])[0] for one in fitted]
    assert np.array_equal(logits[0], logits[1]) and not np.array_equal(logits[0], logits[2])
    first, last = fitted[0].heldout_loss[0][1], fitted[0].heldout_loss[-1][1]
    assert last < first
    assert fitted[0].vectors(["violin", "soup"]).shape == (2, 16)
    assert fitted[0].features(train[0][:5]).shape == (5, 16)


def test_texts_of_like_length_share_a_batch_and_every_text_is_read_once(small):
    trainer, _ = small
    ids = [[1] * num for num in np.random.default_rng(0).integers(3, 32, 300)]  # a last batch of 12
    labels_N = np.arange(len(ids))

    def batches(group_by_length):
        options = dataclasses.replace(trainer.options, epochs=1, group_by_length=group_by_length)
        own = encoder.Trainer(trainer.encoder, 2, options, trainer.mesh)
        return list(own._epochs(ids, labels_N, None, 0))

    mixed, alike = batches(False), batches(True)
    for batch in alike:
        lengths_B = batch["mask"].sum(axis=1)
        assert all(lengths_B[row] == len(ids[batch["labels"][row]]) for row in np.flatnonzero(batch["rows"]))
    read = [batch["labels"][batch["rows"] > 0] for batch in alike]
    assert sorted(np.concatenate(read)) == list(labels_N)
    assert sum(batch["tokens"].size for batch in alike) < 0.9 * sum(batch["tokens"].size for batch in mixed)
    mean_lengths = [batch["mask"].sum() for batch in alike]
    assert mean_lengths != sorted(mean_lengths)  # short texts do not all come first


def test_the_parameters_of_the_lowest_held_out_loss_are_taken(small, monkeypatch):
    trainer, train = small
    looked_at = []

    def loss(params, texts, labels_N):
        looked_at.append(sharding.to_host(params))
        return float(len(looked_at))

    monkeypatch.setattr(trainer, "loss", loss)
    fitted = trainer.fit(**training(train), seed=0)
    heads_of = [one["head"]["kernel"] for one in (*looked_at, fitted.params)]
    assert [loss for _, loss in fitted.heldout_loss] == [1.0, 2.0]
    assert np.array_equal(heads_of[2], heads_of[0]) and not np.array_equal(heads_of[2], heads_of[1])


class Linear(nn.Module):
    """Stands for an encoder: its logits are a product with the tokens."""

    @nn.compact
    def __call__(self, tokens_BT, mask_BT=None, *, is_training=False):
        x_BT = jnp.asarray(tokens_BT, jnp.float32)
        return nn.Dense(2, use_bias=False, kernel_init=nn.initializers.normal(0.5))(x_BT), x_BT


def test_an_update_of_group_dro_weighs_groups_by_their_losses_first():
    batch = {"tokens": jnp.array([[1, 0], [0, 1], [1, 1]]), "mask": jnp.ones((3, 2), bool), "rows": jnp.ones(3)}
    batch |= {"labels": jnp.array([0, 1, 1]), "groups": jnp.array([0, 3, 3])}
    model, tx = Linear(), optax.sgd(0.1)
    params = model.init(jax.random.PRNGKey(0), batch["tokens"])["params"]
    q_G = jnp.full(4, 0.25)
    state = TrainState(jnp.zeros((), int), params, tx.init(params), jax.random.PRNGKey(0), {"q": q_G})
    new, metrics = encoder.dro_update(model, tx, 0.5)(state, batch)

    def losses(params):
        loss_B = encoder.row_losses(model, params, batch, jax.random.PRNGKey(0))
        return jnp.stack([loss_B[0], jnp.zeros(()), jnp.zeros(()), loss_B[1:].mean()])

    raised_G = q_G * jnp.exp(0.5 * losses(params))
    wanted_G = raised_G / raised_G.sum()
    np.testing.assert_allclose(new.frozen["q"], wanted_G, rtol=1e-5)
    gradient = jax.grad(lambda params: wanted_G @ losses(params))(params)
    np.testing.assert_allclose(
        new.params["Dense_0"]["kernel"], params["Dense_0"]["kernel"] - 0.1 * gradient["Dense_0"]["kernel"], rtol=1e-5
    )
    assert float(metrics["nonfinite"].total) == 0


def test_texts_of_one_label_and_texts_without_words_are_refused(small):
    with pytest.raises(InputError, match="all of one label"):
        small[0].fit(["a", "b"], np.array([1, 1]), heldout=([], np.array([])), seed=0)
    with pytest.raises(InputError, match=r"lower bag\.min_count"):
        bag.fit(["one", "two"], np.array([0, 1]), bag.Options(min_count=2))
    with pytest.raises(InputError, match="must be at least 1"):
        bag.Options(ngrams=0)
    for name, value in itertools.chain({"epochs": 0, "dropout": 1.0, "peak_lr": 0.0, "pooling": "last"}.items()):
        with pytest.raises(InputError, match=name):
            encoder.Options(**{name: value})
