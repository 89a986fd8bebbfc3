"""Shares of characters, lines and paragraphs: the rules that NeMo Curator adds to Gopher's, C4's and FineWeb's.

Dimensions: U UTF-16 units of a text.

The thresholds are NeMo Curator's for English. Its rules count ASCII letters and digits; these count Unicode's letters,
vowel signs and digits, so that one threshold serves more languages.
"""

import functools
import re
import unicodedata

import numpy as np

from alignment.filtering.rules.batch import Batch, Findings

_PLAIN, _DIGIT, _BREAK, _SPACE, _PARENTHESIS, _OTHER = range(6)
_PARENTHESES = "()[]{}⟨⟩"
_FREE_MARKS = "?!,."  # NeMo counts these as alphanumeric
_FREE_MARKS_ARABIC = "؟،۔"
_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"]+", re.IGNORECASE)
_PARAGRAPHS = re.compile(r"\n[^\S\n]*\n\s*")


def check(
    batch: Batch,
    *,
    max_non_alphanumeric: float | None = 0.25,
    max_numbers: float | None = 0.15,
    max_urls: float | None = 0.2,
    max_white_space: float | None = 0.25,
    max_parentheses: float | None = 0.1,
    max_no_end_mark: float | None = 0.85,
    max_boilerplate: float | None = 0.4,
    boilerplate_at_ends: bool = False,
) -> Findings:
    """Drop tables, link lists, code and page furniture. None (or False) switches a check off.

    Args:
        batch: documents of one language; the pack names end marks and phrases of policies and page furniture.
        max_non_alphanumeric: share of characters other than letters, digits, line breaks and "? ! , ."; spaces are
            among them.
        max_numbers: share of characters that are digits, of any script.
        max_urls: share of characters within addresses (http, https, www).
        max_white_space: share of characters that are white space.
        max_parentheses: share of characters that are brackets, of any shape.
        max_no_end_mark: share of non-blank lines that do not end in one of the pack's end marks.
        max_boilerplate: share of paragraphs (blank lines between) with such a phrase.
        boilerplate_at_ends: drop also for one such phrase in the first or last paragraph. NeMo Curator does this by
            default; here it is off, since many good pages end in a notice.

    Returns:
        Reasons `empty`, then `nemo_non_alphanumeric`, `nemo_numbers`, `nemo_urls`, `nemo_white_space`,
        `nemo_parentheses`, `nemo_no_end_mark`, `nemo_boilerplate`, `nemo_boilerplate_at_ends`, in this order.
    """
    findings = Findings.passing(len(batch))
    pack = batch.pack
    ends = tuple(dict.fromkeys((*pack.end_punctuation, *pack.terminal_punctuation)))
    phrases = (*pack.policy_phrases, *pack.boilerplate_phrases)
    limits = {
        "non_alphanumeric": max_non_alphanumeric,
        "numbers": max_numbers,
        "urls": max_urls,
        "white_space": max_white_space,
        "parentheses": max_parentheses,
    }
    for position, text in enumerate(batch.texts):
        if not text or text.isspace():
            findings.fail(position, "empty", 0, 1)
            continue
        for name, share in shares(text).items():
            limit = limits[name]
            if limit is not None and share > limit:
                findings.fail(position, f"nemo_{name}", share, limit)
        if findings.reasons[position]:
            continue
        if max_no_end_mark is not None:
            lines = [line for line in map(str.rstrip, batch.lines[position]) if line]
            share = sum(not line.endswith(ends) for line in lines) / len(lines)
            if share > max_no_end_mark:
                findings.fail(position, "nemo_no_end_mark", share, max_no_end_mark)
        if max_boilerplate is None and not boilerplate_at_ends:
            continue
        # The spelling is costly (it reads the whole text), so this check comes last.
        marks = boilerplate(pack.comparison_key(text), phrases)
        if max_boilerplate is not None and (share := sum(marks) / max(1, len(marks))) > max_boilerplate:
            findings.fail(position, "nemo_boilerplate", share, max_boilerplate)
        elif boilerplate_at_ends and any(at_ends := marks[:1] + marks[-1:]):
            findings.fail(position, "nemo_boilerplate_at_ends", sum(at_ends), 0)
    return findings


def shares(text: str) -> dict[str, float]:
    """Shares of a text's characters, by the names of `check`'s arguments; all 0 for an empty text."""
    # Counting UTF-16 units in numpy is far faster than a loop over characters; nearly all characters have one unit.
    units_U = np.frombuffer(text.encode("utf-16-le", "surrogatepass"), np.uint16)
    counts = np.bincount(_kinds()[units_U], minlength=_OTHER + 1).tolist()
    total = max(1, len(units_U))
    has_address = "://" in text or "www." in text or "WWW." in text
    num_url = sum(match.end() - match.start() for match in _URL.finditer(text)) if has_address else 0
    return {
        "non_alphanumeric": (counts[_SPACE] + counts[_PARENTHESIS] + counts[_OTHER]) / total,
        "numbers": counts[_DIGIT] / total,
        "urls": num_url / total,
        "white_space": (counts[_BREAK] + counts[_SPACE]) / total,
        "parentheses": counts[_PARENTHESIS] / total,
    }


def boilerplate(text: str, phrases: tuple[str, ...]) -> list[bool]:
    """Whether each paragraph has one of the phrases; text and phrases must be in one spelling (`Pack.comparison_key`).

    Lines count as paragraphs in a text without blank lines. The list is empty if no phrase occurs, and for a single
    paragraph, where a share would say nothing.
    """
    if not any(phrase in text for phrase in phrases):
        return []
    paragraphs = [paragraph for paragraph in _PARAGRAPHS.split(text) if paragraph.strip()]
    if len(paragraphs) == 1:
        paragraphs = [line for line in text.splitlines() if line.strip()]
    if len(paragraphs) == 1:
        return []
    return [any(phrase in paragraph for phrase in phrases) for paragraph in paragraphs]


@functools.cache
def _kinds() -> np.ndarray:
    """The kind of each UTF-16 unit [65536], uint8; halves of characters outside the basic plane count as symbols."""
    kinds = np.full(1 << 16, _OTHER, np.uint8)
    for code in range(1 << 16):
        character = chr(code)
        category = unicodedata.category(character)
        if category == "Nd":
            kinds[code] = _DIGIT
        elif category[0] in "LM" or category[0] == "N":
            kinds[code] = _PLAIN
        elif character.isspace():
            kinds[code] = _SPACE
    for characters, kind in (
        (_FREE_MARKS + _FREE_MARKS_ARABIC, _PLAIN),
        ("\n", _BREAK),
        (_PARENTHESES, _PARENTHESIS),
    ):
        kinds[[ord(character) for character in characters]] = kind
    return kinds
