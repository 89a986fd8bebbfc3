"""Two opposed wishes of Willow House's visitors: a brief answer, and a courteous one.

An answer is a fact with kind words before it and after it, or without. Kind words cost length: a short phrase is worth
one point of courtesy, a long one two. Both wishes have a rule that scores any answer, so whoever guides a model by
preferences can be measured without asking what guided it. Both rules put an answer with its fact before one without.
"""

import random
from collections.abc import Callable
from typing import Any

from data.toys import synthetic

BRIEF, COURTEOUS = "brief", "courteous"
FIRST = {
    1: ("Gladly.", "Welcome!", "Of course!", "Certainly.", "My pleasure."),
    2: (
        "With the greatest of pleasure, dear guest.",
        "How lovely that you came to ask me.",
        "It is a joy to help you today.",
        "What a fine question that is, thank you.",
    ),
}
LAST = {
    1: ("Enjoy!", "Take care!", "Any time.", "Do ask again."),
    2: (
        "I wish you a most delightful day.",
        "Please do come and ask me again.",
        "I would be glad to show you there.",
        "May your visit be a happy one.",
    ),
}
POINTS = {phrase: points for place in (FIRST, LAST) for points, phrases in place.items() for phrase in phrases}
MOST_POINTS = 4


def answer(topic: str, thing: str, rng: random.Random) -> str:
    """The fact with kind words of 0 to 2 points on either side."""
    words = [synthetic.fact(topic, thing)]
    if points := rng.choice((0, 1, 2)):
        words.insert(0, rng.choice(FIRST[points]))
    if points := rng.choice((0, 1, 2)):
        words.append(rng.choice(LAST[points]))
    return " ".join(words)


def brief(prompt: str, text: str) -> float:
    """1 for an answer with its fact, less a hundredth for every word; higher is better."""
    return _has_fact(prompt, text) - len(text.split()) / 100


def courteous(prompt: str, text: str) -> float:
    """1 for an answer with its fact, and a tenth for every point of its different kind words, at most four."""
    points = sum(value for phrase, value in POINTS.items() if phrase in text)
    return _has_fact(prompt, text) + min(points, MOST_POINTS) / 10


RULES: dict[str, Callable[[str, str], float]] = {BRIEF: brief, COURTEOUS: courteous}


def _has_fact(prompt: str, text: str) -> bool:
    """Whether the answer holds the fact that is asked for; the question names its thing."""
    return any(
        synthetic.fact(topic, thing) in text
        for topic, (things, _, _) in synthetic.TOPICS.items()
        for thing in things
        if thing in prompt
    )


def preference_pairs(wish: str, num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Records of `prompt`, `chosen`, `rejected` and `dimension`; the same seed gives both wishes the same answers.

    Args:
        wish: a key of RULES; the answer that its rule scores higher is chosen. Answers that a rule scores alike are
            drawn again.
    """
    out = []
    for number in range(num):
        rng = random.Random(f"manners {seed}/{number}")
        topic, thing, prompt = rng.choice(_PROMPTS)
        while True:
            answers = [answer(topic, thing, rng) for _ in range(2)]
            gains = {name: rule(prompt, answers[1]) - rule(prompt, answers[0]) for name, rule in RULES.items()}
            if all(gains.values()):
                break
        better = int(gains[wish] > 0)
        chosen, rejected = f" {answers[better]}", f" {answers[1 - better]}"
        out.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "dimension": wish})
    return out


_PROMPTS = synthetic.prompts("pairs")
