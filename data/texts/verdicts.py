"""What the values of a file say about answers: which of two is preferred, or whether one is desirable.

Without a word from the config, 1 and 2 prefer `output_1` and `output_2`, and true, 1, yes and false, 0, no are labels.
Files that write something else, such as model_a and model_b, or -3 to 3, are read with a mapping of their own words.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.errors import InputError, one_of
from data import records

EMPTY = ("", "none", "null", "nan")
SIDES = {"preference": ("output_1", "output_2"), "label": ("desirable", "undesirable")}  # by the column that says it
DEFAULT = {
    "preference": {"1": "output_1", "2": "output_2"} | dict.fromkeys((*EMPTY, "tie", "equal", "0", "1.5"), "tie"),
    "label": dict.fromkeys(("true", "1", "yes", "desirable"), "desirable")
    | dict.fromkeys(("false", "0", "no", "undesirable"), "undesirable"),
}


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """The meaning of a file's words.

    Attributes:
        by_column: 'preference' or 'label' -> a word -> one of SIDES, or 'tie'.
        settings: the settings that name words of each column.
    """

    by_column: Mapping[str, Mapping[str, str]]
    settings: Mapping[str, tuple[str, ...]]

    def meaning(self, column: str, value: Any) -> str | None:
        """One of SIDES, or 'tie'; None for a value that is not known."""
        return self.by_column[column].get(word(value))

    def check_read(self, columns: set[str]) -> None:
        """Refuse settings of columns that no record has."""
        names = [name for column, names in self.settings.items() if column not in columns for name in names]
        if columns & set(self.settings) and "tie" in names:
            names.remove("tie")
        if names:
            raise InputError(
                f"data.verdicts.{names[0]} says what a preference (of output_1, output_2) or a label means, and no "
                "record has that column; name it with data.columns, or leave the setting out"
            )


def of(words: Mapping[str, str] | None = None) -> Verdicts:
    """The meanings of words: the usual ones, and instead of them those of `words` where it names both sides.

    Args:
        words: output_1, output_2, desirable, undesirable, tie -> the file's words for it, with commas between; "" for
            none. A tie is a verdict for neither side; such records are counted and not learned from.

    Raises:
        InputError: an unknown name, one side without the other, or a word with two meanings.
    """
    by_name = {name: [word(one) for one in text.split(",")] for name, text in (words or {}).items() if text}
    for name in words or {}:
        one_of("a name in data.verdicts", name, (*SIDES["preference"], *SIDES["label"], "tie"))
    by_column: dict[str, dict[str, str]] = {}
    settings: dict[str, tuple[str, ...]] = {}
    for column, sides in SIDES.items():
        named = tuple(side for side in sides if side in by_name)
        if len(named) == 1:
            missing = next(side for side in sides if side not in by_name)
            raise InputError(f"data.verdicts names words for {named[0]}; name those for {missing} too")
        # with words of its own a file's 1 and 2 may be two of five degrees, so that the usual meanings end
        meanings = dict.fromkeys(EMPTY, "tie") if named and column == "preference" else {}
        meanings = meanings if named else dict(DEFAULT[column])
        own: dict[str, str] = {}
        for name in (*named, "tie"):
            for one in by_name.get(name, ()):
                if own.setdefault(one, name) != name:
                    raise InputError(f"data.verdicts: {one!r} means {own[one]} and {name}; leave one of them out")
        by_column[column] = meanings | own
        if named or "tie" in by_name:
            settings[column] = (*named, *(("tie",) if "tie" in by_name else ()))
    return Verdicts(by_column, settings)


def word(value: Any) -> str:
    """A value as it is compared: without case and the space around it; 1, 1.0 and "1" are one word."""
    text = str(value).strip().casefold()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else str(number)


def set_aside(unknown: Sequence[tuple[records.Record, str, Any]], num_judged: int, counts: dict[str, int]) -> None:
    """Count the records whose (column, value) is not known, and print the first three with their lines.

    Raises:
        InputError: they are more than one in a hundred; the message lists the values.
    """
    if len(unknown) > records.MAX_BAD * num_judged:
        first, column, _ = unknown[0]
        number = Counter(str(value) for _, _, value in unknown)
        listed = ", ".join(f"{value!r} ({num})" for value, num in number.most_common(8))
        flags = " ".join(f"--config.data.verdicts.{side}=..." for side in (*SIDES[column], "tie"))
        raise InputError(
            f"{first.file}:{first.line}: {len(unknown)} of {num_judged} records have a {column} of unknown meaning: "
            f"{listed}. Say what the values mean, with commas between them: {flags}"
        )
    bad = [
        records.BadRecord(row.file, row.line, f"{column} {value!r} has no meaning; data.verdicts gives it one")
        for row, column, value in unknown
    ]
    records.set_aside(bad, num_judged, counts, "records with a preference or label of unknown meaning")
