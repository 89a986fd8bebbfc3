"""Packed prefix trees give the numbers that each answer gives alone."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment.errors import InputError
from alignment.models import decoder, tree_attention
from alignment.preference import pairs
from alignment.train import sharding, step, train_state
from data.texts import preferences, trees
from tests.preference import slow, test_pairs
from tests.train import helpers

EXACT = dict(dtype="float64", param_dtype="float64")


def answers_of(num, seed):
    """`num` answers to one prompt, some of which open alike, and two answers to the prompt's next turn."""
    rng = np.random.default_rng(seed)
    prompt, opening = rng.integers(0, helpers.VOCAB, 5), rng.integers(0, helpers.VOCAB, 2)
    first = [
        np.concatenate([prompt, opening[: k % 3], rng.integers(0, helpers.VOCAB, 1 + (k + seed) % 4)])
        for k in range(num)
    ]
    second = [np.concatenate([first[0], [3], rng.integers(0, helpers.VOCAB, 2 + k)]) for k in range(2)]
    made = [trees.Answer(one.astype(np.int32), 5) for one in first]
    return made, [trees.Answer(one.astype(np.int32), len(first[0]) + 1) for one in second]


def steps_of(num):
    """Pairs of two prompts with `num` answers each, every pair of them, and of their next turns."""
    out = []
    for seed in range(2):
        first, second = answers_of(num, seed)
        out += [(first[i], first[j]) for i in range(num) for j in range(i + 1, num)] or [(first[0], first[0])]
        out.append(tuple(second))
    return out


def exact_params():
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), helpers.start_params())


def alone(params, answers, num_time=24, model=None):
    """Log-probability of each answer's tokens, every answer an ordinary sequence in a row of its own."""
    model = model or helpers.model(attention="dense", **EXACT)
    tokens = np.stack([np.pad(answer.ids, (0, num_time - len(answer.ids))) for answer in answers])
    hidden = model.apply({"params": params}, jnp.asarray(tokens))
    logps = jax.nn.log_softmax(hidden @ decoder.head(model, params), axis=-1)
    return [
        jnp.stack([logps[i, t - 1, answer.ids[t]] for t in range(answer.prompt_len, len(answer.ids))])
        for i, answer in enumerate(answers)
    ]


@pytest.mark.parametrize("kernel", ["blocked", "dense", "expanded"])
@pytest.mark.parametrize("num", [1, *(pytest.param(num, marks=pytest.mark.slow) for num in (2, 3)), 4])
def test_log_probabilities_and_gradients_are_those_of_each_answer_alone_in_float64(monkeypatch, kernel, num):
    monkeypatch.setattr(tree_attention, "BLOCK", 8)  # several blocks, so that some are skipped
    rows = trees.plan(steps_of(num), 1)
    expand = "packed" if kernel == "expanded" else ""
    batch = trees.fill(rows, num_time=rows[0].size + 3, num_pairs=len(rows[0].pairs), pad_id=0, expand=expand)
    answers = rows[0].answers
    with jax.enable_x64(True):
        params, model = exact_params(), helpers.model(attention=kernel, **EXACT)
        weights = np.random.default_rng(0).normal(size=batch["mask"].shape)

        def packed(params):
            logps_NM = pairs.token_logps(model, params, batch)
            return jnp.sum(logps_NM * weights), logps_NM

        def separate(params):
            logps = jnp.concatenate(alone(params, answers))
            return jnp.sum(logps * weights[0][: len(logps)]), logps

        ours, twins = (jax.jit(jax.grad(fn, has_aux=True))(params) for fn in (packed, separate))
        assert ours[1].dtype == np.float64
        np.testing.assert_allclose(ours[1][0, : len(twins[1])], twins[1], rtol=0, atol=1e-12)
        for a, b in zip(jax.tree.leaves(ours[0]), jax.tree.leaves(twins[0])):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


DATA = test_pairs.make_pairs()


def tree_batch(index=range(8), num_rows=1, more=0, **extra):
    """The pairs of `test_pairs` as packed rows."""
    index = np.array(index, np.int32)
    rows = trees.plan([DATA.sides(i) for i in index], num_rows)
    size = max(row.size for row in rows) + more
    return trees.fill(rows, num_time=size, num_pairs=len(index), pad_id=0, of_pairs={"index": index}, **extra)


@pytest.fixture(scope="module")
def plain():
    return test_pairs.compiled()(test_pairs.make_batch())


def test_loss_gradient_and_metrics_are_those_of_padded_rows(plain):
    found = test_pairs.compiled()(tree_batch())
    assert abs(found[0] - plain[0]) < 1e-6
    test_pairs.assert_close(found, plain, 1e-5)
    assert found[2].keys() == plain[2].keys()
    for name, value in plain[2].items():
        np.testing.assert_allclose(found[2][name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "changes",
    [dict(more=13), dict(index=[5, 2, 7, 0, 1, 6, 4, 3]), dict(num_rows=2), dict(num_rows=3, more=5)],
    ids=["padding", "order", "rows", "rows, one of which holds less"],
)
def test_padding_order_and_packing_change_nothing(changes, plain):
    found = test_pairs.compiled(with_gradient=False)(tree_batch(**changes))
    assert abs(found[0] - plain[0]) < 1e-6


def test_what_stands_in_the_padding_changes_nothing(plain):
    batch, rng = tree_batch(more=9), np.random.default_rng(2)
    batch["tokens"][batch["ends"] == 0] = rng.integers(0, helpers.VOCAB, (batch["ends"] == 0).sum())
    found = test_pairs.compiled(with_gradient=False)(batch)
    assert abs(found[0] - plain[0]) < 1e-6


@pytest.mark.parametrize("shape", helpers.MESHES)
def test_every_mesh_agrees_with_one_device(shape, plain):
    found = test_pairs.compiled(shape)(tree_batch(num_rows=int(np.prod(shape[:2]))))
    assert abs(found[0] - plain[0]) < 1e-6
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(plain[1])):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize("sizes", [dict(data=2, sequence=4), dict(data=1, fsdp=2, sequence=2, tensor=2)], ids=str)
def test_rows_in_pieces_over_devices_agree_with_one_device(monkeypatch, sizes, plain):
    monkeypatch.setattr(tree_attention, "BLOCK", 8)  # a row has more blocks than there are pieces, and not a multiple
    mesh, batch = sharding.make_mesh(**sizes), tree_batch(num_rows=2)
    assert mesh.shape["sequence"] > 1 and -(-batch["tokens"].shape[1] // 8) % mesh.shape["sequence"] > 0
    found = test_pairs.compiled_on(mesh)(batch)
    assert abs(found[0] - plain[0]) < 1e-6
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(plain[1])):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


def test_a_device_holds_its_piece_of_a_row_and_gathers_keys_and_values_only():
    mesh, batch = sharding.make_mesh(data=1, sequence=8), tree_batch(more=4)
    model = helpers.model()
    batch = {name: jnp.asarray(values) for name, values in batch.items()}

    def hidden(params):
        return model.apply({"params": params}, batch["tokens"], batch["positions"], ends_BT=batch["ends"])

    with sharding.activations(mesh):
        lowered = jax.jit(hidden).lower(helpers.start_params())
        text = lowered.compile().as_text()
    T = batch["tokens"].shape[1]
    assert T % 8 == 0
    wide = re.findall(rf"f32\[(?:1,)?{T},64\]", text)  # the feed-forward of a whole row
    assert not wide and re.search(rf"f32\[(?:1,)?{T // 8},64\]", text)


@pytest.mark.parametrize("parts", [3, 5])
def test_accumulated_rows_that_count_differently_give_the_gradient_of_all(parts, plain):
    mesh = helpers.make_mesh()
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    policy, reference = (jax.device_put(tree, place) for tree in test_pairs.policy_and_reference())
    tx = optax.sgd(1.0)  # parameters move by the gradient itself
    state = train_state.TrainState(jnp.int32(0), policy, tx.init(policy), jax.random.PRNGKey(0), reference)
    update = step.build(pairs.loss_fn(helpers.model(), beta=test_pairs.BETA), tx, accumulate=parts)
    batch = tree_batch(num_rows=parts)
    assert len({int(row.sum()) for row in batch["weights"]}) > 1
    after, metrics = jax.jit(update)(state, sharding.to_devices(batch, mesh))
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), policy, after.params)
    value = float(step.value(metrics["loss"]))
    assert abs(value - plain[0]) < 1e-6
    test_pairs.assert_close((value, moved), plain, 1e-5)


@functools.cache
def slow_logps():
    return [test_pairs.slow_logps(params, DATA) for params in test_pairs.policy_and_reference()]


@pytest.mark.parametrize("alpha", [0.4, 0.0])
def test_the_tail_of_the_longer_answer_is_damped_as_in_padded_rows(alpha):
    options = dict(length_alpha=alpha, with_gradient=False)
    wanted = test_pairs.compiled(**options)(test_pairs.make_batch())
    found = test_pairs.compiled(**options)(tree_batch(num_rows=2))
    assert abs(found[0] - wanted[0]) < 1e-6 and abs(wanted[0] - np.log(2)) > 1e-3


@pytest.mark.parametrize("loss", ["ipo", "aot", "kto"])
def test_losses_by_length_and_over_the_batch_read_the_same_numbers(loss):
    options = dict(loss=loss, with_gradient=False)
    wanted = test_pairs.compiled(**options)(test_pairs.make_batch())
    assert abs(test_pairs.compiled(**options)(tree_batch(num_rows=2))[0] - wanted[0]) < 1e-5 * max(1, wanted[0])


def test_labelled_answers_are_read_beside_their_pairs():
    labels = np.array([1, 0, 1, 1, 0, 0, 1, 0], np.float32)
    wanted = test_pairs.compiled(loss="kto_unpaired", with_gradient=False)(
        {**test_pairs.make_batch(), "labels": labels}
    )
    rows = trees.plan([DATA.sides(i) for i in range(8)], 2)
    of_pairs = {"index": np.arange(8, dtype=np.int32), "labels": labels}
    batch = trees.fill(rows, num_time=96, num_pairs=8, pad_id=0, of_pairs=of_pairs)
    found = test_pairs.compiled(loss="kto_unpaired", with_gradient=False)(batch)
    assert abs(found[0] - wanted[0]) < 1e-6


def test_six_pairs_of_four_answers_have_the_loss_of_six_pairs_apart():
    answers, _ = answers_of(4, 0)
    step_of = [(answers[i], answers[j]) for i in range(4) for j in range(i + 1, 4)]
    rows = trees.plan(step_of, 1)
    packed = trees.fill(rows, num_time=rows[0].size, num_pairs=6, pad_id=0, of_pairs={"index": np.arange(6)})
    sequences = [answer.ids for pair in step_of for answer in pair]
    apart = preferences.Pairs(
        tokens=np.concatenate(sequences),
        starts=np.cumsum([0, *map(len, sequences)]),
        prompt_len_NP=np.full((6, 2), 5),
        trunk_len_N=np.full(6, 5),
        label_N=None,
        items=(None,) * 6,
        limits={"sequence": 16, "row": 24, "answer": 8},
        pad_id=0,
    )
    wanted = test_pairs.compiled()(test_pairs.make_batch(apart, range(6)))
    test_pairs.assert_close(test_pairs.compiled()(packed), wanted, 1e-5)


@pytest.mark.parametrize(("name", "slow_fn"), [("plackett_luce", slow.plackett_luce_list), ("lipo", slow.lipo_list)])
def test_lists_of_ranked_answers_count_once_each_however_many_pairs_they_make(name, slow_fn):
    lists = [answers_of(4, 0)[0], answers_of(3, 1)[0], answers_of(2, 2)[0]]
    step_of = [(one[i], one[j]) for one in lists for i in range(len(one)) for j in range(i + 1, len(one))]
    rows = trees.plan(step_of, 2)
    batch = trees.fill(rows, num_time=64, num_pairs=12, pad_id=0, of_pairs={"index": np.arange(len(step_of))})
    loss, _, metrics = test_pairs.compiled(loss=name, with_gradient=False)(batch)
    policy, reference = test_pairs.policy_and_reference()
    logps_fn = jax.jit(lambda params: jnp.stack([x.sum() for one in lists for x in alone_in(params, one)]))
    rewards = test_pairs.BETA * (np.asarray(logps_fn(policy), float) - np.asarray(logps_fn(reference), float))
    wanted = np.mean([slow_fn(part) for part in np.split(rewards, [4, 7])])
    assert abs(loss - wanted) < 1e-5 and metrics["rewards/margins"] != 0


def alone_in(params, answers):
    return alone(params, answers, model=helpers.model(attention="dense"))


def test_a_list_is_refused_in_rows_that_do_not_hold_it():
    with pytest.raises(InputError, match="stand together in rows of trees only"):
        test_pairs.compiled(loss="plackett_luce", with_gradient=False)(test_pairs.make_batch())


@pytest.fixture(scope="module")
def scored():
    """Reference log-probabilities of every answer, computed in packed rows."""
    answers = [side for i in range(8) for side in DATA.sides(i)]
    lengths = [len(answer.ids) - answer.prompt_len for answer in answers]
    batches = trees.scoring_batches(answers, num_places=40, num_rows=2, pad_id=0)
    reference = test_pairs.policy_and_reference()[1]
    return pairs.score_answers(helpers.model(), reference, batches, lengths, helpers.make_mesh())


def test_answers_scored_in_packed_rows_are_scored_right_and_serve_as_the_reference(scored, plain):
    for i, pair in enumerate(slow_logps()[1]):
        for p, side in enumerate(pair):
            np.testing.assert_allclose(scored[2 * i + p], side, atol=1e-5)
    index = [5, 2, 7, 0, 1, 6, 4, 3]
    found = test_pairs.compiled()(tree_batch(index, 2, reference_fn=lambda b, p: scored[2 * index[b] + p]))
    assert abs(found[0] - plain[0]) < 1e-6


def test_an_answer_that_was_not_scored_is_refused():
    answers = list(DATA.sides(0))
    batches = trees.scoring_batches(answers, num_places=40, num_rows=1, pad_id=0)
    with pytest.raises(ValueError, match="1 of 3 answers were not scored"):
        pairs.score_answers(helpers.model(), helpers.start_params(), batches, [1, 1, 1], helpers.make_mesh())


def check_first(**changes):
    """Check the first update of a batch whose reference is the policy, but for the changes; returns its loss."""
    policy, batch = test_pairs.policy_and_reference()[0], tree_batch()
    found = jax.jit(functools.partial(pairs.token_logps, helpers.model()))(policy, batch)
    batch |= {"reference": np.asarray(found)} | changes
    value, _, metrics = test_pairs.compiled(with_gradient=False)(batch)
    pairs.check_first("dpo", {"beta": test_pairs.BETA}, tolerance=1e-4)({"loss": value, **metrics}, batch)
    return value


def test_the_first_loss_of_packed_rows_is_ln_2():
    assert abs(check_first() - np.log(2)) < 1e-6


@pytest.mark.parametrize(
    "fault",
    [
        lambda batch: {"reference": np.zeros_like(batch["mask"])},
        lambda batch: {name: np.roll(batch[name], 1, axis=-1) for name in ("targets", "sources", "mask", "owners")},
        lambda batch: {"sources": np.maximum(batch["sources"] - 1, 0)},
        lambda batch: {"ends": np.full_like(batch["ends"], batch["ends"].shape[1])},
        lambda batch: {"positions": batch["positions"] + np.arange(batch["positions"].shape[1])[None]},
    ],
    ids=["another reference", "targets shifted", "another source", "other groups seen", "positions of the row"],
)
def test_the_first_check_fires_on_a_fault_in_packed_rows(fault):
    with pytest.raises(InputError, match=r"batch of pairs \[0, 1, 2, 3, 4, 5, 6, 7\]"):
        check_first(**fault(tree_batch()))
