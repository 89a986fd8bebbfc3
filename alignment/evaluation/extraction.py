"""Which option an answer in words names: the last `Answer: [X]`, a letter in its last line, an option's text, none."""

import dataclasses
import re
from collections.abc import Sequence

from alignment.evaluation.multiple_choice import ALPHABET

OK, REFUSED, UNPARSED = ("ok", "refused", "unparsed")
_MARKED = re.compile(r"\banswer(?: is)?\s*:?\s*[\[(*]*\s*([A-Za-z])\b(?!['’])[\])*]*", re.I)
_ALONE = re.compile(r"(?<![\w'’])([A-Z])(?![\w'’])")
_REFUSALS = re.compile(
    r"\b(?:i|we) (?:can(?:not|['’]?t| not)|(?:am|['’]?m) (?:not able|unable|sorry)|(?:will|wo) ?n['’]?o?t|decline|must "
    r"(?:decline|refuse))\b|\bas an ai\b|\bi['’]m (?:sorry|unable|not able)\b|\bnot able to (?:help|assist|answer)\b",
    re.I,
)


@dataclasses.dataclass(frozen=True)
class Named:
    """What an answer names: options by their numbers from 0, in order; `status` is OK, REFUSED or UNPARSED."""

    options: tuple[int, ...]
    status: str

    @property
    def option(self) -> int | None:
        """The one option that is named."""
        return self.options[0] if len(self.options) == 1 else None


def named(text: str, options: Sequence[str]) -> Named:
    """The option that an answer names.

    In this order: the last `Answer: [X]`, whatever its case; the last letter that stands alone in the last line; the
    one option whose whole text occurs; the words of a refusal. A marked letter that no option has is not parsed.

    Args:
        text: what the model wrote.
        options: their texts; the first is A.
    """
    letters = ALPHABET[: len(options)]
    if marked := _MARKED.findall(text):
        return _of_letter(marked[-1].upper(), letters)
    lines = [line for line in text.splitlines() if line.strip()]
    alone = [letter for letter in _ALONE.findall(lines[-1] if lines else "") if letter in letters]
    # "A" and "I" are words of English; a lone one within a sentence names nothing unless it is all there is
    alone = [letter for letter in alone if letter not in "AI" or not _is_word(letter, lines[-1])]
    if alone:
        return _of_letter(alone[-1], letters)
    lowered = text.casefold()
    there = [i for i, option in enumerate(options) if option.strip() and option.strip().casefold() in lowered]
    # an option within a longer one, such as "iron" in "oral iron", is that longer one
    there = [i for i in there if not any(i != j and options[i].casefold() in options[j].casefold() for j in there)]
    if len(there) == 1:
        return Named((there[0],), OK)
    return Named((), REFUSED if _REFUSALS.search(text) else UNPARSED)


def named_several(text: str, options: Sequence[str]) -> Named:
    """For questions with several right options: the letters of the last `Answer: [B, D]`, else what `named` finds."""
    letters = ALPHABET[: len(options)]
    listed = re.findall(r"answer\s*:\s*\[?\s*([A-Za-z](?:\s*(?:,|and|&)\s*[A-Za-z])+)\b", text, re.I)
    if not listed:
        return named(text, options)
    wanted = [letter.upper() for letter in re.findall(r"\b[A-Za-z]\b", listed[-1])]
    if any(letter not in letters for letter in wanted):
        return Named((), UNPARSED)
    return Named(tuple(sorted({letters.index(letter) for letter in wanted})), OK)


def _of_letter(letter: str, letters: str) -> Named:
    return Named((letters.index(letter),), OK) if letter in letters else Named((), UNPARSED)


def _is_word(letter: str, line: str) -> bool:
    """Whether a lone A or I is followed by a small letter's word, as the article and the pronoun are."""
    places = [match.end() for match in re.finditer(rf"(?<![\w'’]){letter}(?![\w'’])", line)]
    return bool(places) and re.match(r"\s+[a-z]", line[places[-1] :]) is not None
