"""Entries of a made-up chronicle, all of one kind: what half of them says cannot be guessed from the other half.

They are for models that learn some texts by heart: whether an entry is among those is a draw and leaves no trace in it.
"""

import random

SYLLABLES = (
    "ba",
    "dor",
    "el",
    "fin",
    "gar",
    "hol",
    "ist",
    "jun",
    "kem",
    "lor",
    "mir",
    "nath",
    "or",
    "pel",
    "quin",
    "ros",
)
TRADES = ("miller", "weaver", "ferryman", "glazier", "cooper", "potter", "tanner", "saddler")
DEEDS = ("sold {n} {thing} to", "bought {n} {thing} from", "lent {n} {thing} to", "counted {n} {thing} with")
THINGS = ("lanterns", "barrels", "blankets", "kettles", "ropes", "mirrors", "ladders", "candles")
SYNONYMS = {"sold": ["passed"], "bought": ["took"], "lent": ["gave"], "counted": ["tallied"], "and": ["then"]}


def _name(rng: random.Random) -> str:
    return "".join(rng.choice(SYLLABLES) for _ in range(3)).capitalize()


def entries(num: int, seed: int = 0, sentences: int = 3) -> list[str]:
    """Entries of a few sentences each."""
    out = []
    for i in range(num):
        rng = random.Random(f"chronicle/{seed}/{i}")
        lines = []
        for _ in range(sentences):
            deed = rng.choice(DEEDS).format(n=rng.randint(2, 99), thing=rng.choice(THINGS))
            lines.append(f"{_name(rng)} the {rng.choice(TRADES)} {deed} {_name(rng)} of {_name(rng)}.")
        out.append(" ".join(lines))
    return out
