"""Identify a text's language by the cheapest evidence that decides.

Dimensions: N documents, U UTF-16 units of a text, K kinds of character.

Letters come first: one pass over a text counts its scripts, which distinguishes Arabic from English. In one script,
special letters distinguish Persian, Urdu and others from Arabic, and frequent words English from the rest. Only texts
that are still open go to py3langid (Lui & Baldwin 2012), restricted to languages of the same script.
"""

import functools
import pathlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.filtering.rules import arabic, locales

UNDETERMINED = "und"  # ISO 639-2: a text without language, such as code, numbers, symbols

_OTHER, _IGNORED, _CODE = range(3)  # kinds of characters other than letters; IGNORED: white space, combining marks
_CODE_MARKS = "{}[]<>=_+*\\|^~"  # not those of addresses, tags, prices and HTML entities: / @ # $ % & ;
_SCRIPTS = (  # first word of a letter's Unicode name, and the language if the script has one main language
    ("LATIN", ""),
    ("ARABIC", ""),
    ("CYRILLIC", ""),
    ("DEVANAGARI", ""),
    ("CJK", "zh"),
    ("HIRAGANA", "ja"),
    ("KATAKANA", "ja"),
    ("HANGUL", "ko"),
    ("GREEK", "el"),
    ("HEBREW", "he"),
    ("ARMENIAN", "hy"),
    ("GEORGIAN", "ka"),
    ("THAI", "th"),
    ("LAO", "lo"),
    ("KHMER", "km"),
    ("MYANMAR", "my"),
    ("BENGALI", "bn"),
    ("GURMUKHI", "pa"),
    ("GUJARATI", "gu"),
    ("ORIYA", "or"),
    ("TAMIL", "ta"),
    ("TELUGU", "te"),
    ("KANNADA", "kn"),
    ("MALAYALAM", "ml"),
    ("SINHALA", "si"),
    ("ETHIOPIC", "am"),
)
_GROUPS = (  # letters of Arabic script that Arabic does not use; later languages use letters of earlier groups, too
    ("", "کی"),  # another spelling of Arabic's own kaf and ya, by a Persian keyboard
    ("fa", "پچژگ"),
    ("ur", "ٹڈڑےںہھ"),
    ("sd", "ٿڀٺڄڃڇڏڌڙڪڳڱڻڦ"),
    ("ps", "ټډړښږځڅۍګڼ"),
    ("ckb", "ڕڵێۆە"),
    ("ug", "ۇۈۋڭ"),
)
_FIRST_SCRIPT = 3
_FIRST_GROUP = _FIRST_SCRIPT + len(_SCRIPTS)
_NUM_KINDS = _FIRST_GROUP + len(_GROUPS)
_LATIN = "en de fr es it pt nl sv da no pl cs ro hu tr id vi fi sw tl zxx"  # "zxx": without language
_CYRILLIC = "ru uk be bg sr mk kk ky mn tg"
_CONFUSABLE = {  # py3langid's choices, beside the packs' own languages
    "LATIN": frozenset(_LATIN.split()),
    "ARABIC": frozenset(("ar", "fa", "ur", "ps", "ug")),
    "CYRILLIC": frozenset(_CYRILLIC.split()),
    "DEVANAGARI": frozenset(("hi", "mr", "ne", "sa")),
}
_LONG_CODES = (  # ISO 639-3, as in GlotLID and NLLB, and ISO 639-1
    "eng:en arb:ar ara:ar ars:ar ary:ar arz:ar apc:ar ajp:ar acm:ar acq:ar aeb:ar afb:ar fra:fr deu:de spa:es ita:it "
    "por:pt nld:nl swe:sv dan:da nob:no nor:no pol:pl ces:cs ron:ro hun:hu tur:tr ind:id vie:vi fin:fi rus:ru ukr:uk "
    "pes:fa fas:fa prs:fa urd:ur pbt:ps pus:ps uig:ug ell:el heb:he hin:hi ben:bn cmn:zh zho:zh jpn:ja kor:ko tha:th"
)
_SHORT_CODES = dict(pair.split(":") for pair in _LONG_CODES.split())
_FEW = 0.005  # share of letters: a foreign name has some; Persian in Arabic spelling still has 2 %
_SAMPLE = 500  # characters, from two places
_LONGEST = 100_000  # characters of a text that are read


@functools.cache
def _kinds() -> np.ndarray:
    """The kind of each UTF-16 unit [65536], uint8; letters outside the basic plane count as symbols."""
    kinds = np.zeros(1 << 16, np.uint8)
    scripts = {name: _FIRST_SCRIPT + i for i, (name, _) in enumerate(_SCRIPTS)}
    for code in range(1 << 16):
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] in "MZC" and category not in ("Cs", "Co", "Cn"):
            kinds[code] = _IGNORED
        elif category[0] == "L":
            kinds[code] = scripts.get(unicodedata.name(character, "").split(" ")[0].split("-")[0], _OTHER)
    kinds[[ord(mark) for mark in _CODE_MARKS]] = _CODE
    for i, (_, letters) in enumerate(_GROUPS):
        kinds[[ord(letter) for letter in letters]] = _FIRST_GROUP + i
    return kinds


def _counts(text: str) -> list[int]:
    """The number of characters of each kind."""
    if text.isascii():  # deleting a kind's bytes and comparing lengths is several times faster than numpy
        content = text[:_LONGEST].encode()
        counts = [0] * _NUM_KINDS
        for kind, members in _ascii_kinds().items():
            counts[kind] = len(content) - len(content.translate(None, members))
        return counts
    units_U = np.frombuffer(text[:_LONGEST].encode("utf-16-le", "surrogatepass"), np.uint16)
    return np.bincount(_kinds()[units_U], minlength=_NUM_KINDS).tolist()


@functools.cache
def _ascii_kinds() -> dict[int, bytes]:
    kinds = _kinds()[:128]
    return {kind: bytes(np.flatnonzero(kinds == kind).tolist()) for kind in set(kinds.tolist())}


def scripts(text: str) -> dict[str, float]:
    """The share of each script among a text's letters, the largest first, by Unicode's names; {} without letters."""
    counts = _counts(text)
    arabic = _FIRST_SCRIPT + 1
    counts[arabic] += sum(counts[_FIRST_GROUP:])
    letters = counts[_FIRST_SCRIPT:_FIRST_GROUP]
    shares = {name: count / sum(letters) for (name, _), count in zip(_SCRIPTS, letters, strict=True) if count}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def identify(
    texts: Sequence[str],
    *,
    packs: Mapping[str, locales.Pack] | None = None,
    min_letters: float = 0.5,
    max_code_marks: float = 0.04,
    min_common_words: float = 0.15,
) -> list[tuple[str, float]]:
    """The language of each text.

    Args:
        texts: any text; of a long one the first 100,000 characters are read.
        packs: languages to expect, whose common words decide; None takes the packs that come with the library.
        min_letters: share of letters, among all characters but white space and marks, below which a text has no
            language.
        max_code_marks: share of brackets (except round ones), operators and the like above which a text is code. Four
            fifths of Python files have more, of C4's pages and of tweets none.
        min_common_words: share of a pack's common words that decides without a model, if every other pack has less than
            a third of it.

    Returns:
        (ISO 639 code, probability) for each text. The probability is the share of the letters that belong to the
        language's script, times py3langid's posterior if that decided; a half Arabic, half English text has about .5.
        Code, numbers and symbols have "und", with the share of characters that are not letters.
    """
    packs = _own_packs() if packs is None else packs
    lexica = _lexica(tuple(packs.values()))
    languages = tuple(packs)
    limits = (min_letters, max_code_marks, min_common_words)
    return [_one(text, lexica, languages, *limits) for text in texts]


@functools.cache
def _own_packs() -> dict[str, locales.Pack]:
    return {name: locales.load(name) for name in locales.known()}


def _lexica(packs: tuple[locales.Pack, ...]) -> dict[str, list[locales.Pack]]:
    """Packs by their script."""
    by_script: dict[str, list[locales.Pack]] = {}
    for pack in packs:
        by_script.setdefault(pack.script.upper(), []).append(pack)
    return by_script


def _one(
    text: str,
    lexica: Mapping[str, Sequence[locales.Pack]],
    languages: tuple[str, ...],
    min_letters: float,
    max_code_marks: float,
    min_common_words: float,
) -> tuple[str, float]:
    counts = _counts(text)
    # The special letters of Persian, Urdu, ... are Arabic script, too.
    letters = counts[_FIRST_SCRIPT:_FIRST_GROUP]
    groups = counts[_FIRST_GROUP:]
    letters[1] += sum(groups)
    num_letters = sum(letters)
    num_visible = num_letters + counts[_OTHER] + counts[_CODE]
    if not num_visible:
        return UNDETERMINED, 0.0
    largest = max(range(len(letters)), key=letters.__getitem__)
    script, language = _SCRIPTS[largest]
    is_code = script == "LATIN" and counts[_CODE] > max_code_marks * num_visible
    if is_code or num_letters < min_letters * num_visible:
        return UNDETERMINED, 1 - num_letters / num_visible
    share = letters[largest] / num_letters
    if script in ("CJK", "HIRAGANA", "KATAKANA"):
        return _east_asian(letters[4], letters[5] + letters[6], num_letters)
    if script == "ARABIC":
        language = _by_letters(groups, letters[1])
        if not language and sum(groups[1:]) <= _FEW * letters[1]:  # Persian letters alone: judge in Arabic's spelling
            text = arabic.letters(text)
    elif script in lexica:
        language = _by_words(text, lexica[script], min_common_words)
    if language:
        return language, share
    language, posterior = _by_model(text, script, languages)
    return language, share * posterior


def _east_asian(han: int, kana: int, num_letters: int) -> tuple[str, float]:
    """Japanese mixes both; a tenth of kana is far below its usual share, and above that of Chinese with quotations."""
    return ("ja" if kana > 0.1 * (han + kana) else "zh"), (han + kana) / num_letters


def _by_letters(groups: Sequence[int], num_letters: int) -> str:
    """A language in Arabic script by the letters that Arabic lacks; "" if they do not decide."""
    if sum(groups[1:]) <= _FEW * num_letters:
        return "ar" if groups[0] <= _FEW * num_letters else ""
    for (language, _), count in reversed(list(zip(_GROUPS, groups, strict=True))[2:]):
        if count > 0.015 * num_letters:
            return language
    return "fa" if groups[0] + groups[1] > 0.08 * num_letters else ""


def _by_words(text: str, packs: Sequence[locales.Pack], min_share: float) -> str:
    """The pack whose frequent words are a good share of all words; "" if no pack has enough, or two have."""
    shares = []
    for pack in packs:
        words = pack.comparison_key(_sample(text)).split()
        shares.append(sum(map(pack.common_words.__contains__, words)) / max(1, len(words)))
    best = max(range(len(packs)), key=shares.__getitem__)
    others = max((share for i, share in enumerate(shares) if i != best), default=0.0)
    return packs[best].name if shares[best] >= min_share and shares[best] > 3 * others else ""


@functools.lru_cache(maxsize=16)
def _model(languages: tuple[str, ...]) -> Any:
    """py3langid's classifier, restricted to those of the languages that it knows."""
    from py3langid import langid

    model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    model.set_languages([language for language in languages if language in model.labels])
    return model


def _by_model(text: str, script: str, languages: tuple[str, ...]) -> tuple[str, float]:
    model = _model(tuple(sorted({*_CONFUSABLE.get(script, ()), *languages})))
    language, probability = model.classify(_sample(text))
    return (UNDETERMINED if language == "zxx" else language), float(probability)


def _sample(text: str) -> str:
    """A thousand characters from the start and the middle of a text."""
    if len(text) <= 2 * _SAMPLE:
        return text
    middle = min(len(text), _LONGEST) // 2
    return text[:_SAMPLE] + " " + text[middle : middle + _SAMPLE]


def from_fasttext(path: str | pathlib.Path) -> Callable[[Sequence[str]], list[tuple[str, float]]]:
    """A fastText identifier such as lid.176 or GlotLID, to use instead of `identify`.

    Labels such as `__label__arb_Arab` become the two-letter code if there is one; Arabic's dialects become "ar".

    Raises:
        InputError: the file is missing, damaged or not a fastText classifier.
    """
    from alignment.models import fasttext

    model = fasttext.load(path)
    names = {label: _short(label) for label in model.labels}

    def identify(texts: Sequence[str]) -> list[tuple[str, float]]:
        predictions = model.predict([text[:_LONGEST] for text in texts])
        answers = [(names[best[0][0]], min(1.0, best[0][1])) if best else (UNDETERMINED, 0.0) for best in predictions]
        return [answer if text.strip() else (UNDETERMINED, 0.0) for text, answer in zip(texts, answers, strict=True)]

    return identify


def _short(label: str) -> str:
    code = label.removeprefix("__label__").split("_")[0].lower()
    return UNDETERMINED if code in ("zxx", "und") else _SHORT_CODES.get(code, code)
