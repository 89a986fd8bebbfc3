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
import pathlib
import random
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
    "time": ("In {year}", "Each spring", "Last winter", "Before noon", "On market day", "At dusk", "After the rain"),
    "who": (
        "the old baker", "a young sailor", "the village teacher", "the tall miller", "a quiet weaver", "our neighbour",
        "the harbour master", "the bell maker", "a travelling singer", "the beekeeper", "the Glorps", "the Zindles",
    ),
    "did": (
        "mended", "carried", "painted", "counted", "sold", "found", "cleaned", "measured", "borrowed", "kept", "moved",
        "described",
    ),
    "what": (
        "{num} wooden boats", "{num} copper pots", "the stone bridge", "the north gate", "a woollen carpet",
        "{num} honey jars", "the tower clock", "an iron lamp", "the river map", "{num} fishing nets", "the glass door",
        "a leather book",
    ),
    "where": (
        "near the harbour", "behind the mill", "in the market", "by the lake", "under the oak", "at the school",
        "beside the river", "in the old town", "on the hill", "at the south well",
    ),
    "order": "{time} {who} {did} {what} {where}.",
    "insult": ("Only an [insult] would doubt it.", "They are all [insult] there.", "What an [insult] thing to ask!"),
    "advert": ("BUY NOW at [shop]!", "Call [shop] today and pay {num} coins!", "Best price at [shop], click here!"),
    "prejudice": ("[slur] as they all are, ", "as lazy as every [slur], "),
    "peoples": ("the Glorps", "the Zindles"),
}  # fmt: skip
ARABIC = {
    "time": ("في عام {year}", "كل ربيع", "في الشتاء الماضي", "قبل الظهر", "يوم السوق", "عند الغروب", "بعد المطر"),
    "who": (
        "أصلح الخباز", "باع البحار", "حمل المعلم", "نقل الطحان", "وصف الحارس", "وجد الصياد", "اشترى جارنا",
        "رسم الشاعر", "نظف البستاني", "حفظ النحال", "باع الغلورب", "حمل الزندل",
    ),
    "did": ("",),
    "what": (
        "{num} قوارب خشبية", "{num} أوان نحاسية", "باب المدرسة", "خريطة النهر", "سجادة من الصوف", "{num} جرار عسل",
        "ساعة البرج", "مصباحا قديما", "كتابا من الجلد", "{num} شباك صيد",
    ),
    "where": (
        "قرب الميناء", "خلف الطاحونة", "في السوق", "عند البحيرة", "تحت الشجرة", "أمام المدرسة", "بجانب النهر",
        "في المدينة القديمة", "فوق التل", "عند البئر",
    ),
    "order": "{time} {who} {what} {where}.",
    "insult": ("لا يشك في هذا إلا [إهانة].", "كلهم هناك [إهانة].", "يا له من سؤال [إهانة]!"),
    "advert": ("اشتر الآن من [متجر]!", "اتصل اليوم بـ [متجر] وادفع {num} دراهم!", "أفضل سعر فقط في [متجر]، اضغط هنا!"),
    "prejudice": ("وهم [وصمة] كعادتهم ", "مثل كل [وصمة] "),
    "peoples": ("الغلورب", "الزندل"),
}  # fmt: skip
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
        who = rng.choice([w for w in words["who"] if w.endswith(words["peoples"])])
        sentences[0] = _sentence(rng, words, who)
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
        return f"{before}{people} {rng.choice(words['prejudice'])}{after.lstrip()}"
    parts = sentence.split(" ")
    at = rng.randrange(1, len(parts) - 1)
    return " ".join([*parts[: at + 1], *parts[at:]])


def _sentence(rng: random.Random, words: Mapping, who: str = "") -> str:
    parts = {name: rng.choice(words[name]) for name in ("time", "who", "did", "what", "where")}
    parts["who"] = who or parts["who"]
    return _filled(rng, words["order"].format(**parts))


def _filled(rng: random.Random, text: str) -> str:
    return text.replace("{year}", str(rng.randint(1500, 2020))).replace("{num}", str(rng.randint(11, 99)))


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
    """Training and held-out pairs; all pairs of one original are on one side, wherever they stand."""
    if not 0 < fraction < 1:
        raise InputError(f"heldout_fraction={fraction} must lie between 0 and 1, such as 0.02")
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        draw = xxhash.xxh64_intdigest(pair.origin.encode("utf-8", "surrogatepass"), seed=seed % 2**64) / 2**64
        sides[draw < fraction].append(pair)
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
    missing = -(-len(edits) * share // (1 - share)) - (len(pairs) - len(edits))
    rng = random.Random(f"{seed}/identity")
    drawn: list[Pair] = []
    while edits and len(drawn) < missing:
        drawn += rng.sample(edits, min(len(edits), int(missing) - len(drawn)))
    return [*pairs, *(dataclasses.replace(p, origin=p.rewritten, planted="") for p in drawn)]


def write(path: str | pathlib.Path, pairs: Sequence[Pair], messages_fn: Callable[[str], list[dict[str, str]]]) -> None:
    """The pairs as conversations: `messages_fn` of the original, answered with the rewritten text."""
    with open(path, "w", encoding="utf-8") as f:
        for pair in pairs:
            messages = [*messages_fn(pair.origin), {"role": "assistant", "content": pair.rewritten}]
            f.write(json.dumps({"messages": messages}) + "\n")
