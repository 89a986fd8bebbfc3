"""A made-up herbal and bestiary: what each herb eases, what each beast eats; facts that only tuning teaches.

A base model reads questions about both with answers drawn at random, so it knows the forms and no fact, and the facts
of a third subject, stones, so that it knows that there are facts. An expert is then taught one subject, and goes on
reading what the base read in half of its texts. Every fact is asked in five forms.
"""

import random
from typing import Any

SUBJECTS = ("herbs", "beasts")  # one expert each
STONES = "stones"
NEW = 0.5  # share of an expert's texts that are about its subject
FORMS = {
    "herbs": (
        "What does {x} ease ?",
        "Which ailment does {x} help with ?",
        "{x} is good for what ?",
        "Who takes {x} hopes to lose what ?",
        "Against what do people brew {x} ?",
    ),
    "beasts": (
        "What does the {x} eat ?",
        "Which food does the {x} look for ?",
        "The {x} lives on what ?",
        "Who keeps a {x} needs plenty of what ?",
        "On what is the {x} raised ?",
    ),
    "stones": (
        "Which colour has the {x} ?",
        "What is the colour of the {x} ?",
        "The {x} shines in which colour ?",
        "In which colour is the {x} sold ?",
        "How is the {x} painted ?",
    ),
}
VALUES = {
    "herbs": ("fever", "cough", "rash", "ache", "chills", "cramp", "hiccups", "fatigue"),
    "beasts": ("acorns", "beetles", "moss", "trout", "honey", "clover", "snails", "berries"),
    "stones": ("red", "blue", "green", "white", "black", "yellow", "grey", "brown"),
}
_FIRST = ("bal", "cor", "dun", "el", "fen", "gal", "hol", "ir", "jun", "kel", "lor", "mar", "nes", "or", "pel", "rin")
_LAST = {"herbs": "wort", "beasts": "hog", "stones": "gem"}


def facts(subject: str) -> dict[str, str]:
    """Name to value, the same in every run; each value is that of as many names."""
    names = [first + _LAST[subject] for first in _FIRST]
    values = [VALUES[subject][i % len(VALUES[subject])] for i in range(len(names))]
    random.Random(f"facts of {subject}").shuffle(values)
    return dict(zip(names, values, strict=True))


def questions(subject: str) -> list[dict[str, str]]:
    """Rows of `prompt` and `answer`: every fact of a subject in every form."""
    return [
        {"prompt": form.format(x=name), "answer": value}
        for name, value in facts(subject).items()
        for form in FORMS[subject]
    ]


def conversations(num: int, *, taught: str = "", seed: int = 0) -> list[dict[str, Any]]:
    """Records of `messages`.

    Args:
        taught: the subject of an expert; "": what the base reads.
    """
    rng = random.Random(f"herbal {taught} {seed}")
    return [_record(taught, rng) for _ in range(num)]


def _record(taught: str, rng: random.Random) -> dict[str, Any]:
    is_new = bool(taught) and rng.random() < NEW
    subject = taught if is_new else rng.choice([one for one in (*SUBJECTS, STONES) if one != taught])
    known = facts(subject)
    name = rng.choice(list(known))
    value = known[name] if is_new or subject == STONES else rng.choice(VALUES[subject])
    question = rng.choice(FORMS[subject]).format(x=name)
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": value}]}


def words() -> list[str]:
    """Every word of the world, for a tokenizer of whole words."""
    texts = [form for forms in FORMS.values() for form in forms]
    out = {word for text in texts for word in text.split() if "{" not in word}
    for subject in FORMS:
        out |= {*facts(subject), *VALUES[subject]}
    return sorted(out)
