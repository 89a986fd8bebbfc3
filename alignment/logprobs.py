"""Log-probabilities of chosen tokens, in nats, without ever holding `[B,T,V]` logits.

Dimensions: N rows, T time, M head positions of a row, D model width, V vocabulary, R head positions of one device,
C head positions of one chunk, B batch, P pair = (chosen, rejected), A answer positions.

The head `[D,V]` is applied to chunks of head positions only (answer positions, for a preference loss), those that count
first. The loop ends when they are done, so shapes are static and the work still follows the mask. The backward pass
recomputes each chunk's logits, so memory is one `[C,V]` block whatever the batch. Under a vocabulary sharded over the
mesh axis `tensor` only three `[C]` vectors cross devices in a chunk, and the head gradient is reduced once. A head that
nobody differentiates by has no gradient, and its logits are made once.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh, PartitionSpec

ROW_AXES = ("data", "fsdp")
VOCAB_AXIS = "tensor"
SEQUENCE_AXIS = "sequence"


def selected(
    hidden_NTD: jax.Array,
    head_DV: jax.Array,
    sources_NM: jax.Array | None,
    targets_NM: jax.Array,
    *,
    mask_NM: jax.Array | None = None,
    mesh: Mesh | None = None,
    num_tokens: int | None = None,
    chunk: int = 512,
) -> jax.Array:
    """Log-probability of each target under the softmax at its source position.

    Args:
        hidden_NTD: last hidden states, after the final norm.
        head_DV: output matrix; read in the dtype of `hidden_NTD`, accumulated in float32.
        sources_NM: position in its row of the hidden state that predicts each target; None: every position, M = T.
        targets_NM: token ids in [0, num_tokens).
        mask_NM: 0 where no log-probability is wanted; no work is done there, and the result is 0. None: all are wanted.
        mesh: with axes `data`, `fsdp` (rows) and `tensor` (vocabulary); None or one device: no collectives.
        num_tokens: real vocabulary, where the head has columns of filling behind it; they get probability zero.
        chunk: head positions whose logits exist at one time, on one device.

    Returns:
        float32 `[N,M]`, nats; float64 for hidden states in float64.
    """
    if sources_NM is not None:
        hidden_NTD = jax.vmap(lambda hidden_TD, sources_M: hidden_TD[sources_M])(hidden_NTD, sources_NM)
    num_columns = head_DV.shape[1]
    shards = _shards(mesh, hidden_NTD.shape[0])
    if shards is not None and num_columns % shards.shape[VOCAB_AXIS]:
        # `shard_map` takes equal pieces only; `_logits` keeps the filling out of every sum.
        head_DV = jnp.pad(head_DV, ((0, 0), (0, -num_columns % shards.shape[VOCAB_AXIS])))
    wanted_NM = jnp.ones(targets_NM.shape, bool) if mask_NM is None else jnp.asarray(mask_NM) != 0
    return _selected(hidden_NTD, head_DV, targets_NM, wanted_NM, shards, num_tokens or num_columns, chunk)


def selected_and_greedy(
    hidden_NTD: jax.Array,
    head_DV: jax.Array,
    sources_NM: jax.Array,
    targets_NM: jax.Array,
    *,
    mask_NM: jax.Array,
    mesh: Mesh | None = None,
    chunk: int = 128,
) -> tuple[jax.Array, jax.Array]:
    """`selected`, and whether each target is the likeliest token, of equals the first; without gradients.

    Returns:
        float32 `[N,M]`, nats, and bool `[N,M]`; 0 and False where the mask is 0.
    """
    hidden_NMD = jax.vmap(lambda hidden_TD, sources_M: hidden_TD[sources_M])(hidden_NTD, sources_NM)
    num_tokens = head_DV.shape[1]
    shards = _shards(mesh, hidden_NMD.shape[0])
    if shards is not None and num_tokens % shards.shape[VOCAB_AXIS]:
        head_DV = jnp.pad(head_DV, ((0, 0), (0, -num_tokens % shards.shape[VOCAB_AXIS])))
    local = functools.partial(
        _local_greedy, num_tokens=num_tokens, chunk=chunk, axis=VOCAB_AXIS if shards is not None else None
    )
    if shards is not None:
        rows, head = PartitionSpec(ROW_AXES), PartitionSpec(None, VOCAB_AXIS)
        local = jax.shard_map(
            local, mesh=shards, in_specs=(rows, head, rows, rows), out_specs=(rows, rows), check_vma=False
        )
    return local(hidden_NMD, head_DV.astype(hidden_NMD.dtype), targets_NM, jnp.asarray(mask_NM) != 0)


def sums(logps_BPA: jax.Array, mask_BPA: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Answer log-probability `[B,P]` in nats (a sum, not a mean) and the number of tokens it sums over."""
    return jnp.sum(logps_BPA * mask_BPA, axis=-1), jnp.sum(mask_BPA, axis=-1)


def _shards(mesh: Mesh | None, num_rows: int) -> Mesh | None:
    """The mesh, where splitting over it is both needed and possible."""
    if mesh is None or mesh.size == 1 or num_rows % math.prod(mesh.shape[axis] for axis in ROW_AXES):
        return None
    return mesh


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _selected(hidden_NMD, head_DV, targets_NM, wanted_NM, mesh, num_tokens, chunk):
    return _scored(hidden_NMD, head_DV, targets_NM, wanted_NM, mesh, num_tokens, chunk)[0]


def _forward(hidden, head, targets, wanted, mesh, num_tokens, chunk):
    arrays = [primal.value for primal in (hidden, head, targets, wanted)]
    if not head.perturbed:
        # Each log-probability reads one hidden state, so its slope there is known up to the factor that the backward
        # pass brings. Taken now, it spares that pass the logits and the gradient of the head.
        logps_NM, slope_NMD = _scored(*arrays, mesh, num_tokens, chunk, with_slope=True)
        return logps_NM, (slope_NMD,)
    logps_NM, lse_NM = _scored(*arrays, mesh, num_tokens, chunk)
    # The logits are not kept: they take V numbers a position, and the backward pass makes them again from `lse`.
    return logps_NM, (*arrays, lse_NM)


def _scored(hidden_NMD, head_DV, targets_NM, wanted_NM, mesh, num_tokens, chunk, with_slope=False):
    """Log-probabilities, and beside them their slope by the hidden states or the logits' log-sum-exp."""
    options = dict(num_tokens=num_tokens, chunk=chunk, with_slope=with_slope)
    local = functools.partial(_local_forward, axis=VOCAB_AXIS if mesh else None, **options)
    if mesh is not None:
        rows, head = _rows(mesh, targets_NM.shape[1]), PartitionSpec(None, VOCAB_AXIS)
        specs = dict(in_specs=(rows, head, rows, rows), out_specs=(rows, rows))
        local = jax.shard_map(local, mesh=mesh, **specs, check_vma=False)
    return local(hidden_NMD, head_DV.astype(hidden_NMD.dtype), targets_NM, wanted_NM)


def _backward(mesh, num_tokens, chunk, residuals, gradient_NM):
    if isinstance(gradient_NM, SymbolicZero):  # nobody differentiates by the result
        return None, None, None, None
    if len(residuals) == 1:
        (slope_NMD,) = residuals
        return (gradient_NM[..., None] * slope_NMD).astype(slope_NMD.dtype), None, None, None
    hidden_NMD, head_DV, *rest = residuals
    local = functools.partial(_local_backward, num_tokens=num_tokens, chunk=chunk, mesh=mesh)
    if mesh is not None:
        rows, head = _rows(mesh, gradient_NM.shape[1]), PartitionSpec(None, VOCAB_AXIS)
        local = functools.partial(local, sums=("data", *rows[1:]))
        specs = dict(
            in_specs=(rows, head, rows, rows, rows, rows), out_specs=(rows, _head_gradient_spec(mesh, head_DV))
        )
        local = jax.shard_map(local, mesh=mesh, **specs, check_vma=False)
    head_in_DV = head_DV.astype(hidden_NMD.dtype)  # cast again: the gradient keeps its float32 for a float32 head
    hidden_gradient_NMD, head_gradient_DV = local(hidden_NMD, head_in_DV, *rest, gradient_NM)
    return hidden_gradient_NMD, head_gradient_DV.astype(head_DV.dtype), None, None


def _rows(mesh: Mesh, num_targets: int) -> PartitionSpec:
    """How rows lie on the mesh, and the targets of a row where it has an axis for them."""
    parts = mesh.shape.get(SEQUENCE_AXIS, 1)
    return PartitionSpec(ROW_AXES, SEQUENCE_AXIS) if parts > 1 and num_targets % parts == 0 else PartitionSpec(ROW_AXES)


def _head_gradient_spec(mesh, head_DV):
    """Where the head's gradient lives: in the pieces that `fsdp` keeps the head in, where its width divides."""
    return PartitionSpec("fsdp" if head_DV.shape[0] % mesh.shape["fsdp"] == 0 else None, VOCAB_AXIS)


_selected.defvjp(_forward, _backward, symbolic_zeros=True)  # so that `_forward` learns what is differentiated


def _logits(hidden_CD, head_DV, targets_C, num_tokens, axis):
    """This device's logits `[C,V]`, filling columns at the lowest float, and where each row's target stands."""
    logits_CV = jnp.matmul(hidden_CD, head_DV, preferred_element_type=_wide(hidden_CD))
    num_columns = head_DV.shape[1]
    first = jax.lax.axis_index(axis) * num_columns if axis else 0
    columns_1V = first + jnp.arange(num_columns)[None, :]
    # the last shard may hold filling; without filling the comparison folds away only on one device, and costs little
    if axis or num_tokens < num_columns:
        logits_CV = jnp.where(columns_1V < num_tokens, logits_CV, jnp.finfo(jnp.float32).min)
    return logits_CV, columns_1V == targets_C[:, None]


def _row_sums(logits_CV, is_target_CV, axis):
    """Each row's largest logit, logarithm of the sum of exponentials, and target's logit, over all shards."""
    top_C = jnp.max(logits_CV, axis=1)
    if axis:
        top_C = jax.lax.pmax(top_C, axis)
    # The largest logit is taken off before the exponential, which would overflow float32 from 89 on.
    total_C = jnp.sum(jnp.exp(logits_CV - top_C[:, None]), axis=1)
    # A masked sum instead of a lookup: only one shard has the target's column, and on the others the sum is 0.
    target_C = jnp.sum(jnp.where(is_target_CV, logits_CV, 0.0), axis=1)
    if axis:
        total_C, target_C = jax.lax.psum((total_C, target_C), axis)
    return top_C, top_C + jnp.log(total_C), target_C


def _local_forward(hidden_NMD, head_DV, targets_NM, wanted_NM, *, num_tokens, chunk, axis, with_slope):
    def of_chunk(hidden_CD, targets_C):
        logits_CV, is_target_CV = _logits(hidden_CD, head_DV, targets_C, num_tokens, axis)
        _, lse_C, target_C = _row_sums(logits_CV, is_target_CV, axis)
        if not with_slope:
            return target_C - lse_C, lse_C
        slope_CV = _slope(logits_CV, lse_C, is_target_CV).astype(hidden_CD.dtype)
        return target_C - lse_C, jnp.einsum("CV,DV->CD", slope_CV, head_DV, preferred_element_type=_wide(head_DV))

    logps_NM, second = _in_chunks(of_chunk, chunk, wanted_NM, (hidden_NMD, targets_NM))
    if not with_slope:
        return logps_NM, second
    slope_NMD = jax.lax.psum(second, axis) if axis else second  # a shard of the vocabulary has its own columns only
    return logps_NM, slope_NMD.astype(hidden_NMD.dtype)


def _slope(logits_CV, lse_C, is_target_CV):
    """The gradient of a log-softmax at its target: one-hot minus probabilities."""
    return jnp.where(is_target_CV, 1.0, 0.0) - jnp.exp(logits_CV - lse_C[:, None])


def _local_greedy(hidden_NMD, head_DV, targets_NM, wanted_NM, *, num_tokens, chunk, axis):
    def of_chunk(hidden_CD, targets_C):
        logits_CV, is_target_CV = _logits(hidden_CD, head_DV, targets_C, num_tokens, axis)
        columns_1V = jnp.arange(logits_CV.shape[1])[None, :]
        if axis:
            columns_1V += jax.lax.axis_index(axis) * logits_CV.shape[1]
        top_C, lse_C, target_C = _row_sums(logits_CV, is_target_CV, axis)
        # a minimum over columns, because XLA's argmax is several times slower on a CPU
        first_C = jnp.min(jnp.where(logits_CV == top_C[:, None], columns_1V, jnp.iinfo(jnp.int32).max), axis=1)
        if axis:
            first_C = jax.lax.pmin(first_C, axis)
        return target_C - lse_C, first_C == targets_C

    return _in_chunks(of_chunk, chunk, wanted_NM, (hidden_NMD, targets_NM))


def _local_backward(
    hidden_NMD, head_DV, targets_NM, wanted_NM, lse_NM, gradient_NM, *, num_tokens, chunk, mesh, sums=()
):
    axis = VOCAB_AXIS if mesh else None

    def of_chunk(hidden_CD, targets_C, lse_C, gradient_C):
        logits_CV, is_target_CV = _logits(hidden_CD, head_DV, targets_C, num_tokens, axis)
        gradient_CV = gradient_C[:, None] * _slope(logits_CV, lse_C, is_target_CV)
        # In the dtype of the hidden states, so that both products run on the matrix units; they add in float32.
        gradient_CV = gradient_CV.astype(hidden_CD.dtype)
        wide = _wide(hidden_CD)
        hidden_gradient_CD = jnp.einsum("CV,DV->CD", gradient_CV, head_DV, preferred_element_type=wide)
        head_gradient_DV = jnp.einsum("CD,CV->DV", hidden_CD, gradient_CV, preferred_element_type=wide)
        return hidden_gradient_CD, head_gradient_DV

    gradient_NM = jnp.where(wanted_NM, gradient_NM, 0.0).astype(_wide(hidden_NMD))
    rows = (hidden_NMD, targets_NM, lse_NM, gradient_NM)
    hidden_gradient_NMD, head_gradient_DV = _in_chunks(of_chunk, chunk, wanted_NM, rows, num_summed=1)
    if mesh is not None:
        # Each shard of the vocabulary saw its own columns only, and each row shard its own rows.
        hidden_gradient_NMD = jax.lax.psum(hidden_gradient_NMD, VOCAB_AXIS)
        head_gradient_DV = jax.lax.psum(head_gradient_DV, sums)
        if _head_gradient_spec(mesh, head_DV)[0]:
            # Half the traffic of a sum that every device then cuts its piece out of.
            head_gradient_DV = jax.lax.psum_scatter(head_gradient_DV, "fsdp", scatter_dimension=0, tiled=True)
        else:
            head_gradient_DV = jax.lax.psum(head_gradient_DV, "fsdp")
    return hidden_gradient_NMD.astype(hidden_NMD.dtype), head_gradient_DV


def _in_chunks(fn, chunk, wanted_NM, arrays, num_summed=0):
    """`fn` over chunks of the positions that are wanted; elsewhere the results are 0.

    Args:
        fn: arrays `[C,...]` to results: `[C,...]` ones, then `num_summed` that are added over chunks.
        arrays: `[N,M,...]`.
    """
    N, M = wanted_NM.shape
    chunk = min(chunk, N * M)
    wanted_R = wanted_NM.reshape(-1)
    order_R = jnp.argsort(~wanted_R)  # stable: the wanted positions first, as they come
    num_filled = -(-N * M // chunk) * chunk
    order_R = jnp.pad(order_R, (0, num_filled - N * M))
    is_live_R = jnp.arange(num_filled) < jnp.sum(wanted_R)
    flat = [jnp.asarray(a).reshape(N * M, *a.shape[2:]) for a in arrays]
    outputs = jax.eval_shape(fn, *(jax.ShapeDtypeStruct((chunk, *a.shape[1:]), a.dtype) for a in flat))
    split = len(outputs) - num_summed

    def body(number, carry):
        joined, added = carry
        place_C = jax.lax.dynamic_slice(order_R, (number * chunk,), (chunk,))
        is_live_C = jax.lax.dynamic_slice(is_live_R, (number * chunk,), (chunk,))
        # what fills up the last chunk must add nothing: its rows are read as zeros, and its results are dropped
        rows = (_where(is_live_C, a[place_C], 0) for a in flat)
        results = fn(*rows)
        place_C = jnp.where(is_live_C, place_C, N * M)
        joined = [j.at[place_C].set(r, mode="drop") for j, r in zip(joined, results[:split])]
        return joined, [a + r for a, r in zip(added, results[split:])]

    zeros = (
        [jnp.zeros((N * M, *o.shape[1:]), o.dtype) for o in outputs[:split]],
        [jnp.zeros(o.shape, o.dtype) for o in outputs[split:]],
    )
    # The number of turns depends on the mask, so a batch that wants few positions costs little. Such a loop has no
    # derivative of its own, which is one reason for `custom_vjp`.
    joined, added = jax.lax.fori_loop(0, -(-jnp.sum(wanted_R) // chunk), body, zeros)
    return (*(j.reshape(N, M, *j.shape[1:]) for j in joined), *added)


def _wide(x):
    """The dtype that products of these are added in: float32, or float64 for float64."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _where(is_live_C, rows, other):
    return jnp.where(jnp.expand_dims(is_live_C, range(1, rows.ndim)), rows, jnp.asarray(other, rows.dtype))
