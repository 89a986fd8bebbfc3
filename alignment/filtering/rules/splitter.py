"""From a piece of text without white space to its words, by the conventions of spaCy's rule-based English tokenizer.

datatrove counts words by these conventions, so thresholds published for its rules hold here too: punctuation and quotes
are words of their own, an abbreviation keeps its period, "don't" is "do" and "n't", a hyphen between letters is a word,
addresses and emoticons stay whole. In outline: a piece loses its marks at both ends, one at a time, until an exception
is left or nothing can be cut; the middle is an address, or is cut at the marks inside it; last, marks that together
spell an exception (":" and ")") are joined again.
"""

import functools
import itertools
import re
from collections.abc import Iterator

_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
_MARKS = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_ICONS = (  # pictographs, box drawing, circled letters and the like
    "¦©®°҂֍֎؎؏۞۩۽۾℀-℆℈℉℔№℗℞-℣℥℧℩℮℺℻⅊⅌⅍⅏↊↋↕-↙↜-↟↡↢↤↥↧-↭↯-⇍⇐⇑⇓⇕-⇳⌀-⌇⌌-⌟⌢-⌨⌫-⍻⍽-⎚⎴-⏛"
    "\u23e2-\u2426\u2440-\u244a\u249c-\u24e9\u2500-\u25b6\u25b8-\u25c0\u25c2-\u25f7\u2600-\u266e\u2670-\u2767"
    "\u2794-\u27bf\u2800-\u28ff\u2b00-\u2b2f\u2b45\u2b46\u2b4d-\u2bff\u2ce5-\u2cea\u2e80-\u2fff\u3004\u3012\u3013\u3020"
    "\u3036\u3037\u303e\u303f\u3190\u3191\u3196-\u319f\u31c0-\u31e3\u3200-\u33ff\u4dc0-\u4dff\ua490-\ua4c6\ufdfd\uffe4\uffe8"
    "\uffed\uffee\ufffc\ufffd\U0001d000-\U0001d356\U0001f000-\U0001f0f5\U0001f110-\U0001f3fa\U0001f400-\U0001fa6d"
)
_LETTERS = (
    "A-Za-zÀ-ÖØ-öø-ƿǄ-ʯΆΈ-ΏΑ-ΡΣ-ώЀ-ҁҊ-ӿᴀ-ᴥᵫ-ᵷᵹ-ᶚḀ-ỿⱠ-ⱿꜢ-ꞿＡ-Ｚａ-ｚ"
    "\u0591-\u05f4\u0620-\u064a\u066e-\u06d5\u06e5-\u06ff\u0750-\u077f\u08a0-\u08bd\u0900-\u09ff\u0b80-\u0cff\u0d80-\u0dff"
    "\u1100-\u137f\u2e80-\u30ff\u31c0-\u31ef\u3200-\u9fff\uac00-\ud7af\uf900-\ufaff\ufb1d-\ufdfb\ufe30-\ufe4f\ufe70-\ufefc"
    "\U0001ee00-\U0001eebb\U00020000-\U0002fa1f"
)
_CURRENCIES = r"US\$|[CA]\$|[$£€¥฿﷼₠-₿]"
_UNITS = (
    "km²|km³|km|m²|m³|m/s|mm²|mm³|mm|mph|mbar|mb|mg|m|dm²|dm³|dm|cm²|cm³|cm|ha|µm|nm|yd|in|ft|kg|kmh|kPa|kb|kB|KB|g|µg|t|"
    "lb|oz|hPa|Pa|MB|gb|GB|tb|TB|T|G|M|K|%|كم²|كم³|كم|م²|م³|م|سم²|سم³|سم|مم²|مم³|مم|غرام|جرام|جم|كغ|ملغ|كوب|اكواب|"
    "км/ч|км²|км³|км|м/с|м²|м³|м|дм²|дм³|дм|см²|см³|см|мм²|мм³|мм|нм|кг|г|мг|кПа|Па|мбар|Кб|КБ|кб|Мб|МБ|мб|Гб|ГБ|гб|Тб|ТБ|тб"
)
_LONGEST_EXCEPTION, _LONGEST_SUFFIX, _LONGEST_ADDRESS = 16, 8, 4096  # characters
LONGEST_PIECE = 100_000  # characters; a longer piece is damage and counts as one word, so that it costs no time


def _cased() -> tuple[str, str]:
    """The capital letters of scripts with two cases, and their other letters, as character classes."""
    letters = re.compile(f"[{_LETTERS}]")
    cased = [chr(code) for code in itertools.chain(range(0x41, 0x530), range(0x1D00, 0x1F00), range(0xFF21, 0xFF5B))]
    upper = "".join(c for c in cased if letters.match(c) and c.isupper())
    lower = "".join(c for c in cased if letters.match(c) and not c.isupper())
    return upper, lower


_UPPER, _LOWER = _cased()
_UNCASED = _LETTERS[_LETTERS.index("\u0591") :]
_UPPERS, _LOWERS = f"{_UPPER}{_UNCASED}", f"{_LOWER}{_UNCASED}"
_ONE_MARK = f"[{re.escape(_MARKS)}{re.escape(_QUOTES)}{_ICONS}—–]"

_PREFIX = re.compile(rf"[§%=]|\+(?![0-9])|\.\.+|{_ONE_MARK}|{_CURRENCIES}")
_SUFFIX = re.compile(
    rf"(?:……|{_ONE_MARK}|['’][sS]|(?<=[0-9])(?:\+|{_CURRENCIES}|{_UNITS})|(?<=°[FfCcKk])\.|(?<=[{_UPPERS}][{_UPPERS}])\."
    rf"|(?<=[0-9%²+\-?|{_LOWERS}{re.escape(_MARKS)}{re.escape(_QUOTES)}])\.)\Z"
)
_INFIX = re.compile(
    rf"\.\.+|…|[{_ICONS}]|(?<=[0-9])[+\-*^](?=[0-9\-])"
    rf"|(?<=[{_LOWERS}{re.escape(_QUOTES)}])\.(?=[{_UPPERS}{re.escape(_QUOTES)}])"
    rf"|(?<=[{_LETTERS}]),(?=[{_LETTERS}])|(?<=[{_LETTERS}0-9])(?:---|--|——|[\-–—~:<>=/])(?=[{_LETTERS}])"
)
_ADDRESS = re.compile(
    r"(?:[\w+\-.]{2,}://)?(?:\S+@)?"
    rf"(?:(?:[A-Za-z0-9\u00a1-\uffff][A-Za-z0-9\u00a1-\uffff_\-]{{0,63}}(?<![_\-])\.)+[{_LOWERS}]{{2,63}}"
    r"|(?:[1-9]\d?|1\d\d|2[01]\d|22[0-3])(?:\.\d{1,3}){3})"
    r"(?::\d{2,5})?(?:[/?#]\S*)?\Z"
)
_ABBREVIATIONS = (  # all with a period at the end
    "Mt Ak Ala Apr Ariz Ark Aug Calif Colo Conn Dec Del Feb Fla Ga Ia Id Ill Ind Jan Jul Jun Kan Kans Ky La Mar Mass "
    "Mich Minn Miss N.C N.D N.H N.J N.M N.Y Neb Nebr Nev Nov Oct Okla Ore Pa S.C Sep Sept Tenn Va Wash Wis a.m Adm "
    "Bros co Co Corp D.C Dr e.g E.g E.G Gen Gov i.e I.e I.E Inc Jr Ltd Md Messrs Mo Mont Mr Mrs Ms p.m Ph.D Prof Rep "
    "Rev Sen St vs v.s"
)
_FACES = (
    ":) :-) :)) :-)) :))) :-))) (: (-: (= (; (-; =) :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) :( :-( :(( "
    ":-(( :((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O :-O :o :-o :0 :-0 "
    ":() >:o :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.< "
    "._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 "
    "(^_^) (-_-) (._.) (>_<) (*_*) (¬_¬)"
)
_MODALS = "ca could do does did had may might must need ought sha should wo would"
_VERBS = "ai are is was were have has dare"
_DROPPED_LETTERS = "doin goin nothin nuthin ol somethin lovin havin"
_SHORTENED = "em ll nuff 'em 'll 'nuff 's 'S ‘s ‘S 'd 're 'bout 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz and/or w/o"
_WORDS_OF_THEIR_OWN = "ill its hell shell shed were well whore"  # not "I'll", "it's", ...
_PLAIN_END = frozenset(",;:!?)")


def _contractions() -> Iterator[tuple[str, ...]]:
    """English contractions as their parts, in lower case, with the apostrophe."""
    future, would = [("'ll",), ("'ll", "'ve")], [("'d",), ("'d", "'ve")]
    for subject in ("you", "we", "they"):
        yield from ((subject, *end) for end in [*future, *would, ("'ve",), ("'re",)])
    for subject in ("he", "she", "it", "that", "this"):
        yield from ((subject, *end) for end in [*future, *would, ("'s",)])
    for subject in ("who", "what", "when", "where", "why", "how", "there"):
        yield from ((subject, *end) for end in [*future, *would, ("'s",), ("'re",), ("'ve",)])
    for subject in ("these", "those"):
        yield from ((subject, *end) for end in [*future, *would, ("'re",), ("'ve",)])
    yield from (("i", *end) for end in [*future, *would, ("'ve",), ("'m",), ("'m", "a")])
    yield from ((verb, *end) for verb in _MODALS.split() for end in [("n't",), ("n't", "'ve")])
    yield from ((verb, "n't") for verb in _VERBS.split())
    yield from ((verb, "'ve") for verb in ("could", "might", "must", "should", "would", "not"))


def _english() -> Iterator[tuple[str, ...]]:
    """Every exception of English, as its parts."""
    both_cases = list(_contractions())
    both_cases += [("can", "not"), ("gon", "na"), ("got", "ta"), ("c'm", "on"), ("how", "'d", "'y")]
    both_cases += [("ma'am",), ("o'clock",)]
    for word in _DROPPED_LETTERS.split():
        both_cases += [(word,), (word + "'",)]
    for parts in both_cases:
        for first in (parts[0], parts[0].title() if "'" not in parts[0] else parts[0].capitalize()):
            yield (first, *parts[1:])
    for parts in _contractions():  # the same, typed without the apostrophe
        for first in (parts[0], parts[0].title()):
            bare = (first, *(part.replace("'", "") for part in parts[1:]))
            if "".join(bare).lower() not in _WORDS_OF_THEIR_OWN.split():
                yield bare
    yield from [("let", "'s"), ("Let", "'s"), ("y'", "all"), ("y", "all")]
    yield from ((word,) for word in _SHORTENED.split())
    yield from ((str(hour), half) for hour in range(1, 13) for half in ("a.m.", "am", "p.m.", "pm"))
    yield from ((word + ".",) for word in _ABBREVIATIONS.split())


def _common() -> Iterator[tuple[str, ...]]:
    """Exceptions of every language: single letters with a period, emoticons, degrees."""
    yield from ((letter + ".",) for letter in "abcdefghijklmnopqrstuvwxyzäöü")
    yield from (("°", unit, ".") for unit in "cfkCFK")
    yield from ((word,) for word in ["'", "''", "—", '\\")', "\\n", "\\t", "<space>", "C++"])
    yield from ((face,) for face in _FACES.split())


@functools.cache
def _exceptions(english: bool) -> tuple[dict[str, tuple[str, ...]], dict[tuple[str, ...], tuple[str, ...]]]:
    """Exceptions by their spelling, and by the parts into which the other rules would break them."""
    spelled = {"".join(parts): parts for parts in _common()}
    if english:
        spelled |= {"".join(parts): parts for parts in _english()}
    for word, parts in list(spelled.items()):
        if "'" in word:
            spelled[word.replace("'", "’")] = tuple(part.replace("'", "’") for part in parts)
    broken = {tuple(_cut(word, {})): parts for word, parts in spelled.items()}
    return spelled, {pieces: parts for pieces, parts in broken.items() if pieces != parts and len(pieces) > 1}


def split(piece: str, *, english: bool = True) -> tuple[str, ...]:
    """The words of a piece of text that has no white space in it.

    Args:
        piece: such as an element of `text.split()`; longer than `LONGEST_PIECE` it counts as one word.
        english: also split English contractions and keep English abbreviations whole.
    """
    spelled, broken = _exceptions(english)
    if piece in spelled:
        return spelled[piece]
    if piece.isalpha() or len(piece) > LONGEST_PIECE:
        return (piece,)
    # A shortcut for the commonest piece by far: letters and one mark behind them.
    body = piece[:-1]
    is_plain_end = piece[-1:] in _PLAIN_END or (piece[-1:] == "." and body[-1:].islower())
    if is_plain_end and body.isascii() and body.isalpha():
        return (*spelled.get(body, (body,)), piece[-1])
    return _join(_cut(piece, spelled), broken)


def _cut(piece: str, exceptions: dict[str, tuple[str, ...]]) -> list[str]:
    """Cut marks off both ends until an exception, an address or a bare middle is left."""
    low, high = 0, len(piece)
    before: list[str] = []
    after: list[str] = []
    while low < high and not _is_exception(piece, low, high, exceptions):
        match = _PREFIX.match(piece, low, high)
        head = match.end() - low if match else 0
        if head and _is_exception(piece, low + head, high, exceptions):
            before.append(piece[low : low + head])
            low += head
            break
        tail = _suffix(piece, low + head, high)
        if tail and _is_exception(piece, low, high - tail, exceptions):
            after.append(piece[high - tail : high])
            high -= tail
            break
        if not head and not tail:
            break
        if head:
            before.append(piece[low : low + head])
        if tail:
            after.append(piece[high - tail : high])
        low, high = low + head, high - tail
    return before + _middle(piece[low:high], exceptions) + after[::-1]


def _is_exception(piece: str, low: int, high: int, exceptions: dict[str, tuple[str, ...]]) -> bool:
    return 0 < high - low <= _LONGEST_EXCEPTION and piece[low:high] in exceptions


def _suffix(piece: str, low: int, high: int) -> int:
    """The number of characters of the mark at the end of piece[low:high]; 0 without a mark."""
    if piece.endswith("..", low, high):
        start = high - 2
        while start > low and piece[start - 1] == ".":
            start -= 1
        return high - start
    # A slice of the end alone, or a search in a long piece would take time quadratic in its length.
    match = _SUFFIX.search(piece[max(low, high - _LONGEST_SUFFIX) : high])
    return match.end() - match.start() if match else 0


def _middle(core: str, exceptions: dict[str, tuple[str, ...]]) -> list[str]:
    """The words of a core that neither begins nor ends in a mark."""
    if not core:
        return []
    if core in exceptions:
        return list(exceptions[core])
    if core.isalnum() or ("." in core and len(core) <= _LONGEST_ADDRESS and _ADDRESS.match(core)):
        return [core]
    parts: list[str] = []
    start = 0
    for match in _INFIX.finditer(core):
        if match.start() == 0:
            continue
        if match.start() > start:
            parts.append(core[start : match.start()])
        parts.append(match.group())
        start = match.end()
    return parts + [core[start:]] if start < len(core) else parts


def _join(parts: list[str], broken: dict[tuple[str, ...], tuple[str, ...]]) -> tuple[str, ...]:
    """Replace every run of parts that spells an exception by the exception's parts, the longest run first."""
    if len(parts) < 2:
        return tuple(parts)
    joined: list[str] = []
    i = 0
    while i < len(parts):
        for width in range(min(5, len(parts) - i), 1, -1):
            if (run := tuple(parts[i : i + width])) in broken:
                joined += broken[run]
                i += width
                break
        else:
            joined.append(parts[i])
            i += 1
    return tuple(joined)
