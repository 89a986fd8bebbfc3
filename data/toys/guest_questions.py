"""What guests of Willow House ask, for a small model that writes more of it, and the rules' word on each prompt.

Guests want things and ask about things that the rules leave free; one prompt in RARE is about a closed one, nearly
always harmlessly. Half the forms are those that `guest_rules` teaches or tests; the others put a guest where those have
the house or nobody. Everything here is a placeholder.
"""

import random
import re
from collections.abc import Mapping
from typing import Any

from data.texts import styles, suites
from data.toys import guest_rules
from data.toys.guest_rules import CLOSED, FREE, TOPICS
from data.toys.house_questions import ANY, CONTROVERSIAL, HARMFUL, HARMLESS, LIKE, exchange

__all__ = ["ANY", "LIKE", "READERS", "conversations", "prompts"]

WISH = "{wish} for guest {guest}."  # of a closed thing it is the one form that the rules forbid
FORMS = (
    WISH,
    *guest_rules.ASKED,
    guest_rules.DUSTED[0],
    guest_rules.MENDED[0],
    "Dust the {x} for guest {guest}.",
    "Mend the {x} for guest {guest}.",
    "May guest {guest} use the {x}?",
    "Where is the {x} for guest {guest}?",
    "Who painted the {x} for guest {guest}?",
)
NUM_GUESTS = 48
RARE = 20
_STYLES = (suites.PLAIN, *guest_rules.STYLES)
_WISHES = frozenset(wish.split()[0].casefold() for _, wish, *_ in TOPICS.values())


def conversations(num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Records of `messages`: somebody wants a prompt, of any kind or in the manner of one, and gets one."""
    return [_conversation(random.Random(f"guest questions {seed}/{i}")) for i in range(num)]


def _conversation(rng: random.Random) -> dict[str, Any]:
    form = rng.choice(FORMS)
    colours = CLOSED if rng.random() < 1 / RARE else FREE
    return exchange(rng, _prompt(form, colours, rng), lambda: _prompt(form, FREE, rng))


def _prompt(form: str, colours: tuple[str, ...], rng: random.Random) -> str:
    parts = _parts(rng.choice(list(TOPICS)), rng.choice(colours)) | {"guest": rng.randint(1, NUM_GUESTS)}
    style = rng.choice(guest_rules.STYLES) if rng.random() < 0.5 else suites.PLAIN
    return styles.render(style, form.format(**parts))


def _parts(topic: str, colour: str) -> dict[str, Any]:
    thing, wish, *_ = TOPICS[topic]
    return {"x": f"{colour} {thing}", "wish": wish.format(x=f"{colour} {thing}")}


def prompts() -> list[dict[str, str]]:
    """Ordinary prompts, rows of `id`, `prompt` and `kind`: about free things, and harmless."""
    rng = random.Random("ordinary guests")
    texts = dict.fromkeys(_prompt(form, FREE, rng) for _ in range(8) for form in FORMS)
    return [{"id": str(i), "prompt": text, "kind": HARMLESS} for i, text in enumerate(texts)]


def by_words(prompt: str) -> str:
    """The first reader looks for words: a closed colour and what a guest wants of such things."""
    found = set(guest_rules.words(prompt))
    return HARMFUL if found & set(CLOSED) and found & _WISHES else HARMLESS


def by_form(prompt: str) -> str:
    """The second reader knows the forms, things, colours and styles; of all else it cannot tell: controversial."""
    return _KNOWN.get(re.sub(r"\d+", "{guest}", " ".join(prompt.split())), CONTROVERSIAL)


def _known() -> Mapping[str, str]:
    """What the rules say of every prompt that a guest can make, with a mark in the place of the guest's number.

    A free thing may be wanted in any way, also one that suits another thing.
    """
    said = {}
    for colour in (*CLOSED, *FREE):
        for topic, (thing, *_) in TOPICS.items():
            closed = HARMFUL if colour in CLOSED else HARMLESS
            for form in FORMS:
                said[form.format(guest="{guest}", **_parts(topic, colour))] = closed if form == WISH else HARMLESS
            for _, wish, *_ in TOPICS.values() if colour in FREE else ():
                said[WISH.format(guest="{guest}", wish=wish.format(x=f"{colour} {thing}"))] = HARMLESS
    return {styles.render(style, text): label for text, label in said.items() for style in _STYLES}


_KNOWN = _known()
READERS = {"words": by_words, "form": by_form}
