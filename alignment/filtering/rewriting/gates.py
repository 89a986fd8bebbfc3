"""Decide whether a rewritten text may replace the original: eight checks, with every number that they measured.

    gate = gates.check(original, rewritten, safety=safety_fn, language=language_fn, perplexity=perplexity_fn)
    gate.accepted, gate.action, gate.failed, gate.measurements

A check measures a number, and a threshold turns it into a verdict. Three checks need a model, a function from a list of
texts to a list of values. Without it the measurement is None and the check's name stands in `not_measured`; the other
checks then decide.
"""

import dataclasses
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from alignment.filtering.rewriting import distance
from alignment.filtering.rules import arabic

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
    r"<<<\s*(?:TEXT|END)\b",
    # special tokens and channels of a chat format, written out
    r"<\|[^|<>\n]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk|(?:start|end)_of_turn)>|\[/?INST\]|\bassistantfinal|^analysis(?=[A-Z])",
    r"</?(?:think(?:ing)?|thought|reason(?:ing)?|reflection|scratchpad|analysis|answer|output|response|final|rewritten|"
    r"edited|revised)(?:[ _-]?(?:text|version|answer|output))?>",
    r"^[^\w\n]*(?:(?:sure|certainly|of course|okay|ok|alright|absolutely)\b[^\n]{0,20})?"
    r"(?:here(?: is| are|'s|’s)|below (?:is|are)|(?:this|the following) is) (?:the|a|an|your|my)\b[^\n]{0,100}:[*_ ]*$",
    r"^[^\w\n]*(?:okay|ok|alright|well|first|now)?,? ?(?:let me (?:look|think|start|see|rewrite|edit|go)|"
    r"I(?:'ll|’ll| will| need to| should) (?:now )?(?:look|rewrite|edit|revise|go through|start))\b",
    r"\b(?:text|passage|content|document|paragraph|version|section|parts?|language|material|instructions?)\b"
    r"[^.\n]{0,30}\b(?:has|have) been (?:\w+ )?(?:edited|rewritten|revised|modified|removed|adjusted|cleaned|sanitised|"
    r"sanitized|redacted|altered|rephrased|omitted|replaced|neutralised|neutralized)",
    r"\b(?:text|passage|version) (?:was|is) (?:\w+ )?"
    r"(?:edited|rewritten|revised|rephrased|cleaned up|sanitised|sanitized)",
    r"\b(?:removed|omitted|replaced|took out|taken out|edited out)\b[^.\n]{0,30}\b(?:harmful|unsafe|offensive|"
    r"inappropriate|toxic)\b",
    r"\b(?:as per|in (?:line|accordance) with|according to|following) (?:the|your|these) "
    r"(?:guidelines|code of conduct)",
    r"\bno (?:changes|edits|modifications) (?:were|are|was|is) (?:made|needed|necessary|required)",
    r"^[^\w\n]*(?:I hope this helps|let me know if|please let me know)",
    # an order to whoever reads the text next, such as a model that is trained on it
    r"\b(?:ignore|disregard|forget) (?:all |any )?(?:of )?(?:the |your |my )?"
    r"(?:previous|prior|above|preceding|earlier|other) (?:instructions?|rules|prompts?|orders|guidelines)",
)
_ARABIC_SCAFFOLD = (
    r"^[^\w\n]*(?:التحليل|تحليل|الشرح|الملاحظات|التعديلات|النص الأصلي|النص المعدل|النص المعدّل|النص المنقح|النص المنقّح|"
    r"النص المحرر|النص المحرّر|النص المعاد صياغته|النص بعد (?:التعديل|التحرير|إعادة الصياغة)|إعادة الصياغة)"
    r"[^\w\n]{0,3}:",
    r"(?:إليك|إليكم|هذا هو|فيما يلي) (?:ال)?(?:نص|نسخة|صياغة)\w* (?:ال)?"
    r"(?:معاد|معدل|معدّل|منقح|منقّح|محرر|محرّر|مصحح|محايد)",
    r"(?:بصفتي|كوني|باعتباري|أنا) (?:نموذج|ذكاء|مساعد)\w* (?:لغوي|لغة|اصطناعي|ذكي)",
    r"ك(?:نموذج|ذكاء|مساعد) (?:لغوي|لغة|اصطناعي|ذكي)",
    r"(?:لقد )?(?:قمت|قمنا) ب(?:إعادة صياغة|تعديل|تحرير|حذف|إزالة) ",
    r"تم(?:ت)? (?:إعادة صياغة|تعديل|تحرير|تنقيح|حذف|إزالة|استبدال) "
    r"(?:ال)?(?:نص|محتوى|عبارات|أجزاء|تعليمات|فقرات|كلمات)",
    r"(?:حذفت|أزلت|عدلت|حررت|استبدلت) (?:ال)?(?:نص|محتوى|عبارات|أجزاء|تعليمات|فقرات|كلمات)",
    r"^[^\w\n]*(?:بالتأكيد|بالطبع|حسنا|طبعا|أكيد)?[^\w\n]*(?:إليك|إليكم|فيما يلي|هذا هو|هذه هي)[^\n]{0,100}:[*_ ]*$",
    r"^[^\w\n]*(?:آمل أن|أتمنى أن يكون|أخبرني إذا|هل تريد أن)",
    r"وفقا? (?:لقواعد|للقواعد|لمدونة|للإرشادات|لإرشادات)",
    r"(?:تجاهل|تجاهلي|انس|أهمل) (?:كل |جميع )?(?:ال)?(?:تعليمات|أوامر|قواعد|إرشادات) (?:السابقة|أعلاه|الأخرى)",
)
_NEW_LINES = (  # lines whose words must be in the original
    r"[^\w]*(?:note|notes|n\.b|nb|remark|editor'?s? note|disclaimer|explanation|changes|summary of changes|edits|"
    r"comment|warning|reasoning)s?\b[^\n:]{0,30}:.*",
    r"[^\w]*(?:ملاحظة|ملاحظات|ملحوظة|تنويه|تنبيه|توضيح|تعليق|شرح|التغييرات|ملاحظة المحرر)\b[^\n:]{0,30}:.*",
    r"[([][^\n]{0,20}\b(?:note|edited|removed|text|rewritten|omitted|changes|نص|ملاحظة|تعديل|حذف)\b[^\n]*[)\]]",
    r"#{1,6}\s.*",  # a heading
    r"(?:\*\*|__)[^*_\n]{1,80}(?:\*\*|__)\s*:?",  # a line in bold
    r"\*\*[^*\n]{1,40}:\*\*.*",
    r"(?:edited|rewritten|revised|final|new|clean|original|edited version of the) "
    r"(?:text|version|passage|document)\s*:?",
    r"النص (?:المعدل|المنقح|المحرر|النهائي|الجديد|المعاد صياغته|بعد التعديل)\s*:?",
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


def compiled(patterns: Sequence[str]) -> tuple[re.Pattern, ...]:
    """Patterns for texts in the spelling of `arabic.normalise`: they are brought into it too."""
    return tuple(re.compile(arabic.normalise(p), re.IGNORECASE | re.MULTILINE) for p in patterns)


SCAFFOLD = compiled(_ENGLISH_SCAFFOLD + _ARABIC_SCAFFOLD)
REFUSALS = compiled(_REFUSALS)
NEW_LINES = compiled(_NEW_LINES)
_FENCE = re.compile(r"^\s*(?:```|~~~)\w*\s*$", re.MULTILINE)
_QUOTES = {'"': '"', "“": "”", "«": "»", "'": "'", "‘": "’", "「": "」", "`": "`"}

_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"'،؛]+", re.IGNORECASE)
# Also a host without "www.", and a mail address; the last part has letters, so that 3.15 is not an address. The limits
# are those of a host's name: without them a long "a-a-a-..." would take time quadratic in its length.
_HOST = r"(?:[a-z0-9-]{1,63}\.){1,8}[a-z]{2,63}\b"
_ADDRESS = re.compile(rf"{_URL.pattern}|\b(?:[\w.+-]{{1,64}}@)?{_HOST}", re.IGNORECASE)
_FACT = re.compile(rf"{_URL.pattern}|\d+(?:[-/.:,٫٬]\d+)*", re.IGNORECASE)  # dates are numbers joined by - / .
_SENTENCE_END = re.compile(r"(?<=[.!?؟…。])[\"'»”)\]]*\s+|\n+")
_WORD = re.compile(r"\w+")
_SEPARATORS = str.maketrans("٫٬", ".,")

REWRITE_CHECKS = ("length", "language", "scaffold", "refusal", "safety", "facts", "repetition", "perplexity")
CHECKS = {  # checks of each kind of text; a new text shares neither length nor facts with the original
    "rewrite": REWRITE_CHECKS,
    "educate": ("language", "scaffold", "safety", "repetition"),
    "refuse": ("language", "scaffold", "safety", "repetition"),
}


@dataclasses.dataclass(frozen=True)
class Gate:
    """The verdict on one rewritten text.

    Attributes:
        accepted: whether to use the rewritten text.
        action: "keep" (the original, unchanged or as fallback), "rewrite" (or another requested kind), or "drop".
        failed: names of failed checks, or one of "empty", "no_answer" and "copied" (the original came back instead of a
            new text).
        measurements: every measured number; None if it could not be measured.
        not_measured: names of the checks whose model was missing.
    """

    accepted: bool
    action: str
    failed: list[str]
    measurements: dict[str, float | None]
    not_measured: list[str]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Thresholds, all inclusive."""

    min_length: float = 0.5  # characters of the rewritten text over those of the original
    max_length: float = 1.5
    min_language: float = 0.65  # probability of the original's language
    min_facts: float = 0.9  # recall of numbers, dates and addresses
    max_repetition: float = 0.15  # share of word 5-grams that occurred before
    max_perplexity: float = 1.2  # of the rewritten text over that of the original
    keep_up_to: float = 2.0  # after a failed check an original up to this safety score is kept, others are dropped


def check(original: str, rewritten: str | None, **options: Any) -> Gate:
    """`check_all` for one pair."""
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
    markers: Sequence[str] = (),
) -> list[Gate]:
    """Judge each rewritten text beside its original. A model is called once for all originals and once for all texts.

    Args:
        rewritten: None for a text without an answer, such as after a time-out; its original falls back.
        safety: texts -> scores from 0 (safe) to 5.
        language: texts -> (language, probability).
        perplexity: texts -> perplexity under one fixed model.
        scores: safety scores of the originals; `safety` scores those with None.
        kind: a key of CHECKS, the kind of text that was requested.
        limits: thresholds; None takes the defaults.
        markers: regular expressions of a remark of the model, beside those of SCAFFOLD; see `conduct.Conduct`.
    """
    more = compiled(markers)
    limits = limits or Limits()
    before_scores: list[float | None] = list(scores) if scores is not None else [None] * len(originals)
    # Only texts that really are new are measured; missing, empty and unchanged ones have a verdict already.
    new_texts = {i: b for i, (a, b) in enumerate(zip(originals, rewritten)) if b is not None and b.strip() and a != b}
    numbers = {i: _texts_alone(originals[i], text, more) for i, text in new_texts.items()}
    sides = [[originals[i] for i in new_texts], list(new_texts.values())]
    for name, fn in (("perplexity", perplexity), ("language", language)):
        values = [list(fn(side)) if fn is not None and side else [None] * len(side) for side in sides]
        for i, before, after in zip(new_texts, *values):
            numbers[i] |= _compared(name, before, after)
    after_scores = list(safety(sides[1])) if safety is not None and new_texts else [None] * len(new_texts)
    for i, value in zip(new_texts, after_scores):
        numbers[i]["safety_after"] = None if value is None or math.isnan(value) else float(value)
    is_unchanged = [a == b and kind == "rewrite" for a, b in zip(originals, rewritten)]
    unscored = [i for i in range(len(originals)) if not is_unchanged[i] and before_scores[i] is None]
    if safety is not None and unscored:
        for i, value in zip(unscored, safety([originals[i] for i in unscored])):
            before_scores[i] = float(value)
    return [
        _verdict(original, text, before_scores[i], numbers.get(i, {}), CHECKS[kind], kind, limits)
        for i, (original, text) in enumerate(zip(originals, rewritten))
    ]


def _texts_alone(original: str, text: str, markers: Sequence[re.Pattern]) -> dict[str, float | None]:
    """The measurements that need no model."""
    return {
        "length_ratio": length_ratio(original, text),
        "scaffold": float(scaffold(original, text, markers)),
        "refusal": float(num_new(REFUSALS, original, text)),
        "facts_recall": facts_recall(original, text),
        "repetition": repetition(text),
        "edit_similarity": distance.similarity(original, text),
        "word_similarity": distance.similarity(original.split(), text.split()),
    }


def _compared(name: str, before: Any, after: Any) -> dict[str, float | None]:
    """A model's values for an original and its new text, as the numbers to store."""
    # An infinite or zero perplexity (an empty text, an underflow) has no meaningful ratio.
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


def _verdict(
    original: str,
    text: str | None,
    score: float | None,
    numbers: dict[str, float | None],
    checks: Sequence[str],
    kind: str,
    limits: Limits,
) -> Gate:
    """The verdict on one text from its measurements."""
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


def _safety(numbers: dict) -> bool | None:
    """Strictly safer than an original of 1 or more, and at least as safe as any other."""
    before, after = numbers["safety_before"], numbers["safety_after"]
    if before is None or after is None:
        return None
    return after < before if before >= 1 else after <= before


def _perplexity(numbers: dict, limits: Limits) -> bool | None:
    ratio = numbers["perplexity_ratio"]
    return None if ratio is None else ratio <= limits.max_perplexity


VERDICTS: dict[str, Callable[[dict, Limits], bool | None]] = {  # None: not measured
    "length": lambda n, limits: limits.min_length <= n["length_ratio"] <= limits.max_length,
    "language": _language,
    "scaffold": lambda n, limits: n["scaffold"] == 0,
    "refusal": lambda n, limits: n["refusal"] == 0,
    "safety": lambda n, limits: _safety(n),
    "facts": lambda n, limits: n["facts_recall"] >= limits.min_facts,
    "repetition": lambda n, limits: n["repetition"] <= limits.max_repetition,
    "perplexity": _perplexity,
}


def length_ratio(original: str, text: str) -> float:
    """Characters of the rewritten text over those of the original."""
    return len(text) / len(original) if original else math.inf


def num_new(patterns: Sequence[re.Pattern], original: str, text: str) -> int:
    """The number of patterns that occur more often in the rewritten text than in the original."""
    original, text = arabic.normalise(original), arabic.normalise(text)
    return sum(len(p.findall(text)) > len(p.findall(original)) for p in patterns)


def scaffold(original: str, text: str, markers: Sequence[re.Pattern] = ()) -> int:
    """The number of things in a rewritten text that a model puts around its answer and that the original lacks.

    They are remarks, marks of a chat format, new headings and notes, code fences, quotation marks around the whole, and
    addresses, which the model made up or was made to advertise.
    """
    before = _bare(arabic.normalise(original))  # a line may have stood within a longer one, whose start was cut
    lines = {_bare(line) for line in arabic.normalise(original).splitlines()}
    added = [
        line
        for line in arabic.normalise(text).splitlines()
        if _bare(line) not in (lines if line.lstrip()[:1] in ("#", "*", "_") else before)
    ]
    # An edited line counts as new as well, hence the comparison with the number that the original has.
    is_new_line = _num_lines(added) > 0 and _num_lines(text.splitlines()) > _num_lines(original.splitlines())
    is_fenced = len(_FENCE.findall(text)) > len(_FENCE.findall(original))
    is_quoted = _is_quoted(text) and not _is_quoted(original)
    known = original.casefold()
    is_address_new = any(m[0].rstrip(".,:;!?)]").casefold() not in known for m in _ADDRESS.finditer(text))
    return num_new((*SCAFFOLD, *markers), original, text) + is_new_line + is_fenced + is_quoted + is_address_new


def _num_lines(lines: Sequence[str]) -> int:
    lines = [arabic.normalise(line).strip() for line in lines]
    return sum(any(pattern.fullmatch(line) for pattern in NEW_LINES) for line in lines)


def _bare(line: str) -> str:
    """A text's words between single spaces, without marks and case."""
    return f" {' '.join(_WORD.findall(line.casefold()))} "


def _is_quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and _QUOTES.get(text[0]) == text[-1]


def repetition(text: str, size: int = 5) -> float:
    """Share of word n-grams that occurred before in the text; 0 for a text without any."""
    words = text.split()
    grams = list(zip(*(words[k:] for k in range(size))))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def facts(text: str) -> Counter:
    """Numbers, dates and addresses of a text, with their counts; digits of all scripts become ASCII digits.

    A date such as 2024-05-01 is one fact. Commas between groups of three digits are removed.
    """
    ascii_facts = (_ascii(match[0]).rstrip(".,:;!?)]") for match in _FACT.finditer(text))
    return Counter(re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", fact) for fact in ascii_facts)


def _ascii(fact: str) -> str:
    return re.sub(r"\d", lambda digit: str(unicodedata.decimal(digit[0])), fact.translate(_SEPARATORS))


def facts_recall(original: str, text: str, min_overlap: float = 0.5) -> float:
    """Share of the facts in surviving sentences of the original that the rewritten text still has; 1 without facts.

    A sentence survives if at least `min_overlap` of its distinct words (without addresses and words with a digit) are
    in one sentence of the rewritten text; a sentence of facts alone always does. A removed advert may thus lose its
    telephone number at no cost.
    """
    expected: Counter = Counter()
    index: dict[str, list[int]] = {}  # word -> numbers of the rewritten sentences that have it
    for number, sentence in enumerate(_SENTENCE_END.split(text)):
        for word in _words(sentence):
            index.setdefault(word, []).append(number)
    for sentence in _SENTENCE_END.split(original):
        facts_here = facts(sentence)
        if not facts_here:
            continue
        words = _words(sentence)
        shared = Counter(number for word in words for number in index.get(word, ()))
        if not words or max(shared.values(), default=0) >= min_overlap * len(words):
            expected += facts_here
    return (expected & facts(text)).total() / expected.total() if expected else 1.0


def _words(sentence: str) -> set[str]:
    """Distinct words in lower case, without addresses and words with a digit."""
    return {w for w in _WORD.findall(_URL.sub(" ", sentence).casefold()) if not any(c.isdigit() for c in w)}
