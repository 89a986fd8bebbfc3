import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.filtering.scores import calibration, fitting, heads, linear, ngrams, scorers
from alignment.train import loop, optimizer
from tests.train.helpers import make_mesh

FEATURES = dict(words=[1, 2], characters=[3, 3], buckets=1 << 10, lower=True)


def about(objective="ordinal", levels=("plain", "unfair"), **changes):
    fields = dict(kind="linear", name="safety", objective=objective, levels=levels, features=dict(FEATURES))
    return heads.About(**{**fields, **changes})


def drawn_weights(told, seed=0):
    rng = np.random.default_rng(seed)
    num = heads.num_outputs(told.objective, len(told.levels))
    tensors = {"kernel": rng.normal(size=(1 << 10, num)).astype(np.float32), "bias": np.ones(num, np.float32)}
    if told.objective == "ordinal":
        tensors["thresholds"] = np.arange(len(told.levels) - 1, dtype=np.float32) / 4
    return tensors


class Texts:
    """Endless batches of marked and plain texts."""

    def __init__(self, about_it, num_levels=2, rows=16):
        self.number, self.rows = 0, rows
        words = ["glorp", "bridge", "river", "[insult]"]
        rng = np.random.default_rng(0)
        self.labels = rng.integers(0, num_levels, 64)
        self.texts = [" ".join([*rng.choice(words[:3], 5), *["[insult]"] * int(label)]) for label in self.labels]
        chosen = ngrams.settings(about_it.features)
        width = linear.width(self.texts, chosen, piece=about_it.piece)
        shape = dict(chosen=chosen, width=width, piece=about_it.piece)
        self.make_fn = linear.batch_fn(self.texts, self.labels, np.ones(64), **shape)

    def __next__(self):
        self.number += 1
        return self.batch(self.number)

    def batch(self, number):
        return self.make_fn(np.random.default_rng(number).integers(0, 64, self.rows), np.ones(self.rows, np.float32))

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


def fit(told, workdir, mesh_shape=(1, 1, 1), steps=30):
    texts = Texts(told, len(told.levels))
    mesh, tx = make_mesh(mesh_shape), optimizer.adamw(0.1, schedule="constant", clip_norm=0.0)
    options = dict(num_inputs=1 << 10, tx=tx, seed=0, steps=steps, batch_size=16)
    options |= dict(pace=loop.Pace(save_every=10), logging=loop.Logging(sinks=()))
    return texts, *fitting.fit(told, texts, [texts.batch(0)], mesh, workdir, **options)


@pytest.mark.parametrize(("objective", "levels"), [("ordinal", 4), ("softmax", 3), ("regression", 3)])
def test_a_trained_scorer_finds_the_levels_again_after_saving(objective, levels, tmp_path):
    told = about(objective, tuple("abcd"[:levels]))
    texts, tensors, summary = fit(told, tmp_path, steps=60)
    assert summary["heldout/accuracy"] > 0.9 and summary["heldout/loss"] < 0.5
    heads.save(tmp_path / "scorer", told, tensors)
    score = scorers.load("linear", tmp_path / "scorer", name="mine")
    rows = score([{"text": text} for text in texts.texts])
    assert set(rows[0]) == {"mine.score", "mine.level"}
    assert np.mean([row["mine.level"] == label for row, label in zip(rows, texts.labels)]) > 0.9
    top = 1 if levels == 2 else levels - 1
    assert objective == "regression" or all(0 <= row["mine.score"] <= top for row in rows)


def test_scores_do_not_depend_on_the_mesh(tmp_path):
    alone = fit(about(), tmp_path / "one")[1]
    spread = fit(about(), tmp_path / "eight", (2, 2, 2))[1]
    for name, tensor in alone.items():
        np.testing.assert_allclose(spread[name], tensor, atol=1e-4)
    assert np.abs(alone["kernel"]).max() > 0.1


def test_a_run_taken_up_again_ends_with_the_same_weights(tmp_path):
    whole = fit(about(), tmp_path / "whole", steps=20)[1]
    fit(about(), tmp_path / "parts", steps=10)
    again = fit(about(), tmp_path / "parts", steps=20)[1]
    assert all(np.array_equal(again[name], tensor) for name, tensor in whole.items())


def test_jax_and_numpy_give_the_same_outputs():
    told = about("ordinal", tuple("abc"))
    tensors = drawn_weights(told)
    texts = ["The Glorps opened a bridge.", "كل الغلوربيون", "x " * 300]
    batch = linear.batch_fn(
        texts, np.zeros(3, int), np.ones(3), chosen=ngrams.settings(FEATURES), width=640, piece=512
    )(np.arange(3), np.ones(3, np.float32))
    model = fitting.network(told, num_inputs=1 << 10)
    raw = np.array([tensors["thresholds"][0], *np.log(np.expm1(np.diff(tensors["thresholds"])))], np.float32)
    params = {"kernel": tensors["kernel"], "bias": tensors["bias"], "thresholds_bias": raw}
    outputs, thresholds = model.apply({"params": params}, {k: jnp.asarray(batch[k]) for k in ("ids", "values")})
    np.testing.assert_allclose(thresholds, tensors["thresholds"], atol=1e-6)
    found, owners, _ = linear.build(told, tensors).outputs_fn(texts)
    np.testing.assert_allclose(found, outputs, atol=1e-4)
    assert owners.tolist() == [0, 1, 2]
    for labels in np.indices((3,)).T:
        losses, _ = fitting.losses("ordinal", outputs, thresholds, jnp.full(3, labels[0]))
        logits = heads.logits(told, found.astype(np.float64), tensors)
        np.testing.assert_allclose(-losses, logits[:, labels[0]], atol=1e-4)


def test_the_ordinal_loss_is_that_of_proportional_odds_and_its_gradient_is_finite():
    """McCullagh's model written naively: differences of sigmoids."""
    rng = np.random.default_rng(0)
    outputs, labels = 2 * rng.normal(size=(50, 1)), rng.integers(0, 4, 50)
    thresholds = np.array([-1.0, 0.5, 0.75])
    above = 1 / (1 + np.exp(-(outputs - thresholds)))
    edges = np.concatenate([np.ones((50, 1)), above, np.zeros((50, 1))], axis=1)
    wanted = -np.log(edges[np.arange(50), labels] - edges[np.arange(50), labels + 1])
    losses, levels = fitting.losses("ordinal", jnp.asarray(outputs), jnp.asarray(thresholds), jnp.asarray(labels))
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    np.testing.assert_array_equal(levels, (outputs > thresholds).sum(axis=1))

    @jax.jit
    def gradient(outputs, labels):
        return jax.grad(lambda x: jnp.sum(fitting.losses("ordinal", x, jnp.asarray(thresholds), labels)[0]))(outputs)

    far = jnp.tile(jnp.array([[80.0], [-80.0]]), (4, 1))
    assert np.all(np.isfinite(gradient(far, jnp.repeat(jnp.arange(4), 2))))


@pytest.mark.parametrize("objective", ["softmax", "ordinal", "regression"])
def test_a_text_that_counts_three_times_is_as_three_such_texts(objective):
    told = about(objective, tuple("abc"))
    loss = fitting.loss_fn(fitting.network(told, num_inputs=1 << 10), objective)
    tensors = drawn_weights(told)
    params = {"kernel": tensors["kernel"], "bias": tensors["bias"]}
    params |= {"thresholds_bias": jnp.zeros(2)} if objective == "ordinal" else {}
    texts, labels = ["glorp bridge", "[insult]", "river"], np.array([0, 2, 1])
    rest = dict(chosen=ngrams.settings(FEATURES), width=64, piece=512)
    heavier = linear.batch_fn(texts, labels, np.array([1.0, 3.0, 1.0]), **rest)
    plain = linear.batch_fn(texts, labels, np.ones(3), **rest)

    def total(params, batch):
        mean, metrics = loss(params, batch, rng=None, frozen=None)
        return mean.total, (mean.count, metrics["accuracy"].count)

    @jax.jit
    def gradient(batch):
        found, (count, num_texts) = jax.grad(total, has_aux=True)(params, batch)
        return count, found["kernel"], num_texts

    ours = gradient(heavier(np.arange(3), np.ones(3, np.float32)))
    theirs = gradient(plain(np.array([0, 1, 1, 1, 2, 2]), np.array([1, 1, 1, 1, 1, 0], np.float32)))
    assert ours[0] == theirs[0] == 5 and (ours[2], theirs[2]) == (3, 5)  # accuracy counts texts, filling never
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


def test_two_levels_are_logistic_regression():
    told = about(levels=("a", "b"))
    tensors = drawn_weights(told)
    scorer = linear.build(told, tensors)
    outputs, *_ = scorer.outputs_fn(["a bridge"])
    scores, levels = scorer.values(["a bridge"])
    assert scores[0] == pytest.approx(1 / (1 + np.exp(-(outputs[0, 0] - tensors["thresholds"][0]))))
    assert levels[0] == (scores[0] > 0.5)


def test_a_document_is_as_its_worst_piece_and_scored_alike_in_any_company():
    told = about("softmax", tuple("abc"), piece=8)
    scorer = linear.build(told, drawn_weights(told))
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(["glorp", "bridge", "river", "sun"], n)) for n in (3, 40, 0, 17, 8)]
    scores, _ = scorer.values(texts)
    for text, score in zip(texts, scores):
        words = text.split(" ") if text else [""]
        pieces = [" ".join(words[i : i + 8]) + " " * (i + 8 < len(words)) for i in range(0, len(words), 8)]
        assert score == pytest.approx(max(scorer.values([piece])[0][0] for piece in pieces))
        assert scorer.values([text])[0][0] == score
    mean = linear.build(about("regression", tuple("abc"), piece=8, pool="mean"), drawn_weights(about("regression")))
    parts = [mean.values([" ".join(texts[4].split(" "))])[0][0], mean.values([texts[0]])[0][0]]
    joined = mean.values([f"{texts[4]} {texts[0]}"])[0][0]
    assert joined == pytest.approx(np.mean(parts), abs=1e-5)


@pytest.mark.parametrize(("objective", "pool"), [("softmax", "max"), ("ordinal", "max"), ("regression", "mean")])
def test_chunks_tell_which_piece_gave_a_document_its_score(objective, pool):
    told = about(objective, tuple("abc"), piece=8, pool=pool)
    scorer = linear.build(told, drawn_weights(told))
    rng = np.random.default_rng(1)
    batch = [{"text": " ".join(rng.choice(["glorp", "bridge", "river"], n))} for n in (3, 40, 0, 17, 8)]
    rows = scorer.with_chunks(batch)
    assert [len(row["safety.chunks"]) for row in rows] == [1, 5, 1, 3, 1]
    for record, row, plain in zip(batch, rows, scorer(batch)):
        spans = row.pop("safety.chunks")
        assert row == plain  # to the bit
        values = [value for *_, value in spans]
        wanted, _ = scorer.values([record["text"][start:end] for start, end, _ in spans])
        assert values == pytest.approx(wanted.tolist())
        assert row["safety.score"] == pytest.approx(max(values) if pool == "max" else np.mean(values), abs=1e-6)


def test_regressions_are_rounded_as_fineweb_edu_does():
    told = about("regression", tuple("012345"))
    scores, levels = heads.values(told, np.array([[-0.4], [2.5], [2.51], [3.5], [7.2]]))
    np.testing.assert_array_equal(levels, [0, 2, 3, 4, 5])
    assert scores[4] == 7.2


def test_a_calibration_is_applied_and_saved(tmp_path):
    told = about(calibration=calibration.Calibration("platt", 2.0, (0.0, 1.0)))
    tensors = drawn_weights(told)
    plain, fitted = (linear.build(kind, tensors) for kind in (about(), told))
    logit = np.log(plain.values(["a bridge"])[0] / (1 - plain.values(["a bridge"])[0]))
    assert fitted.values(["a bridge"])[0] == pytest.approx(1 / (1 + np.exp(-2 * logit - 1)))
    heads.save(tmp_path, told, tensors)
    assert linear.load(tmp_path).about == told
    assert linear.load(tmp_path)([{"text": "a bridge"}]) == fitted([{"text": "a bridge"}])
    assert linear.load(tmp_path)([]) == []


def test_a_damaged_export_is_refused(tmp_path):
    told = about()
    heads.save(tmp_path, told, drawn_weights(told))
    good = {name: (tmp_path / name).read_bytes() for name in (heads.ABOUT, heads.WEIGHTS)}

    def refused(name, content, words):
        for file, whole in good.items():
            (tmp_path / file).write_bytes(content if file == name else whole)
        with pytest.raises(InputError, match=words):
            linear.load(tmp_path)

    def changed(**changes):
        return json.dumps(json.loads(good[heads.ABOUT]) | changes).encode()

    refused(heads.ABOUT, b"{", "damaged")
    refused(heads.ABOUT, b"[]", "damaged")
    refused(heads.ABOUT, changed(kind="embedding"), "of kind 'embedding'")
    refused(heads.ABOUT, changed(format=9), "format 9")
    refused(heads.ABOUT, changed(objective="x"), "'x' is not one of: softmax")
    refused(heads.ABOUT, changed(levels=["a", "b", "c"]), "weights are")
    refused(heads.ABOUT, changed(features={**FEATURES, "buckets": 1 << 11}), "weights are")
    refused(heads.ABOUT, changed(features={**FEATURES, "buckets": 1 << 40}), "power of 2")
    refused(heads.WEIGHTS, good[heads.WEIGHTS][:-10], "damaged")
    refused(heads.WEIGHTS, b"", "damaged")
    bad = drawn_weights(told)
    bad["kernel"][3] = np.nan
    heads.save(tmp_path, told, bad)
    refused(heads.WEIGHTS, (tmp_path / heads.WEIGHTS).read_bytes(), "finite")


def test_a_classifier_that_is_not_there_names_the_way_out(tmp_path):
    for kind, path in [("linear", ""), ("fasttext", tmp_path / "lid.bin"), ("perplexity", "run:/nowhere")]:
        with pytest.raises(InputError, match="skip"):
            scorers.load(kind, path)
    with pytest.raises(InputError, match="linear, fasttext, embedding, perplexity, judge"):
        scorers.load("lineal", tmp_path)
    with pytest.raises(InputError, match=r"no scorer\.json"):
        scorers.load("linear", tmp_path)


def test_scoring_imports_no_jax(tmp_path):
    heads.save(tmp_path, about(), drawn_weights(about()))
    code = (
        "import sys\n"
        "from alignment.filtering.scores import embedding, judge, perplexity, scorers\n"
        "from alignment.models import fasttext\n"
        f"print(scorers.load('linear', {str(tmp_path)!r})([{{'text': 'a'}}]))\n"
        "print([name for name in ('jax', 'flax', 'torch', 'scipy', 'sklearn') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
