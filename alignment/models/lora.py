"""Low-rank adapters (LoRA, Hu et al. 2022, arXiv:2106.09685) beside a decoder's frozen weights.

A linear layer with kernel W adds `s x A B` to `x W`, where s is alpha / rank, or alpha / sqrt(rank) with the scaling of
rsLoRA (Kalajdzievski 2023, arXiv:2312.03732). B starts at zero, so a fresh adapter changes nothing. An adapter is a
tree of its own beside the base weights: `layers/query` has `a [L,X,R]` and `b [L,R,Y]`, stacked as the scanned kernels
are, and `head` has `a [D,R]` and `b [R,V]`. `attach` puts it beside the base under the key `adapter`, with s in b; what
computes with a decoder's parameters takes that tree as well.

Layers of a stack may differ in rank: A and B are as wide as the largest, and zero beyond a layer's own. Zeros in both
stay zeros under every optimiser that moves an entry by its gradient, because the gradient of each is a multiple of the
other.

Layers are named as in Hugging Face (`model.layers.0.self_attn.q_proj`), and patterns mean what they mean in peft.

Dimensions: L layers, X inputs and Y outputs of a layer (one axis or two), R rank, D model width, V vocabulary, B rows,
T time, K adapters.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from alignment import programs
from alignment.errors import InputError
from alignment.models import decoder, huggingface

ALL_LINEAR = "all-linear"
HEAD = "lm_head"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an adapter is made of, in the words of peft's LoraConfig.

    Args:
        rank: of every layer that `rank_pattern` does not name, at least 1.
        alpha: the numerator of the scale; None: 2 * rank.
        targets: names of layers or their last parts; a text is a regular expression for the whole name, and
            "all-linear" is every linear layer but the head.
        use_rslora: divide alpha by sqrt(rank) instead of by rank.
        rank_pattern, alpha_pattern: (regular expression for the end of a name, number), of which the first that fits
            counts.
        exclude: as `targets`: layers that are left out.
        layers: numbers of the layers that count, from 0; None: all.

    Raises:
        InputError: a rank or alpha that is not positive, or an expression that cannot be read.
    """

    rank: int
    alpha: float | None = None
    targets: str | tuple[str, ...] = ALL_LINEAR
    use_rslora: bool = False
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    exclude: str | tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for what, number in (("rank", self.rank), *self.rank_pattern):
            if number < 1 or number != int(number):
                raise InputError(f"an adapter's rank ({what}={number}) must be a whole number of at least 1")
        for what, alpha in (("alpha", self.numerator), *self.alpha_pattern):
            if not alpha > 0:
                raise InputError(f"an adapter's alpha ({what}={alpha}) must be positive; twice the rank is usual")
        expressions = [pattern for pattern, _ in (*self.rank_pattern, *self.alpha_pattern)]
        expressions += [words for words in (self.targets, self.exclude) if isinstance(words, str)]
        for expression in expressions:
            try:
                re.compile(expression)
            except re.error as e:
                raise InputError(f"the adapter's pattern {expression!r} is not a regular expression ({e})") from None

    @property
    def numerator(self) -> float:
        """Alpha, also where it was left to its default."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    def hits(self, name: str) -> bool:
        """Whether the layer of this full name gets an adapter."""
        if _matches(self.exclude, name):
            return False
        if self.targets == ALL_LINEAR:
            is_target = name != HEAD
        else:
            is_target = _matches(self.targets, name)
        number = re.search(r"\.(\d+)\.", name)
        return is_target and (self.layers is None or (number is not None and int(number[1]) in self.layers))

    def rank_of(self, name: str) -> int:
        return int(_first_fit(self.rank_pattern, name, self.rank))

    def scale_of(self, name: str) -> float:
        """What multiplies A B in this layer."""
        rank = self.rank_of(name)
        return _first_fit(self.alpha_pattern, name, self.numerator) / (math.sqrt(rank) if self.use_rslora else rank)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Settings laid out over one decoder; made by `lay_out`.

    Attributes:
        ranks, scales: of each layer of our name (`query`, ...; `head`): a number a layer of the stack, rank 0 where no
            pattern fits.
    """

    settings: Settings
    model: decoder.DecoderLM
    ranks: Mapping[str, tuple[int, ...]]
    scales: Mapping[str, tuple[float, ...]]

    def __hash__(self) -> int:  # of what `==` compares, in which mappings have no hash
        return hash((self.settings, self.model, *(tuple(sorted(x.items())) for x in (self.ranks, self.scales))))

    def init(self, rng: jax.Array, example_BT: jax.Array | None = None) -> dict[str, Any]:
        """`{"params": tree}` with logical axes, as a network's `init`, so that `train_state.create` takes it for one.

        A is uniform in +-1/sqrt(inputs), which is peft's Kaiming initialisation, and B zero.
        """
        layers: dict[str, Any] = {}
        for number, (name, (shape, axes, inputs)) in enumerate(sorted(_kernels(self.model, self.ranks).items())):
            ranks = self.ranks[name]
            R, stacked = max(ranks), len(shape) - len(axes)
            a_shape, b_shape = (*shape[: stacked + inputs], R), (*shape[:stacked], R, *shape[stacked + inputs :])
            bound = 1 / math.sqrt(math.prod(shape[stacked : stacked + inputs]))
            a = jax.random.uniform(jax.random.fold_in(rng, number), a_shape, jnp.float32, -bound, bound)
            is_own = jnp.arange(R)[None] < jnp.array(ranks)[:, None]  # [L,R]
            is_own = is_own.reshape(*shape[:stacked], *(1,) * inputs, R) if stacked else is_own.reshape(1, R)
            leading = ("layers",) * stacked
            layers[name] = {
                "a": nn.LogicallyPartitioned(jnp.where(is_own, a, 0.0), (*leading, *axes[:inputs], None)),
                "b": nn.LogicallyPartitioned(jnp.zeros(b_shape, jnp.float32), (*leading, None, *axes[inputs:])),
            }
        head = layers.pop("head", None)
        return {"params": ({"layers": layers} if layers else {}) | ({"head": head} if head else {})}

    def form(self) -> Any:
        """The tree's shapes and dtypes; nothing is computed."""
        return jax.eval_shape(lambda: nn.meta.unbox(self.init(jax.random.PRNGKey(0))["params"]))

    def scaled(self, params: Mapping) -> dict[str, Any]:
        """The tree as a decoder reads it: with each layer's scale in b."""
        tree: dict[str, Any] = {"layers": {}}
        for name in self.ranks:
            low = params["head"] if name == "head" else params["layers"][name]
            if name == "head":
                tree["head"] = {"a": low["a"], "b": low["b"] * self.scales[name][0]}
                continue
            scale_L = jnp.array(self.scales[name], low["b"].dtype)
            b = low["b"] * scale_L.reshape(-1, *(1,) * (low["b"].ndim - 1))
            tree["layers"][name] = {"a": low["a"], "b": b}
        return tree

    def attach(self, base: Mapping, params: Mapping) -> dict[str, Any]:
        """The base weights with the adapter beside them; both are taken as they are, without a copy of the weights."""
        return {**base, "adapter": self.scaled(params)}

    def describe(self) -> str:
        """Which layers the patterns hit, and how many numbers are trained."""
        hits = [name for name in modules(self.model) if self.settings.hits(name)]
        places: dict[str, list[int]] = {}
        for name in hits:
            number = re.search(r"\.(\d+)\.", name)
            places.setdefault(name.rpartition(".")[2], []).extend([int(number[1])] if number else [])
        words = [f"{name} of layers {_ranges(numbers)}" if numbers else name for name, numbers in places.items()]
        form = self.form()
        num_trained = 0
        for name, numbers in self.ranks.items():
            low = form["head"] if name == "head" else form["layers"][name]
            size = sum(leaf.size for leaf in low.values())  # as wide as the largest rank
            num_trained += size * sum(numbers) // (len(numbers) * max(numbers))
        ranks = sorted({self.settings.rank_of(name) for name in hits})
        return (
            f"adapter of rank {', '.join(map(str, ranks))} on {len(hits)} linear layers, "
            f"{num_trained:,} numbers: {'; '.join(words)}"
        )


def lay_out(settings: Settings, model: decoder.DecoderLM) -> Adapter:
    """The settings over the layers of a decoder.

    Raises:
        InputError: the patterns hit no linear layer, or name the embedding, which is not one.
    """
    layers = modules(model)
    ranks: dict[str, list[int]] = {}
    scales: dict[str, list[float]] = {}
    for name, (ours, layer) in layers.items():
        num_layers = 1 if layer is None else model.num_layers
        if settings.hits(name):
            ranks.setdefault(ours, [0] * num_layers)[layer or 0] = settings.rank_of(name)
            scales.setdefault(ours, [0.0] * num_layers)[layer or 0] = settings.scale_of(name)
    embedding = huggingface.EMBEDDING.removesuffix(".weight")
    if settings.targets != ALL_LINEAR and _matches(settings.targets, embedding):
        raise InputError(f"the adapter's pattern {settings.targets!r} hits {embedding}, which is not a linear layer")
    missed = () if isinstance(settings.targets, str) else settings.targets
    missed = tuple(word for word in missed if not any(_matches((word,), name) for name in layers))
    if not ranks or missed:
        parts = dict.fromkeys(name.rpartition(".")[2] for name in layers)
        raise InputError(
            f"the adapter's pattern {missed or settings.targets!r} hits no linear layer of this model; there are "
            f"{', '.join(parts)}, in names such as {next(iter(layers))}"
        )
    return Adapter(
        settings,
        model,
        {name: tuple(numbers) for name, numbers in ranks.items()},
        {name: tuple(numbers) for name, numbers in scales.items()},
    )


def modules(model: decoder.DecoderLM) -> dict[str, tuple[str, int | None]]:
    """Every linear layer by its full name: our name, and its number in the stack."""
    table = {
        name.removesuffix(".weight"): (path[-1], layer)
        for name, (path, layer, inputs) in huggingface.names(model).items()
        if inputs and name.endswith("weight")
    }
    table.pop(HEAD, None)
    return table | {HEAD: ("head", None)}  # also where the head is the embedding: its adapter is its own


def loss_fn(base_loss_fn: Any, adapter: Adapter) -> Any:
    """A loss on a decoder's parameters as one on an adapter's; `frozen.tree` holds the base, which no gradient reaches.

    To the loss `frozen` is the base itself, so a reference that reads it is the same weights with the adapter off.
    """
    return programs.Computation(_loss, dict(adapter=adapter), dict(base_loss_fn=programs.of(base_loss_fn)))


def _loss(params, batch, *, adapter, base_loss_fn, rng, frozen):
    return base_loss_fn(adapter.attach(frozen.tree, params), batch, rng=rng, frozen=frozen.tree)


def fold(params: Mapping) -> dict[str, Any]:
    """Parameters with an attached adapter as parameters without: W + s A B, added in float32, in W's own dtype.

    An adapter of a tied head cannot be folded into the embedding; the matrix is then under `head`, and the network that
    reads it is `folded_model`.
    """
    tree = {name: value for name, value in params.items() if name != "adapter"}
    adapter = params.get("adapter", {})
    layers = dict(tree["layers"])
    for name, low in adapter.get("layers", {}).items():
        layers[name] = _folded(layers[name], low["a"], low["b"])
    tree["layers"] = layers
    if "head" in adapter:
        kernel_DV = tree["head"] if "head" in tree else tree["embedding"].T
        tree["head"] = _folded(kernel_DV[None], adapter["head"]["a"][None], adapter["head"]["b"][None])[0]
    return tree


def folded_model(model: decoder.DecoderLM, params: Mapping) -> decoder.DecoderLM:
    """The network that reads `fold(params)`: untied where a tied head has an adapter of its own."""
    return model.clone(tie_embeddings=False) if "head" in params.get("adapter", {}) else model


def stack(adapters: Sequence[tuple[Adapter, Mapping]]) -> dict[str, Any]:
    """Several adapters of one base as one tree `[K,...]`, scaled, and zero where an adapter has no such layer or rank.

    `hidden_states` computes with it.
    """
    shapes: dict[tuple, list[int]] = {}
    trees = [adapter.scaled(params) for adapter, params in adapters]
    flat = [dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in trees]
    for path, leaf in itertools.chain.from_iterable(tree.items() for tree in flat):
        before = shapes.setdefault(path, list(leaf.shape))
        shapes[path] = [max(sizes) for sizes in zip(before, leaf.shape)]  # they differ in the rank alone

    def one(path, leaf):
        shape = shapes[path]
        if leaf is None:
            return jnp.zeros(shape, jnp.float32)
        return jnp.pad(leaf, [(0, wide - size) for wide, size in zip(shape, leaf.shape)])

    stacked: dict[str, Any] = {"layers": {}}
    for path in shapes:
        *parents, last = (key.key for key in path)
        place = stacked
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = jnp.stack([one(path, leaves.get(path)) for leaves in flat])
    return stacked


def hidden_states(
    model: decoder.DecoderLM, base: Mapping, stacked: Mapping, *inputs: jax.Array, has_own_rows: bool = False
) -> jax.Array:
    """Hidden states `[K,B,T,D]` of K adapters on one base: one product with each base matrix, and K thin ones.

    Args:
        stacked: of `stack`.
        inputs: of `DecoderLM`: tokens, and what follows them.
        has_own_rows: the inputs are `[K,B,T]`, each adapter's own; else `[B,T]`, the same for all.
    """
    beside = model.clone(merges_adapter=False)  # added to the kernels, each adapter would need a copy of them

    def one(adapter, inputs):
        return beside.apply({"params": base, "adapter": adapter}, *inputs)

    # The base is not mapped over, so a mapped product reads its matrix once for all rows of all adapters.
    return jax.vmap(one, in_axes=(0, 0 if has_own_rows else None))(stacked, inputs)


def logits(model: decoder.DecoderLM, base: Mapping, stacked: Mapping, hidden_KBTD: jax.Array) -> jax.Array:
    """Logits `[K,B,T,V]` in fp32 of `hidden_states`."""
    base_KBTV = jnp.einsum(
        "KBTD,DV->KBTV",
        hidden_KBTD,
        decoder.head(model, base).astype(hidden_KBTD.dtype),
        preferred_element_type=jnp.float32,
    )
    if "head" not in stacked:
        return base_KBTV
    low = stacked["head"]
    return base_KBTV + jnp.einsum("KBTD,KDR,KRV->KBTV", hidden_KBTD.astype(jnp.float32), low["a"], low["b"])


def _kernels(model: decoder.DecoderLM, wanted: Mapping[str, Any]) -> dict[str, tuple[tuple, tuple, int]]:
    """For each of our names: the kernel's shape, its logical axes but the stack's, and how many are of its input."""
    boxed = decoder.boxed_params(model)
    num_inputs = dict(huggingface.LAYER.values())
    table = {}
    for name in wanted:
        if name == "head":
            box = boxed["embedding" if model.tie_embeddings else "head"]
            order = slice(None, None, -1 if model.tie_embeddings else 1)
            table[name] = (box.value.shape[order], box.names[order], 1)
        else:
            box = boxed["layers"][name]
            table[name] = (box.value.shape, box.names[1:], num_inputs[name] or 1)
    return table


def _folded(kernel: jax.Array, a_LXR: jax.Array, b_LRY: jax.Array) -> jax.Array:
    """The sum in float32: bfloat16 would round away a change that is small beside its weight."""
    a, b = (x.astype(jnp.float32) for x in (a_LXR, b_LRY))
    L, R = b.shape[:2]
    change = a.reshape(L, -1, R) @ b.reshape(L, R, -1)
    return (kernel.astype(jnp.float32) + change.reshape(kernel.shape)).astype(kernel.dtype)


def _matches(words: str | tuple[str, ...], name: str) -> bool:
    """peft's rule: a text is an expression for the whole name, a list holds names or their ends."""
    if isinstance(words, str):
        return bool(words) and re.fullmatch(words, name) is not None
    return any(name == word or name.endswith(f".{word}") for word in words)


def _first_fit(patterns: Sequence[tuple[str, float]], name: str, otherwise: float) -> float:
    return next((value for pattern, value in patterns if re.match(rf"(.*\.)?({pattern})$", name)), otherwise)


def _ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 5 as "1-3, 5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
