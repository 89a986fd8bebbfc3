"""Every method on the same new tasks: trainings over seeds, fine-tuning, and what the page is made of."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from alignment import intervals
from alignment.fairness import fine_tuning, measures, methods
from data import places
from experiments.fairness import training
from experiments.fairness.training import Setup


@dataclasses.dataclass(frozen=True)
class Tested:
    """A method's outcome with one seed, and its quality before fine-tuning and after each step."""

    seed: int
    outcome: fine_tuning.Outcome
    steps: list[fine_tuning.Quality]
    kept_step: float
    steps_per_second: float | None

    @property
    def last(self) -> fine_tuning.Quality:
        return self.steps[-1]


@dataclasses.dataclass(frozen=True)
class Report:
    """What the page says.

    Args:
        tested: method -> its seeds.
        partitionings: method -> rows of `measures.over_partitionings` of the first seed.
        boxes_P4: of the places of the test tasks, `box_T4` of the tasks.
        names_T: of the test tasks.
        by_chance: the quality of a constant prediction.
        collapses: method with a referee -> why it collapsed with some seed; "" where it did not.
        notes: sentences for the findings.
        gains: method -> what it gains over MAML in LF and loses in quality, each with its interval.
    """

    tested: Mapping[str, Sequence[Tested]]
    partitionings: Mapping[str, Sequence[Mapping[str, float]]]
    box_P4: np.ndarray
    box_T4: np.ndarray
    names_T: Sequence[str]
    is_degrees: bool
    measure: str
    by_chance: float
    collapses: Mapping[str, str]
    notes: Sequence[str]
    gains: Mapping[str, Mapping[str, tuple[float, float, float]]]


def all_methods(setup: Setup, folder: pathlib.Path) -> dict[str, list[Tested]]:
    """Train what the methods need, each training once, and test every method with every seed."""
    c = setup.c
    options = training.measured(c, setup.world)
    trained: dict[tuple[str, int], Any] = {}
    out: dict[str, list[Tested]] = {}
    for name in c.methods:
        own = methods.trained_as(name)
        for seed in range(c.seed, c.seed + c.seeds):
            if (own, seed) not in trained:
                trained[own, seed] = training.train(setup, own, seed, folder / f"training/{own}/seed_{seed}")
            params, summary = trained[own, seed]
            outcome = setup.outcome(training.rule_of(c, name), params, places.TEST)
            steps = [fine_tuning.quality(outcome, at, **options) for at in range(outcome.num_steps + 1)]
            rate = summary.get("steps_per_second")
            out.setdefault(name, []).append(Tested(seed, outcome, steps, summary["kept_step"], rate))
            even = steps[-1].evenness
            if jax.process_index() == 0:
                print(
                    f"{name}, seed {seed}: quality {even.performance:.4f}, LF {even.lf:.4f}, ALF {even.alf:.4f}, "
                    f"worst {even.worst:.4f}",
                    flush=True,
                )
    return out


def report(setup: Setup, tested: Mapping[str, Sequence[Tested]]) -> Report:
    c, world = setup.c, setup.world
    options = training.measured(c, world)
    first = next(iter(tested.values()))[0].outcome
    box_T4 = np.array([world.box_fn(places.TEST, int(number)) for number in first.task_T])
    box_P4 = np.array(
        [
            world.box_fn(places.TEST, int(first.task_T[task]), int(number))
            for task, number in zip(first.task_P, first.number_P)
        ]
    )
    partitionings = {
        name: measures.over_partitionings(
            of_seed[0].outcome.predicted_KN[-1],
            first.y_N,
            first.xy_N2,
            first.task_N,
            box_T4,
            tuple(c.partitionings),
            least=max(c.query // 2, 2),
            **options,
        )
        for name, of_seed in tested.items()
    }
    collapses = {
        name: "; ".join(filter(None, (training.is_collapsed(one.last, one.outcome, options) for one in of_seed)))
        for name, of_seed in tested.items()
        if name in methods.REFEREED
    }
    by_chance = measures.chance(first.y_N, options["measure"], num_classes=options["num_classes"])
    names_T = [world.name_fn(places.TEST, int(number)) for number in first.task_T]
    return Report(
        tested,
        partitionings,
        box_P4,
        box_T4,
        names_T,
        world.is_degrees,
        options["measure"],
        by_chance,
        collapses,
        notes(setup, tested),
        {name: gain(tested["maml"], tested[name], c.seed) for name in tested if "maml" in tested and name != "maml"},
    )


def gain(before: Sequence[Tested], after: Sequence[Tested], seed: int) -> dict[str, tuple[float, float, float]]:
    """(mean, low, high) over seeds and tasks of what a method gains: in LF, downwards, and in quality, upwards."""
    lf_ST = [b.last.evenness.lf_T - a.last.evenness.lf_T for b, a in zip(before, after)]
    quality_ST = [a.last.reference_T - b.last.reference_T for b, a in zip(before, after)]
    # Tasks that evenness leaves out are the same for every method and seed: their targets make them so.
    is_used_T = np.isfinite(lf_ST).all(0)
    return {
        name: intervals.two_way(np.array(values_ST)[:, is_used_T], seed=seed)
        for name, values_ST in (("lf", lf_ST), ("performance", quality_ST))
    }


def notes(setup: Setup, tested: Mapping[str, Sequence[Tested]]) -> list[str]:
    """What a reader must know of these numbers and cannot see in them."""
    c, world, options = setup.c, setup.world, training.measured(setup.c, setup.world)
    out = []
    if any(len(of_seed) == 1 for of_seed in tested.values()):
        out.append("One seed was trained, so every interval is over tasks alone; trainings of other seeds differ too.")
    if not world.class_names:
        out.append(
            f"Qualities of numbers are in deviations of the target over the training tiles, each {world.unit:.4g} of "
            "its own units."
        )
    last = next(iter(tested.values()))[0].last
    if num_places := int(np.isnan(last.m_P).sum()):
        num_tasks = int(np.isnan(last.evenness.lf_T).sum())
        out.append(
            f"{num_places} of {len(last.m_P)} test places have equal targets, whose {options['measure']} is not "
            f"defined: they are left out, and so are {num_tasks} of {len(last.reference_T)} tasks, which have fewer "
            "than 2 others."
        )
    if "no_performance" in tested and not training.rule_of(c, "no_performance").moves_theta_fairly:
        out.append("The predictor of no_performance stays as it was drawn, since no phase moves it.")
    if options["measure"] == measures.F1:
        other = next(word for word in measures.ZERO_DIVISION if word != options.get("zero_division", "0"))
        for name, of_seed in tested.items():
            changed = fine_tuning.quality(of_seed[0].outcome, -1, **options | {"zero_division": other})
            difference = changed.evenness.performance - of_seed[0].last.evenness.performance
            out.append(f"With zero_division={other} the F1 of {name} (first seed) would differ by {difference:+.4f}.")
    if "hand_made" in tested:
        what = "equal everywhere, as the released script in effect has them" if c.as_released else "scaled to mean 1"
        out.append(
            f"hand_made fine-tunes MAML's predictor under the rates of Xie et al. 2022, {what}; E_m is the quality on "
            "the support set before fine-tuning."
        )
    return out
