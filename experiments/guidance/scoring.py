"""Scores of written answers that do not come from what guided them, and what they say of two methods.

`rules`: those of the embedded objectives. `heldout`: for each objective a reward of whole answers (linear in the base's
hidden states), fitted to pairs whose prompts no other model of the run has read, parted off and drawn by another seed.
`model` and `endpoint`: a language model that reads each pair of answers in both orders.
"""

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alignment import frontier
from alignment.evaluation import head_to_head
from alignment.evaluation.head_to_head import Tally
from alignment.preference import linear_reward
from alignment.safety.judging import Judge
from data.texts import preferences
from data.toys import manners
from experiments.guidance import writing
from experiments.guidance.methods import Method
from experiments.guidance.training import Objective, Trained
from experiments.guidance.writing import Prompt
from experiments.safety import judges

RULES, HELDOUT = "rules", "heldout"
ASKED = (judges.MODEL, judges.ENDPOINT)
JUDGES = (RULES, HELDOUT, *ASKED)
Rows = Mapping[int, Mapping[str, Any]]  # a prompt's number -> the row of its answer
Scores = Mapping[str, Mapping[int, Sequence[float]]]  # a method's name -> the same -> a score for each objective
# two methods' names and the number of an objective -> outcomes of the first, on the prompts that both have answered
OutcomesFn = Callable[[str, str, int], list[str]]


@dataclasses.dataclass(frozen=True)
class Measuring:
    """The reward of whole answers by which one objective is measured.

    Attributes:
        num_pairs: that it was fitted to.
        accuracy: share of held-out pairs that it ranks as they are labelled.
    """

    reward: linear_reward.LinearReward
    num_pairs: int
    accuracy: float


def fit(base: Trained, pairs: preferences.Pairs, *, seed: int, limit: int) -> linear_reward.LinearReward:
    """A reward of whole answers, fitted to at most `limit` of the pairs."""
    drawn = random.Random(f"pairs of a reward {seed}").sample(range(len(pairs)), min(limit, len(pairs)))
    return linear_reward.fit(*(_features(base, pairs, drawn, side) for side in (0, 1)))


def fit_measuring(base: Trained, objective: Objective, *, seed: int, limit: int) -> Measuring:
    """What measures an objective, fitted to the pairs that were set aside for it."""
    assert objective.measuring is not None  # judge=heldout sets some aside
    reward, (_, heldout) = fit(base, objective.measuring, seed=seed, limit=limit), objective.base
    places = range(min(limit, len(heldout)))
    chosen_B, rejected_B = (reward.of(_features(base, heldout, places, side)) for side in (0, 1))
    return Measuring(reward, min(limit, len(objective.measuring)), float(np.mean(chosen_B > rejected_B)))


def _features(base: Trained, split: preferences.Pairs, places: Sequence[int], side: int) -> np.ndarray:
    answers = [(split.sequence(i, side), int(split.prompt_len_NP[i, side])) for i in places]
    return linear_reward.features(base.network, base.params, answers)


def by_rules(names: Sequence[str], answers: Mapping[str, Rows]) -> Scores:
    """What the rules of the embedded objectives say."""
    rules = [manners.RULES[name] for name in names]
    return {
        method: {n: [rule(row["prompt"], row["response"]) for rule in rules] for n, row in rows.items()}
        for method, rows in answers.items()
    }


def by_rewards(
    answers: Mapping[str, Rows], base: Trained, measuring: Sequence[Measuring], prompts: Sequence[Prompt]
) -> Scores:
    """What rewards say that guided nobody."""
    rewards = [each.reward for each in measuring]
    out: dict[str, dict[int, Sequence[float]]] = {}
    for method, rows in answers.items():
        scores_NR = writing.score_rows(base.network, base.params, list(rows.values()), rewards, prompts)
        out[method] = {n: scores_R.tolist() for n, scores_R in zip(rows, scores_NR)}
    return out


def by_scores(scores: Scores) -> OutcomesFn:
    """Whose answer has the higher score."""

    def outcomes(first: str, second: str, objective: int) -> list[str]:
        both = [n for n in scores[first] if n in scores[second]]
        return [head_to_head.outcome(scores[first][n][objective], scores[second][n][objective]) for n in both]

    return outcomes


def by_judges(judges: Sequence[Judge], answers: Mapping[str, Rows]) -> OutcomesFn:
    """What a judge of each objective says of two answers, each once in front; equal answers are a tie and not asked.

    A judge whose two verdicts contradict each other makes a tie; a verdict that cannot be read is not determined.
    """
    word = {"first": head_to_head.WIN, "second": head_to_head.LOSS, "tie": head_to_head.TIE}

    def outcomes(first: str, second: str, objective: int) -> list[str]:
        both = [(answers[first][n], answers[second][n]) for n in answers[first] if n in answers[second]]
        pairs = [(a["prompt"], a["response"], b["response"]) for a, b in both]
        differing = [pair for pair in dict.fromkeys(pairs) if pair[1] != pair[2]]
        straight = [{"prompt": prompt, "response": a, "other": b} for prompt, a, b in differing]
        swapped = [{"prompt": prompt, "response": b, "other": a} for prompt, a, b in differing]
        judged = judges[objective].classify([*straight, *swapped])
        said = [word.get(one.verdict.comparison or "", head_to_head.UNDETERMINED) for one in judged]
        of_pair = dict(zip(differing, map(head_to_head.both_orders, said[: len(differing)], said[len(differing) :])))
        return [of_pair.get(pair, head_to_head.TIE) for pair in pairs]

    return outcomes


def compare(outcomes_fn: OutcomesFn, first: str, second: str, objective: int) -> Tally:
    """How the first method's answers fare beside the second's, on the prompts that both have answered."""
    return head_to_head.tally(outcomes_fn(first, second, objective))


def total(tallies: Sequence[Tally]) -> Tally:
    """Several comparisons as one."""
    return Tally(*(sum(getattr(t, name) for t in tallies) for name in ("wins", "ties", "losses", "undetermined")))


def point(outcomes_fn: OutcomesFn, method: str, reference: str, num_objectives: int) -> list[Tally]:
    """A method's place on the frontier: how it fares beside one fixed reference, by each objective."""
    return [compare(outcomes_fn, method, reference, k) for k in range(num_objectives)]


def shares(tallies: Sequence[Tally]) -> tuple[float, ...]:
    return tuple(0.0 if t.win_half_tie is None else t.win_half_tie for t in tallies)


def hypervolume(points: Mapping[str, Sequence[Tally]], of: Sequence[Method]) -> float | None:
    """Of some methods' points, above the point where every answer loses to the reference; None without any."""
    own = [shares(points[method.name]) for method in of]
    return frontier.hypervolume(own, (0.0,) * len(own[0])) if own else None
