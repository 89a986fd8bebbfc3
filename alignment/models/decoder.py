"""A decoder-only language model: Llama 3, Qwen2.5, Qwen3 and Mistral are settings of it.

The layers are one scanned module, so their parameters are stacked: `params["layers"]["query"]` is [L,D,H,K]. Parameters
carry logical axis names ("vocab", "embed", "heads", "kv_heads", "head", "mlp", "layers", "norm"), and activations are
placed by ("batch", "time", "heads", "kv_heads", "mlp"), which means nothing until a rule is set (`placing`).

Dimensions: B batch, T time, S positions attended to, L layers, D model width, F feed-forward, H query heads,
G key/value heads, K head width, V vocabulary.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from alignment import errors, placing
from alignment.errors import InputError
from alignment.models import attention, low_rank, rope

_policies = jax.checkpoint_policies
REMAT = {  # what a layer keeps for its backward pass, from least memory to most; "none" keeps everything
    "full": _policies.nothing_saveable,
    "attn": _policies.save_only_these_names("attention"),
    "attn_mlp": _policies.save_only_these_names("attention", "gate", "up"),
    "dots": _policies.checkpoint_dots,
    "none": None,
}


class DecoderLM(nn.Module):
    """Tokens in, final hidden states out; `head` gives the matrix from there to logits.

    Attributes:
        num_kv_heads: key/value heads shared by the query heads; None: as many as query heads.
        head_dim: width of a head, even; None: model_dim / num_heads.
        ffn_dim: width of the gated feed-forward; None: 8/3 model_dim, rounded up to a multiple of 64.
        rope_theta, rope_scaling: see `rope.frequencies`.
        qkv_bias: biases on query, key and value (Qwen2.5).
        qk_norm: RMS norm over each head's query and key before rope (Qwen3).
        sliding_window: a query sees fewer than this many positions back; None: all of them.
        layer_types: "sliding_attention" or "full_attention" for each layer; None: all alike.
        tie_embeddings: the output matrix is the transposed embedding.
        remat: a key of REMAT.
        attention: a key of attention.KERNELS: "blocked", for rows in reading order (positions of a group rise along the
            row, its trunk comes before its branches); "dense", for any order; "cudnn", for one sequence a row, on GPUs;
            "expanded", "expanded_cudnn" and "expanded_splash", for prefix trees with their strands.
        unroll: layers per iteration of the scan: more compiles longer and lets XLA fuse across layers.
        merges_adapter: in float32 an adapter is added to each kernel where it is read (`low_rank`); False: it has
            products of its own, as it always has in half precision, which would round it away.
        dtype: of matrix products and of the residual stream; norms, rope and softmax are computed in float32.
    """

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    ffn_dim: int | None = None
    rope_theta: float = 10_000.0
    rope_scaling: Mapping | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None
    tie_embeddings: bool = True
    norm_eps: float = 1e-6
    remat: str = "none"
    attention: str = "blocked"
    unroll: int = 1
    merges_adapter: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.rope_scaling is not None:  # frozen, so that a model can be hashed: a static argument of jit
            self.rope_scaling = flax.core.freeze(dict(self.rope_scaling))
        if self.layer_types is not None:
            self.layer_types = tuple(self.layer_types)
        _check(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        groups_BT: jax.Array | None = None,
        branches_BT: jax.Array | None = None,
        forks_BT: jax.Array | None = None,
        ends_BT: jax.Array | None = None,
        strands: Mapping[str, jax.Array] | None = None,
    ) -> jax.Array:
        """Hidden states after the final norm, [B,T,D] in `dtype`. For writing text see `decoding.network`.

        Args:
            tokens_BT: ids in [0, V).
            positions_BT: rope positions; None: 0, 1, ...
            groups_BT: tokens of different groups do not see each other, 0 is padding; None: all ones.
            branches_BT: 0 is a group's trunk, seen by its branches 1, 2, ..., which do not see each other; None: zeros.
            forks_BT: of a branch's tokens, the position at which it leaves the trunk, whose tokens from there on it
                does not see; None: no trunk goes on behind its branches' beginning.
            ends_BT: of rows that hold prefix trees (`tree_attention`), the place behind the last token that sees this
                one, 0 on padding. It takes the place of groups, branches and forks.
            strands: of such rows, for the attention kernels named expanded: their arrays (`expanded_attention`).
        """
        places = _places(tokens_BT, positions_BT, groups_BT, branches_BT)
        if forks_BT is not None:
            places["forks"] = forks_BT
        if ends_BT is not None:
            places["ends"] = ends_BT
        places |= strands or {}
        masks = self._masks(places)
        frequencies_J, factor = rope.frequencies(self._head_dim(), self.rope_theta, self.rope_scaling)
        rope_tables = rope.tables_apart(places["positions"], frequencies_J, factor)

        embedding_VD = self.param(
            "embedding", _init(("vocab", "embed"), None), (self.vocab_size, self.model_dim), self.param_dtype
        )
        # Looked up before the cast, so that only the rows in use are cast and not the whole table.
        hidden_BTD = jnp.take(embedding_VD, tokens_BT, axis=0).astype(self.dtype)
        hidden_BTD = _shard(hidden_BTD, "batch", "time", None)

        is_sliding_L = self._is_sliding()
        hidden_BTD, _ = self._layers()(hidden_BTD, is_sliding_L, masks, rope_tables)

        scale_D = self.param("final_norm", _ones("norm"), (self.model_dim,), self.param_dtype)
        hidden_BTD = rms_norm(hidden_BTD, scale_D, self.norm_eps)
        if not self.tie_embeddings:  # made here, so that it is a parameter of the model; `head` reads it
            self.param("head", _init(("embed", "vocab"), 0), (self.model_dim, self.vocab_size), self.param_dtype)
        return hidden_BTD

    def _head_dim(self) -> int:
        return self.head_dim or self.model_dim // self.num_heads

    def _layers(self):
        """All layers as one scanned module: one compiled body for all of them, rematerialised layer by layer."""
        layer = Layer
        if self.remat != "none":
            # A scan's body is compiled apart, so nothing can merge the recomputation with the forward pass. Unrolled
            # layers share one body, where XLA would merge them and keep what remat was to free.
            layer = nn.remat(layer, policy=REMAT[self.remat], prevent_cse=self.unroll > 1)
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0, "adapter": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),  # is_sliding a layer; masks and tables for all
            length=self.num_layers,
            unroll=self.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads or self.num_heads,
            head_dim=self._head_dim(),
            ffn_dim=self.ffn_dim or -(-8 * self.model_dim // (3 * 64)) * 64,
            num_layers=self.num_layers,
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            norm_eps=self.norm_eps,
            attention=self._kernel_name(),
            merges_adapter=self.merges_adapter and self.dtype == "float32",
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="layers",
        )

    def _kernel_name(self):
        # Parameters are made from a few tokens in an ordinary row, which not every kernel takes.
        return "dense" if self.is_initializing() else self.attention

    def _is_sliding(self):
        """Whether each layer's window slides, [L]."""
        types = self.layer_types or ("sliding_attention",) * self.num_layers
        return jnp.array([kind == "sliding_attention" for kind in types])

    def _masks(self, places):
        """The masks of layers without and with a sliding window; None for the sort that this model lacks."""
        mask_fn = attention.MASKS[self._kernel_name()]
        kinds = {"full_attention"} if self.sliding_window is None else set(self.layer_types or ["sliding_attention"])
        has_sliding = "sliding_attention" in kinds and bool(self.sliding_window)
        full = mask_fn(places, places, None) if "full_attention" in kinds else None
        sliding = mask_fn(places, places, self.sliding_window) if has_sliding else None
        return full, sliding


class Layer(nn.Module):
    """Pre-norm attention and gated feed-forward, each added to the residual stream."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_dim: int
    num_layers: int
    qkv_bias: bool
    qk_norm: bool
    norm_eps: float
    attention: str
    merges_adapter: bool
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, hidden_BTD, is_sliding, masks, rope_tables):
        """One turn of the scan over layers.

        Args:
            hidden_BTD: what one layer hands to the next.
            is_sliding: whether this layer's window slides.
            masks: what its attention kernel takes, without and with the window; see `attention.MASKS`.
            rope_tables: cosines and sines of the positions.

        Returns:
            The hidden states for the next layer, and None, because the scan has no output of each layer to stack.
        """
        mask = _choose_mask(masks, is_sliding)
        normed_BTD = self._norm(hidden_BTD, "attention_norm")
        hidden_BTD = hidden_BTD + self._attention(normed_BTD, mask, rope_tables)
        hidden_BTD = hidden_BTD + self._feed_forward(self._norm(hidden_BTD, "mlp_norm"))
        return hidden_BTD, None

    def _attention(self, x_BTD, mask, rope_tables):
        """What the heads add to the residual stream, [B,T,D]."""
        query_BTHK, key_BTGK, value_BTGK = self._heads(x_BTD)
        if self.qk_norm:
            query_BTHK, key_BTGK = self._norm(query_BTHK, "query_norm"), self._norm(key_BTGK, "key_norm")
        query_BTHK, key_BTGK = rope.rotate(query_BTHK, *rope_tables), rope.rotate(key_BTGK, *rope_tables)
        mixed_BTHK = attention.KERNELS[self.attention](query_BTHK, key_BTGK, value_BTGK, mask)
        # The names are those of REMAT's policies, which keep these arrays for the backward pass.
        mixed_BTHK = checkpoint_name(_shard(mixed_BTHK, "batch", "time", "heads", None), "attention")
        return self._mix_out(mixed_BTHK, x_BTD.shape[-1])

    def _heads(self, x_BTD):
        """Queries [B,T,H,K], keys and values [B,T,G,K]."""
        axes = {"query": "heads", "key": "kv_heads", "value": "kv_heads"}
        kernels, biases = {}, {}
        for name, axis in axes.items():
            shape = (x_BTD.shape[-1], self.num_heads if name == "query" else self.num_kv_heads, self.head_dim)
            kernels[name] = self._kernel(name, ("embed", axis, "head"), shape, 0)
            if self.qkv_bias:
                init = nn.with_logical_partitioning(nn.initializers.zeros, (axis, "head"))
                biases[name] = self.param(f"{name}_bias", init, shape[1:], self.param_dtype).astype(self.dtype)
        out = self._linear(x_BTD, kernels)
        out = {name: y_BTM.reshape(*x_BTD.shape[:2], -1, self.head_dim) for name, y_BTM in out.items()}
        out |= {name: out[name] + bias_HK[None, None] for name, bias_HK in biases.items()}
        # Under a mesh axis `sequence` the queries stay in pieces along a row, and keys and values are gathered.
        times = {"query": "time", "key": None, "value": None}
        return [_shard(out[name], "batch", times[name], axis, None) for name, axis in axes.items()]

    def _mix_out(self, mixed_BTHK, model_dim):
        shape = (self.num_heads, self.head_dim, model_dim)
        # Each of the 2 L blocks that add to the residual stream starts with 1 / (2 L) of the usual variance, so that
        # the stream's variance does not grow with depth (GPT-2).
        kernel_HKD = self._kernel("out", ("heads", "head", "embed"), shape, (0, 1), 0.5 / self.num_layers)
        mixed_BTM = mixed_BTHK.reshape(*mixed_BTHK.shape[:2], -1)
        out_BTD = self._linear(mixed_BTM, {"out": kernel_HKD})["out"]
        return _shard(out_BTD, "batch", "time", None)

    def _feed_forward(self, x_BTD):
        D, F = x_BTD.shape[-1], self.ffn_dim
        wide = self._linear(x_BTD, {name: self._kernel(name, ("embed", "mlp"), (D, F), 0) for name in ("gate", "up")})
        gate_BTF = checkpoint_name(_shard(wide["gate"], "batch", "time", "mlp"), "gate")
        up_BTF = checkpoint_name(_shard(wide["up"], "batch", "time", "mlp"), "up")
        kernel_FD = self._kernel("down", ("mlp", "embed"), (F, D), 0, 0.5 / self.num_layers)
        x_BTF = nn.silu(gate_BTF) * up_BTF
        out_BTD = self._linear(x_BTF, {"down": kernel_FD})["down"]
        return _shard(out_BTD, "batch", "time", None)

    def _linear(self, x_BTX, kernels):
        """Products [B,T,Y] of kernels that read one input, with their adapters (`lora`), if `model.apply` has any."""
        x_NX = x_BTX.reshape(-1, x_BTX.shape[-1])
        X = x_NX.shape[1]
        low = {name: self.get_variable("adapter", name) for name in kernels if self.has_variable("adapter", name)}
        # Two matrices and two sides each: an einsum over more axes copies transposed inputs for the weight gradient.
        out = {name: x_NX @ kernel.reshape(X, -1) for name, kernel in kernels.items() if name not in low}
        if low:
            a = {name: pair["a"].astype(self.dtype).reshape(X, -1) for name, pair in low.items()}
            b = {name: pair["b"].astype(self.dtype).reshape(a[name].shape[1], -1) for name, pair in low.items()}
            products = low_rank.products if self.merges_adapter else low_rank.beside
            out |= products(x_NX, {name: kernels[name] for name in low}, a, b)
        return {name: y_NY.reshape(*x_BTX.shape[:-1], -1) for name, y_NY in out.items()}

    def _norm(self, x, name):
        return rms_norm(x, self.param(name, _ones("norm"), x.shape[-1:], self.param_dtype), self.norm_eps)

    def _kernel(self, name, axes, shape, fan_in, scale=1.0):
        return self.param(name, _init(axes, fan_in, scale), shape, self.param_dtype).astype(self.dtype)


@functools.lru_cache(maxsize=32)  # a run asks for each of its networks a dozen times, and to trace one takes long
def boxed_params(model: DecoderLM) -> dict[str, Any]:
    """Shapes and dtypes of a decoder's parameters in boxes with their logical axes; nothing is computed."""
    # the key is made within, because outside it would be an array, which starts the devices
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]


def variables(params: Mapping) -> dict[str, Any]:
    """What `model.apply` takes: the parameters, and the adapter that `lora.attach` put beside them, if any."""
    own = {name: value for name, value in params.items() if name != "adapter"}
    return {"params": own, "adapter": params["adapter"]} if "adapter" in params else {"params": own}


def head(model: DecoderLM, params: Mapping) -> jax.Array:
    """The matrix [D,V] from hidden states to logits, in the parameters' own dtype; with its adapter, in float32."""
    head_DV = nn.meta.unbox(params["embedding"]).T if model.tie_embeddings else nn.meta.unbox(params["head"])
    low = params.get("adapter", {}).get("head")
    return head_DV if low is None else head_DV.astype(jnp.float32) + low["a"] @ low["b"]


def logits(model: DecoderLM, params: Mapping, hidden_BTD: jax.Array) -> jax.Array:
    """All logits [B,T,V] in fp32: for tests and a few last positions; `logprobs` serves training."""
    head_DV = head(model, params).astype(hidden_BTD.dtype)
    return jnp.einsum("BTD,DV->BTV", hidden_BTD, head_DV, preferred_element_type=jnp.float32)


def rms_norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """Divide by the last axis's root mean square, in at least fp32; the scale comes after the cast (as checkpoints)."""
    if x.ndim > 2 and x.shape[0] == 1:  # XLA's sums on CPUs take ten times as long where the first axis has one entry
        return rms_norm(x[0], scale_D, eps)[None]
    precise = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normed = precise * jax.lax.rsqrt(jnp.mean(jnp.square(precise), axis=-1, keepdims=True) + eps)
    return normed.astype(x.dtype) * jnp.expand_dims(scale_D.astype(x.dtype), range(x.ndim - 1))


def _places(tokens_BT, positions_BT, groups_BT, branches_BT):
    """Where each token stands: positions, groups and branches [B,T], with their defaults filled in."""
    B, T = tokens_BT.shape
    if positions_BT is None:
        positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
    groups_BT = jnp.ones((B, T), jnp.int32) if groups_BT is None else groups_BT
    branches_BT = jnp.zeros((B, T), jnp.int32) if branches_BT is None else branches_BT
    return {"positions": positions_BT, "groups": groups_BT, "branches": branches_BT}


def _choose_mask(masks, is_sliding):
    """This layer's mask; layers share one program under the scan, so a mixed model selects by a traced flag."""
    full, sliding = masks
    if full is None or sliding is None:
        return sliding if full is None else full
    return jax.tree.map(lambda s, f: jnp.where(is_sliding, s, f), sliding, full)


def _shard(x, *names):
    return placing.shard(x, *names)


def _ones(name):
    return nn.with_logical_partitioning(nn.initializers.ones, (name,))


def _init(axes, fan_in, scale=1.0):
    """Normal with variance `scale` / fan-in, where `fan_in` names the input dimensions; None: deviation 0.02."""
    if fan_in is None:
        return nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)
    out = tuple(i for i in range(len(axes)) if i not in jax.tree.leaves(fan_in))
    init = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal", in_axis=fan_in, out_axis=out)
    return nn.with_logical_partitioning(init, axes)


def _check(model: DecoderLM):
    """Refuse settings that cannot work, before any array exists."""
    G, H = model.num_kv_heads or model.num_heads, model.num_heads
    if H % G:
        raise InputError(f"num_heads={H} is not a multiple of num_kv_heads={G}; {H // G * G or G} would be")
    if model.head_dim is None and model.model_dim % H:
        raise InputError(f"model_dim={model.model_dim} does not split over num_heads={H}; set head_dim")
    if model._head_dim() % 2:
        raise InputError(f"head_dim={model._head_dim()} is odd, and rope turns pairs; {model._head_dim() + 1} would do")
    errors.one_of("remat", model.remat, REMAT)
    errors.one_of("attention", model.attention, attention.KERNELS)
    if model.layer_types is not None and len(model.layer_types) != model.num_layers:
        raise InputError(f"layer_types has {len(model.layer_types)} entries for num_layers={model.num_layers}")
    if set(model.layer_types or ()) - {"full_attention", "sliding_attention"}:
        raise InputError(f"layer_types={model.layer_types} knows only 'full_attention' and 'sliding_attention'")
    if model.layer_types and "sliding_attention" in model.layer_types and model.sliding_window is None:
        raise InputError("layer_types has 'sliding_attention' and sliding_window is None; give the window's length")
    if model.attention in attention.EXPANDED and model.sliding_window is not None:
        raise InputError(
            f"attention={model.attention!r} takes no window, not sliding_window={model.sliding_window}; 'blocked' does"
        )
    is_cudnn = model.attention in ("cudnn", "expanded_cudnn")
    if is_cudnn and (model.sliding_window is not None or model.dtype not in ("bfloat16", "float16")):
        raise InputError(
            f"attention={model.attention!r} takes bfloat16 or float16 and no window, not dtype={model.dtype} and "
            f"sliding_window={model.sliding_window}; attention='blocked' takes all"
        )
    rope.frequencies(model._head_dim(), model.rope_theta, model.rope_scaling)
