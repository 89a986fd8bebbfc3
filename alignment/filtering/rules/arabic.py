"""Arabic text in one spelling, for comparisons by rules and word lists.

Arabic is written with optional vowel signs, an optional stretching stroke and several spellings of the same letter, so
equal words differ as strings. `normalise` is for comparisons alone; documents keep their spelling.
"""

import functools
import re
import unicodedata

TATWEEL = "\u0640"  # stretches a word in print
MARKS = "".join(map(chr, (*range(0x064B, 0x0653), 0x0670)))  # vowel signs, doubling, silence, superscript alef
_INVISIBLE = (
    0x061C,
    *range(0x200B, 0x2010),
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2065),
    *range(0x2066, 0x206A),
    0xFEFF,
)
_ALEF = dict.fromkeys((0x0622, 0x0623, 0x0625, 0x0671), "\u0627")  # with madda, hamza above, hamza below, wasla
_YA = dict.fromkeys((0x0649, 0x06CC), "\u064a")  # alef maksura, Persian ya
_TA_MARBUTA = {0x0629: "\u0647"}


_SPELLING = re.compile("[\u0640\u06a9\u06cc\ufb50-\ufdff\ufe70-\ufefc]+")  # tatweel, Persian letters, forms for print
_AS_LETTERS = {ord(TATWEEL): None, 0x06A9: "\u0643", 0x06CC: "\u064a"}


def letters(text: str) -> str:
    """The text without tatweel, and with presentation forms and Persian kaf and ya as the letters that Arabic writes.

    It is what tells copies apart that differ only in how a keyboard or a printer wrote the same letters.
    """
    if text.isascii():
        return text
    return _SPELLING.sub(lambda run: unicodedata.normalize("NFKC", run[0]).translate(_AS_LETTERS), text)


@functools.cache
def _table(alef: bool, ya: bool, ta_marbuta: bool) -> dict[int, str | None]:
    table: dict[int, str | None] = dict.fromkeys((*map(ord, TATWEEL + MARKS), *_INVISIBLE))
    for is_on, letters in ((alef, _ALEF), (ya, _YA), (ta_marbuta, _TA_MARBUTA)):
        table |= letters if is_on else {}
    return table


def normalise(text: str, *, alef: bool = True, ya: bool = False, ta_marbuta: bool = False) -> str:
    """The text in one spelling; a second call changes nothing.

    It is Unicode's compatibility form (NFKC: presentation forms and ligatures become letters, wide digits narrow)
    without tatweel, vowel signs (U+064B to U+0652, U+0670) and invisible direction and joining marks.

    Args:
        text: any text; for other scripts only NFKC matters.
        alef: alefs with madda, hamza or wasla become bare alef.
        ya: final alef maksura and Persian ya become ya; off by default, since it merges words (على and علي).
        ta_marbuta: ta marbuta becomes ha; off by default for the same reason.
    """
    if text.isascii():
        return text
    table = _table(alef, ya, ta_marbuta)
    # Without a mark the letters around it may compose (alef, tatweel, hamza), hence NFKC once more.
    plain = unicodedata.normalize("NFKC", text).translate(table)
    if unicodedata.is_normalized("NFKC", plain):
        return plain
    return normalise(plain, alef=alef, ya=ya, ta_marbuta=ta_marbuta)


_PREFIXES = ("وال", "فال", "بال", "كال", "لل", "ال", "و", "ف", "ب", "ل")  # and, so, by, like, for; the article


def stems(word: str) -> list[str]:
    """A normalised word without the particles and the article that Arabic writes onto its front.

    At least three letters remain. There is no morphology behind it: some results are not words, which does no harm in
    a look-up in a list.
    """
    return [word[len(prefix) :] for prefix in _PREFIXES if word.startswith(prefix) and len(word) - len(prefix) >= 3]
