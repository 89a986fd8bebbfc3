"""Which rule each layer gets: composites by name.

A composite is a list of (predicate, rule) pairs; the first predicate that holds decides.  A predicate is a function of
a `layers.Layer`, or a glob on its name ("block1/*"), or a module's path ("block1"), which holds for the conv and dense
layers below it, or for all layers below it where none is conv or dense.  A rule is a function of `lrp_rules`.  A layer
for which no predicate holds gets the rule of its kind from `DEFAULTS`.

The names are those of zennit (Anders et al. 2021, arXiv:2106.13200), whose composites follow Montavon et al. 2019 and
Kohlbrenner et al. 2020 (arXiv:1910.09840).
"""

import dataclasses
import fnmatch
import inspect
from collections.abc import Callable, Sequence
from functools import partial

import jax

from alignment import errors
from alignment.explain import lrp_rules
from alignment.explain.layers import Layer

Predicate = str | Callable[[Layer], bool]
Rule = Callable[..., object]
Pairs = Sequence[tuple[Predicate, Rule]]
Bound = float | jax.Array  # of the inputs: a number, or an array that broadcasts to the images

# Sums and pools get a small eps: where two branches nearly cancel, shares in proportion to x / (x + y) would explode.
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


def epsilon_plus() -> Composite:
    """z+ for convolutions, epsilon for dense layers."""
    return Composite([(kind("conv"), lrp_rules.z_plus)])


def epsilon_plus_flat() -> Composite:
    """EpsilonPlus with the flat rule in the first layer."""
    return Composite([(first, lrp_rules.flat), *epsilon_plus().pairs])


def epsilon_gamma_box(low: Bound = -1.0, high: Bound = 1.0) -> Composite:
    """gamma 0.25 for convolutions, in the first z-box with the bounds of normalised images; epsilon for dense."""
    return Composite([(first, partial(lrp_rules.z_box, low=low, high=high)), (kind("conv"), lrp_rules.gamma)])


def epsilon_alpha2_beta1() -> Composite:
    """alpha 2, beta 1 for convolutions, epsilon for dense layers."""
    return Composite([(kind("conv"), lrp_rules.alpha_beta)])


def epsilon_alpha2_beta1_flat() -> Composite:
    """EpsilonAlpha2Beta1 with the flat rule in the first layer."""
    return Composite([(first, lrp_rules.flat), *epsilon_alpha2_beta1().pairs])


def epsilon() -> Composite:
    """LRP-epsilon everywhere."""
    return Composite([])


def attn_lrp() -> Composite:
    """For transformers (Achtibat et al. 2024, arXiv:2402.05602): gamma for the patch embedding, epsilon for dense.

    Attention and norms get the rules of their kind in `DEFAULTS`.
    """
    return Composite([(kind("conv"), lrp_rules.gamma)])


def focus_paper() -> Composite:
    """The rules of the code of Arias-Duart et al. 2022: batch norm is not folded, the box is each image's own range."""
    image = partial(lrp_rules.z_box, low=None, high=None)
    return Composite(
        [
            # their code applies the box rule where a layer has three input channels
            (lambda layer: layer.kind == "conv" and layer.is_first and layer.in_shape[-1] == 3, image),
            (kind("conv"), lrp_rules.focus_conv),
            (kind("dense"), lrp_rules.focus_dense),
            (kind("sum", "avg_pool"), lrp_rules.proportional),
        ],
        fold=False,  # their networks keep batch norm, whose shift then takes relevance (`absorbing`)
    )


COMPOSITES: dict[str, Callable[..., Composite]] = {
    "epsilon": epsilon,
    "epsilon_plus": epsilon_plus,
    "epsilon_plus_flat": epsilon_plus_flat,
    "epsilon_gamma_box": epsilon_gamma_box,
    "epsilon_alpha2_beta1": epsilon_alpha2_beta1,
    "epsilon_alpha2_beta1_flat": epsilon_alpha2_beta1_flat,
    "attn_lrp": attn_lrp,
    "focus_paper": focus_paper,
}


def choose(composite: str | Pairs | Composite, low: Bound = -1.0, high: Bound = 1.0) -> Composite:
    """The composite of that name, or the pairs as one.

    Args:
        composite: a key of `COMPOSITES`, (predicate, rule) pairs, or a composite.
        low, high: bounds of the inputs, for the composites whose signature names them.

    Raises:
        InputError: for an unknown name, for what is neither a composite nor pairs, and for bounds that hold nothing.
    """
    if isinstance(composite, Composite):
        return composite
    lrp_rules.check_bounds(low, high)
    if not isinstance(composite, str):
        if not isinstance(composite, list | tuple):
            raise _not_pairs(composite)
        return Composite(tuple(composite))
    errors.one_of("composite", composite, COMPOSITES, hint="or pass a list of (predicate, rule)")
    composite_fn = COMPOSITES[composite]
    bounds = {"low": low, "high": high}
    return composite_fn(**{name: bounds[name] for name in inspect.signature(composite_fn).parameters})


def default(layers: Sequence[Layer]) -> str:
    """Name of the composite for a network: attn_lrp with attention, epsilon_plus_flat with batch norm, else
    epsilon_gamma_box.
    """
    if any(layer.kind == "matmul" for layer in layers):
        return "attn_lrp"
    # a folded batch norm has scaled the weights of the layer before it; one that cannot be folded is an affine layer
    has_norm = any(layer.is_scaled or layer.kind == "affine" for layer in layers)
    return "epsilon_plus_flat" if has_norm else "epsilon_gamma_box"


def assign(layers: Sequence[Layer], pairs: Pairs) -> list[Rule]:
    """A rule for each layer.

    Raises:
        InputError: naming every layer without a rule; for pairs that are not pairs, and names that no layer has.
    """
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not callable(pair[1]):
            raise _not_pairs(pair)
        if isinstance(pair[0], str) and not _called(pair[0], layers):
            names = [layer.name for layer in layers]
            modules = {name.rpartition("/")[0] for name in names} - {""}
            errors.one_of("layer", pair[0], [*names, *sorted(modules)])
    # names are resolved once for all layers, since a module's name means other layers where some of them have weights
    tests = [(_called(test, layers).__contains__ if isinstance(test, str) else test, rule) for test, rule in pairs]
    rule_or_none = [next((rule for holds, rule in tests if holds(layer)), DEFAULTS.get(layer.kind)) for layer in layers]
    rules = [rule for rule in rule_or_none if rule is not None]
    missing = [layer for layer, rule in zip(layers, rule_or_none) if rule is None]
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


def _not_pairs(value: object) -> errors.InputError:
    return errors.InputError(
        f"{value!r} is neither a composite's name nor (predicate, rule) pairs; a rule is a function such as "
        "lrp_rules.z_plus, a predicate a layer's name or a function of it"
    )


def _called(name: str, layers: Sequence[Layer]) -> list[Layer]:
    """Layers of that name, or those below the module of that name that have weights, or all below it."""
    below = [layer for layer in layers if fnmatch.fnmatchcase(layer.name, f"{name}/*")]
    weighted = [layer for layer in below if layer.kind in ("conv", "dense")]
    return [layer for layer in layers if fnmatch.fnmatchcase(layer.name, name)] or weighted or below
