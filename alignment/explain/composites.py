"""Which rule each layer gets: composites by name.

A composite is a list of (predicate, rule) pairs; the first predicate that holds decides.  A predicate is a function of
a `layers.Layer`, or a glob on its name ("block1/*"), or a module's path ("block1"): that holds for the conv and dense
layers below it, and where it has none, for all.  A rule is a function of `lrp_rules`.  What no pair takes gets the rule
of its kind from `DEFAULTS`.
"""

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Sequence
from functools import partial

from alignment import errors
from alignment.explain import lrp_rules
from alignment.explain.layers import Layer

Predicate = str | Callable[[Layer], bool]
Rule = Callable[..., object]
Pairs = Sequence[tuple[Predicate, Rule]]

DEFAULTS: dict[str, Rule] = {
    "conv": lrp_rules.epsilon,
    "dense": lrp_rules.epsilon,
    "affine": lrp_rules.absorbing,
    "scale": lrp_rules.identity,
    "activation": lrp_rules.identity,
    "norm": lrp_rules.identity,
    "softmax": lrp_rules.softmax,
    "max_pool": lrp_rules.backward,
    "avg_pool": partial(lrp_rules.proportional, eps=1e-6),
    "move": lrp_rules.backward,
    "sum": partial(lrp_rules.proportional, eps=1e-6),
    "gate": lrp_rules.signal,
    "product": lrp_rules.uniform,
    "matmul": lrp_rules.uniform,
}


@dataclasses.dataclass(frozen=True)
class Composite:
    """Pairs, and whether batch norm is folded into the layer before it."""

    pairs: Pairs
    fold: bool = True


def kind(*kinds: str) -> Callable[[Layer], bool]:
    """Holds for layers of these kinds."""
    return lambda layer: layer.kind in kinds


def first(layer: Layer) -> bool:
    """Holds for a conv or dense layer that has none before it."""
    return layer.is_first


def epsilon_plus(low=-1.0, high=1.0) -> Composite:
    """z+ for convolutions, epsilon for dense layers."""
    del low, high
    return Composite([(kind("conv"), lrp_rules.z_plus)])


def epsilon_plus_flat(low=-1.0, high=1.0) -> Composite:
    """EpsilonPlus with the flat rule in the first layer."""
    return Composite([(first, lrp_rules.flat), *epsilon_plus(low, high).pairs])


def epsilon_gamma_box(low=-1.0, high=1.0) -> Composite:
    """gamma 0.25 for convolutions, in the first z-box with the bounds of normalised images; epsilon for dense."""
    return Composite([(first, partial(lrp_rules.z_box, low=low, high=high)), (kind("conv"), lrp_rules.gamma)])


def epsilon_alpha2_beta1(low=-1.0, high=1.0) -> Composite:
    """alpha 2, beta 1 for convolutions, epsilon for dense layers."""
    del low, high
    return Composite([(kind("conv"), lrp_rules.alpha_beta)])


def epsilon_alpha2_beta1_flat(low=-1.0, high=1.0) -> Composite:
    """EpsilonAlpha2Beta1 with the flat rule in the first layer."""
    return Composite([(first, lrp_rules.flat), *epsilon_alpha2_beta1(low, high).pairs])


def epsilon(low=-1.0, high=1.0) -> Composite:
    """LRP-epsilon everywhere."""
    del low, high
    return Composite([])


def attn_lrp(low=-1.0, high=1.0) -> Composite:
    """For transformers: gamma for the patch embedding, epsilon for dense layers; attention, norms as in `DEFAULTS`."""
    del low, high
    return Composite([(kind("conv"), lrp_rules.gamma)])


def focus_paper(low=-1.0, high=1.0) -> Composite:
    """The rules of the Focus authors' code, batch norm kept apart; the box is each image's own range."""
    del low, high
    image = partial(lrp_rules.z_box, low=None, high=None)
    return Composite(
        [
            (lambda layer: layer.kind == "conv" and layer.is_first and layer.in_shape[-1] == 3, image),
            (kind("conv"), lrp_rules.focus_conv),
            (kind("dense"), lrp_rules.focus_dense),
            (kind("sum", "avg_pool"), lrp_rules.proportional),
        ],
        fold=False,
    )


COMPOSITES = {
    "epsilon": epsilon,
    "epsilon_plus": epsilon_plus,
    "epsilon_plus_flat": epsilon_plus_flat,
    "epsilon_gamma_box": epsilon_gamma_box,
    "epsilon_alpha2_beta1": epsilon_alpha2_beta1,
    "epsilon_alpha2_beta1_flat": epsilon_alpha2_beta1_flat,
    "attn_lrp": attn_lrp,
    "focus_paper": focus_paper,
}


def choose(composite: str | Pairs | Composite, low=-1.0, high=1.0) -> Composite:
    """The composite of that name, or the pairs as one.

    Raises:
        InputError: for a name that is not there, for what is no composite, and for bounds that hold nothing.
    """
    if isinstance(composite, Composite):
        return composite
    if isinstance(low, int | float) and isinstance(high, int | float) and not low < high:
        raise errors.InputError(f"low={low} and high={high}; inputs lie between them, so low must be the smaller")
    if not isinstance(composite, str):
        return Composite(tuple(composite) if isinstance(composite, list | tuple) else _no_pairs(composite))
    if composite not in COMPOSITES:
        raise errors.InputError(
            f"composite {composite!r} is not known; take one of {', '.join(COMPOSITES)} or a list of (predicate, rule)"
        )
    return COMPOSITES[composite](low, high)


def default(layers: Sequence[Layer]) -> str:
    """EpsilonPlusFlat for networks with batch norm, attn_lrp for those with attention, else EpsilonGammaBox."""
    if any(layer.kind == "matmul" for layer in layers):
        return "attn_lrp"
    has_norm = any(layer.is_scaled or layer.kind == "affine" for layer in layers)
    return "epsilon_plus_flat" if has_norm else "epsilon_gamma_box"


def assign(layers: Sequence[Layer], pairs: Pairs) -> list[Rule]:
    """A rule for each layer.

    Raises:
        InputError: naming every layer that has none; for pairs that are none, and names that no layer has.
    """
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not callable(pair[1]):
            _no_pairs(pair)
        if isinstance(pair[0], str) and not _called(pair[0], layers):
            names = [layer.name for layer in layers]
            modules = {name.rpartition("/")[0] for name in names} - {""}
            near = difflib.get_close_matches(pair[0], [*names, *sorted(modules)], n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
            raise errors.InputError(f"no layer is called {pair[0]!r}{hint} There are {', '.join(names)}")
    pairs = [(_called(test, layers).__contains__ if isinstance(test, str) else test, rule) for test, rule in pairs]
    rules = [next((rule for holds, rule in pairs if holds(layer)), DEFAULTS.get(layer.kind)) for layer in layers]
    missing = [layer for layer, rule in zip(layers, rules) if rule is None]
    if missing:
        listed = "; ".join(
            f"{layer.name} ({', '.join(dict.fromkeys(e.op for e in layer.equations))}, {list(layer.in_shape)} -> "
            f"{list(layer.out_shape)})"
            for layer in missing[:8]
        )
        raise errors.InputError(
            f"no LRP rule is known for {len(missing)} layer(s): {listed}. Give one by name, such as "
            f"rules=[({missing[0].name!r}, lrp_rules.proportional)] (input times gradient, in proportion) or "
            "lrp_rules.identity (relevance unchanged)"
        )
    return rules


def _no_pairs(found):
    raise errors.InputError(
        f"{found!r} is neither a composite's name nor (predicate, rule) pairs; a rule is a function such as "
        "lrp_rules.z_plus, a predicate a layer's name or a function of it"
    )


def _called(name: str, layers: Sequence[Layer]) -> list[Layer]:
    """Layers of that name, or those below the module of that name that have weights, or all below it."""
    below = [layer for layer in layers if fnmatch.fnmatchcase(layer.name, f"{name}/*")]
    weighted = [layer for layer in below if layer.kind in ("conv", "dense")]
    return [layer for layer in layers if fnmatch.fnmatchcase(layer.name, name)] or weighted or below
