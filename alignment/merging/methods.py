"""The methods by the names that merge tools use, and a tensor of several models merged by one of them.

A method prunes each model's difference from the base (or nothing), then mixes the models into one. Both look at the
whole tensor first where they need to, and then work block by block, so that a tensor never lies in memory as float32.
Dimensions: K models, B entries of a block, R rows.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from alignment.errors import InputError
from alignment.merging import combine, sparsify
from alignment.merging.blocks import Sources, check_fits, from_float32

MixFn = Callable[[int, np.ndarray], np.ndarray]  # (first entry, block [K, B]) -> merged [B], overwriting the block
NEVER, ALWAYS, IF_GIVEN = "never", "always", "if given"  # whether a method works on differences from the base


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor to merge.

    Attributes:
        name: of the merged tensor.
        sources: the models' own.
        each: settings by name, a number a model: weight, density, gamma, epsilon, scale.
        settings: those of the merge: normalize, lambda, rescale, t, ...
        seed: of random masks.
    """

    name: str
    sources: Sources
    each: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]
    seed: int = 0

    @property
    def models(self) -> range:
        return range(self.sources.num_models)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a merge saw of a tensor.

    Attributes:
        gram_KK: scalar products of the models' differences from the base, or of the models where there is no base.
        kept_K: share of the entries of each that are not zero after pruning.
        conflicts: share of the entries that models change in both directions, of those that any changes.
    """

    size: int
    gram_KK: np.ndarray
    kept_K: np.ndarray
    conflicts: float

    @property
    def norms_K(self) -> np.ndarray:
        return np.sqrt(np.diag(self.gram_KK))


def merge(tensor: Tensor, method: "Method", out: np.ndarray) -> Measured:
    """Merge one tensor into `out`, which has its shape and any float type.

    Raises:
        InputError: `out` cannot hold the merged values.
    """
    sources = tensor.sources
    keep_fns = method.prune(tensor) if method.prune else None
    mix_fn = method.mix(tensor)
    scale = np.float32(tensor.settings.get("lambda", 1.0))
    flat = out.reshape(-1)

    def one(start: int, stop: int) -> tuple[np.ndarray, np.ndarray, int, int]:
        block_KB, base_B = sources.read(start, stop)
        gram_KK = combine.products(block_KB)
        if keep_fns is not None:
            for keep_fn, delta_B in zip(keep_fns, block_KB):
                keep_fn(start, delta_B)
        kept_K, num_conflicts, num_changed = np.zeros(len(block_KB)), 0, 0
        if base_B is not None:
            kept_K, num_conflicts, num_changed = _signs(block_KB)
        merged_B = mix_fn(start, block_KB)
        if base_B is not None:
            if scale != 1:
                merged_B *= scale
            merged_B += base_B
        from_float32(merged_B, flat[start:stop])
        return gram_KK, kept_K, num_conflicts, num_changed

    grams, kept, conflicts, changed = zip(*sources.map(one))
    check_fits(tensor.name, out)
    share = sum(conflicts) / max(sum(changed), 1)
    return Measured(sources.size, sum(grams), sum(kept) / max(sources.size, 1), share)


def _signs(delta_KB: np.ndarray) -> tuple[np.ndarray, int, int]:
    """How many entries of each model are not zero; how many are changed both ways, and how many at all."""
    up, down = [delta_B > 0 for delta_B in delta_KB], [delta_B < 0 for delta_B in delta_KB]
    nonzero_K = np.array([np.count_nonzero(a) + np.count_nonzero(b) for a, b in zip(up, down)])
    up_B, down_B = functools.reduce(np.bitwise_or, up), functools.reduce(np.bitwise_or, down)
    return nonzero_K, int(np.count_nonzero(up_B & down_B)), int(np.count_nonzero(up_B | down_B))


@dataclasses.dataclass(frozen=True)
class Method:
    """How models are merged, and what its recipe may say.

    Attributes:
        mix: looks at a tensor and returns the function of its blocks.
        prune: the same for what is done to each model's difference first.
        each: settings that every model may have a value of its own for; None: there is no default.
        settings: those of the merge.
        base: whether differences from a base are merged.
        models: fewest and most models beside the base; None: any number.
        by_rows: whether blocks are whole rows.
    """

    mix: Callable[[Tensor], MixFn]
    prune: Callable[[Tensor], list[sparsify.KeepFn]] | None = None
    each: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    base: str = ALWAYS
    models: tuple[int, int | None] = (1, None)
    by_rows: bool = False


def check(method: Method, each: Mapping[str, np.ndarray], settings: Mapping[str, Any], where: str) -> None:
    """Refuse settings of a tensor that no mask could follow.

    Args:
        where: what the message says they are for.
    """
    for key, low, high in (("density", 0.0, 1.0), ("select_topk", 0.0, 1.0)):
        for value in np.atleast_1d(each.get(key, settings.get(key, 1.0))):
            if not low < value <= high:
                raise InputError(f"{where}: {key}={value:g} must be in (0, 1]: the share of entries that stay")
    if "t" in settings and not 0 <= settings["t"] <= 1:
        raise InputError(f"{where}: t={settings['t']:g} must be in [0, 1]: 0 is the base, 1 the other model")
    density_K = each.get("density", np.ones(1))
    for value in each.get("gamma", ()):
        if not 0 <= value < 1:
            raise InputError(f"{where}: gamma={value:g} must be in [0, 1): the share of largest entries that goes")
    if "gamma" in each and (density_K + each["gamma"] > 1 + 1e-9).any():
        raise InputError(
            f"{where}: density + gamma is above 1, and an entry cannot both stay and go; lower one of them"
        )
    if "epsilon" in each and (density_K < 1).any():
        low_K, high_K = density_K - each["epsilon"], density_K + each["epsilon"]
        if (each["epsilon"] < 0).any() or (low_K < 0).any() or (high_K > 1 + 1e-9).any():
            raise InputError(
                f"{where}: density {_listed(density_K)} and epsilon {_listed(each['epsilon'])} give probabilities "
                "outside of [0, 1]; lower epsilon"
            )


def _listed(values_K: np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in values_K)


def _sum(tensor: Tensor) -> MixFn:
    weights_K, normalize = tensor.each["weight"], tensor.settings["normalize"]
    return lambda start, block_KB: combine.weighted_sum(block_KB, weights_K, normalize=normalize)


def _consensus(tensor: Tensor) -> MixFn:
    weights_K, normalize = tensor.each["weight"], tensor.settings["normalize"]
    return lambda start, block_KB: combine.consensus(block_KB, weights_K, normalize=normalize)


def _scaled(tensor: Tensor) -> MixFn:
    return lambda start, block_KB: block_KB[0] * np.float32(tensor.each["scale"][0])


def prune_by_size(tensor: Tensor) -> list[sparsify.KeepFn]:
    """The trimming of TIES, and of Breadcrumbs where the recipe has gamma."""
    density_K = tensor.each["density"]
    gamma_K = tensor.each.get("gamma", np.zeros(len(density_K)))
    return [sparsify.middle(tensor.sources, i, density_K[i], gamma_K[i]) for i in tensor.models]


def _random(tensor: Tensor) -> list[sparsify.KeepFn]:
    rescale, density_K = rescaling(tensor.settings["rescale"]), tensor.each["density"]
    return [
        sparsify.bernoulli(tensor.seed, tensor.name, tensor.sources, i, density_K[i], rescale) for i in tensor.models
    ]


def _by_rank(tensor: Tensor) -> list[sparsify.KeepFn]:
    rescale, each = rescaling(tensor.settings["rescale"]), tensor.each
    return [
        sparsify.by_rank(tensor.seed, tensor.name, tensor.sources, i, each["density"][i], each["epsilon"][i], rescale)
        for i in tensor.models
    ]


def rescaling(value: bool | str) -> str:
    """`rescale` of a recipe: true is the published rule."""
    if isinstance(value, bool):
        return "density" if value else "none"
    return value


def _grams(tensor: Tensor) -> np.ndarray:
    """Scalar products of the whole tensors."""

    def one(start: int, stop: int) -> np.ndarray:
        block_KB = tensor.sources.read(start, stop)[0]
        return combine.products(block_KB)

    return sum(tensor.sources.map(one))


def _block_grams(tensor: Tensor, form: str) -> list[Any]:
    """Scalar products of the models within each block [K, R, N], by an einsum."""

    def one(start: int, stop: int) -> np.ndarray:
        block_KRN = tensor.sources.read(start, stop)[0].reshape(len(tensor.models), -1, tensor.sources.row)
        return np.einsum(form, block_KRN, block_KRN, dtype=np.float64)

    return tensor.sources.map(one)


def _row_grams(tensor: Tensor) -> np.ndarray:
    """Scalar products of each row, [R, K, K]."""
    return np.concatenate(_block_grams(tensor, "krn,lrn->rkl"))


def _column_grams(tensor: Tensor) -> np.ndarray:
    """Scalar products of each column, [N, K, K]."""
    return sum(_block_grams(tensor, "krn,lrn->nkl"))


def _arc(tensor: Tensor) -> MixFn:
    return _between(tensor, float(tensor.settings["t"]))


def _arc_by_weight(tensor: Tensor) -> MixFn:
    """SLERP whose place on the arc is the second weight's share; by rows or columns where the recipe asks."""
    weights_K = tensor.each["weight"]
    total = float(weights_K.sum())
    t = float(weights_K[1] / total) if total else 0.5
    settings = tensor.settings
    if settings["nuslerp_flatten"] or len(tensor.sources.shape) < 2:
        return _between(tensor, t)
    grams = _row_grams(tensor) if settings["nuslerp_row_wise"] else _column_grams(tensor)
    factors_K = np.array([_factors(gram_KK, t) for gram_KK in grams], np.float32).T

    def mix(start: int, block_KB: np.ndarray) -> np.ndarray:
        block_KRN = block_KB.reshape(2, -1, tensor.sources.row)
        if settings["nuslerp_row_wise"]:
            first = start // tensor.sources.row
            scales = factors_K[:, first : first + block_KRN.shape[1], None]
        else:
            scales = factors_K[:, None, :]
        return (block_KRN * scales).sum(axis=0).reshape(-1)

    return mix


def _between(tensor: Tensor, t: float) -> MixFn:
    """Two tensors, each as one vector."""
    factors_K = np.array(_factors(_grams(tensor), t))
    return lambda start, block_KB: combine.weighted_sum(block_KB, factors_K, normalize=False)


def _factors(gram_KK: np.ndarray, t: float) -> tuple[float, float]:
    norms = float(np.sqrt(gram_KK[0, 0])), float(np.sqrt(gram_KK[1, 1]))
    return combine.arc(float(gram_KK[0, 1]), norms, t)


def _stock(tensor: Tensor) -> MixFn:
    is_by_row = tensor.settings["filter_wise"] and len(tensor.sources.shape) > 1
    _, ratio_R = combine.centre(_row_grams(tensor) if is_by_row else _grams(tensor)[None])

    def mix(start: int, delta_KB: np.ndarray) -> np.ndarray:
        if not is_by_row:
            return delta_KB.mean(axis=0) * np.float32(ratio_R[0])
        mean_RN = delta_KB.mean(axis=0).reshape(-1, tensor.sources.row)
        first = start // tensor.sources.row
        return (mean_RN * ratio_R[first : first + len(mean_RN), None].astype(np.float32)).reshape(-1)

    return mix


def _by_variance(tensor: Tensor) -> list[sparsify.KeepFn]:
    return sparsify.by_variance(tensor.sources, tensor.settings["select_topk"])


def _by_energy(tensor: Tensor) -> MixFn:
    """Calculate and erase of SCE: a model's weight is its share of the squares, and minority signs go."""
    keep_fns = _by_variance(tensor)

    def squares(start: int, stop: int) -> np.ndarray:
        delta_KB = tensor.sources.read(start, stop)[0]
        for keep_fn, delta_B in zip(keep_fns, delta_KB):
            keep_fn(start, delta_B)
        return np.square(delta_KB).sum(axis=1, dtype=np.float64)

    energy_K = sum(tensor.sources.map(squares))
    weights_K = energy_K / (energy_K.sum() or 1.0)
    return lambda start, block_KB: combine.consensus(block_KB, weights_K, normalize=False, votes_weigh=False)


WEIGHT: Mapping[str, float | None] = {"weight": None}
DENSITY: Mapping[str, float | None] = {"weight": None, "density": 1.0}
OF_DELTAS: Mapping[str, Any] = {"lambda": 1.0, "normalize": False}
OF_MASKS: Mapping[str, Any] = {**OF_DELTAS, "rescale": True}

METHODS = {
    "linear": Method(_sum, each=WEIGHT, settings={"normalize": True}, base=NEVER),
    "slerp": Method(_arc, settings={"t": None}, base=NEVER, models=(2, 2)),
    "nuslerp": Method(
        _arc_by_weight,
        each=WEIGHT,
        settings={"nuslerp_flatten": True, "nuslerp_row_wise": False},
        base=IF_GIVEN,
        models=(2, 2),
        by_rows=True,
    ),
    "task_arithmetic": Method(_sum, each=WEIGHT, settings=OF_DELTAS),
    "ties": Method(_consensus, prune_by_size, each=DENSITY, settings={"lambda": 1.0, "normalize": True}),
    "dare_linear": Method(_sum, _random, each=DENSITY, settings=OF_MASKS),
    "dare_ties": Method(_consensus, _random, each=DENSITY, settings=OF_MASKS),
    "della": Method(_consensus, _by_rank, each={**DENSITY, "epsilon": None}, settings=OF_MASKS, by_rows=True),
    "della_linear": Method(_sum, _by_rank, each={**DENSITY, "epsilon": None}, settings=OF_MASKS, by_rows=True),
    "breadcrumbs": Method(_sum, prune_by_size, each={**DENSITY, "gamma": None}, settings=OF_DELTAS),
    "breadcrumbs_ties": Method(_consensus, prune_by_size, each={**DENSITY, "gamma": None}, settings=OF_DELTAS),
    "model_stock": Method(_stock, settings={"filter_wise": False}, models=(2, None), by_rows=True),
    "sce": Method(_by_energy, _by_variance, settings={"select_topk": 1.0}, models=(2, None)),
    "passthrough": Method(_scaled, each={"scale": 1.0}, base=NEVER, models=(1, 1)),
}
