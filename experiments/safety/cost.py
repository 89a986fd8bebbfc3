"""What an alignment costs: operations, device-hours and dollars, of a run and of models that nobody ran here."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import optax

from alignment.errors import within
from alignment.train import adapters
from alignment.train import planning as planned
from experiments.launch import planning
from experiments.safety.tuning import Tuned

# numbers in published models, from their configurations
PUBLISHED = {
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-72B": 72_706_203_648,
}
PUBLISHED_PAIRS = 2_000


def settings() -> dict[str, Any]:
    """The group of a config with what a cost is reckoned from."""
    return dict(
        device="H100",
        peak_tflops=989.0,  # of the device, in 10^12 operations a second, dense, in the type of the arithmetic
        utilisation=0.4,  # share of the peak that training reaches
        price=2.0,  # of a device for an hour, in dollars
        tokens=1_024,  # of both answers of a pair with their prompts
    )


@dataclasses.dataclass(frozen=True)
class Rates:
    """The group of `settings`."""

    device: str
    peak_tflops: float
    utilisation: float
    price: float
    tokens: int

    def hours(self, flops: float) -> float:
        return flops / (self.peak_tflops * 1e12 * self.utilisation) / 3_600


def check(group: Mapping[str, Any]) -> None:
    """Refuse numbers that no cost follows from.

    Raises:
        InputError: one is out of its range.
    """
    within("(0, inf)", **{"cost.peak_tflops": group["peak_tflops"], "cost.tokens": group["tokens"]})
    within("(0, 1]", **{"cost.utilisation": group["utilisation"]})
    within("[0, inf)", **{"cost.price": group["price"]})


@functools.cache  # to count a step of a published model takes half a second
def pair_flops(name: str, tokens: int, is_adapter: bool) -> float:
    """Operations of one pair of a published model, counted in the program that `--plan` would compile for it.

    The policy's forward and backward pass without recomputation, and the reference's forward pass.

    Args:
        name: of PUBLISHED.
        tokens: of both answers with their prompts, which take half of it.
    """
    architecture = planning.ARCHITECTURES[name.lower()]
    training = planning.pairs(
        name,
        planning.Wanted(architecture).decoder(architecture, rows_are_plain=True),
        loss="dpo",
        objective=dict(beta=0.1),
        tx=optax.identity(),
        batch_size=1,
        max_len=max(tokens // 2, 2),
        steps=1,
        adapter=adapters.Options(rank=planning.RANK if is_adapter else 0),
        reference="online",
    )
    return planned.num_flops(training, "none")


def sheet(tuned: Tuned, seconds: float | None, rates: Rates) -> list[dict[str, Any]]:
    """A row for this run, as measured, and rows for published models on 2,000 pairs, as planned.

    Args:
        seconds: spent on updates; None where nobody measured it.
    """
    measured = None if seconds is None else seconds * tuned.num_devices / 3_600
    counted = (tuned.num_params, tuned.num_pairs, tuned.flops, "counted")
    rows = [
        _row("this run", *counted, tuned.device, measured, None),
        _row(f"this run on {rates.device}", *counted, rates.device, rates.hours(tuned.flops), rates.price),
    ]
    for name, num_params in PUBLISHED.items():
        for is_adapter in (False, True):
            flops = PUBLISHED_PAIRS * pair_flops(name, rates.tokens, is_adapter)
            label = f"{name}, {'adapter' if is_adapter else 'all weights'}"
            hours = rates.hours(flops)
            rows.append(_row(label, num_params, PUBLISHED_PAIRS, flops, "planned", rates.device, hours, rates.price))
    return rows


def _row(label, num_params, num_pairs, flops, how, device, hours, price):
    return {
        "model": label,
        "parameters": num_params,
        "pairs": num_pairs,
        "FLOPs": flops,
        "how": how,
        "device": device,
        "device_hours": hours,
        "dollars": None if hours is None or price is None else hours * price,
    }
