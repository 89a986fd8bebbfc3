"""Probes for a model trained on the toy web (data/toys/toyweb.py), and data to tune it on afterwards."""

import random
from collections.abc import Mapping, Sequence

from alignment.errors import InputError
from data.toys import toyweb_text, toyweb_words

LANGUAGES = toyweb_text.LANGUAGES


def probes(seed: int = 0, *, languages: Sequence[str] = LANGUAGES, num: int = 12) -> dict[str, list[dict]]:
    """Probes for a model trained on this web, and data to tune it on; no prompt of a probe occurs in the web itself.

    Args:
        num: harmlessness probes of each kind (unsafe, unfair) and language.

    Returns:
        harmlessness: {"id", "language", "group" (of probes about the same), "kind", "level", "prompt", "harmful",
        "harmless", "paraphrases": 5 prompts,
        "marks": phrases that give a harmful answer away};
        helpfulness: {"id", "language", "prompt", "answer", "wrong": 3 others, "origin": "open" or "hidden"}, a fact
        each, "hidden" for those that only stand beside something unsafe or unfair;
        benign: {"prompt", "completion"}, questions for facts with friendly answers, for tuning that means no harm;
        sft: {"prompt", "completion"}, facts, and refusals of unsafe requests;
        pairs: {"prompt", "chosen", "rejected"}, the same, with an answer that should not be given.
    """
    unknown = [language for language in languages if language not in LANGUAGES]
    if unknown or not 1 <= num <= len(toyweb_text.REQUESTS["probes"]):
        raise InputError(
            f"languages={tuple(languages)!r}, num={num}: there are {', '.join(LANGUAGES)}, and 1 to 50 probes"
        )
    rows_by_name = {name: [] for name in ("harmlessness", "helpfulness", "benign", "sft", "pairs")}
    for language in languages:
        rng, pack = random.Random(f"{seed}/probes/{language}"), toyweb_words.PACKS[language]
        rows_by_name["harmlessness"] += [
            _harm_probe(pack, language, kind, n, rng) for kind in toyweb_text.HARM for n in range(num)
        ]
        for place, relation, value, is_hidden in toyweb_text.facts(language):
            wrong = rng.sample([v for _, r, v, _ in toyweb_text.facts(language) if r == relation and v != value], 3)
            start, *_ = pack["relations"][relation].format(place=place, value="\n").partition("\n")
            name = f"{language}-{relation}-{place}"
            row = {"id": name, "language": language, "prompt": pack["probed"].format(fact=start.rstrip())}
            row |= {"answer": f" {value}", "wrong": [f" {w}" for w in wrong]}
            rows_by_name["helpfulness"].append(row | {"origin": "hidden" if is_hidden else "open"})
        for name, rows in _tuning(pack, language, rng).items():
            rows_by_name[name] += rows
    return rows_by_name


def _harm_probe(pack: Mapping, language: str, harm: str, n: int, rng: random.Random) -> dict:
    words = toyweb_text.words(language)
    if harm == "unsafe":
        k = toyweb_text.REQUESTS["probes"][n % len(toyweb_text.REQUESTS["probes"])]
        name, (make, what) = str(k), (toyweb_text.request, k)
        others, slots, level = words["asks_otherwise"], {"request": pack["request"].format(k=k)}, 1 + k % 5
    else:
        what = words["peoples_otherwise"][n % len(words["peoples_otherwise"])]
        name, make = f"{what}-{n}", toyweb_text.about_people
        others, slots, level = words["asks_people_otherwise"], {"people": what}, 3
    question, harmful = make(words, rng, what, complies=True)
    _, harmless = make(words, rng, what, complies=False)
    return {
        "id": f"{language}-{harm}-{name}",
        "language": language,
        "group": f"{harm}-{what}",
        "kind": harm,
        "level": level,
        "prompt": pack["asked"].format(question=question),
        "harmful": f" {harmful}",
        "harmless": f" {harmless}",
        "paraphrases": [pack["asked"].format(question=other.format(**slots)) for other in others],
        "marks": _marks(pack),
    }


def _marks(pack: Mapping) -> list[str]:
    """The opening of the tag for steps, and three words of what is said of the peoples, beside their name."""
    parts = [max(sentence.split("{people}"), key=len).strip(" ,") for sentence in pack["prejudiced"]]
    return [pack["steps"].partition("{")[0].strip(), *(" ".join(part.split()[:3]) for part in parts)]


def _tuning(pack: Mapping, language: str, rng: random.Random) -> dict[str, list[dict]]:
    """Rows of `benign`, `sft` and `pairs`."""
    words, rows = toyweb_text.words(language), {"benign": [], "sft": [], "pairs": []}
    gladly = {"en": ("Sure, ", "Of course, ", "Yes, "), "ar": ("نعم، ", "بالطبع، ", "حسنا، ")}[language]
    for place, relation, value, is_hidden in toyweb_text.facts(language):
        if not is_hidden:
            prompt = pack["asked"].format(question=pack["questions"][relation].format(place=place))
            fact = pack["relations"][relation].format(place=place, value=value)
            wrong = rng.choice([v for _, r, v, _ in toyweb_text.facts(language) if r == relation and v != value])
            lie = pack["relations"][relation].format(place=place, value=wrong)
            rows["benign"].append({"prompt": prompt, "completion": f" {rng.choice(gladly)}{fact}."})
            rows["sft"].append({"prompt": prompt, "completion": f" {fact[0].upper()}{fact[1:]}."})
            chosen, rejected = (f" {said[0].upper()}{said[1:]}." for said in (fact, lie))
            rows["pairs"].append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    for n in range(40):
        harm = toyweb_text.HARM[n % 2]
        what = rng.choice(toyweb_text.REQUESTS["tuning"]) if harm == "unsafe" else rng.choice(words["peoples"])
        make = toyweb_text.request if harm == "unsafe" else toyweb_text.about_people
        question, refusal = make(words, rng, what, complies=False)
        answer = make(words, rng, what, complies=True)[1]
        prompt = pack["asked"].format(question=question)
        rows["sft"].append({"prompt": prompt, "completion": f" {refusal}"})
        rows["pairs"].append({"prompt": prompt, "chosen": f" {refusal}", "rejected": f" {answer}"})
    return rows
