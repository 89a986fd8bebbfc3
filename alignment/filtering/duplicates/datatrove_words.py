"""The words of datatrove 0.10.1's MinHash: simplified text, split as spaCy's blank English tokenizer splits it.

Simplified text is lower case with every number as "0", punctuation as a space and diacritics removed. Beside white
space there is little left to split: contractions that lost their apostrophe ("dont", "cannot"), a unit behind a number
("0km"), and symbols that are not on datatrove's punctuation list. This module imports neither library; tests/parity
compares it with both. Python's own Unicode tables decide what a digit, a mark or a symbol is.
"""

import functools
import itertools
import re
import unicodedata

# Every character that datatrove turns into a space, its control characters included.
PUNCTUATION = (
    "!/\u2014\u201d:\uff05\uff11\u3008&(\u3001\u2501\\\u3010#%\u300c\u300d\uff0c\u3011\uff1b+^]~\u201c\u300a\u201e';\u2019{|\u2236\xb4[=-`*"
    '\uff0e\uff08\u2013\uff1f\uff01\uff1a$\uff5e\xab\u3009,><\u300b)?\uff09\u3002\u2026@_."}\u25ba\xbb'
)
_MOST_PIECES = 1_000_000  # words in the cache, which bounds its memory; frequent words are soon back in it
_CONTROLS = [*range(9), *range(11, 32), *range(127, 160)]
_SPACES = frozenset(PUNCTUATION) | frozenset(map(chr, _CONTROLS))
_ASCII_SPACES = bytes(32 if chr(i) in _SPACES else i for i in range(256))
_NUMBER = re.compile(r"\d+(?:[.,\u060c\u066b\u2396\u2397\u2398]\d+)?")

# stem: the endings that spaCy cuts from it when the apostrophe is gone; "ntve" becomes "nt", "ve".
_CONTRACTIONS = {
    "d dve": "he how i it that there these they this those we what when where who why you",
    "ll llve": "how it that there these they this those what when where who why you",
    "llve": "he i she we",
    "dve": "she",
    "re": "how there these they those what when where why you",
    "s": "he how she that there this what when where who why",
    "ve": "could how i might must not should there these they those we what when where who why would you",
    "nt ntve": "ca could did does do had may might must need ought sha should wo would",
    "nt": "ai are dare has have is was were",
}
_OTHERS = ("can not", "gon na", "got ta", "i m", "i m a", "y all")
_ENDINGS = {"d": "d", "dve": "d ve", "ll": "ll", "llve": "ll ve", "re": "re", "s": "s", "ve": "ve", "nt": "nt"}
_ENDINGS["ntve"] = "nt ve"
# Suffixes that are cut off after a digit: units, in lower case like the text, and currencies.
_UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha \xb5m nm yd in ft kg g mg \xb5g t lb oz "
    "kmh mph mb kb gb tb "
    "км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм кг г мг кб мб гб "
    "كم كم² كم³ م م² م³ سم سم² سم³ مم مم² مم³ غرام جرام جم كغ ملغ كوب اكواب"
)
_CURRENCY = "\xa3\xa5\u0e3f\ufdfc" + "".join(map(chr, range(0x20A0, 0x20C0)))
_MARKS = "\xa1\xb7\xbf\u060c\u061b\u061f\u066a\u06d4\u0964\u2018\u201a\u27e6\u27e7\u300e\u300f\u3014\u3015"
_MARKS += "<>;`\xb4\u3008\u3009"  # on datatrove's list, yet they come back when an equivalent sign is decomposed
_FIRST = re.compile(f"[=\xa7{_MARKS}{_CURRENCY}]")
_BETWEEN = re.compile(r"(?<=[^\W_])[<>=](?=[^\W\d_])")
_LAST = re.compile(rf"[{_MARKS}]$|(?<=[0-9])(?:[{_CURRENCY}]|{'|'.join(_UNITS.split())})$")
# Symbols (category So) that are newer than spaCy's list: they stay inside the word they touch.
_YOUNG = re.compile(
    "[\u166d\u2b97\u2bc9\u2bff\u2e50\u2e51\u32ff\ufd40-\ufd4f\ufdcf\ufdfe\ufdff\U0001019c\U00011fd5-\U00011ff1"
    "\U0001cf50-\U0001cfc3\U0001d1e9\U0001d1ea\U0001e14f\U0001ed2e\U0001f10d-\U0001f10f\U0001f16c-\U0001f16f\U0001f1ad"
    "\U0001f6d5-\U0001f6df\U0001f6fa-\U0001f6fc\U0001f7d9-\U0001f7f0\U0001f8b0\U0001f8b1\U0001f90c-\U0001f90f\U0001f93f"
    "\U0001f971\U0001f972\U0001f977-\U0001f979\U0001f97b\U0001f9a3-\U0001f9af\U0001f9ba-\U0001f9bf\U0001f9c3-\U0001f9cf"
    "\U0001fa00-\U0001fa53\U0001fa70-\U0001fbca]"
)


def simplify(text: str) -> str:
    """Lower case, numbers as "0", punctuation as spaces, no combining marks; words are what `str.split` leaves."""
    text = _NUMBER.sub("0", text.lower())
    if text.isascii():
        return text.encode().translate(_ASCII_SPACES).decode()
    for character in _SPACES.intersection(text):
        text = text.replace(character, " ")
    # Decomposed, an accent is a character of its own (category Mn), which the loop below takes out.
    text = unicodedata.normalize("NFD", text)
    for character in set(text):
        if unicodedata.category(character) == "Mn":
            text = text.replace(character, "")
    return text


def words(text: str) -> list[str]:
    """The words of a raw text, from which datatrove 0.10.1 makes shingles by default (its language: English)."""
    pieces = _PIECES
    if len(pieces) > _MOST_PIECES:
        pieces.clear()
        pieces.update(_special())
    return " ".join([pieces[word] for word in simplify(text).split()]).split()


class _Pieces(dict):
    """Word -> its pieces joined by spaces, split at its first look-up."""

    def __missing__(self, word: str) -> str:
        self[word] = pieces = word if word.isalpha() and word.isascii() else " ".join(_split(word))
        return pieces


def _split(word: str) -> list[str]:
    """Cut signs off both ends in turn down to a contraction, or until nothing can be cut; then split at symbols."""
    # The order of spaCy's tokenizer: after each cut at one end it looks the rest up among the exceptions, so a cut at
    # the other end must not spoil an exception.
    special, first, last = _special(), [], []
    while word and word not in special:
        before = len(_first(word))
        after = len(_last(word[before:]))
        if before and word[before:] in special:
            after = 0
        elif after and word[: len(word) - after] in special:
            before = 0
        if not before and not after:
            break
        first += [word[:before]] if before else []
        last += [word[len(word) - after :]] if after else []
        word = word[before : len(word) - after]
    middle = special[word].split() if word in special else _inside(word)
    return first + middle + last[::-1]


def _first(word: str) -> str:
    return word[0] if _FIRST.match(word) or is_symbol(word[0]) else ""


def _last(word: str) -> str:
    if word and is_symbol(word[-1]):
        return word[-1]
    match = _LAST.search(word)
    return match[0] if match else ""


def _inside(word: str) -> list[str]:
    alone = [is_symbol(word[i]) or bool(_BETWEEN.match(word, i)) for i in range(len(word))]
    # A sign that stands alone has a key of its own, its place; the characters between two signs share one.
    groups = itertools.groupby(range(len(word)), key=lambda i: i if alone[i] else -1)
    return ["".join(word[i] for i in group) for _, group in groups]


def is_symbol(character: str) -> bool:
    return unicodedata.category(character) == "So" and not _YOUNG.match(character)


@functools.cache
def _special() -> dict[str, str]:
    """Contractions without apostrophe -> their parts."""
    cut = {
        stem + ending: f"{stem} {_ENDINGS[ending]}"
        for endings, stems in _CONTRACTIONS.items()
        for stem in stems.split()
        for ending in endings.split()
    }
    return cut | {other.replace(" ", ""): other for other in _OTHERS}


_PIECES = _Pieces(_special())
