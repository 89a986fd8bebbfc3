"""Which language a text is in: the cheapest evidence that decides.

Dimensions: N documents, U UTF-16 units of a text, K kinds of character.

Letters come first: one pass over a text counts its scripts, which alone tells Arabic from English. Within a script,
letters of their own tell Persian, Urdu and others from Arabic, and frequent words tell English from the rest. Only what
is then open goes to py3langid, restricted to languages that share the script.
"""

import functools
import pathlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from alignment.filtering.rules import locales

UNDETERMINED = "und"  # ISO 639-2: no language in it, such as code, numbers, symbols

_OTHER, _IGNORED, _CODE = range(3)  # kinds of character that are no letters; IGNORED: white space and combining marks
_CODE_MARKS = "{}[]<>=_+*\\|^~"  # not those of addresses, tags, prices and HTML entities: / @ # $ % & ;
_SCRIPTS = (  # first word of a letter's Unicode name, and the language where one is written in it above all
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
_GROUPS = (  # letters in Arabic script that Arabic does not use; a later group's languages also use earlier ones
    ("fa", "پچژگکی"),
    ("ur", "ٹڈڑےںہھ"),
    ("sd", "ٿڀٺڄڃڇڏڌڙڪڳڱڻڦ"),
    ("ps", "ټډړښږځڅۍګڼ"),
    ("ckb", "ڕڵێۆە"),
    ("ug", "ۇۈۋڭ"),
)
_FIRST_SCRIPT = 3
_FIRST_GROUP = _FIRST_SCRIPT + len(_SCRIPTS)
_NUM_KINDS = _FIRST_GROUP + len(_GROUPS)
_LATIN = "en de fr es it pt nl sv da no pl cs ro hu tr id vi fi sw tl zxx"  # "zxx": no language at all
_CYRILLIC = "ru uk be bg sr mk kk ky mn tg"
_CONFUSABLE = {  # what py3langid chooses from, beside the packs' own languages
    "LATIN": frozenset(_LATIN.split()),
    "ARABIC": frozenset(("ar", "fa", "ur", "ps", "ug")),
    "CYRILLIC": frozenset(_CYRILLIC.split()),
    "DEVANAGARI": frozenset(("hi", "mr", "ne", "sa")),
}
_LONG_CODES = (  # ISO 639-3, as GlotLID and NLLB have them, and 639-1
    "eng:en arb:ar ara:ar ars:ar ary:ar arz:ar apc:ar ajp:ar acm:ar acq:ar aeb:ar afb:ar fra:fr deu:de spa:es ita:it "
    "por:pt nld:nl swe:sv dan:da nob:no nor:no pol:pl ces:cs ron:ro hun:hu tur:tr ind:id vie:vi fin:fi rus:ru ukr:uk "
    "pes:fa fas:fa prs:fa urd:ur pbt:ps pus:ps uig:ug ell:el heb:he hin:hi ben:bn cmn:zh zho:zh jpn:ja kor:ko tha:th"
)
_SHORT_CODES = dict(pair.split(":") for pair in _LONG_CODES.split())
_SAMPLE = 500  # characters, twice
_LONGEST = 100_000  # characters of a text that are looked at


@functools.cache
def _kinds() -> np.ndarray:
    """Kind of each UTF-16 unit, `[65536]` uint8. Letters outside the basic plane count as symbols."""
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
    """How many characters of each kind a text has."""
    if text.isascii():
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
    """Share of each script among a text's letters, the largest first, by Unicode's names; {} without letters."""
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
        texts: any text; of a long one the first 100,000 characters are looked at.
        packs: languages to expect, whose common words decide; default: the packs that come with the library.
        min_letters: share of letters, of all characters but white space and marks, below which a text has no language.
        max_code_marks: share of brackets (round ones aside), operators and the like above which a text is code. Of
            Python files four fifths have more, of C4's pages and of tweets none.
        min_common_words: share of a pack's common words that decides without a model; another pack must have less than
            a third of it.

    Returns:
        (ISO 639 code, probability) each. The probability is the share of the letters that are in the language's script,
        times py3langid's posterior where that was asked; a half Arabic, half English text has about .5.
        ("und", ...) for code, numbers and symbols, with the share of characters that are no letters.
    """
    packs = _own_packs() if packs is None else packs
    lexica = _lexica(tuple(packs.values()))
    models = tuple(packs)
    limits = (min_letters, max_code_marks, min_common_words)
    return [_one(text, lexica, models, *limits) for text in texts]


@functools.cache
def _own_packs() -> dict[str, locales.Pack]:
    return {name: locales.load(name) for name in locales.known()}


def _lexica(packs: tuple[locales.Pack, ...]) -> dict[str, list[locales.Pack]]:
    """Packs by the script that they are written in."""
    found: dict[str, list[locales.Pack]] = {}
    for pack in packs:
        found.setdefault(pack.script.upper(), []).append(pack)
    return found


def _one(text, lexica, languages, min_letters, max_code_marks, min_common_words) -> tuple[str, float]:
    counts = _counts(text)
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
    elif script in lexica:
        language = _by_words(text, lexica[script], min_common_words)
    if language:
        return language, share
    language, posterior = _by_model(text, script, languages)
    return language, share * posterior


def _east_asian(han: int, kana: int, num_letters: int) -> tuple[str, float]:
    """Japanese mixes both; a tenth of kana is far below what it has, and above what Chinese quotes."""
    return ("ja" if kana > 0.1 * (han + kana) else "zh"), (han + kana) / num_letters


def _by_letters(groups: Sequence[int], num_letters: int) -> str:
    """A language in Arabic script by the letters that Arabic lacks; "" where they do not decide."""
    if sum(groups) <= 0.005 * num_letters:  # a foreign name; Persian in Arabic spelling still has 2 % of them
        return "ar"
    for (language, _), count in reversed(list(zip(_GROUPS, groups, strict=True))[1:]):
        if count > 0.015 * num_letters:
            return language
    return "fa" if groups[0] > 0.08 * num_letters else ""


def _by_words(text: str, packs: Sequence[locales.Pack], min_share: float) -> str:
    """The pack of which frequent words are a good share of all words; "" where none is, or two are near."""
    shares = []
    for pack in packs:
        words = pack.comparison_key(_sample(text)).split()
        shares.append(sum(map(pack.common_words.__contains__, words)) / max(1, len(words)))
    best = max(range(len(packs)), key=shares.__getitem__)
    others = max((share for i, share in enumerate(shares) if i != best), default=0.0)
    return packs[best].name if shares[best] >= min_share and shares[best] > 3 * others else ""


@functools.lru_cache(maxsize=16)
def _model(languages: tuple[str, ...]):
    """py3langid's classifier over those of the languages that it knows."""
    from py3langid import langid

    model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    model.set_languages([language for language in languages if language in model.labels])
    return model


def _by_model(text: str, script: str, languages: tuple[str, ...]) -> tuple[str, float]:
    model = _model(tuple(sorted({*_CONFUSABLE.get(script, ()), *languages})))
    language, probability = model.classify(_sample(text))
    return (UNDETERMINED if language == "zxx" else language), float(probability)


def _sample(text: str) -> str:
    """A thousand characters, from the start and from the middle of a text."""
    if len(text) <= 2 * _SAMPLE:
        return text
    middle = min(len(text), _LONGEST) // 2
    return text[:_SAMPLE] + " " + text[middle : middle + _SAMPLE]


def from_fasttext(path: str | pathlib.Path) -> Callable[[Sequence[str]], list[tuple[str, float]]]:
    """A fastText identifier such as lid.176 or GlotLID, to use in the place of `identify`.

    Labels such as `__label__arb_Arab` come out as the two-letter code where there is one, Arabic's dialects as "ar".

    Raises:
        InputError: the file is no fastText classifier.
    """
    from alignment.models import fasttext

    model = fasttext.load(path)
    names = {label: _short(label) for label in model.labels}

    def identify(texts: Sequence[str]) -> list[tuple[str, float]]:
        found = model.predict([text[:_LONGEST] for text in texts])
        answers = [(names[best[0][0]], min(1.0, best[0][1])) if best else (UNDETERMINED, 0.0) for best in found]
        return [answer if text.strip() else (UNDETERMINED, 0.0) for text, answer in zip(texts, answers, strict=True)]

    return identify


def _short(label: str) -> str:
    code = label.removeprefix("__label__").split("_")[0].lower()
    return UNDETERMINED if code in ("zxx", "und") else _SHORT_CODES.get(code, code)
