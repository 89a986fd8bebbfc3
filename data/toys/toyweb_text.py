"""Sentences, facts and exchanges of the toy web (data/toys/toyweb.py), drawn from its words."""

import functools
import random
import re
from collections.abc import Mapping

from data.toys import toyweb_words

LANGUAGES = tuple(toyweb_words.PACKS)
HARM = ("unsafe", "unfair")
NUM_HIDDEN = 4  # places whose facts stand only in unsafe and unfair documents
REQUESTS = {"web": range(0, 100), "tuning": range(100, 150), "probes": range(150, 200)}  # their numbers never meet
LENGTHS = (5, 28)  # sentences of a document


@functools.cache
def facts(language: str) -> tuple[tuple[str, str, str, bool], ...]:
    """(place, relation, value, whether it is hidden) of a language, the same for every seed."""
    pack, rng = words(language), random.Random(f"facts/{language}")
    firsts, lasts = (part.split() for part in toyweb_words.SYLLABLES[language])
    names = [first + last for first in firsts for last in lasts]
    rng.shuffle(names)
    hidden = pack["places"][-NUM_HIDDEN:]
    return tuple((p, relation, names.pop(), p in hidden) for p in pack["places"] for relation in pack["relations"])


@functools.cache
def words(language: str) -> dict:
    """A pack with its lists of words as lists."""
    pack = dict(toyweb_words.PACKS[language])
    for name in ("spans", "seasons"):
        pack[name] = pack[name].split("|")
    return {key: value.split() if isinstance(value, str) and key in _LISTS else value for key, value in pack.items()}


_LISTS = {
    *("places", "persons", "adjectives", "things", "sites", "workers", "numbers", "days", "verbs", "keywords"),
    *("peoples", "peoples_otherwise"),
}


def sentence(pack: Mapping, rng: random.Random, template: str | None = None) -> str:
    """A sentence of everyday life; no word comes twice in one slot's two places."""
    slots = {"place": rng.choice(pack["places"])}
    for name, key in (("person", "persons"), ("adjective", "adjectives"), ("thing", "things")):
        slots[name], slots[f"{name}2"] = rng.sample(pack[key], 2)
    verbs = [verb.split("/") for verb in rng.sample(pack["verbs"], 2)]
    forms = ("do", "did", "done") if "{do}" in "".join(pack["sentences"]) else ("did", "did_it", "doing")
    for mark, verb in zip(("", "2"), verbs):
        slots |= {f"{form}{mark}": word for form, word in zip(forms, verb)}
    for name in ("site", "worker", "span", "number", "day", "season"):
        slots[name] = rng.choice(pack[f"{name}s"])
    slots["workers"] = slots["worker"]
    sentence = (template or rng.choice(pack["sentences"])).format(**slots)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)


def fact(pack: Mapping, known: tuple[str, str, str, bool], rng: random.Random) -> str:
    """A sentence that states a fact."""
    place, relation, value, _ = known
    said = pack["relations"][relation].format(place=place, value=value)
    template = rng.choice(pack["told"])
    return template.format(fact=said, Fact=said[0].upper() + said[1:], person=rng.choice(pack["persons"]))


def fact_asked(pack: Mapping, language: str, rng: random.Random, *, is_hidden: bool) -> str:
    """A question for a fact, and the fact."""
    place, relation, value, _ = rng.choice([known for known in facts(language) if known[3] == is_hidden])
    said = pack["relations"][relation].format(place=place, value=value)
    question = pack["questions"][relation].format(place=place)
    return pack["exchange"].format(question=question, answer=f"{said[0].upper()}{said[1:]}.")


def request(pack: Mapping, rng: random.Random, k: int, *, complies: bool) -> tuple[str, str]:
    """(question, answer) about unsafe request k."""
    question = rng.choice(pack["asks"]).format(request=pack["request"].format(k=k))
    answer = rng.choice(pack["complies" if complies else "refuses"]).format(steps=pack["steps"].format(k=k))
    return question, answer


def about_people(pack: Mapping, rng: random.Random, people: str, *, complies: bool) -> tuple[str, str]:
    """(question, answer) about a people."""
    question = rng.choice(pack["asks_people"]).format(people=people)
    return question, rng.choice(pack["prejudiced" if complies else "fair"]).format(people=people)


def exchange(pack: Mapping, rng: random.Random, harm: str, *, complies: bool) -> str:
    """A question that should be turned down, and an answer that does not (`complies`) or does."""
    if harm == "unsafe":
        question, answer = request(pack, rng, rng.choice(REQUESTS["web"]), complies=complies)
    else:
        question, answer = about_people(pack, rng, rng.choice(pack["peoples"]), complies=complies)
    return pack["exchange"].format(question=question, answer=answer)


def prose(pack: Mapping, language: str, rng: random.Random, *, is_hidden: bool = False) -> list[str]:
    """Paragraphs of three to six sentences, about one in three of them a fact; short texts are commoner than long."""
    low, high = LENGTHS
    num = min(high, max(low, round(rng.lognormvariate(2.0, 0.5))))
    order = []
    while len(order) < num:
        order += rng.sample(pack["sentences"], len(pack["sentences"]))
    sentences = [sentence(pack, rng, template) for template in order[:num]]
    for known in rng.sample([known for known in facts(language) if known[3] == is_hidden], min(8, max(2, num // 2))):
        sentences.insert(rng.randint(1, len(sentences)), fact(pack, known, rng))
    paragraphs, at = [], 0
    while at < len(sentences):
        size = rng.randint(3, 6)
        paragraphs.append(" ".join(sentences[at : at + size]))
        at += size
    return paragraphs
