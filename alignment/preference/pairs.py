"""From a batch of pairs to answer log-probabilities, and from these to a training loss.

Dimensions: N rows, T time, B pairs, P pair = (chosen, rejected), A answer positions, D model width.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignment import logprobs, programs
from alignment.errors import InputError, within
from alignment.models import decoder, expanded_attention
from alignment.preference import listwise, losses, metrics, scores, trees
from alignment.train import sharding, step


def token_logps(
    model: decoder.DecoderLM, params: Any, batch: dict[str, jax.Array], mesh: Mesh | None = None
) -> jax.Array:
    """Log-probability `[B,P,A]` of every answer token, in nats; 0 where the mask is.

    Rows may hold one answer each (`N = 2B`, chosen before rejected), a pair behind one prompt (`N = B`), or packed
    prefix trees, whose log-probabilities are `[N,M]`: the batch says who sees whom, and which hidden state predicts
    which target.
    """
    places = [batch.get(name) for name in ("tokens", "positions", "groups", "branches")]
    hidden_NTD: Any = model.apply(  # without a cache, DecoderLM returns the array alone
        decoder.variables(params), *places, ends_BT=batch.get("ends"), strands=expanded_attention.arrays(batch)
    )
    num_rows = batch["tokens"].shape[0]
    shape_BPA = batch["targets"].shape
    logps_NM = logprobs.selected(
        hidden_NTD,
        decoder.head(model, params),
        batch["sources"].reshape(num_rows, -1),
        batch["targets"].reshape(num_rows, -1),
        mask_NM=batch["mask"].reshape(num_rows, -1),
        mesh=mesh,
    )
    return logps_NM.reshape(shape_BPA)


def loss_fn(
    model: decoder.DecoderLM,
    loss: str = "dpo",
    *,
    mesh: Mesh | None = None,
    sft_weight: float = 0.0,
    length_alpha: float = 1.0,
    **objective: Any,
) -> programs.Computation:
    """A preference loss over batches of pairs, for `step.build` and `loop.evaluator`.

    The reference is the batch's own `reference` `[B,P,A]` (log-probabilities stored before training) where it has one,
    else the model under `frozen`; a loss that reads no reference needs neither.

    Args:
        loss: a key of `losses.LOSSES`; those in `losses.UNPAIRED` read the batch's `labels`.
        sft_weight: weight of `losses.sft_anchor`; 0 leaves it out.
        length_alpha: weight of the tokens beyond the shorter answer's length (LD-DPO), in [0, 1]; 1 counts all alike.
        objective: keyword arguments of the loss.

    Raises:
        InputError: the loss is unknown or does not read an option, or a number is out of range.
    """
    losses.check_options(loss, objective)
    if loss not in losses.PAIRWISE and (sft_weight or length_alpha != 1):
        raise InputError(f"loss={loss!r} is on single answers: sft_weight and length_alpha need pairs")
    if loss in losses.LISTWISE and (sft_weight or length_alpha != 1):
        raise InputError(f"loss={loss!r} is on lists of answers: sft_weight and length_alpha need a loss on pairs")
    within("[0, 1]", length_alpha=length_alpha, hint="; 1 counts every token alike")

    words = {name: value for name, value in objective.items() if value is None or isinstance(value, str)}
    numbers = {name: _number(value) for name, value in objective.items() if name not in words}
    # None is not a number: a weight that a loss does without shapes the program
    alpha = _number(length_alpha) if length_alpha != 1 else None
    anchor = _number(sft_weight) if sft_weight else None
    scores_fn = programs.Computation(_scores, dict(model=model, mesh=mesh, loss=loss), dict(length_alpha=alpha))
    fixed = dict(loss=loss, words=tuple(sorted(words.items())))
    compare_fn = programs.Computation(_compare, fixed, dict(objective=numbers, sft_weight=anchor))
    return programs.Computation(_loss, {}, dict(scores_fn=scores_fn, compare_fn=compare_fn))


def phases(loss_fn: programs.Computation) -> tuple[programs.Computation, programs.Computation]:
    """A `loss_fn` in two: (params, batch, rng, frozen) to each pair's scores, and these to the loss.

    A loss that compares the answers of a whole batch needs the second on all of them, when the first goes over the
    batch in parts (`step.build`).
    """
    return loss_fn.numbers["scores_fn"], loss_fn.numbers["compare_fn"]


def _number(value):
    return float(value) if isinstance(value, int) else value  # 1 and 0.5 share a program


def _loss(params, batch, *, scores_fn, compare_fn, rng, frozen):
    return compare_fn(scores_fn(params, batch, rng=rng, frozen=frozen))


def _scores(params, batch, *, model, mesh, loss, length_alpha, rng, frozen):
    """What a loss reads of each pair or record; only `policy` depends on the parameters."""
    # There is no dropout in preference tuning, so rng goes unused.
    mask_BPA = batch["mask"]
    if loss in losses.LISTWISE and not trees.is_tree(batch):
        raise InputError(f"loss={loss!r} compares all answers of a prompt, which stand together in rows of trees only")
    logps_BPA = token_logps(model, params, batch, mesh)
    reference_BPA = _reference(model, batch, frozen, mesh, logps_BPA, is_needed=loss not in losses.REFERENCE_FREE)
    lists = {}
    if trees.is_tree(batch):
        if loss in losses.LISTWISE:
            answers_BP, lists_B = listwise.numbers(batch)
            lists = {"answers": answers_BP, "lists": lists_B, "num_lists": listwise.lists(batch)}
        policy_BP, num_tokens_BP = trees.sums(logps_BPA, batch, length_alpha=length_alpha)
        reference_BP, _ = trees.sums(reference_BPA, batch, length_alpha=length_alpha)
        batch = batch | {name: batch[name].reshape(-1) for name in ("weights", "labels") if name in batch}
    elif length_alpha is not None:
        policy_BP = scores.length_desensitised(logps_BPA, mask_BPA, alpha=length_alpha)
        reference_BP = scores.length_desensitised(reference_BPA, mask_BPA, alpha=length_alpha)
        num_tokens_BP = jnp.sum(mask_BPA, axis=-1)
    else:
        policy_BP, reference_BP = (logprobs.sums(x, mask_BPA)[0] for x in (logps_BPA, reference_BPA))
        num_tokens_BP = jnp.sum(mask_BPA, axis=-1)
    per_pair = {name: batch[name] for name in ("weights", "labels") if name in batch} | lists
    return {"policy": policy_BP, "reference": reference_BP, "num_tokens": num_tokens_BP, **per_pair}


def _compare(scored, *, loss, words, objective, sft_weight):
    """The loss and its metrics, from what `_scores` gives of all pairs that are compared."""
    policy_BP, reference_BP, num_tokens_BP = (scored[name] for name in ("policy", "reference", "num_tokens"))
    weights_B = scored["weights"]
    rewards_BP = losses.rewards(loss, policy_BP, reference_BP, num_tokens_BP, beta=objective["beta"])
    loss_B = losses.compute(
        loss,
        policy_BP=policy_BP,
        reference_BP=reference_BP,
        num_tokens_BP=num_tokens_BP,
        labels_B=scored.get("labels"),
        weights_B=weights_B,
        answers_BP=scored.get("answers"),
        lists_B=scored.get("lists"),
        **objective,
        **dict(words),
    )
    if loss in losses.PAIRWISE:
        if sft_weight is not None:
            loss_B += sft_weight * losses.sft_anchor(policy_BP, num_tokens_BP)
        sums = metrics.pairwise(loss_B, rewards_BP, policy_BP, reference_BP, num_tokens_BP, weights_B)
        if loss in losses.REFERENCE_FREE:  # without a reference, no answer can have fallen below it
            sums = {name: pair for name, pair in sums.items() if not name.startswith("displacement/")}
        if "num_lists" in scored:
            sums["loss"] = sums["loss"][0], scored["num_lists"]
    else:
        sums = metrics.unpaired(loss_B, rewards_BP, policy_BP, reference_BP, scored["labels"], weights_B)
    means = {name: step.Mean(*pair) for name, pair in sums.items()}
    return means.pop("loss"), means


def _reference(model, batch, frozen, mesh, logps_BPA, *, is_needed):
    if not is_needed:
        # the loss subtracts nothing, and the diagnostics compare with the policy as it is at this step
        return jax.lax.stop_gradient(logps_BPA)
    if "reference" in batch:
        return batch["reference"]
    if not frozen:
        raise InputError(
            "this loss reads a reference: store its log-probabilities, or put its parameters in state.frozen"
        )
    return jax.lax.stop_gradient(token_logps(model, frozen, batch, mesh))


def score(
    model: decoder.DecoderLM,
    params: Any,
    batches: Iterable[dict[str, np.ndarray]],
    num_pairs: int,
    answer_len: int,
    mesh: Mesh,
) -> np.ndarray:
    """Log-probabilities `[num_pairs,P,A]` float32 of every answer token under fixed parameters, computed once.

    Args:
        num_pairs: pairs of the split.
        answer_len: A, answer positions of every batch.
        batches: every pair of the split once, under its number in `index`; filling has weight 0.

    Raises:
        InputError: a log-probability is not finite.
        ValueError: the batches leave a pair out.
    """
    scores_fn = programs.compiled(programs.Computation(_token_logps, dict(model=model, mesh=mesh)))
    # On the host: four bytes for every answer token of the split, more than a device may have left.
    stored = np.zeros((num_pairs, 2, answer_len), np.float32)
    is_scored = np.zeros(num_pairs, bool)
    with sharding.activations(mesh):
        for batch in batches:
            on_devices = sharding.to_devices(batch, mesh)
            logps_BPA, index_B, weights_B = sharding.to_host(
                (scores_fn(params, on_devices), on_devices["index"], on_devices["weights"])
            )
            real_B = weights_B > 0
            stored[index_B[real_B]] = logps_BPA[real_B]
            is_scored[index_B[real_B]] = True
    missing, bad = np.flatnonzero(~is_scored), np.flatnonzero(~np.isfinite(stored).all(axis=(1, 2)))
    if missing.size:
        raise ValueError(f"{missing.size} of {num_pairs} pairs were not scored, the first is number {missing[0]}")
    _check_finite(bad, num_pairs, "pair")
    return stored


def score_answers(
    model: decoder.DecoderLM,
    params: Any,
    batches: Iterable[tuple[dict[str, np.ndarray], list[list[int]]]],
    lengths: Sequence[int],
    mesh: Mesh,
) -> list[np.ndarray]:
    """Log-probabilities [tokens] float32 of each answer's tokens under fixed parameters, in nats.

    Args:
        batches: rows of answers and the numbers of the answers in every row of all processes, whose targets stand one
            answer after the other (`data.texts.trees.scoring_batches`).
        lengths: of each answer in tokens.

    Raises:
        InputError: a log-probability is not finite.
        ValueError: the batches leave an answer out.
    """
    scores_fn = programs.compiled(programs.Computation(_token_logps, dict(model=model, mesh=mesh)))
    scored: list[np.ndarray | None] = [None] * len(lengths)
    with sharding.activations(mesh):
        for batch, numbers in batches:
            logps_NM = sharding.to_host(scores_fn(params, sharding.to_devices(batch, mesh)))
            for logps_M, in_row in zip(logps_NM, numbers):
                at = 0
                for number in in_row:
                    scored[number] = np.array(logps_M[at : at + lengths[number]], np.float32)
                    at += lengths[number]
    out = [one for one in scored if one is not None]
    if len(out) < len(lengths):
        raise ValueError(f"{len(lengths) - len(out)} of {len(lengths)} answers were not scored")
    _check_finite(np.flatnonzero([not np.isfinite(one).all() for one in out]), len(lengths), "answer")
    return out


def _token_logps(params, batch, *, model, mesh):
    return token_logps(model, params, batch, mesh)


def _check_finite(bad: np.ndarray, num: int, what: str) -> None:
    if bad.size:
        raise InputError(
            f"the log-probabilities of {bad.size} of {num} {what}s are not finite before any training, the "
            f"first {what} is number {bad[0]}: the checkpoint's weights are damaged, or overflow in this dtype; use "
            "another checkpoint, or compute.dtype=float32"
        )


def records_of(batch: dict[str, np.ndarray]) -> list[int]:
    """The numbers of a batch's pairs, without those of empty places in packed rows."""
    return [int(number) for number in batch["index"].reshape(-1) if number >= 0]


def check_first(
    loss: str, objective: dict[str, Any], *, tolerance: float, has_anchor: bool = False, way_out: str = ""
) -> Callable[[dict, dict], None]:
    """A check of the first update's metrics: where policy and reference start equal, the loss is known.

    For DPO it is ln 2, and both answers' rewards are 0. A wrong mask, padding in a segment, or a reference that is not
    the policy's start make them differ, and training would hide it later. The loss alone does not show this, because
    an error that both answers share cancels in it. A loss that reads no reference passes.

    Args:
        tolerance: a share of the loss, or of beta times an answer's log-probability; absolute where these are below 1.
        has_anchor: the loss includes `losses.sft_anchor`, so only the rewards are known.
        way_out: how the message ends; "" tells to remove stored log-probabilities.
    """
    way_out = way_out or "Remove the stored ones (reference/ in the workdir)"
    expected = None if has_anchor else losses.initial_loss(loss, **objective)

    def check(values: dict[str, float], batch: dict[str, np.ndarray]) -> None:
        if loss in losses.REFERENCE_FREE:
            return
        sides = ("chosen", "rejected")
        sizes = [max(abs(objective["beta"] * values.get(f"logps/{side}", 0.0)), 1.0) for side in sides]
        limits = {f"rewards/{side}": (0.0, tolerance * size) for side, size in zip(sides, sizes)}
        if expected is not None:
            largest = losses.steepness(loss, **objective) * max(sizes)
            limits["loss"] = (expected, tolerance * max(abs(expected), largest))
        for name, (wanted, limit) in limits.items():
            value = values.get(name, wanted)
            if not abs(value - wanted) <= limit:  # written so that NaN fails as well
                raise InputError(
                    f"policy and reference start equal, so with loss={loss!r} the first {name} must be {wanted:.6f} "
                    f"and is {value:.6f} (tolerance {limit:g}), batch of pairs {records_of(batch)}: the "
                    f"reference log-probabilities are not those of this policy. {way_out}"
                )

    return check
