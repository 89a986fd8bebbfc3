"""Our loss values beside TRL's own code, driven on fixed per-token log-probabilities.

TRL computes its losses inside the trainers, so the trainer's method is called with a stand-in for the trainer and a
stand-in for the model that returns the log-probabilities we chose.
"""

import types
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.preference import batchwise, losses, metrics, scores

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

B, R = 6, 9  # pairs, answer slots


def numbers(seed=0):
    """Per-token log-probabilities of policy and reference [B, 2, R], zero where masked, and the mask."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, R + 1, (B, 2))
    mask = (np.arange(R) < lengths[..., None]).astype(np.float64)
    reference = -rng.uniform(0.2, 3.0, (B, 2, R)) * mask
    policy = np.minimum(reference + rng.normal(0, 0.7, (B, 2, R)), -0.05) * mask
    return policy, reference, mask


class Accelerator:
    device = "cpu"

    def gather(self, x):
        return x

    gather_for_metrics = gather


def stacked(x_BPR, dtype=torch.float64):
    """Chosen rows over rejected rows, as TRL batches them."""
    return torch.tensor(np.concatenate([x_BPR[:, 0], x_BPR[:, 1]]), dtype=dtype)


def trl_dpo(loss_type, policy, reference, mask, alignment=None, **settings):
    """(loss, metrics) of DPOTrainer on these pairs."""
    from trl import DPOTrainer

    # TRL's alpha divergence knows no float64.
    dtype = torch.float32 if settings.get("f_divergence_type") == "alpha_divergence" else torch.float64
    per_token, completion = stacked(policy, dtype), stacked(mask)
    outputs = types.SimpleNamespace(
        log_probs=per_token,
        entropy=torch.zeros_like(per_token),
        mean_logits=torch.zeros_like(per_token),
        is_top1=torch.zeros_like(per_token, dtype=torch.bool),
        log_sum_sq_probs=torch.zeros_like(per_token) if alignment is None else stacked(alignment),
    )
    defaults = {
        "model": types.SimpleNamespace(training=False),
        "accelerator": Accelerator(),
        "args": types.SimpleNamespace(discopop_tau=settings.pop("discopop_tau", 0.05)),
        "aux_loss_enabled": False,
        "ld_alpha": None,
        "precompute_ref_logps": True,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "loss_types": [loss_type],
        "loss_weights": [1.0],
        "label_smoothing": 0.0,
        "use_weighting": False,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    trainer = types.SimpleNamespace(**(defaults | settings))
    prompt = torch.zeros(len(per_token), 1)  # one prompt token, so that the shift has something to drop
    ids = torch.ones(len(per_token), R + 1, dtype=torch.long)
    batch = {
        "input_ids": ids,
        "attention_mask": ids,
        "completion_mask": torch.cat([prompt, completion], dim=1).long(),
        "ref_chosen_logps": torch.tensor(reference[:, 0], dtype=dtype),
        "ref_rejected_logps": torch.tensor(reference[:, 1], dtype=dtype),
    }
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, batch, False)
    logged = {name: values[-1] for name, values in trainer._metrics["eval"].items() if values}
    return float(loss), logged


def trl_each(loss_type, policy, reference, mask, **settings):
    """TRL's loss of every pair by itself."""
    rows = [slice(i, i + 1) for i in range(B)]
    return [trl_dpo(loss_type, policy[s], reference[s], mask[s], **settings)[0] for s in rows]


def ours(name, policy, reference, num_tokens, **options):
    with jax.enable_x64(True):
        arrays = dict(policy_BP=policy, reference_BP=reference, num_tokens_BP=num_tokens)
        return np.asarray(losses.compute(name, **arrays, **options))


# ours, its options, TRL's name, its settings besides beta
SAME = [
    ("dpo", {}, "sigmoid", {}),
    ("hinge", {}, "hinge", {}),
    ("ipo", {}, "ipo", {}),
    ("exo", {"label_smoothing": 0.01}, "exo_pair", {"label_smoothing": 0.01}),
    ("nca", {}, "nca_pair", {}),
    ("robust", {"label_smoothing": 0.2}, "robust", {"label_smoothing": 0.2}),
    ("bco", {"delta": 0.0}, "bco_pair", {}),
    ("sppo", {}, "sppo_hard", {}),
    ("apo_zero", {}, "apo_zero", {}),
    ("apo_down", {}, "apo_down", {}),
    ("discopop", {"tau": 0.1}, "discopop", {"discopop_tau": 0.1}),
    ("sigmoid_norm", {}, "sigmoid_norm", {}),
    ("f_dpo", {"divergence": "forward_kl"}, "sigmoid", {"f_divergence_type": "forward_kl"}),
    ("f_dpo", {"divergence": "js"}, "sigmoid", {"f_divergence_type": "js_divergence"}),
    (
        "f_dpo",
        {"divergence": "alpha", "alpha": 0.3},
        "sigmoid",
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
    ),
]


@pytest.mark.parametrize(("name", "options", "loss_type", "settings"), SAME, ids=[f"{c[0]}-{c[2]}" for c in SAME])
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_same_value_as_trl(name, options, loss_type, settings, beta):
    policy, reference, mask = numbers()
    sums = policy.sum(-1), reference.sum(-1)
    expected = trl_each(loss_type, policy, sums[1], mask, beta=beta, **settings)
    got = ours(name, *sums, mask.sum(-1), beta=beta, **options)
    tolerance = 5e-6 if options.get("divergence") == "alpha" else 1e-6
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    policy_BP, reference_BP, num_tokens_BP = (jnp.asarray(x, jnp.float32) for x in (*sums, mask.sum(-1)))
    arrays = dict(policy_BP=policy_BP, reference_BP=reference_BP, num_tokens_BP=num_tokens_BP)
    single = losses.compute(name, **arrays, beta=beta, **options)
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-5)  # float32 sums of tens of nats


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_same_batch_mean_as_trl_where_the_loss_sorts(name):
    policy, reference, mask = numbers()
    expected, _ = trl_dpo(name, policy, reference.sum(-1), mask, beta=0.3, label_smoothing=0.1)
    got = ours(name, policy.sum(-1), reference.sum(-1), mask.sum(-1), beta=0.3, label_smoothing=0.1)
    assert got.mean() == pytest.approx(expected, abs=1e-6)


def test_metrics_have_trl_names_and_values():
    policy, reference, mask = numbers()
    expected_loss, logged = trl_dpo("sigmoid", policy, reference.sum(-1), mask, beta=0.3)
    arrays = [jnp.asarray(x.sum(-1), jnp.float32) for x in (policy, reference, mask)]
    loss = losses.dpo(*arrays[:2], beta=0.3)
    rewards = losses.rewards("dpo", *arrays, beta=0.3)
    sums = metrics.pairwise(loss, rewards, *arrays, jnp.ones(B))
    means = {name: float(total) / float(count) for name, (total, count) in sums.items()}
    shared = [name for name in logged if name.startswith(("rewards/", "logps/"))]
    assert len(shared) == 6
    for name in shared:
        assert means[name] == pytest.approx(logged[name], rel=1e-5, abs=1e-5), name
    assert means["loss"] == pytest.approx(expected_loss, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_length_desensitised_sums_give_the_loss_of_trl_ld_alpha(alpha):
    policy, reference, mask = numbers()
    with jax.enable_x64(True):
        sums = [np.asarray(scores.length_desensitised(x, mask, alpha=alpha)) for x in (policy, reference)]
    expected = trl_each("sigmoid", policy, sums[1], mask, beta=0.3, ld_alpha=alpha)
    np.testing.assert_allclose(ours("dpo", *sums, mask.sum(-1), beta=0.3), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["hinge", "ipo_sum", "exo", "robust", "discopop"])
def test_other_losses_under_an_f_divergence_are_had_on_its_scores(name):
    policy, reference, mask = numbers()
    kind = {"ipo_sum": "ipo", "exo": "exo_pair"}.get(name, name)
    smoothing = {"label_smoothing": 0.1} if name in ("exo", "robust") else {}
    with jax.enable_x64(True):
        values = np.asarray(scores.DIVERGENCES["js"](policy.sum(-1) - reference.sum(-1), None))
    if name == "ipo_sum":  # TRL has the per-token form only: scores are divided there
        values = values / mask.sum(-1)
    settings = {"beta": 0.3, "f_divergence_type": "js_divergence", **smoothing}
    expected = trl_each(kind, policy, reference.sum(-1), mask, **settings)
    got = ours(name, values, np.zeros_like(values), mask.sum(-1), beta=0.3, **smoothing)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_ipo_on_sums_is_trl_ipo_with_lengths_of_one():
    """Where we differ: `ipo_sum` is the original's sums; TRL only divides by lengths."""
    policy, reference, mask = numbers()
    single = np.zeros_like(mask)
    single[..., 0] = 1  # the whole sum on one token
    on_one_token = policy.sum(-1)[..., None] * single
    expected = trl_each("ipo", on_one_token, reference.sum(-1), single, beta=0.3)
    np.testing.assert_allclose(ours("ipo_sum", policy.sum(-1), reference.sum(-1), mask.sum(-1), beta=0.3), expected)


def test_label_smoothing_of_dpo_is_ours_and_trl_ignores_it():
    """Where we differ: smoothing adds e * beta * margin to the plain loss; TRL's `sigmoid` no longer reads it."""
    policy, reference, mask = numbers()
    sums = policy.sum(-1), reference.sum(-1)
    trl = trl_each("sigmoid", policy, sums[1], mask, beta=0.3, label_smoothing=0.1)
    margin = np.subtract(*(sums[0] - sums[1]).T)
    got = ours("dpo", *sums, mask.sum(-1), beta=0.3, label_smoothing=0.1)
    np.testing.assert_allclose(got, trl + 0.1 * 0.3 * margin, atol=1e-6)


def test_sft_anchor_averages_over_pairs_and_trl_over_tokens():
    """Where we differ: each chosen answer weighs the same with us, each token with TRL."""
    policy, reference, mask = numbers()
    trl, _ = trl_dpo("sft", policy, reference.sum(-1), mask, beta=0.3)
    lengths = mask.sum(-1)
    anchor = np.asarray(losses.sft_anchor(jnp.asarray(policy.sum(-1)), jnp.asarray(lengths)))
    assert (anchor * lengths[:, 0]).sum() / lengths[:, 0].sum() == pytest.approx(trl, rel=1e-6)
    assert abs(anchor.mean() - trl) > 1e-3
    each = trl_each("sft", policy, reference.sum(-1), mask, beta=0.3)
    np.testing.assert_allclose(anchor, each, rtol=1e-6)


def cpo_trainer(**settings):
    defaults = {"accelerator": Accelerator(), "alpha": 0.0, "label_smoothing": 0.0}
    return types.SimpleNamespace(**(defaults | settings))


def test_simpo_and_reference_free_have_the_values_of_the_cpo_trainer():
    cpo = pytest.importorskip("trl.experimental.cpo")
    policy, reference, mask = numbers()
    sums, lengths = policy.sum(-1), mask.sum(-1)
    means = torch.tensor(sums / lengths)
    trainer = cpo_trainer(loss_type="simpo", beta=2.0, simpo_gamma=0.7)
    expected, *rewards = cpo.CPOTrainer.cpo_loss(trainer, means[:, 0], means[:, 1])
    np.testing.assert_allclose(ours("simpo", sums, reference.sum(-1), lengths, beta=2.0, gamma=0.7), expected)
    with jax.enable_x64(True):
        ours_rewards = np.asarray(losses.rewards("simpo", sums, sums, lengths, beta=2.0))
    np.testing.assert_allclose(ours_rewards.T, np.stack(rewards))
    trainer = cpo_trainer(loss_type="sigmoid", beta=0.2, label_smoothing=0.1)
    expected, *_ = cpo.CPOTrainer.cpo_loss(trainer, torch.tensor(sums[:, 0]), torch.tensor(sums[:, 1]))
    got = ours("reference_free", sums, reference.sum(-1), lengths, beta=0.2, label_smoothing=0.1)
    np.testing.assert_allclose(got, expected)


def test_orpo_odds_term_has_the_value_of_the_orpo_trainer():
    """The supervised term is apart: TRL's runs over prompt and answer, ours over the answer."""
    orpo = pytest.importorskip("trl.experimental.orpo")
    policy, reference, mask = numbers()
    sums, lengths = policy.sum(-1), mask.sum(-1)
    means = torch.tensor(sums / lengths)
    trainer = types.SimpleNamespace(accelerator=Accelerator(), beta=0.3)
    ratio, *_ = orpo.ORPOTrainer.odds_ratio_loss(trainer, means[:, 0], means[:, 1])
    got = ours("orpo", sums, reference.sum(-1), lengths, beta=0.3) + sums[:, 0] / lengths[:, 0]
    np.testing.assert_allclose(got, -np.asarray(ratio), rtol=1e-5)


def trl_kto(loss_type, policy, reference, labels, **settings):
    """KTOTrainer's mean loss; slot 0 is the answer, slot 1 the mismatched one."""
    from trl import KTOTrainer

    per_token = torch.tensor(policy[:, :1])  # one answer token carries the sum
    zeros = torch.zeros_like(per_token)
    outputs = types.SimpleNamespace(log_probs=per_token, entropy=zeros, mean_logits=zeros)
    ids = torch.ones(B, 2, dtype=torch.long)
    batch = {
        "input_ids": ids,
        "attention_mask": ids,
        "completion_mask": torch.tensor([[0, 1]] * B),
        "label": torch.tensor(labels > 0),
        "ref_logps": torch.tensor(reference[:, 0]),
        "ref_KL_logps": torch.tensor(reference[:, 1]),
    }
    defaults = {
        "model": types.SimpleNamespace(training=False),
        "accelerator": Accelerator(),
        "_compute_kl_logps": lambda model, batch: torch.tensor(policy[:, 1]),
        "aux_loss_enabled": False,
        "precompute_ref_logps": True,
        "calculate_KL": loss_type == "kto",
        "loss_type": loss_type,
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    trainer = types.SimpleNamespace(**(defaults | settings))
    loss = KTOTrainer._compute_loss(trainer, lambda **_: outputs, batch, False)
    return float(loss), {name: values[-1] for name, values in trainer._metrics["eval"].items()}


@pytest.mark.parametrize("shift", [-3.0, 3.0], ids=["kl clamped at 0", "kl above 0"])
def test_unpaired_kto_has_the_value_of_the_kto_trainer(shift):
    policy, reference, _ = (x.sum(-1) for x in numbers())
    policy[:, 1] = reference[:, 1] + shift + policy[:, 1] / 10
    labels = np.array([1, 0, 1, 1, 0, 1], np.float64)
    weights = {"desirable_weight": 1.2, "undesirable_weight": 0.8}
    expected, logged = trl_kto("kto", policy, reference, labels, beta=0.3, **weights)
    with jax.enable_x64(True):
        loss = batchwise.kto_unpaired(policy, reference, labels, beta=0.3, **weights)
        rewards = losses.rewards("kto_unpaired", policy, reference, np.ones_like(policy), beta=0.3)
        sums = metrics.unpaired(loss, rewards, policy, reference, labels, jnp.ones(B))
    assert np.asarray(loss).mean() == pytest.approx(expected, abs=1e-6)
    done = metrics.finish({name: float(total) / float(count) for name, (total, count) in sums.items()})
    assert max(done.pop("kl"), 0.0) == pytest.approx(logged.pop("kl"), abs=1e-5)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"):
        assert done[name] == pytest.approx(logged[name], abs=1e-5), name


def test_unpaired_apo_zero_has_the_value_of_the_kto_trainer():
    policy, reference, _ = (x.sum(-1) for x in numbers())
    labels = np.array([1, 0, 1, 1, 0, 1], np.float64)
    expected, _ = trl_kto("apo_zero_unpaired", policy, reference, labels, beta=0.3)
    with jax.enable_x64(True):
        got = batchwise.apo_zero_unpaired(policy, reference, labels, beta=0.3)
    assert np.asarray(got).mean() == pytest.approx(expected, abs=1e-6)
