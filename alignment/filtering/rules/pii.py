"""Personal data by its form: e-mail and IP addresses, telephone, bank account, card and identity numbers.

Check digits are verified (IBAN: ISO 13616, modulo 97; cards: Luhn), so that few other numbers are mistaken for them.
Every search takes time linear in the length of a text, whatever the text: patterns have bounded lengths, and start only
where no character of their kind stands before.
"""

import ipaddress
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from alignment import errors
from alignment.filtering.rules.batch import Batch, Findings

KINDS = ("email", "iban", "card", "national_id", "ip", "phone")  # where two overlap, the one earlier in this list wins
TAGS = {kind: f"<{kind.upper()}>" for kind in KINDS}

_LOCAL = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.!#$%&'*+/=?^_`{|}~-"
_LONGEST_LOCAL, _LONGEST_DOMAIN = 64, 253  # RFC 5321
_DOMAIN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9\-])")
_AT = re.compile(r"@(?=[A-Za-z0-9])")
# Each pattern begins with a class of few characters and only then looks back at the characters before it: this makes a
# search skip ordinary text quickly.
_DIGIT = "[0-9\u0660-\u0669\u06f0-\u06f9]"  # ASCII, Arabic-Indic, Persian
_IPV4 = re.compile(r"[0-9](?<![\w.].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?!\.?[0-9])(?!\w)")
_IPV6 = re.compile(r"[23](?<![\w:.].)[0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,35}(?![\w:])")  # 2000::/3, global unicast
_IBAN = re.compile(r"[A-Z]{2}(?<!\w..)[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?", re.DOTALL)
_CARD = re.compile(r"[2-6](?<![\w.,+\-].)(?:[ \-]?[0-9]){12,18}(?![ \-]?[0-9])(?!\w)")
_PHONE = re.compile(  # E.164: up to 15 digits behind "+" or "00"
    r"[+0٠۰](?<![\w+.].)(?:(?<=\+)|(?<=0)0|(?<=٠)٠|(?<=۰)۰)"
    rf" ?\(?{_DIGIT}(?:[ .()\-/]{{0,2}}{_DIGIT}){{7,13}}(?!\w)"
)
_LOCAL_PHONE = re.compile(  # North America's
    r"[2-9](?<![\w+.\-].)[0-9]{2}(?:\) ?|[ .\-])[2-9][0-9]{2}[ .\-][0-9]{4}(?![\w\-]|\.[0-9])"
)
_FILES = frozenset(["png", "jpg", "jpeg", "gif", "svg", "webp", "bmp", "ico", "tif", "tiff", "pdf", "mp3", "mp4"])
_FILES |= {"css", "js", "json", "tgz", "gz", "whl", "jar", "exe", "dll", "so"}
_ASCII_DIGITS = {base + i: str(i) for base in (0x0660, 0x06F0) for i in range(10)}
_NATIONAL_PHONE = re.compile(  # 0, an area and a subscriber, in groups: 020 7946 0958, 06 12 34 56 78
    r"0(?<![\w+.\-/,:].)[1-9][0-9]{0,3}(?:\) ?|[ \-/])[0-9]{2,7}(?:[ \-][0-9]{2,5}){0,4}(?![\w\-/]|[.,][0-9])"
)
_MOBILE_PHONE = re.compile(  # without groups: the Gulf's 05, Egypt's 010 to 015, the 06 and 07 of many countries
    r"0(?<![\w+.\-/,:].)(?:5[0-9]{8}|1[0125][0-9]{8}|7[0-9]{8,9}|6[0-9]{8})(?![\w\-/]|[.,][0-9])"
)
_SSN = re.compile(  # United States
    r"[0-8](?<![\w.\-].)[0-9]{2}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?![\w\-]|\.[0-9])"
)
_NINO = re.compile(r"[A-CEGHJ-PR-TW-Z](?<!\w.)[A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D](?!\w)")  # Britain
_EMIRATES = re.compile(r"784(?<!\w...)[ \-]?(?:19|20)[0-9]{2}[ \-]?[0-9]{7}[ \-]?[0-9](?!\w)")
_SAUDI = re.compile(  # ten digits alone say little: a word must stand before them
    r"(?:\b(?:iqama|national id|id (?:no|number))|هوية|الهوية|إقامة|الإقامة)[^\d\n]{0,20}([12][0-9]{9})(?!\w)",
    re.IGNORECASE,
)
_VERSION = re.compile(  # what stands before numbers that look like an IP address
    r"(?:\b(?:v|ver|versions?|releases?|rev|revision|build|firmware|sections?|sec|chapter|clause|paragraph|article|table|"
    r"figure)\.?|§|إصدار|الإصدار|نسخة|النسخة|القسم|قسم|الفصل|المادة|البند|الفقرة)[ :]*$",
    re.IGNORECASE,
)
_COUNTRY_CODES = re.compile(  # ITU-T E.164
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|(?:2[1-689]|3[578]|42|5[09]|6[789]|8[058]|9[679])[0-9]"
)
_IBANS = (  # country and length
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
    "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 "
    "LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 "
    "QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)
_IBAN_LENGTHS = {part[:2]: int(part[2:]) for part in _IBANS.split()}
_CARD_LENGTHS = {"2": (16,), "3": (14, 15, 16), "4": (13, 16, 19), "5": (16,), "6": (16, 17, 18, 19)}


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1)."""
    doubled = [int(digit) * (2 if i % 2 else 1) for i, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def mod_97(iban: str) -> bool:
    """Whether an account number without spaces carries the right check digits (ISO 7064, modulo 97)."""
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1


def spans(text: str, kinds: Sequence[str] = KINDS) -> list[tuple[int, int, str]]:
    """The places of personal data.

    Returns:
        (start, end, kind) in order and without overlap, in characters; kinds are those of `KINDS`.
    """
    candidates = sorted((start, end, kind) for kind in kinds for start, end in _FINDERS[kind](text))
    if len(candidates) < 2:
        return candidates
    taken: list[tuple[int, int, str]] = []
    for span in candidates:
        if not taken or span[0] >= taken[-1][1]:
            taken.append(span)
        # A span that overlaps the last one replaces it if its kind comes first, unless it reaches into the one before.
        elif KINDS.index(span[2]) < KINDS.index(taken[-1][2]) and (len(taken) < 2 or span[0] >= taken[-2][1]):
            taken[-1] = span
    return taken


def replace(text: str, places: Sequence[tuple[int, int, str]]) -> str:
    """The text with a tag such as <EMAIL> instead of each span."""
    parts, at = [], 0
    for start, end, kind in places:
        parts += [text[at:start], TAGS[kind]]
        at = end
    return "".join([*parts, text[at:]])


def rule(
    batch: Batch, *, kinds: Sequence[str] = KINDS, max_spans: int | None = 5, replace_spans: bool = True
) -> Findings:
    """Replace personal data by tags, and drop documents with much of it.

    Args:
        batch: documents of any language.
        kinds: some of `KINDS`.
        max_spans: a document with more spans is dropped (Dolma, Soldaini et al. 2024, arXiv:2402.00159); None drops
            none.
        replace_spans: replace the spans by tags in documents that stay.

    Returns:
        Reason `pii`; new texts; attributes `pii_email`, ... with the number of spans a document.

    Raises:
        InputError: unknown kind.
    """
    for kind in kinds:
        errors.one_of("kind of personal data", kind, KINDS)
    findings = Findings.passing(len(batch))
    attributes = {f"pii_{kind}": [0.0] * len(batch) for kind in kinds}
    for position, text in enumerate(batch.texts):
        places = spans(text, kinds)
        for kind, count in Counter(kind for _, _, kind in places).items():
            attributes[f"pii_{kind}"][position] = float(count)
        if max_spans is not None and len(places) > max_spans:
            findings.fail(position, "pii", len(places), max_spans)
        elif places and replace_spans:
            findings.texts[position] = replace(text, places)
            for _, _, kind in places:
                findings.count(f"{kind}_replaced")
    findings.attributes.update(attributes)
    return findings


def _emails(text: str) -> Iterator[tuple[int, int]]:
    """Search from each "@" outwards: a pattern that began with the local part would read long words again and again."""
    low = 0  # the end of the last address: a character belongs to one address at most
    for match in _AT.finditer(text):
        at = match.start()
        before = text[max(low, at - _LONGEST_LOCAL) : at]
        local = before[len(before.rstrip(_LOCAL)) :].lstrip(".!#$%&'*+/=?^`{|}~-")
        domain = _DOMAIN.match(text, at + 1, at + 1 + _LONGEST_DOMAIN)
        if local and not local.endswith(".") and domain and domain.group().rsplit(".", 1)[1].lower() not in _FILES:
            yield at - len(local), domain.end()
            low = domain.end()


def _ips(text: str) -> Iterator[tuple[int, int]]:
    """Public addresses; private, local and reserved ones identify nobody."""
    if text.count(".") >= 3:
        yield from (m.span() for m in _IPV4.finditer(text) if _is_public(m.group()) and not _is_version(text, m))
    if text.count(":") >= 2:
        yield from (match.span() for match in _IPV6.finditer(text) if _is_public(match.group()))


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _is_version(text: str, match: re.Match) -> bool:
    """Whether four numbers are rather a version or the number of a section than an address."""
    start, line_start = match.start(), text.rfind("\n", 0, match.start()) + 1
    before = text[max(line_start, start - 20) : start]
    is_part = before.endswith("-") or (before.endswith("/") and not before.endswith("//"))  # of a name: Chrome/91.0.4.1
    is_heading = not text[line_start:start].strip() and text[match.end() : match.end() + 1] in (" ", "\t")
    numbers = [int(number) for number in match.group().split(".")]
    is_small = max(numbers[:3]) < 10 and len(set(numbers)) > 1  # 8.8.8.8 is an address
    return is_part or is_small or is_heading or bool(_VERSION.search(before))


def _ids(text: str) -> Iterator[tuple[int, int]]:
    """Numbers that a state gives to a person; where they have a check digit, it is verified."""
    text = _with_ascii_digits(text)
    for match in _SSN.finditer(text):
        if not match.group().startswith(("000", "666")):
            yield match.span()
    yield from (match.span() for match in _NINO.finditer(text))
    yield from (m.span() for m in _EMIRATES.finditer(text) if luhn(re.sub("[^0-9]", "", m.group())))
    yield from (match.span(1) for match in _SAUDI.finditer(text) if luhn(match[1]))


def _with_ascii_digits(text: str) -> str:
    """The text with Arabic-Indic and Persian digits as ASCII ones, in the same places."""
    return text if text.isascii() else text.translate(_ASCII_DIGITS)


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text):
        # The pattern takes as much as it can; the country says how long the number really is.
        length = _IBAN_LENGTHS.get(match.group()[:2], 0)
        end, num_characters = match.start(), 0
        while end < match.end() and num_characters < length:
            num_characters += text[end] != " "
            end += 1
        is_cut = end < len(text) and text[end].isalnum()
        if length and num_characters == length and not is_cut and mod_97(text[match.start() : end].replace(" ", "")):
            yield match.start(), end


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text):
        digits = match.group().replace(" ", "").replace("-", "")
        if len(digits) in _CARD_LENGTHS[digits[0]] and luhn(digits):
            yield match.span()


def _phones(text: str) -> Iterator[tuple[int, int]]:
    yield from (match.span() for match in _PHONE.finditer(text) if not _is_decimal(match.group()))
    ascii_text = _with_ascii_digits(text)
    yield from (match.span() for match in _MOBILE_PHONE.finditer(ascii_text))
    for match in _NATIONAL_PHONE.finditer(ascii_text):
        if 9 <= sum(map(str.isdigit, match.group())) <= 11 and not _is_counting(match.group()):
            start = match.start()
            yield start - (")" in match.group() and text[start - 1 : start] == "("), match.end()
    for match in _LOCAL_PHONE.finditer(text):
        start = match.start()
        if text[start + 3] != ")":
            yield match.span()
        elif start and text[start - 1] == "(":
            yield start - 1, match.end()


def _is_decimal(number: str) -> bool:
    """Whether a number behind a plus sign is a decimal; "+CC.NNNNNNNNN" is how registries write a telephone number."""
    whole, point, rest = number.removeprefix("+").partition(".")
    if not point or not number.startswith("+") or not (whole.isdigit() and rest.isdigit()):
        return False
    is_american = whole == "1" and (len(rest) != 10 or rest[0] in "01")
    return len(rest) < 9 or is_american or not _COUNTRY_CODES.fullmatch(whole)


def _is_counting(number: str) -> bool:
    """Whether the groups of a number count up, as 01 02 03 04 05 do."""
    groups = [int(part) for part in re.findall("[0-9]+", number)]
    return len(groups) > 2 and all(b - a == 1 for a, b in itertools.pairwise(groups))


_FINDERS = {
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "national_id": _ids,
    "ip": _ips,
    "phone": _phones,
}
