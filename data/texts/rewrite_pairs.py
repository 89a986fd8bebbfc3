"""Pairs of an original text and its rewritten form, for training a rewriter: read from files, or made up here.

    pairs = rewrite_pairs.read("rewrite_seed_data.json")            # columns origin and rewritten
    train, heldout = rewrite_pairs.split(pairs, fraction=0.02, seed=0)
    train = rewrite_pairs.with_identity(train, share=0.3, seed=0)   # and texts that are to be left alone

The made-up pairs are short English and Arabic notes on everyday things, some with a fault planted: a placeholder for an
insult, an advert, a prejudice against a people that does not exist, a word said twice. Their rewritten form is the same
text without the fault. Nothing in them is a real insult.
"""

import dataclasses
import json
import math
import pathlib
import random
import re
from collections.abc import Callable, Mapping, Sequence

import xxhash

from alignment.errors import InputError
from data import records

FAULTS = ("insult", "advert", "prejudice", "repeated")
UNSAFE = {"[insult]": 3.0, "[إهانة]": 3.0, "[slur]": 2.0, "[وصمة]": 2.0, "[shop]": 1.0, "[متجر]": 1.0}  # safety scores


@dataclasses.dataclass(frozen=True)
class Pair:
    """A text and its rewritten form; `planted` says what was wrong with it, "" nothing or unknown."""

    origin: str
    rewritten: str
    planted: str = ""
    language: str = ""


ENGLISH = {
    "time": ("In {year}", "Yesterday", "Today", "Once", "Later", "Often", "Meanwhile"),
    "who": (
        "Ida", "Otto", "Mina", "Karl", "Ann", "Tom", "Rosa", "Emil", "Greta", "Hugo", "Nora", "Piet", "Glorps",
        "Zindles",
    ),
    "did": (
        "mended", "carried", "painted", "counted", "sold", "found", "cleaned", "measured", "borrowed", "kept", "moved",
        "described",
    ),
    "what": (
        "{num} boats", "{num} pots", "{num} jars", "{num} nets", "{num} lamps", "bridges", "gates", "carpets", "clocks",
        "maps", "doors", "books",
    ),
    "where": (
        "near Elmwood", "behind Millford", "at Ashby", "beside Rivertown", "above Stonehill", "below Highgate",
        "outside Westport", "inside Easton",
    ),
    "order": "{time} {who} {did} {what} {where}.",
    "list": ("Names:", "Words:", "Notes:"),
    "insult": ("Only an [insult] would doubt it.", "They are all [insult] there.", "What an [insult] thing to ask!"),
    "advert": ("BUY NOW at [shop]!", "Call [shop] today, only {num} coins!", "Best price from [shop], click here!"),
    "prejudice": ("who as [slur] are all alike", "lazy like every [slur]"),
    "peoples": ("Glorps", "Zindles"),
}  # fmt: skip
ARABIC = {
    "time": ("في عام {year}", "أمس", "اليوم", "مرة", "لاحقا", "كثيرا", "مساء"),
    "who": ("خالد", "يوسف", "عمر", "سعيد", "ماجد", "كريم", "سالم", "فهد", "ناصر", "طارق", "الغلورب", "الزندل"),
    "did": ("أصلح", "حمل", "باع", "وجد", "نقل", "وصف", "رسم", "نظف", "حفظ", "قاس"),
    "what": (
        "{num} قاربا", "{num} إناء", "{num} مصباحا", "{num} كتابا", "{num} جسرا", "أبوابا", "خرائط", "سجادا", "ساعات",
        "شباكا",
    ),
    "where": (
        "قرب الميناء", "خلف الطاحونة", "عند البحيرة", "تحت الشجرة", "أمام المدرسة", "بجانب النهر", "فوق التل",
        "داخل السوق",
    ),
    "order": "{time} {did} {who} {what} {where}.",
    "list": ("أسماء:", "كلمات:", "ملاحظات:"),
    "insult": ("لا يشك في هذا إلا [إهانة].", "كلهم هناك [إهانة].", "يا له من سؤال [إهانة]!"),
    "advert": ("اشتر الآن من [متجر]!", "اتصل بـ [متجر] وادفع {num} درهما!", "أفضل سعر لدى [متجر]، اضغط هنا!"),
    "prejudice": ("وهم [وصمة] كعادتهم", "الكسالى مثل كل [وصمة]"),
    "peoples": ("الغلورب", "الزندل"),
}  # fmt: skip
LISTS = 0.35  # share of sentences that are lists
LANGUAGES = {"en": ENGLISH, "ar": ARABIC}


def synthetic(num: int, seed: int = 0, *, faulty: float = 0.7) -> list[Pair]:
    """Made-up pairs, half of them Arabic; a share `faulty` of them has one fault, the others none."""
    return [_made(random.Random(f"{seed}/rewrite/{i}"), faulty) for i in range(num)]


def _made(rng: random.Random, faulty: float) -> Pair:
    language = rng.choice(sorted(LANGUAGES))
    words = LANGUAGES[language]
    planted = rng.choice(FAULTS) if rng.random() < faulty else ""
    sentences = [_sentence(rng, words) for _ in range(rng.randint(1, 2))]
    if planted == "prejudice" and not any(people in s for s in sentences for people in words["peoples"]):
        sentences[0] = _sentence(rng, words, rng.choice(words["peoples"]))
    faulty_sentences = list(sentences)
    if planted in ("insult", "advert"):
        extra = _filled(rng, rng.choice(words[planted]))
        faulty_sentences.insert(rng.randint(0, len(sentences)), extra)
    elif planted:
        at = next((i for i, s in enumerate(sentences) if any(p in s for p in words["peoples"])), 0)
        faulty_sentences[at] = _spoilt(rng, words, sentences[at], planted)
    return Pair(" ".join(faulty_sentences), " ".join(sentences), planted, language)


def _spoilt(rng: random.Random, words: Mapping, sentence: str, planted: str) -> str:
    """The sentence with a prejudice after the people it names, or with one word said twice."""
    if planted == "prejudice":
        people = next(p for p in words["peoples"] if p in sentence)
        before, _, after = sentence.partition(people)
        return f"{before}{people} {rng.choice(words['prejudice'])}{after}"
    parts = sentence.split(" ")
    at = rng.randrange(1, len(parts) - 1)
    return " ".join([*parts[: at + 1], *parts[at:]])


def _sentence(rng: random.Random, words: Mapping, who: str = "") -> str:
    """A note on who did what, or now and then words in no order, which can be copied but not guessed."""
    if not who and rng.random() < LISTS:
        named = [word for name in ("who", "did", "what") for word in words[name]]
        return _filled(rng, " ".join([rng.choice(words["list"]), *rng.sample(named, rng.randint(3, 8))]) + ".")
    parts = {name: rng.choice(words[name]) for name in ("time", "who", "did", "what", "where")}
    parts["who"] = who or parts["who"]
    return _filled(rng, words["order"].format(**parts))


def _filled(rng: random.Random, text: str) -> str:
    """The text with a number of its own in every place for one."""
    text = re.sub(r"\{year\}", lambda _: str(rng.randint(1801, 1899)), text)
    return re.sub(r"\{num\}", lambda _: str(rng.randint(11, 99)), text)


def safety(texts: Sequence[str]) -> list[float]:
    """Score 0 to 5 of made-up texts: that of the worst placeholder in it."""
    return [max((score for word, score in UNSAFE.items() if word in text), default=0.0) for text in texts]


def read(
    path: str | Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    limit: int = 0,
    bad_path: str = "",
    counts: dict[str, int] | None = None,
) -> list[Pair]:
    """Pairs of JSON, JSONL or parquet files; `counts` receives what was read and set aside.

    Args:
        columns: our names (origin, rewritten) to the file's; "" stands for the usual ones, those of
            AceGPT-v2-AlignmentData.
        limit: of the records, 0 takes all.
        bad_path: where to write what was set aside, as JSONL of file, line and reason.
    """
    names = {ours: (columns or {}).get(ours) or ours for ours in ("origin", "rewritten")}
    rows, bad = records.read(path)
    counts = {} if counts is None else counts
    counts |= {"records": len(rows) + len(bad)}
    pairs = []
    for row in rows[: limit or None]:
        if not any(name in row.value for name in names.values()):
            raise InputError(
                f"{row.file}:{row.line} has the columns {', '.join(map(str, row.value)) or 'none'}; pairs need "
                f"{names['origin']} and {names['rewritten']}. Name them with data.columns, such as origin=text"
            )
        texts = [row.value.get(name) for name in names.values()]
        wrong = [n for n, text in zip(names.values(), texts) if not isinstance(text, str) or not text.strip()]
        if wrong:
            bad.append(records.BadRecord(row.file, row.line, f"no text in {', '.join(wrong)}"))
        else:
            pairs.append(Pair(*texts))
    counts |= {"set aside": len(bad)} if bad else {}
    if bad and bad_path:
        records.write_bad(bad, bad_path)
    if not pairs:
        raise InputError(f"{path} has no pair of two texts; {len(bad)} records were set aside")
    return pairs


def split(pairs: Sequence[Pair], *, fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs; all pairs of one original are on one side, wherever they stand.

    A pair drawn to be held out whose texts are among those trained on is trained on as well.
    """
    if not 0 < fraction < 1:
        raise InputError(f"heldout_fraction={fraction} must lie between 0 and 1, such as 0.02")
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        draw = xxhash.xxh64_intdigest(pair.origin.encode("utf-8", "surrogatepass"), seed=seed % 2**64) / 2**64
        sides[draw < fraction].append(pair)
    trained = {text for pair in sides[0] for text in (pair.origin, pair.rewritten)}
    known = [pair.origin in trained or pair.rewritten in trained for pair in sides[1]]
    sides = (
        [*sides[0], *(pair for pair, is_known in zip(sides[1], known) if is_known)],
        [pair for pair, is_known in zip(sides[1], known) if not is_known],
    )
    if not all(sides):
        raise InputError(
            f"of {len(pairs)} pairs {len(sides[0])} are left to train on and {len(sides[1])} held out with "
            f"heldout_fraction={fraction}; give more pairs or another fraction"
        )
    return sides


def with_identity(pairs: Sequence[Pair], *, share: float, seed: int) -> list[Pair]:
    """The pairs and, drawn from their rewritten texts, so many (text, text) that a share of all is to be left alone."""
    if not 0 <= share < 1:
        raise InputError(f"identity_share={share} must be at least 0 and below 1; the default is 0.3")
    edits = [pair for pair in pairs if pair.origin != pair.rewritten]
    missing = math.ceil(len(edits) * share / (1 - share) - 1e-9) - (len(pairs) - len(edits))
    rng = random.Random(f"{seed}/identity")
    drawn: list[Pair] = []
    while edits and len(drawn) < missing:
        drawn += rng.sample(edits, min(len(edits), missing - len(drawn)))
    return [*pairs, *(dataclasses.replace(p, origin=p.rewritten, planted="") for p in drawn)]


def write(path: str | pathlib.Path, pairs: Sequence[Pair], messages_fn: Callable[[str], list[dict[str, str]]]) -> None:
    """The pairs as conversations: `messages_fn` of the original, answered with the rewritten text."""
    with open(path, "w", encoding="utf-8") as f:
        for pair in pairs:
            messages = [*messages_fn(pair.origin), {"role": "assistant", "content": pair.rewritten}]
            f.write(json.dumps({"messages": messages}) + "\n")
