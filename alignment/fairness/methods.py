"""The methods that are compared: Meta-Ref, its baselines, and Meta-Ref with a phase left out.

Methods that train alike share one training: the hand-made referee acts when MAML's predictor is fine-tuned.
"""

import dataclasses

from alignment.fairness import referee
from alignment.fairness.meta import Rule

METHODS = {
    "pretrain": Rule(phases=("performance",)),  # no inner step in training, then fine-tuned as the others are
    "maml": Rule(phases=("inner", "performance")),
    "maml_regularised": Rule(fair_params="theta"),
    "hand_made": Rule(phases=("inner", "performance"), test_factors=referee.HAND_MADE),
    "group_dro": Rule(factors=referee.DRO, phases=("inner", "performance")),
    "meta_ref": Rule(factors=referee.NETWORK),
    "meta_ref_nash": Rule(factors=referee.NETWORK, is_bargained=True),
    "no_inner": Rule(factors=referee.NETWORK, phases=("performance", "fairness")),
    "no_performance": Rule(factors=referee.NETWORK, phases=("inner", "fairness")),
    "no_fairness": Rule(factors=referee.NETWORK, phases=("inner", "performance")),
}
WORDS = {
    "pretrain": "pre-training on all tasks, then fine-tuning",
    "maml": "MAML",
    "maml_regularised": "MAML with unevenness in the loss of the predictor",
    "hand_made": "MAML, fine-tuned under the hand-made referee of Xie et al. 2022",
    "group_dro": "MAML with group DRO in the inner loop",
    "meta_ref": "the referee, reconstructed",
    "meta_ref_nash": "the referee, with its two gradients joined by Nash bargaining (our addition)",
    "no_inner": "the referee without phase 1 in training",
    "no_performance": "the referee without phase 2: the mean loss never moves the predictor",
    "no_fairness": "the referee without phase 3: factors stay 1",
}
REFEREED = ("meta_ref", "meta_ref_nash", "no_inner", "no_performance", "no_fairness")


def rule_of(
    name: str, *, fair_params: str = "phi", lambda_p: float = 1.0, lambda_f: float = 0.5, is_normalised: bool = True
) -> Rule:
    """The rule of a method, with what a config sets where the method reads it.

    Args:
        fair_params, lambda_p, is_normalised: of the methods with a referee.
        lambda_f: of `maml_regularised`, and of a referee whose fairness update moves theta too.
    """
    rule = METHODS[name]
    if name in REFEREED:
        rule = dataclasses.replace(rule, fair_params=fair_params, lambda_p=lambda_p, is_normalised=is_normalised)
    return dataclasses.replace(rule, lambda_f=lambda_f)


def trained_as(name: str) -> str:
    """The method whose training this one uses."""
    # Without phase 3 the factors stay 1, and every step is MAML's, bit for bit.
    return "maml" if name in ("hand_made", "no_fairness") else name


def kind_at_test(rule: Rule) -> str:
    """What sets the factors when a new task is fine-tuned."""
    return rule.test_factors or rule.factors
