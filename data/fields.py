"""What a field of a record says, as a text, a name, a whole number or a list; one notion of it for all readers of rows.

Programs write the same value in several ways: an absent one as null, as NaN or as an empty text; the id 7 as 7.0 beside
absent ones; a list as JSON, or as Python prints it, in a cell of a table. A text that is a list or an object is none of
these: `str()` would make a question of it that nobody has asked.
"""

import ast
import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment.errors import InputError
from data import records


class Odd(ValueError):
    """A field that cannot be read as what it should be; the message says so without the field's text."""


def text(value: Any, what: str = "the field") -> str:
    """The text of a field, "" where it is null or NaN; numbers and truth values as Python writes them.

    Raises:
        Odd: a list, an object, or bytes that are not UTF-8.
    """
    if isinstance(value, str):
        return value
    if is_absent(value):
        return ""
    if isinstance(value, bytes):  # parquet has texts in columns that are not declared as such
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise Odd(f"{what} is not UTF-8") from None
    if isinstance(value, (list, tuple, Mapping)):
        raise Odd(f"{what} is {'an object' if isinstance(value, Mapping) else 'a list'}, where a text is needed")
    return str(value)


def name(value: Any, what: str = "the field") -> str:
    """An id or a label: its text without the space around it, and 1.0 as 1; "" where it is absent.

    Raises:
        Odd: as `text` does.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return text(value, what).strip()


def whole(value: Any, what: str = "the field") -> int:
    """A whole number, or its text; 1.0 is 1.

    Raises:
        Odd: a fraction, a truth value, or anything else; a cast alone would cut fractions off and take True as 1.
    """
    number = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            number = float(value) if "." in value else int(value)
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    if not is_number or not math.isfinite(number) or number != int(number):
        raise Odd(f"{what}={value!r} is not a whole number")
    return int(number)


def parsed(value: Any) -> Any:
    """A list or an object that a cell of a table writes as JSON, or as Python prints it; other values as they are."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    for read_fn in (json.loads, ast.literal_eval):  # both make values of literals and run nothing
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return read_fn(value.strip())
    return value


def sequence(value: Any, what: str = "the field") -> Sequence[Any]:
    """A list, also where a cell of a table writes it as text.

    Raises:
        Odd: something else; a text taken for a list would fall apart into its letters.
    """
    value = parsed(value)
    if not isinstance(value, (list, tuple)):
        raise Odd(f"{what} is not a list")
    return value


NO_VALUE = ("", "nan", "null", "n/a", "#n/a", "<na>")  # what programs write into an empty cell of a table


def is_empty(value: Any) -> bool:
    """Whether a cell of a table says that it has no value: null, NaN, or a word for them."""
    if isinstance(value, str):
        return value.strip().lower() in NO_VALUE
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_absent(value: Any) -> bool:
    """Whether nothing stands there: null, or a number that is not finite, as programs write an empty field."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def renamed(row: records.Record, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row's values by our names; a column that is named takes the place of one of the file's own of that name.

    Args:
        columns: our name -> the file's; names that are empty say nothing.

    Raises:
        InputError: a column that the row does not have.
    """
    theirs = {own: column for own, column in columns.items() if column}
    for own, column in theirs.items():
        if column not in row.value:
            has = ", ".join(map(str, row.value))
            raise InputError(f"{row.file}:{row.line}: no column {column!r}, which columns.{own} names; it has {has}")
    others = {name: value for name, value in row.value.items() if name not in theirs.values()}
    return others | {own: row.value[column] for own, column in theirs.items()}


@contextlib.contextmanager
def reading(row: records.Record, shape: str) -> Iterator[None]:
    """Make an `InputError` with the row's file and line of whatever a reader of this shape meets in a row.

    Rows come from anybody, so that a field may have any type; a reader's own InputError has its message kept.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError) as e:
        place = f"{row.file}:{row.line}"
        if isinstance(e, InputError) and str(e).startswith(place):
            raise
        said = str(e) if isinstance(e, (InputError, Odd)) else f"{type(e).__name__} {e}"
        raise InputError(f"{place}: not a row of {shape}: {said}") from None
