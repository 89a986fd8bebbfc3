"""Networks of saflex.py by kind of data, each as one function `forward(params, statistics, x, train, rng)`."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from alignment.augment import contrastive, saflex
from alignment.errors import InputError, one_of
from alignment.models import vision
from alignment.train import classify
from experiments.augmentation.tasks import PAIRS, PICTURES, ROWS

MLP, TOWERS = "mlp", "two_towers"


class Mlp(nn.Module):
    """Dense layers with ReLU between; no hidden layer makes a linear classifier.

    Attributes:
        widths: of the hidden layers.
    """

    num_classes: int
    widths: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x_ND: jax.Array) -> jax.Array:
        for i, width in enumerate(self.widths):
            x_ND = nn.relu(nn.Dense(width, name=f"hidden_{i}")(x_ND))
        # zeros, so that a linear classifier begins undecided and does not depend on a draw
        init = nn.initializers.normal(0.01) if self.widths else nn.initializers.zeros
        return nn.Dense(self.num_classes, kernel_init=init, name="head")(x_ND)


def check(kind: str, name: str, fields: Mapping[str, Any], side: int | None) -> None:
    """Refuse a network that does not fit the data, and fields that it does not have."""
    if any(width < 1 for width in fields.get("widths", ())):
        raise InputError(f"network.widths={tuple(fields['widths'])} must be at least 1 each")
    known = {ROWS: (MLP,), PAIRS: (TOWERS,), PICTURES: tuple(vision.NETWORKS)}[kind]
    one_of("network.name", name, known, hint=f"these take {kind}")
    model = network(kind, name, 2, fields)
    if kind == PICTURES:
        vision.check_input(model, (side, side))


def network(kind: str, name: str, num_classes: int, fields: Mapping[str, Any]) -> nn.Module:
    if kind == PICTURES:
        return vision.network(name, num_classes=num_classes, **fields)
    try:
        return Mlp(num_classes, **fields) if kind == ROWS else contrastive.TwoTowers(**fields)
    except TypeError as e:
        raise InputError(f"network.fields={dict(fields)} does not fit {name}: {e}") from e


def inputs(kind: str, x: jax.Array, image_width: int = 0) -> Any:
    """What a network reads: normalised pictures, numbers, or the image and the text of pairs."""
    if kind == PICTURES:
        return classify.normalise(x)
    return {"image": x[:, :image_width], "text": x[:, image_width:]} if kind == PAIRS else x


def forward_of(kind: str, model: nn.Module, image_width: int = 0):
    """`forward(params, statistics, x, *, train, rng) -> (logits, statistics)` for `alignment.augment.training`."""

    def forward(params, statistics, x, *, train, rng):
        variables, read = {"params": params, **statistics}, inputs(kind, x, image_width)
        if kind != PICTURES:
            return model.apply(variables, read), statistics
        if not train:
            return model.apply(variables, read, train=False)[0], statistics
        (logits, _), changed = model.apply(variables, read, train=True, mutable=["batch_stats"], rngs={"dropout": rng})
        return logits, dict(changed)

    return forward


def losses_of(kind: str) -> saflex.LossesFn:
    return contrastive.losses if kind == PAIRS else saflex.cross_entropies


def init(
    kind: str, model: nn.Module, example: jax.Array, rng: jax.Array, image_width: int = 0
) -> tuple[Any, dict[str, Any]]:
    """Parameters, and the collections that are not trained, of one seed."""
    start_fn = functools.partial(model.init, train=False) if kind == PICTURES else model.init
    drawn = dict(nn.meta.unbox(start_fn(rng, inputs(kind, example, image_width))))
    return drawn.pop("params"), drawn
