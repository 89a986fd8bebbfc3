"""Whether a rewritten text may take the place of the original: eight checks, and every number they go by.

    gate = gates.check(original, rewritten, safety=safety_fn, language=language_fn, perplexity=perplexity_fn)
    gate.accepted, gate.action, gate.failed, gate.measurements

A check is a function of texts that gives a number; a threshold turns it into a verdict. Three of them need a model and
take it as a function from a list of texts to a list of values; where there is none the measurement is None and its name
stands in `not_measured`: such a text is passed on what could be measured, and says so.
"""

import dataclasses
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from alignment.filtering.rewriting import distance

Values = Callable[[list[str]], Sequence]  # texts -> a value each

_ENGLISH_SCAFFOLD = (
    r"^[^\w\n]*(?:(?:final|brief|short|my|the)\s+)?(?:analysis|rewritten(?: text| version)?|revised(?: text| version)?|"
    r"polished(?: text| version)?|edited(?: text| version)?|original text|output|changes made|explanation)"
    r"[^\w\n]{0,3}:",
    r"\bhere(?: is|'s|’s) (?:the|a|your|my) (?:\w+ )?"
    r"(?:rewritten|revised|rewrite|polished|edited|corrected|neutral|improved)",
    r"\bas an? (?:ai|artificial intelligence|language model|large language model)\b",
    r"\bI(?: have|'ve|’ve) (?:rewritten|revised|edited|polished|removed|replaced|kept the)\b",
    r"^[^\w\n]*(?:sure|certainly|of course)[,!.:]? (?:here|i'll|i will|below)\b",
    r"\bcode of conduct above\b",
    r"<<<\s*(?:TEXT|END)\b|</?think>",
)
_ARABIC_SCAFFOLD = (
    r"^[^\w\n]*(?:التحليل|تحليل|الشرح|الملاحظات|التعديلات|النص الأصلي|النص المعدل|النص المعدّل|النص المنقح|النص المنقّح|"
    r"النص المحرر|النص المحرّر|النص المعاد صياغته|النص بعد (?:التعديل|التحرير|إعادة الصياغة)|إعادة الصياغة)"
    r"[^\w\n]{0,3}:",
    r"(?:إليك|إليكم|هذا هو|فيما يلي) (?:ال)?(?:نص|نسخة|صياغة)\w* (?:ال)?"
    r"(?:معاد|معدل|معدّل|منقح|منقّح|محرر|محرّر|مصحح|محايد)",
    r"(?:بصفتي|كوني|باعتباري|أنا) (?:نموذج|ذكاء|مساعد)\w* (?:لغوي|لغة|اصطناعي|ذكي)",
    r"ك(?:نموذج|ذكاء|مساعد) (?:لغوي|لغة|اصطناعي|ذكي)",
    r"(?:لقد )?(?:قمت|قمنا) ب(?:إعادة صياغة|تعديل|تحرير|حذف) ",
)
_REFUSALS = (
    r"\bI(?:'m| am|’m)? ?(?:sorry|afraid|apologi[sz]e)\b[^.\n]{0,40}\b"
    r"I (?:can(?:no|'|’)t|am (?:unable|not able)|won(?:'|’)t)",
    r"\bI (?:can(?:no|'|’)t|can not|am unable to|am not able to|won(?:'|’)t|must decline to) "
    r"(?:\w+ )?(?:assist|help|comply|fulfil|fulfill|rewrite|provide|produce|generate|process|edit|continue with) ",
    r"(?:عذرا|عذرًا|آسف|أعتذر|نعتذر|للأسف)\S*\s*[،,]?\s*(?:ولكن|لكن|لكنني|فأنا)?\s*"
    r"(?:لا|لن) (?:أستطيع|يمكنني|أقدر|نستطيع|يمكننا)",
    r"(?:لا أستطيع|لا يمكنني|لن أتمكن من|يتعذر علي) (?:مساعدتك|المساعدة|تلبية|إعادة صياغة|كتابة هذا|تقديم)",
)
SCAFFOLD = tuple(re.compile(p, re.IGNORECASE | re.MULTILINE) for p in _ENGLISH_SCAFFOLD + _ARABIC_SCAFFOLD)
REFUSALS = tuple(re.compile(p, re.IGNORECASE) for p in _REFUSALS)

_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"'،؛]+", re.IGNORECASE)
_FACT = re.compile(rf"{_URL.pattern}|\d+(?:[-/.:,٫٬]\d+)*", re.IGNORECASE)  # dates are numbers joined by - / .
_SENTENCE_END = re.compile(r"(?<=[.!?؟…。])[\"'»”)\]]*\s+|\n+")
_WORD = re.compile(r"\w+")
_SEPARATORS = str.maketrans("٫٬", ".,")

REWRITE_CHECKS = ("length", "language", "scaffold", "refusal", "safety", "facts", "repetition", "perplexity")
CHECKS = {  # what a text of each kind must pass; one written anew shares neither length nor facts with the original
    "rewrite": REWRITE_CHECKS,
    "educate": ("language", "scaffold", "safety", "repetition"),
    "refuse": ("language", "scaffold", "safety", "repetition"),
}


@dataclasses.dataclass(frozen=True)
class Gate:
    """The verdict on one rewritten text.

    Attributes:
        accepted: whether the rewritten text is used.
        action: "keep" (the original, unchanged or as fallback), "rewrite" (or the kind asked for), "drop".
        failed: names of the checks it failed; "empty" and "no_answer" stand alone, and so does "copied": the original
            came back where a text of another kind was asked for.
        measurements: every number the checks went by; None where it could not be measured.
        not_measured: names of the checks for which a model was missing.
    """

    accepted: bool
    action: str
    failed: list[str]
    measurements: dict[str, float | None]
    not_measured: list[str]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Thresholds; each number itself is still accepted."""

    min_length: float = 0.5  # characters of the rewritten text over those of the original
    max_length: float = 1.5
    min_language: float = 0.65  # probability of the original's language
    min_facts: float = 0.9  # recall of numbers, dates and addresses
    max_repetition: float = 0.15  # share of word 5-grams that occurred before
    max_perplexity: float = 1.2  # over that of the original
    keep_up_to: float = 2.0  # after a failed check an original of at most this safety score is kept, others dropped


def check(original: str, rewritten: str | None, **options) -> Gate:
    """`check_all` of one pair."""
    return check_all([original], [rewritten], **options)[0]


def check_all(
    originals: Sequence[str],
    rewritten: Sequence[str | None],
    *,
    safety: Values | None = None,
    language: Values | None = None,
    perplexity: Values | None = None,
    scores: Sequence[float | None] | None = None,
    kind: str = "rewrite",
    limits: Limits | None = None,
) -> list[Gate]:
    """Judge each rewritten text beside its original; each model is called once per side, with all texts it must see.

    Args:
        rewritten: None where no answer came (a time-out); the fallback rule decides.
        safety: texts -> scores from 0 (safe) to 5.
        language: texts -> (language, probability).
        perplexity: texts -> perplexity under one fixed model.
        scores: safety scores of the originals, where they are known; `safety` is asked about the others.
        kind: a key of CHECKS: what was asked for.
    """
    limits = limits or Limits()
    known = list(scores) if scores is not None else [None] * len(originals)
    open_pairs = [i for i, (a, b) in enumerate(zip(originals, rewritten)) if b is not None and b.strip() and a != b]
    numbers = {i: _texts_alone(originals[i], rewritten[i]) for i in open_pairs}
    sides = [[originals[i] for i in open_pairs], [rewritten[i] for i in open_pairs]]
    for name, fn in (("perplexity", perplexity), ("language", language)):
        values = [list(fn(side)) if fn is not None and side else [None] * len(open_pairs) for side in sides]
        for i, before, after in zip(open_pairs, *values):
            numbers[i] |= _compared(name, before, after)
    after = list(safety(sides[1])) if safety is not None and open_pairs else [None] * len(open_pairs)
    for i, value in zip(open_pairs, after):
        numbers[i]["safety_after"] = None if value is None or math.isnan(value) else float(value)
    is_kept = [a == b and kind == "rewrite" for a, b in zip(originals, rewritten)]
    falls_back = [i for i in range(len(originals)) if not is_kept[i] and known[i] is None]
    if safety is not None and falls_back:
        for i, value in zip(falls_back, safety([originals[i] for i in falls_back])):
            known[i] = float(value)
    return [
        _verdict(original, text, known[i], numbers.get(i, {}), CHECKS[kind], kind, limits)
        for i, (original, text) in enumerate(zip(originals, rewritten))
    ]


def _texts_alone(original: str, text: str) -> dict[str, float | None]:
    """What can be measured without a model."""
    return {
        "length_ratio": length_ratio(original, text),
        "scaffold": float(num_new(SCAFFOLD, original, text)),
        "refusal": float(num_new(REFUSALS, original, text)),
        "facts_recall": facts_recall(original, text),
        "repetition": repetition(text),
        "edit_similarity": distance.similarity(original, text),
        "word_similarity": distance.similarity(original.split(), text.split()),
    }


def _compared(name: str, before, after) -> dict[str, float | None]:
    """A model's values of both sides, as the numbers that are stored."""
    is_unknown = after is None or (name == "perplexity" and not (0 < before < math.inf and 0 < after < math.inf))
    if is_unknown:
        return (
            {f"{name}_ratio": None} if name == "perplexity" else {"language_same": None, "language_probability": None}
        )
    if name == "perplexity":
        return {
            "perplexity_before": float(before),
            "perplexity_after": float(after),
            "perplexity_ratio": after / before,
        }
    return {"language_same": float(before[0] == after[0]), "language_probability": float(after[1])}


def _verdict(original, text, score, numbers, checks, kind, limits) -> Gate:
    numbers = {"safety_before": score, **numbers}
    fallback = "keep" if score is None or score <= limits.keep_up_to else "drop"
    if text == original:
        is_rewriting = kind == "rewrite"
        return Gate(is_rewriting, "keep" if is_rewriting else fallback, [] if is_rewriting else ["copied"], numbers, [])
    if text is None or not text.strip():
        return Gate(False, fallback, ["no_answer" if text is None else "empty"], numbers, [])
    verdicts = {name: VERDICTS[name](numbers, limits) for name in checks}
    failed = [name for name, verdict in verdicts.items() if verdict is False]
    missing = [name for name, verdict in verdicts.items() if verdict is None]
    return Gate(not failed, fallback if failed else kind, failed, numbers, missing)


def _language(numbers: dict, limits: Limits) -> bool | None:
    if numbers["language_same"] is None:
        return None
    return numbers["language_same"] == 1 and numbers["language_probability"] >= limits.min_language


def _safety(numbers: dict, limits: Limits) -> bool | None:
    """Strictly safer than an original of 1 or more, and no less safe than any other."""
    del limits
    before, after = numbers["safety_before"], numbers["safety_after"]
    if before is None or after is None:
        return None
    return after < before if before >= 1 else after <= before


def _perplexity(numbers: dict, limits: Limits) -> bool | None:
    ratio = numbers["perplexity_ratio"]
    return None if ratio is None else ratio <= limits.max_perplexity


VERDICTS: dict[str, Callable[[dict, Limits], bool | None]] = {  # None: could not be measured
    "length": lambda n, limits: limits.min_length <= n["length_ratio"] <= limits.max_length,
    "language": _language,
    "scaffold": lambda n, limits: n["scaffold"] == 0,
    "refusal": lambda n, limits: n["refusal"] == 0,
    "safety": _safety,
    "facts": lambda n, limits: n["facts_recall"] >= limits.min_facts,
    "repetition": lambda n, limits: n["repetition"] <= limits.max_repetition,
    "perplexity": _perplexity,
}


def length_ratio(original: str, text: str) -> float:
    """Characters of the rewritten text over those of the original."""
    return len(text) / len(original) if original else math.inf


def num_new(patterns: Sequence[re.Pattern], original: str, text: str) -> int:
    """How many of the patterns occur more often in the rewritten text than in the original."""
    return sum(len(p.findall(text)) > len(p.findall(original)) for p in patterns)


def repetition(text: str, size: int = 5) -> float:
    """Share of word n-grams that occurred before in the text; 0 where there are none."""
    words = text.split()
    grams = list(zip(*(words[k:] for k in range(size))))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def facts(text: str) -> Counter:
    """Numbers, dates and addresses of a text, with how often each occurs; digits of any script count as ASCII ones.

    A date such as 2024-05-01 is one fact. Commas between groups of three digits are left out.
    """
    found = (_ascii(found[0]).rstrip(".,:;!?)]") for found in _FACT.finditer(text))
    return Counter(re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", fact) for fact in found)


def _ascii(fact: str) -> str:
    return re.sub(r"\d", lambda digit: str(unicodedata.decimal(digit[0])), fact.translate(_SEPARATORS))


def facts_recall(original: str, text: str, min_overlap: float = 0.5) -> float:
    """Share of the facts in kept sentences of the original that the rewritten text still has; 1 where there are none.

    A sentence counts as kept when at least `min_overlap` of its distinct words, those with a digit and addresses
    aside, are in one and the same sentence of the rewritten text; so does a sentence of facts alone. An advert that is
    taken out thus takes its telephone number with it at no cost.
    """
    kept: Counter = Counter()
    index: dict[str, list[int]] = {}
    for number, sentence in enumerate(_SENTENCE_END.split(text)):
        for word in _words(sentence):
            index.setdefault(word, []).append(number)
    for sentence in _SENTENCE_END.split(original):
        found = facts(sentence)
        if not found:
            continue
        words = _words(sentence)
        shared = Counter(number for word in words for number in index.get(word, ()))
        if not words or max(shared.values(), default=0) >= min_overlap * len(words):
            kept += found
    return (kept & facts(text)).total() / kept.total() if kept else 1.0


def _words(sentence: str) -> set[str]:
    """Distinct words in lower case, without addresses and without words that hold a digit."""
    return {w for w in _WORD.findall(_URL.sub(" ", sentence).casefold()) if not any(c.isdigit() for c in w)}
