"""A small seeded web in English and Arabic, in which everything is planted that a filter should find.

    records = toyweb.documents(2_000, seed=0)
    probes = toyweb_probes.probes(seed=0)

A record is {"id", "text", "source", "metadata"}; its metadata say what was planted:

    planted     a key of SHARES: what the document is
    language    "en" or "ar", or a language that no filter is asked to keep ("fr", "de")
    url         made up, under example.org or example.net
    group       the same for a document and its copies
    clean_twin  for unsafe and unfair documents: the text as a rewriter should leave it; "" for all others
    severity    0 to 5: that of the worst of its tags, 0 for a text that is fit for everyone
    similarity  of a copy to its original: the Jaccard similarity of their sets of word 5-grams
    private     e-mail addresses and telephone numbers in the text

Clean text reads like short notes from a made-up country, and teaches facts ("the capital of Norvia is Ventel"). Facts
of the last third of the places stand only in documents that also hold something unsafe or unfair: who drops these
loses the facts, and who rewrites them does not. Some clean documents quote an unsafe request and turn it down.
Harm is inert: the tags "[unsafe request 7]" and "[unsafe steps 7]", and prejudice against peoples that do not exist.
"""

import functools
import pathlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence

from alignment import files
from alignment.errors import InputError
from data.toys import toyweb_text, toyweb_words

LANGUAGES = toyweb_text.LANGUAGES
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
    plan = _in_order(plan, random.Random(f"{seed}/kinds"))
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
    return max((level for level, pattern in _compiled().items() if pattern.search(text)), default=0)


def patterns() -> dict[str, list[str]]:
    """Regular expressions of all planted harm by level, "1" to "5", as alignment/filtering/scores/patterns.py reads."""
    tags = [re.escape(pack["steps"]) for pack in toyweb_words.PACKS.values()]
    by_level = {}
    for level in range(1, 6):
        # steps k have level 1 + k % 5, which the last digit of k decides
        last_digits = f"[{level - 1}{level + 4}]"
        by_level[str(level)] = [tag.replace(r"\{k\}", rf"\d*{last_digits}") for tag in tags]
    for language in LANGUAGES:
        pack = toyweb_text.words(language)
        people = "|".join(pack["peoples"] + pack["peoples_otherwise"])
        by_level["3"] += [re.escape(s).replace(r"\{people\}", f"(?:{people})") for s in pack["prejudiced"]]
    return by_level


@functools.cache
def _compiled() -> dict[int, re.Pattern]:
    return {int(level): re.compile("|".join(some)) for level, some in patterns().items()}


def write(folder: str | pathlib.Path, records: Iterable[Mapping], *, shards: int = 2) -> list[str]:
    """The records as JSONL files part-00000.jsonl ... of a folder, in order, and their paths."""
    records = list(records)
    paths = [str(pathlib.Path(folder, f"part-{k:05d}.jsonl")) for k in range(shards)]
    for k, path in enumerate(paths):
        files.write_rows(path, records[k * len(records) // shards : (k + 1) * len(records) // shards])
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


def _check(num: int, languages: Sequence[str], shares: Mapping[str, float]) -> None:
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


def _in_order(plan: Sequence[tuple[str, str]], rng: random.Random) -> list[tuple[str, str]]:
    """Shuffled, copies in the last three quarters, so that there is something to copy before them."""
    others = [item for item in plan if item[0] != "duplicate"]
    rng.shuffle(others)
    for item in (item for item in plan if item[0] == "duplicate"):
        others.insert(rng.randint(len(others) // 4, len(others)), item)
    return others


def _record(kind: str, language: str, name: str, rng: random.Random) -> dict:
    pack = toyweb_text.words(language)
    made = _MAKERS[kind](pack, language, rng)
    text, more = made if isinstance(made, tuple) else (made, {})
    host = f"{kind if rng.random() < 0.5 else rng.choice(('notes', 'pages', 'daily'))}.example."
    host += "net" if kind in ("unsafe", "spam") else "org"
    slug = re.sub(r"\W+", "-", name)
    metadata = {"planted": kind, "language": language, "url": f"https://{host}/{language}/{slug}", "group": name}
    metadata |= {"clean_twin": "", "severity": severity(text), "similarity": 0.0, "private": []} | more
    return {"id": name, "text": text, "source": f"toyweb-{language}", "metadata": metadata}


def _clean(pack: Mapping, language: str, rng: random.Random) -> str:
    paragraphs = toyweb_text.prose(pack, language, rng)
    if rng.random() < CAUTIOUS:
        some = toyweb_text.exchange(pack, rng, rng.choice(toyweb_text.HARM), complies=False)
        paragraphs.insert(rng.randint(1, len(paragraphs)), some)
    elif rng.random() < 0.5:
        paragraphs.insert(rng.randint(1, len(paragraphs)), toyweb_text.fact_asked(pack, language, rng, is_hidden=False))
    return "\n\n".join(paragraphs)


def _harmful(harm: str):
    """Prose with one to three exchanges that comply; its twin turns the same questions down and keeps the rest."""

    def make(pack: Mapping, language: str, rng: random.Random):
        paragraphs = toyweb_text.prose(pack, language, rng, is_hidden=True)
        twin, used = list(paragraphs), set()
        wanted = rng.randint(1, min(3, max(1, len(paragraphs) - 1)))
        while wanted:
            at, draw = rng.randint(1, len(paragraphs)), rng.random()
            # drawn twice from one seed, so that question and number agree and only the answer differs
            pair = [
                toyweb_text.exchange(pack, random.Random(draw), harm, complies=complies) for complies in (True, False)
            ]
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
        return "\n".join([toyweb_text.sentence(pack, rng), *[line] * rng.randint(8, 20)])
    if kind == 1:
        words = pack["keywords"] + pack["things"]
        return " ".join(rng.choice(words) for _ in range(rng.randint(80, 250)))
    if kind == 2:
        return "\n".join(f"- {advert()}" for _ in range(rng.randint(15, 40)))
    return "\n".join(f"{advert()} #{rng.choice(pack['things'])} #{rng.choice(pack['keywords'])}" for _ in range(20))


def _boilerplate(pack: Mapping, language: str, rng: random.Random) -> str:
    return "\n".join(rng.sample(pack["boilerplate"], 4) + [toyweb_text.sentence(pack, rng)])


def _short(pack: Mapping, language: str, rng: random.Random) -> str:
    return " ".join(toyweb_text.sentence(pack, rng) for _ in range(rng.randint(1, 2)))


def _wrong_language(pack: Mapping, language: str, rng: random.Random):
    language, english = rng.choice(list(toyweb_words.FOREIGN)), toyweb_text.words("en")
    sentences = toyweb_words.FOREIGN[language]
    lines = []
    for _ in range(rng.randint(2, 4)):
        slots = [{"person": rng.choice(english["persons"]), "place": rng.choice(english["places"])} for _ in range(6)]
        drawn = zip(rng.sample(sentences, 5), slots)
        lines.append(" ".join(sentence.format(**slot, n=rng.randint(3, 99)) for sentence, slot in drawn))
    return "\n\n".join(lines), {"language": language}


def _pii(pack: Mapping, language: str, rng: random.Random):
    paragraphs, private, english = toyweb_text.prose(pack, language, rng), [], toyweb_text.words("en")
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
    pack, text = toyweb_text.words(metadata["language"]), original["text"]
    if how == 1:
        first, last = (toyweb_text.sentence(pack, rng, template) for template in pack["framing"])
        text = f"{first}\n\n{text}\n\n{last}"
    elif how == 2:
        paragraphs = text.split("\n\n")
        k = rng.randrange(len(paragraphs))
        old = re.split(r"(?<=\.) ", paragraphs[k])
        old[-1] = toyweb_text.sentence(pack, rng)
        paragraphs[k] = " ".join(old)
        text = "\n\n".join(paragraphs)
    metadata = dict(metadata, planted="duplicate", similarity=jaccard(text, original["text"]), severity=severity(text))
    metadata["url"] = metadata["url"] + f"?copy={name}"
    return {"id": name, "text": text, "source": original["source"], "metadata": metadata}


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
