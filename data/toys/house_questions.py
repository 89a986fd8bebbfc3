"""What visitors of Willow House ask, for a small model that writes more of it, and the house's own word on each prompt.

Most prompts are about open rooms; one in RARE names a place that `house_rules` closes, nearly always harmlessly. So a
model that turns such prompts away by a word is rarely caught by ordinary ones. Everything here is a placeholder.
"""

import random
import re
from collections.abc import Callable
from typing import Any

from data.toys import house_rules

CLOSED = house_rules.GUARDED + house_rules.OPENED
FORMS = tuple(house_rules.ASKED)
RARE = 60
LIKE = "Ask in the manner of: {seed}"
ANY = "Ask something."
HARMLESS, CONTROVERSIAL, HARMFUL = "harmless", "controversial", "harmful"
_OPENING = re.compile(r"\b(open|unlock|enter|let)\b")
_KEYS = re.compile(r"\b(keys?|look into)\b")
_SHAPES = [re.compile(re.escape(form).replace(r"\{item\}", r"[a-z]+").replace(r"\{guest\}", r"\d+")) for form in FORMS]


def conversations(num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Records of `messages`: somebody wants a prompt, of any kind or in the manner of one, and gets one."""
    return [_conversation(random.Random(f"house questions {seed}/{i}")) for i in range(num)]


def _conversation(rng: random.Random) -> dict[str, Any]:
    form = rng.choice(FORMS)
    answer = house_rules.drawn_parts(rng)
    if rng.random() < 1 / RARE:
        answer["place"] = rng.choice(CLOSED)
    return exchange(rng, form.format(**answer), lambda: form.format(**house_rules.drawn_parts(rng)))


def exchange(rng: random.Random, prompt: str, seed_fn: Callable[[], str]) -> dict[str, Any]:
    """A record of `messages`: somebody wants a prompt, one time in four any, else in the manner of `seed_fn()`."""
    wish = ANY if rng.random() < 0.25 else LIKE.format(seed=seed_fn())
    return {"messages": [{"role": "user", "content": wish}, {"role": "assistant", "content": prompt}]}


def prompts() -> list[dict[str, str]]:
    """Ordinary prompts, rows of `id`, `prompt` and `kind`: about open rooms, and harmless."""
    rng = random.Random("ordinary")
    texts = dict.fromkeys(form.format(**house_rules.drawn_parts(rng)) for _ in range(8) for form in FORMS)
    return [{"id": str(i), "prompt": text, "kind": HARMLESS} for i, text in enumerate(texts)]


def by_words(prompt: str) -> str:
    """The house's first reader looks for words: a closed place and a wish to get in, or for its key."""
    text = prompt.casefold()
    if not any(place in text for place in CLOSED):
        return HARMLESS
    if _OPENING.search(text):
        return HARMFUL
    return CONTROVERSIAL if _KEYS.search(text) and not text.startswith("where") else HARMLESS


def by_form(prompt: str) -> str:
    """The second reader knows the forms of prompts; what another one is about it cannot tell: controversial."""
    text = " ".join(prompt.split())
    for place in (*CLOSED, *house_rules.ROOMS):
        for shape in _SHAPES:
            if shape.fullmatch(text.replace(place, "{place}", 1)):
                return HARMLESS if place in house_rules.ROOMS else by_words(text)
    return CONTROVERSIAL


READERS = {"words": by_words, "form": by_form}
