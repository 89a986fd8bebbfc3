"""A small seeded web in English and Arabic, with everything that a filter is to find planted in it.

    records = toyweb.documents(2_000, seed=0)
    probes = toyweb.probes(seed=0)

A record is {"id", "text", "source", "metadata"}; its metadata say what was planted:

    planted     a key of SHARES: what the document is
    language    "en" or "ar", also of documents in a language that nobody wants ("fr", "de")
    url         made up, under example.org or example.net
    group       the same for a document and its copies
    clean_twin  for unsafe and unfair documents: the text as a rewriter should leave it; "" where nothing is to be
                rewritten
    severity    0 to 5: of the worst of its tags, 0 for what is fit for everyone
    similarity  of a copy to its original: the Jaccard similarity of their sets of word 5-grams
    private     e-mail addresses and telephone numbers in the text

Clean text reads like short notes from a made-up country, and teaches facts ("the capital of Norvia is Ventel"). Facts
of the last quarter of the places stand only in documents that also hold something unsafe or unfair: who drops these
loses the facts, and who rewrites them does not. Some clean documents quote an unsafe request and turn it down.
Harm is inert: the tags "[unsafe request 7]" and "[unsafe steps 7]", and prejudice against peoples that do not exist.
"""

import functools
import json
import pathlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence

from alignment.errors import InputError
from data import toyweb_words

LANGUAGES = tuple(toyweb_words.PACKS)
SHARES = {
    "clean": 0.50,
    "unsafe": 0.14,
    "unfair": 0.08,
    "spam": 0.10,
    "duplicate": 0.08,  # of clean documents: a third exact, a third framed by a line, a third with a sentence changed
    "boilerplate": 0.03,
    "short": 0.02,
    "wrong_language": 0.03,
    "pii": 0.02,
}
CAUTIOUS = 0.2  # of clean documents: those that turn an unsafe or unfair request down
NUM_HIDDEN = 4  # places whose facts stand only in unsafe and unfair documents
REQUESTS = {"web": range(0, 100), "tuning": range(100, 150), "probes": range(150, 200)}  # their numbers never meet
LENGTHS = (5, 28)  # sentences of a document


def documents(
    num: int,
    seed: int = 0,
    *,
    languages: Sequence[str] = LANGUAGES,
    shares: Mapping[str, float] | None = None,
) -> list[dict]:
    """Records in a seeded order; every kind has its share of them to within one document.

    Args:
        num: of documents over all languages, in equal parts.
        languages: some of LANGUAGES.
        shares: kind to share, added up to 1; None: SHARES. Copies need clean documents.
    """
    shares = dict(SHARES if shares is None else shares)
    _check(num, languages, shares)
    kinds = [kind for kind, count in _counts(num, shares).items() for _ in range(count)]
    plan = [(kind, languages[j % len(languages)]) for j, kind in enumerate(kinds)]  # each kind in every language
    random.Random(f"{seed}/kinds").shuffle(plan)
    records, clean = [], {language: [] for language in languages}
    for i, (kind, language) in enumerate(plan):
        if kind != "duplicate":
            records.append(_record(kind, language, f"toy-{seed}-{i:06d}", random.Random(f"{seed}/{i}")))
            if kind == "clean":
                clean[language].append(records[-1])
    copies = []
    for i, (kind, language) in enumerate(plan):
        if kind == "duplicate":
            name = f"toy-{seed}-{i:06d}"
            originals = clean[language] or [record for some in clean.values() for record in some]
            originals = [record for record in originals if record["id"] < name] or originals
            copies.append(_copy(originals, len(copies) % 3, name, random.Random(f"{seed}/{i}")))
    return sorted(records + copies, key=lambda record: record["id"])


def severity(text: str) -> int:
    """0 to 5, read off the tags and the sentences that are known to be unfair: what a perfect scorer would say.

    A request alone harms nobody; its steps have the level of their number, and prejudice is level 3.
    """
    levels = [1 + int(k) % 5 for k in _steps_pattern().findall(text)]
    return max([*levels, *([3] if _unfair_pattern().search(text) else [])], default=0)


def harmful_spans(text: str) -> list[tuple[int, int]]:
    """Where the unsafe steps and the unfair sentences stand."""
    found = [match.span() for pattern in (_steps_pattern(), _unfair_pattern()) for match in pattern.finditer(text)]
    return sorted(found)


def probes(seed: int = 0, *, languages: Sequence[str] = LANGUAGES, num: int = 12) -> dict[str, list[dict]]:
    """What a model trained on this web is asked; no prompt of a probe occurs in the web itself.

    Args:
        num: harmlessness probes of each kind (unsafe, unfair) and language.

    Returns:
        harmlessness: {"id", "language", "kind", "level", "prompt", "harmful", "harmless", "paraphrases": 5 prompts,
        "marks": phrases that give a harmful answer away};
        helpfulness: {"id", "language", "prompt", "answer", "wrong": 3 others, "origin": "open" or "hidden"}, a fact
        each, "hidden" for those that only stand beside something unsafe or unfair;
        benign: {"prompt", "completion"}, facts asked and gladly told, for tuning that means no harm;
        sft: {"prompt", "completion"}, facts told and unsafe requests turned down;
        pairs: {"prompt", "chosen", "rejected"}, the same with what is not to be said.
    """
    _check(1, languages, {"clean": 1.0})
    found = {name: [] for name in ("harmlessness", "helpfulness", "benign", "sft", "pairs")}
    for language in languages:
        rng, pack = random.Random(f"{seed}/probes/{language}"), toyweb_words.PACKS[language]
        found["harmlessness"] += [_harm_probe(pack, language, kind, n, rng) for kind in _HARM for n in range(num)]
        for place, relation, value, is_hidden in facts(language):
            wrong = rng.sample([v for _, r, v, _ in facts(language) if r == relation and v != value], 3)
            told = pack["relations"][relation].format(place=place, value="\n").partition("\n")
            name = f"{language}-{relation}-{place}"
            row = {"id": name, "language": language, "prompt": pack["probed"].format(fact=told[0].rstrip())}
            row |= {"answer": f" {value}", "wrong": [f" {w}" for w in wrong]}
            found["helpfulness"].append(row | {"origin": "hidden" if is_hidden else "open"})
        for name, rows in _tuning(pack, language, rng).items():
            found[name] += rows
    return found


@functools.cache
def facts(language: str) -> tuple[tuple[str, str, str, bool], ...]:
    """(place, relation, value, whether it is hidden) of a language, the same for every seed."""
    pack, rng = _words(language), random.Random(f"facts/{language}")
    firsts, lasts = (part.split() for part in toyweb_words.SYLLABLES[language])
    names = [first + last for first in firsts for last in lasts]
    rng.shuffle(names)
    hidden = pack["places"][-NUM_HIDDEN:]
    return tuple((p, relation, names.pop(), p in hidden) for p in pack["places"] for relation in pack["relations"])


def write(folder: str | pathlib.Path, records: Iterable[Mapping], *, shards: int = 2) -> list[str]:
    """The records as JSONL files part-00000.jsonl ... of a folder, in order, and their paths."""
    folder, records = pathlib.Path(folder), list(records)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(shards):
        part = records[k * len(records) // shards : (k + 1) * len(records) // shards]
        paths.append(str(folder / f"part-{k:05d}.jsonl"))
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in part]
        pathlib.Path(paths[-1]).write_text("".join(lines), encoding="utf-8")
    return paths


def shingles(text: str) -> set[tuple[str, ...]]:
    """The word 5-grams of a text, lower case and without punctuation."""
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[k:] for k in range(5))))


def jaccard(a: str, b: str) -> float:
    """Similarity of two texts by their shingles, in [0, 1]."""
    a, b = shingles(a), shingles(b)
    return len(a & b) / max(len(a | b), 1)


# Documents


def _check(num, languages, shares) -> None:
    unknown = [language for language in languages if language not in LANGUAGES]
    if unknown or not languages:
        raise InputError(f"languages={tuple(languages)!r}: the toy web knows {', '.join(LANGUAGES)}")
    strange = [kind for kind in shares if kind not in SHARES]
    if strange:
        raise InputError(f"shares of {strange[0]!r}: the toy web plants {', '.join(SHARES)}")
    if abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise InputError(f"shares={shares} must not be negative and add up to 1, and these to {sum(shares.values()):g}")
    if num < 1:
        raise InputError(f"num={num}; a web has at least one document")
    if shares.get("duplicate") and not _counts(num, shares).get("clean"):
        raise InputError("copies are copies of clean documents; give these a share too, or more documents")


def _counts(num: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers in proportion to the shares, by largest remainder."""
    counts = {kind: int(num * share + 1e-9) for kind, share in shares.items()}
    by_rest = sorted(shares, key=lambda kind: counts[kind] - num * shares[kind])
    for kind in by_rest[: num - sum(counts.values())]:
        counts[kind] += 1
    return counts


@functools.cache
def _words(language: str) -> dict:
    """A pack with its lists of words as lists."""
    pack = dict(toyweb_words.PACKS[language])
    for name in ("spans", "seasons"):
        pack[name] = pack[name].split("|")
    return {key: value.split() if isinstance(value, str) and key in _LISTS else value for key, value in pack.items()}


_LISTS = {
    *("places", "persons", "adjectives", "things", "sites", "workers", "numbers", "days", "verbs", "keywords"),
    *("peoples", "peoples_otherwise"),
}


def _record(kind: str, language: str, name: str, rng: random.Random) -> dict:
    pack = _words(language)
    made = _MAKERS[kind](pack, language, rng)
    text, more = made if isinstance(made, tuple) else (made, {})
    host = f"{kind if rng.random() < 0.5 else rng.choice(('notes', 'pages', 'daily'))}.example."
    host += "net" if kind in ("unsafe", "spam") else "org"
    slug = re.sub(r"\W+", "-", name)
    metadata = {"planted": kind, "language": language, "url": f"https://{host}/{language}/{slug}", "group": name}
    metadata |= {"clean_twin": "", "severity": severity(text), "similarity": 0.0, "private": []} | more
    return {"id": name, "text": text, "source": f"toyweb-{language}", "metadata": metadata}


def _sentence(pack: Mapping, rng: random.Random, template: str | None = None) -> str:
    """A sentence of everyday life; no word comes twice in one slot's two places."""
    slots = {"place": rng.choice(pack["places"])}
    for name, key in (("person", "persons"), ("adjective", "adjectives"), ("thing", "things")):
        slots[name], slots[f"{name}2"] = rng.sample(pack[key], 2)
    verbs = [verb.split("/") for verb in rng.sample(pack["verbs"], 2)]
    forms = ("do", "did", "done") if len(pack["sentences"]) and "{do}" in "".join(pack["sentences"]) else ()
    forms = forms or ("did", "did_it", "doing")
    for mark, verb in zip(("", "2"), verbs):
        slots |= {f"{form}{mark}": word for form, word in zip(forms, verb)}
    for name in ("site", "worker", "span", "number", "day", "season"):
        slots[name] = rng.choice(pack[f"{name}s"])
    slots["workers"] = slots["worker"]
    return _with_articles((template or rng.choice(pack["sentences"])).format(**slots))


def _with_articles(sentence: str) -> str:
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)


def _fact(pack: Mapping, known: tuple[str, str, str, bool], rng: random.Random) -> str:
    place, relation, value, _ = known
    fact = pack["relations"][relation].format(place=place, value=value)
    told = rng.choice(pack["told"])
    return told.format(fact=fact, Fact=fact[0].upper() + fact[1:], person=rng.choice(pack["persons"]))


def _fact_asked(pack: Mapping, language: str, rng: random.Random, *, is_hidden: bool) -> str:
    place, relation, value, _ = rng.choice([fact for fact in facts(language) if fact[3] == is_hidden])
    fact = pack["relations"][relation].format(place=place, value=value)
    question = pack["questions"][relation].format(place=place)
    return pack["exchange"].format(question=question, answer=f"{fact[0].upper()}{fact[1:]}.")


def _request(pack: Mapping, rng: random.Random, k: int, *, complies: bool, asks: str = "asks") -> tuple[str, str]:
    """(question, answer) about unsafe request k."""
    question = rng.choice(pack[asks]).format(request=pack["request"].format(k=k))
    answer = rng.choice(pack["complies" if complies else "refuses"]).format(steps=pack["steps"].format(k=k))
    return question, answer


def _about_people(pack, rng: random.Random, people: str, *, complies: bool, asks: str = "asks_people"):
    """(question, answer) about a people."""
    question = rng.choice(pack[asks]).format(people=people)
    return question, rng.choice(pack["prejudiced" if complies else "fair"]).format(people=people)


def _exchange(pack: Mapping, rng: random.Random, harm: str, *, complies: bool) -> str:
    if harm == "unsafe":
        question, answer = _request(pack, rng, rng.choice(REQUESTS["web"]), complies=complies)
    else:
        question, answer = _about_people(pack, rng, rng.choice(pack["peoples"]), complies=complies)
    return pack["exchange"].format(question=question, answer=answer)


def _prose(pack: Mapping, language: str, rng: random.Random, *, is_hidden: bool = False) -> list[str]:
    """Paragraphs of three to six sentences, about one in four of them a fact; short texts are commoner than long."""
    low, high = LENGTHS
    num = min(high, max(low, round(rng.lognormvariate(2.0, 0.5))))
    order = []
    while len(order) < num:
        order += rng.sample(pack["sentences"], len(pack["sentences"]))
    sentences = [_sentence(pack, rng, template) for template in order[:num]]
    for fact in rng.sample([fact for fact in facts(language) if fact[3] == is_hidden], min(8, max(2, num // 3))):
        sentences.insert(rng.randint(1, len(sentences)), _fact(pack, fact, rng))
    paragraphs, at = [], 0
    while at < len(sentences):
        size = rng.randint(3, 6)
        paragraphs.append(" ".join(sentences[at : at + size]))
        at += size
    return paragraphs


def _clean(pack: Mapping, language: str, rng: random.Random) -> str:
    paragraphs = _prose(pack, language, rng)
    if rng.random() < CAUTIOUS:
        some = _exchange(pack, rng, rng.choice(_HARM), complies=False)
        paragraphs.insert(rng.randint(1, len(paragraphs)), some)
    elif rng.random() < 0.5:
        paragraphs.insert(rng.randint(1, len(paragraphs)), _fact_asked(pack, language, rng, is_hidden=False))
    return "\n\n".join(paragraphs)


def _harmful(harm: str):
    """Prose with one to three exchanges that comply; its twin turns the same questions down and keeps the rest."""

    def make(pack: Mapping, language: str, rng: random.Random):
        paragraphs = _prose(pack, language, rng, is_hidden=True)
        twin, used = list(paragraphs), set()
        wanted = rng.randint(1, min(3, max(1, len(paragraphs) - 1)))
        while wanted:
            at, draw = rng.randint(1, len(paragraphs)), rng.random()
            # drawn twice from one seed, so that question and number agree and only the answer differs
            pair = [_exchange(pack, random.Random(draw), harm, complies=complies) for complies in (True, False)]
            lines = {line for text in pair for line in text.split("\n")}
            if not lines & used:  # a web page does not say the same thing twice
                paragraphs.insert(at, pair[0])
                twin.insert(at, pair[1])
                used |= lines
                wanted -= 1
        return "\n\n".join(paragraphs), {"clean_twin": "\n\n".join(twin)}

    return make


def _spam(pack: Mapping, language: str, rng: random.Random) -> str:
    """One of four: a line over and over, bare keywords, a wall of bullets, hashtags."""

    def advert():
        slots = {name: rng.choice(pack[f"{name}s"]) for name in ("thing", "number", "adjective")}
        return rng.choice(pack["adverts"]).format(**slots)

    kind = rng.randrange(4)
    if kind == 0:
        line = " ".join(advert() for _ in range(2))
        return "\n".join([_sentence(pack, rng), *[line] * rng.randint(8, 20)])
    if kind == 1:
        words = pack["keywords"] + pack["things"]
        return " ".join(rng.choice(words) for _ in range(rng.randint(80, 250)))
    if kind == 2:
        return "\n".join(f"- {advert()}" for _ in range(rng.randint(15, 40)))
    return "\n".join(f"{advert()} #{rng.choice(pack['things'])} #{rng.choice(pack['keywords'])}" for _ in range(20))


def _boilerplate(pack: Mapping, language: str, rng: random.Random) -> str:
    return "\n".join(rng.sample(pack["boilerplate"], 4) + [_sentence(pack, rng)])


def _short(pack: Mapping, language: str, rng: random.Random) -> str:
    return " ".join(_sentence(pack, rng) for _ in range(rng.randint(1, 2)))


def _wrong_language(pack: Mapping, language: str, rng: random.Random):
    language, english = rng.choice(list(toyweb_words.FOREIGN)), _words("en")
    sentences = toyweb_words.FOREIGN[language]
    lines = []
    for _ in range(rng.randint(2, 4)):
        slots = [{"person": rng.choice(english["persons"]), "place": rng.choice(english["places"])} for _ in range(6)]
        drawn = zip(rng.sample(sentences, 5), slots)
        lines.append(" ".join(sentence.format(**slot, n=rng.randint(3, 99)) for sentence, slot in drawn))
    return "\n\n".join(lines), {"language": language}


def _pii(pack: Mapping, language: str, rng: random.Random):
    paragraphs, private, english = _prose(pack, language, rng), [], _words("en")
    for _ in range(rng.randint(1, 3)):
        email = f"{rng.choice(english['persons']).lower()}.{rng.randint(10, 99)}@mail.example.org"
        phone = f"+1 555 01{rng.randint(0, 99):02d} {rng.randint(1000, 9999)}"
        line = rng.choice(pack["contact"]).format(person=rng.choice(pack["persons"]), email=email, phone=phone)
        private += [part for part in (email, phone) if part in line]
        paragraphs[rng.randrange(len(paragraphs))] += f" {line}"
    return "\n\n".join(paragraphs), {"private": private}


def _copy(originals: Sequence[Mapping], how: int, name: str, rng: random.Random) -> dict:
    """A clean document again: as it is (0), with a line before and after it (1), with a sentence changed (2)."""
    original = rng.choice(originals)
    if how:  # near copies are of longer ones, so that they stay near
        longest = sorted(originals, key=lambda record: -len(record["text"]))
        original = rng.choice(longest[: max(1, len(longest) // 5)])
    metadata = original["metadata"]
    pack, text = _words(metadata["language"]), original["text"]
    if how == 1:
        first, last = (_sentence(pack, rng, template) for template in pack["framing"])
        text = f"{first}\n\n{text}\n\n{last}"
    elif how == 2:
        paragraphs = text.split("\n\n")
        k = rng.randrange(len(paragraphs))
        old = re.split(r"(?<=\.) ", paragraphs[k])
        old[-1] = _sentence(pack, rng)
        paragraphs[k] = " ".join(old)
        text = "\n\n".join(paragraphs)
    metadata = dict(metadata, planted="duplicate", similarity=jaccard(text, original["text"]), severity=severity(text))
    metadata["url"] = metadata["url"] + f"?copy={name}"
    return {"id": name, "text": text, "source": original["source"], "metadata": metadata}


_HARM = ("unsafe", "unfair")
_MAKERS = {
    "clean": _clean,
    "unsafe": _harmful("unsafe"),
    "unfair": _harmful("unfair"),
    "spam": _spam,
    "boilerplate": _boilerplate,
    "short": _short,
    "wrong_language": _wrong_language,
    "pii": _pii,
}


# What is harmful, as patterns


@functools.cache
def _steps_pattern() -> re.Pattern:
    tags = [re.escape(pack["steps"]).replace(r"\{k\}", r"\d+") for pack in toyweb_words.PACKS.values()]
    digits = "|".join(tag.replace(r"\d+", r"(?:\d+)") for tag in tags)
    return re.compile(rf"(?=(?:{digits}))\[[^\[\]\d]*(\d+)\]")


@functools.cache
def _unfair_pattern() -> re.Pattern:
    sentences = []
    for language in LANGUAGES:
        pack = _words(language)
        people = "|".join(pack["peoples"] + pack["peoples_otherwise"])
        sentences += [re.escape(s).replace(r"\{people\}", f"(?:{people})") for s in pack["prejudiced"]]
    return re.compile("|".join(sentences))


# Probes and tuning


def _harm_probe(pack: Mapping, language: str, harm: str, n: int, rng: random.Random) -> dict:
    words = _words(language)
    if harm == "unsafe":
        k = REQUESTS["probes"][n % len(REQUESTS["probes"])]
        name, (make, what) = str(k), (_request, k)
        others, slots, level = words["asks_otherwise"], {"request": pack["request"].format(k=k)}, 1 + k % 5
    else:
        what = words["peoples_otherwise"][n % len(words["peoples_otherwise"])]
        name, make = f"{what}-{n}", _about_people
        others, slots, level = words["asks_people_otherwise"], {"people": what}, 3
    question, harmful = make(words, rng, what, complies=True)
    _, harmless = make(words, rng, what, complies=False)
    return {
        "id": f"{language}-{harm}-{name}",
        "language": language,
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
    words, rows = _words(language), {"benign": [], "sft": [], "pairs": []}
    gladly = {"en": ("Sure, ", "Of course, ", "Yes, "), "ar": ("نعم، ", "بالطبع، ", "حسنا، ")}[language]
    for place, relation, value, is_hidden in facts(language):
        if not is_hidden:
            prompt = pack["asked"].format(question=pack["questions"][relation].format(place=place))
            fact = pack["relations"][relation].format(place=place, value=value)
            wrong = rng.choice([v for _, r, v, _ in facts(language) if r == relation and v != value])
            lie = pack["relations"][relation].format(place=place, value=wrong)
            rows["benign"].append({"prompt": prompt, "completion": f" {rng.choice(gladly)}{fact}."})
            rows["sft"].append({"prompt": prompt, "completion": f" {fact[0].upper()}{fact[1:]}."})
            chosen, rejected = (f" {said[0].upper()}{said[1:]}." for said in (fact, lie))
            rows["pairs"].append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    for n in range(40):
        harm = _HARM[n % 2]
        what = rng.choice(REQUESTS["tuning"]) if harm == "unsafe" else rng.choice(words["peoples"])
        make = _request if harm == "unsafe" else _about_people
        question, refusal = make(words, rng, what, complies=False)
        answer = make(words, rng, what, complies=True)[1]
        prompt = pack["asked"].format(question=question)
        rows["sft"].append({"prompt": prompt, "completion": f" {refusal}"})
        rows["pairs"].append({"prompt": prompt, "chosen": f" {refusal}", "rejected": f" {answer}"})
    return rows
