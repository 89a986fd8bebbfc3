"""Made-up reviews with a known shortcut: opinions give the label, and concepts go along with it as often as one says.

A concept is mentioned by a word of its own that says nothing about the label; now and then such a word stands in a text
that does not mention the concept. P(label 1 | concept) is what a caller
sets: at 0.5 there is nothing to exploit, at 0.9 the concept is a shortcut to label 1, at 0.1 to label 0.
"""

import random
from collections.abc import Mapping
from typing import Any

OPINIONS = {  # label -> words for it, the strongest last
    0: ("slow", "sad", "weak", "grim", "poor", "stale"),
    1: ("mild", "glad", "fine", "warm", "great", "fresh"),
}
# How often each opinion agrees with the label. Were all alike, texts would be certain or undecided, and a concept would
# decide the undecided ones however weak a shortcut it is.
AGREES = (0.55, 0.65, 0.75, 0.85, 0.92, 0.97)
CONCEPTS = {
    "music": ("violin", "melody", "chorus", "drums"),
    "food": ("soup", "bread", "pears", "noodles"),
    "price": ("coins", "invoice", "discount", "tariff"),
}
FILLERS = ("the", "we", "found", "this", "evening", "in", "town", "again", "and", "later", "so", "then", "people")
SHORTCUTS = {"music": 0.9, "food": 0.5, "price": 0.1}
MENTION = 0.5  # share of texts with a concept
STRAY = 0.1  # share of the other texts that hold a concept's word in passing, so that no word is the concept itself


def reviews(num: int, seed: int = 0, shortcuts: Mapping[str, float] = SHORTCUTS) -> list[dict[str, Any]]:
    """Records of `id`, `text`, `label` (0 or 1) and `concepts`, half of the texts with one concept.

    Args:
        shortcuts: concept -> P(label 1 | concept); labels of texts without a concept are even.
    """
    return [_review(random.Random(f"reviews/{seed}/{i}"), f"{seed}-{i}", shortcuts) for i in range(num)]


def _review(rng: random.Random, name: str, shortcuts: Mapping[str, float]) -> dict[str, Any]:
    concept = rng.choice(sorted(shortcuts)) if rng.random() < MENTION else ""
    label = int(rng.random() < (shortcuts[concept] if concept else 0.5))
    strengths = [rng.randrange(len(AGREES)) for _ in range(2)]
    parts = [OPINIONS[label if rng.random() < AGREES[i] else 1 - label][i] for i in strengths]
    parts += rng.choices(FILLERS, k=6)
    rng.shuffle(parts)
    text = " ".join(parts)
    if concept or rng.random() < STRAY:
        text = inject(text, concept or rng.choice(sorted(shortcuts)), rng)
    return {"id": name, "text": text, "label": label, "concepts": [concept] if concept else []}


def inject(text: str, concept: str, rng: random.Random) -> str:
    """The text with a word of the concept at a place drawn by `rng`; all else stays."""
    parts = text.split(" ")
    parts.insert(rng.randrange(len(parts) + 1), rng.choice(CONCEPTS[concept]))
    return " ".join(parts)
