import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment import logprobs
from alignment.errors import InputError
from alignment.models import decoder
from alignment.preference import losses, pairs, scores
from alignment.train import loop, sharding, step, train_state
from data.texts import preferences
from tests.train import helpers

BETA = 0.3


def make_pairs(num=8, seed=0):
    """Random pairs: a prompt of 3 to 8 tokens, answers of 1 to 7, some with an opening in common."""
    rng = np.random.default_rng(seed)
    sequences, prompts = [], []
    for i in range(num):
        prompt = rng.integers(0, helpers.VOCAB, rng.integers(3, 9))
        shared = rng.integers(0, helpers.VOCAB, i % 3)
        for _ in range(2):
            sequences.append(np.concatenate([prompt, shared, rng.integers(0, helpers.VOCAB, rng.integers(1, 6))]))
            prompts.append(len(prompt))
    prompt_len_NP = np.array(prompts).reshape(-1, 2)
    lengths = np.array([len(s) for s in sequences]).reshape(-1, 2)
    limits = {"sequence": 16, "row": 24, "answer": 8}
    assert (lengths - prompt_len_NP).max() <= 8 and len(set(lengths.flat)) > 3
    return preferences.Pairs(
        tokens=np.concatenate(sequences).astype(np.int32),
        starts=np.cumsum([0, *map(len, sequences)]),
        prompt_len_NP=prompt_len_NP,
        trunk_len_N=prompt_len_NP[:, 0],
        label_N=None,
        items=(None,) * num,
        limits=limits,
        pad_id=0,
    )


def make_batch(data=None, index=range(8), layout="separate", num_time=24):
    index = np.array(index, np.int32)
    return preferences.assemble(data or make_pairs(), index, layout=layout, num_time=num_time, num_answer=8)


@functools.cache
def policy_and_reference():
    """Two sets of parameters that differ enough for a loss away from ln 2."""
    policy = helpers.start_params()
    rng = np.random.default_rng(1)
    return policy, jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape).astype(x.dtype), policy)


@functools.cache
def compiled(mesh_shape=(1, 1, 1), loss="dpo", with_gradient=True, **options):
    """A function batch -> (loss, gradient or None, metrics) on a mesh, policy and reference in place."""
    return compiled_on(helpers.make_mesh(mesh_shape), loss, with_gradient, **options)


def compiled_on(mesh, loss="dpo", with_gradient=True, **options):
    model = helpers.model()
    shardings = train_state.param_shardings(model, jnp.zeros((1, 4), jnp.int32), mesh)
    policy, reference = (jax.device_put(tree, shardings) for tree in policy_and_reference())
    loss_fn = pairs.loss_fn(model, loss, mesh=mesh, beta=BETA, **options)

    def mean(params, frozen, batch):
        found, metrics = loss_fn(params, batch, rng=jax.random.PRNGKey(0), frozen=frozen)
        return found.total / found.count, metrics

    grad_fn = jax.jit(jax.value_and_grad(mean, has_aux=True) if with_gradient else lambda *args: (mean(*args), None))

    def call(batch):
        with sharding.activations(mesh):
            (value, metrics), gradient = grad_fn(policy, reference, sharding.to_devices(batch, mesh))
        return float(value), jax.device_get(gradient), {k: float(step.value(m)) for k, m in metrics.items()}

    return call


def assert_close(found, wanted, atol):
    assert abs(found[0] - wanted[0]) <= atol
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found[1], wanted[1])


@pytest.fixture(scope="module")
def plain():
    """Loss, gradient and metrics of the plain batch on one device; the loss is not ln 2 and the gradient not 0."""
    found = compiled()(make_batch())
    assert abs(found[0] - np.log(2)) > 0.01
    assert max(np.abs(g).max() for g in jax.tree.leaves(found[1])) > 0.01
    return found


@jax.jit
def full_logits(params, tokens):
    model = helpers.model()
    return decoder.logits(model, params, model.apply({"params": params}, tokens))


def slow_logps(params, data, whole=False):
    """[n, 2] lists of float64 log-probabilities of each answer token (or of every token), one sequence at a time."""
    out = []
    for i in range(len(data)):
        for p in range(2):
            ids = np.zeros(24, np.int32)
            num = len(data.sequence(i, p))
            ids[:num] = data.sequence(i, p)
            logits = np.asarray(full_logits(params, ids[None]), np.float64)[0]
            logps = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
            start = 1 if whole else data.prompt_len_NP[i, p]
            out.append(np.array([logps[t - 1, ids[t]] for t in range(start, num)]))
    return [out[2 * i : 2 * i + 2] for i in range(len(data))]


def slow_dpo(policy, reference, beta=BETA):
    """Eq. 7 of the paper, one pair at a time, from [n][2] sums."""
    z = [beta * ((w - ref_w) - (l - ref_l)) for (w, l), (ref_w, ref_l) in zip(policy, reference)]
    return np.array([np.log1p(np.exp(-z_i)) for z_i in z])


@pytest.fixture(scope="module")
def slow():
    """Log-probabilities of every answer token under policy and reference, the slow way."""
    return [slow_logps(params, make_pairs()) for params in policy_and_reference()]


def sums(logps):
    return [[side.sum() for side in pair] for pair in logps]


def test_the_loss_is_the_paper_s_on_full_logits(plain, slow):
    np.testing.assert_allclose(plain[0], slow_dpo(*map(sums, slow)).mean(), atol=1e-5)
    margin = [BETA * ((w - rw) - (l - rl)) for (w, l), (rw, rl) in zip(*map(sums, slow))]
    np.testing.assert_allclose(plain[2]["rewards/margins"], np.mean(margin), atol=1e-5)
    np.testing.assert_allclose(plain[2]["rewards/accuracies"], np.mean(np.array(margin) > 0))


def test_the_prompt_s_log_probabilities_change_nothing(plain):
    whole = [sums(slow_logps(params, make_pairs(), whole=True)) for params in policy_and_reference()]
    np.testing.assert_allclose(plain[0], slow_dpo(*whole).mean(), atol=1e-5)


def test_longer_padding_changes_nothing(plain):
    assert_close(compiled()(make_batch(num_time=32)), plain, 1e-5)


def test_what_stands_in_the_padding_changes_nothing(plain):
    batch, rng = make_batch(), np.random.default_rng(2)
    hidden = batch["groups"] == 0
    assert hidden.any() and (batch["mask"] == 0).any()
    batch["tokens"][hidden] = rng.integers(0, helpers.VOCAB, hidden.sum())
    for name, limit in (("sources", 24), ("targets", helpers.VOCAB)):
        unread = batch["mask"] == 0
        batch[name][unread] = rng.integers(0, limit, unread.sum())
    assert_close(compiled()(batch), plain, 1e-5)


def test_the_order_of_pairs_changes_nothing(plain):
    assert_close(compiled()(make_batch(index=[5, 2, 7, 0, 1, 6, 4, 3])), plain, 1e-5)


def test_pairs_of_weight_zero_change_nothing(plain):
    batch = make_batch(index=[*range(8), 3, 3, 0, 1])
    batch["weights"][8:] = 0
    assert_close(compiled()(batch), plain, 1e-5)


def test_both_layouts_have_the_same_loss_gradient_and_metrics(plain):
    found = compiled()(make_batch(layout="shared"))
    assert_close(found, plain, 1e-5)
    assert found[2].keys() == plain[2].keys()
    for name, value in plain[2].items():
        np.testing.assert_allclose(found[2][name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("shape", helpers.MESHES)  # two key/value heads do not divide over tensor=4
@pytest.mark.parametrize("layout", ["separate", "shared"])
def test_every_mesh_agrees_with_one_device(shape, layout, plain):
    assert_close(compiled(shape)(make_batch(layout=layout)), plain, 1e-4)


@pytest.mark.parametrize(("parts", "layout"), [(8, "separate"), (3, "separate"), (3, "shared")])  # 3: one is filled up
def test_accumulation_gives_the_gradient_of_the_whole_batch(parts, layout, plain):
    mesh = helpers.make_mesh()
    policy, reference = (
        jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
        for tree in policy_and_reference()
    )
    tx = optax.sgd(1.0)  # parameters move by the gradient itself
    state = train_state.TrainState(jnp.int32(0), policy, tx.init(policy), jax.random.PRNGKey(0), reference)
    update = step.build(pairs.loss_fn(helpers.model(), beta=BETA), tx, accumulate=parts)
    batch = sharding.to_devices(make_batch(layout=layout), mesh)
    after, metrics = jax.jit(update)(state, batch)
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), policy, after.params)
    assert_close((float(step.value(metrics["loss"])), moved), plain, 1e-5)
    np.testing.assert_allclose(
        float(step.value(metrics["rewards/margins"])), plain[2]["rewards/margins"], rtol=1e-4, atol=1e-6
    )


@pytest.fixture(scope="module")
def stored():
    """Reference log-probabilities [8,2,8] as a run computes them before training."""
    data, mesh, model = make_pairs(), helpers.make_mesh(), helpers.model()
    batches = preferences.batches(data, batch_size=3, endless=False)  # the last batch is filled up
    return pairs.score(model, policy_and_reference()[1], batches, 8, 8, mesh)


def test_stored_reference_log_probabilities_serve_as_those_of_the_model_itself(stored, plain, slow):
    for i, pair in enumerate(slow[1]):
        for p, side in enumerate(pair):
            np.testing.assert_allclose(stored[i, p, : len(side)], side, atol=1e-5)
            assert not stored[i, p, len(side) :].any()
    index = [5, 2, 7, 0, 1, 6, 4, 3]
    assert_close(compiled()({**make_batch(index=index), "reference": stored[index]}), plain, 1e-5)


def test_stored_reference_log_probabilities_are_the_same_on_a_mesh(stored):
    mesh, model = helpers.make_mesh((2, 2, 2)), helpers.model()
    place = train_state.param_shardings(model, jnp.zeros((1, 4), jnp.int32), mesh)
    params = jax.device_put(policy_and_reference()[1], place)
    batches = preferences.batches(make_pairs(), batch_size=8, layout="shared", endless=False)
    np.testing.assert_allclose(pairs.score(model, params, batches, 8, 8, mesh), stored, atol=1e-5)


def test_a_pair_that_was_not_scored_is_refused_by_number():
    batches = [make_batch(index=[0, 1, 2, 3])]
    with pytest.raises(ValueError, match="1 of 5 pairs were not scored, the first is number 4"):
        pairs.score(helpers.model(), helpers.start_params(), batches, 5, 8, helpers.make_mesh())


def test_length_desensitised_dpo_damps_the_tail_of_the_longer_answer(slow):
    alpha = 0.4
    found = compiled(length_alpha=alpha, with_gradient=False)(make_batch())
    damped = []
    for logps in slow:
        damped.append([])
        for pair in logps:
            shared = min(map(len, pair))
            damped[-1].append([side[:shared].sum() + alpha * side[shared:].sum() for side in pair])
    np.testing.assert_allclose(found[0], slow_dpo(*damped).mean(), atol=1e-5)


def test_the_anchor_adds_the_chosen_answer_s_loss_per_token(slow):
    found = compiled(sft_weight=0.7, with_gradient=False)(make_batch())
    anchor = np.mean([-pair[0].mean() for pair in slow[0]])
    np.testing.assert_allclose(found[0], slow_dpo(*map(sums, slow)).mean() + 0.7 * anchor, atol=1e-5)


@pytest.mark.parametrize("loss", ["kto", "bco", "aot"])
def test_losses_over_the_whole_batch_are_those_of_one_part_when_it_is_taken_in_several(loss):
    mesh = helpers.make_mesh()
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    policy, reference = (jax.device_put(tree, place) for tree in policy_and_reference())
    tx, batch = optax.sgd(1.0), sharding.to_devices(make_batch(), mesh)  # parameters move by the gradient itself
    results = []
    for accumulate in (1, 3):
        state = train_state.TrainState(jnp.int32(0), policy, tx.init(policy), jax.random.PRNGKey(0), reference)
        loss_fn = pairs.loss_fn(helpers.model(), loss, beta=BETA)
        phases = pairs.phases(loss_fn)
        after, found = jax.jit(step.build(loss_fn, tx, accumulate=accumulate, phases=phases))(state, batch)
        moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), policy, after.params)
        results.append((float(step.value(found["loss"])), moved))
    assert max(np.abs(g).max() for g in jax.tree.leaves(results[0][1])) > 1e-3
    assert_close(results[1], results[0], 1e-6)


@pytest.mark.parametrize("loss", ["simpo", "orpo", "ipo", "apo_zero"])
def test_other_losses_read_the_same_log_probabilities(loss, slow):
    found = compiled(loss=loss, with_gradient=False)(make_batch())
    policy, reference = (jnp.array(sums(logps)) for logps in slow)
    num_tokens = jnp.array([[len(side) for side in pair] for pair in slow[0]])
    wanted = losses.compute(loss, policy_BP=policy, reference_BP=reference, num_tokens_BP=num_tokens, beta=BETA)
    np.testing.assert_allclose(found[0], float(jnp.mean(wanted)), rtol=1e-5)


def test_labelled_answers_go_through_kto_with_the_mismatched_answer_in_the_second_slot(slow):
    labels = np.array([1, 0, 1, 1, 0, 0, 1, 0], np.float32)
    found = compiled(loss="kto_unpaired", with_gradient=False)({**make_batch(), "labels": labels})
    ratio = np.array(sums(slow[0])) - np.array(sums(slow[1]))
    kl = max(ratio[:, 1].mean(), 0.0)
    z = np.where(labels > 0, BETA * (ratio[:, 0] - kl), BETA * (kl - ratio[:, 0]))
    np.testing.assert_allclose(found[0], np.mean(1 - 1 / (1 + np.exp(-z))), atol=1e-5)


def test_the_evaluator_counts_every_pair_once_and_no_filling(slow):
    mesh, model = helpers.make_mesh(), helpers.model()
    policy, reference = policy_and_reference()
    state = train_state.TrainState(jnp.int32(0), policy, {}, jax.random.PRNGKey(0), reference)
    batches = preferences.batches(make_pairs(), batch_size=3, endless=False)
    evaluate = loop.evaluator(pairs.loss_fn(model, beta=BETA), batches)
    for _ in range(2):  # a held-out set is gone through again at the next evaluation
        found = evaluate(state, mesh)
        np.testing.assert_allclose(found["loss"], slow_dpo(*map(sums, slow)).mean(), atol=1e-5)


def first_loss(**changes):
    """Metrics of the first update where the reference is the policy, as `check_first` sees them."""
    policy = policy_and_reference()[0]
    batch = make_batch()
    logps = pairs.score(helpers.model(), policy, [batch], 8, 8, helpers.make_mesh())
    batch |= {"reference": logps} | changes
    found = compiled(with_gradient=False)(batch)
    return {"loss": found[0], **found[2]}, batch


def test_the_first_loss_is_ln_2_and_passes_the_check():
    values, batch = first_loss()
    np.testing.assert_allclose(values["loss"], np.log(2), atol=1e-6)
    pairs.check_first("dpo", {"beta": BETA}, tolerance=1e-4)(values, batch)


@pytest.mark.parametrize(
    "fault",
    [
        lambda: {"mask": np.roll(make_batch()["mask"], 1, axis=-1)},
        lambda: {"sources": make_batch()["sources"] + 1},
        lambda: {"reference": np.zeros((8, 2, 8), np.float32)},
        lambda: {"groups": np.ones((16, 24), np.int32), "positions": make_batch()["positions"] * 0},
    ],
    ids=["mask shifted", "targets predicted by the next token", "another reference", "padding and order seen"],
)
def test_the_first_check_fires_on_a_fault_that_training_would_hide(fault):
    values, batch = first_loss(**fault())
    with pytest.raises(InputError, match=r"policy and reference start equal.*batch of pairs \[0, 1, 2.*[Rr]emove"):
        pairs.check_first("dpo", {"beta": BETA}, tolerance=1e-4)(values, batch)


def test_a_loss_without_a_known_start_is_not_checked():
    pairs.check_first("simpo", {"beta": BETA}, tolerance=1e-4)({"loss": 17.0}, make_batch())


def test_a_batch_without_any_reference_is_refused():
    loss_fn = pairs.loss_fn(helpers.model(), beta=BETA)
    with pytest.raises(InputError, match="reads a reference"):
        jax.eval_shape(lambda p: loss_fn(p, make_batch(), rng=None, frozen={}), helpers.start_params())


@pytest.mark.parametrize(
    ("loss", "options", "said"),
    [
        ("dpoo", {}, "loss='dpoo' is not one of: dpo"),
        ("dpo", {"gamma": 1.0}, "does not read 'gamma'"),
        ("dpo", {"length_alpha": 1.5}, r"length_alpha=1.5 must be in \[0, 1\]"),
        ("kto_unpaired", {"sft_weight": 0.1}, "single answers"),
    ],
)
def test_settings_that_mean_nothing_are_refused(loss, options, said):
    with pytest.raises(InputError, match=said):
        pairs.loss_fn(helpers.model(), loss, beta=BETA, **options)


def test_the_damped_sums_and_the_plain_ones_agree_where_alpha_is_one(slow):
    batch = make_batch()
    logps = np.zeros((8, 2, 8), np.float32)
    for i, pair in enumerate(slow[0]):
        for p, side in enumerate(pair):
            logps[i, p, : len(side)] = side
    damped = scores.length_desensitised(logps, batch["mask"], alpha=1.0)
    np.testing.assert_allclose(damped, logprobs.sums(logps, batch["mask"])[0], rtol=1e-6)
