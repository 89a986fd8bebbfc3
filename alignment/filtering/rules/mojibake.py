"""Text whose UTF-8 was read as another encoding ("CafÃ©" for "Café"), repaired line by line where nothing is lost."""

import contextlib
import re

from alignment.filtering.rules.batch import Batch, Findings

_MAX_ROUNDS = 3  # text that was read wrongly more than once


def _bytes_of(encoding: str) -> dict[int, str]:
    """Characters of a one-byte encoding to the byte that they stand for, itself written as a character."""
    found = {}
    for byte in range(0x80, 0x100):
        with contextlib.suppress(UnicodeDecodeError):  # five bytes that Windows-1252 leaves open stand for themselves
            found[ord(bytes([byte]).decode(encoding))] = chr(byte)
    return found


_WESTERN, _ARABIC = _bytes_of("cp1252"), _bytes_of("cp1256")


def _pattern(table: dict[int, str]) -> re.Pattern:
    """A first byte of UTF-8 with a second one behind it, as the encoding shows them."""
    first = [chr(code) for code, byte in table.items() if "\xc2" <= byte <= "\xf4"]
    second = [chr(code) for code, byte in table.items() if byte < "\xc0"]
    return re.compile(f"[{re.escape(''.join(first))}][\x80-\x9f{re.escape(''.join(second))}]")


_TABLES = ((_pattern(_WESTERN), _WESTERN), (_pattern(_ARABIC), _ARABIC))


def is_suspect(text: str) -> bool:
    """Whether two characters stand together that wrongly read UTF-8 is made of; good text may have them too."""
    return not text.isascii() and any(pattern.search(text) for pattern, _ in _TABLES)


def repair(text: str) -> str:
    """The text with every line read rightly that is UTF-8 read as Windows-1252, Latin-1 or Windows-1256.

    A line is changed only if all of it goes back to bytes and these are valid UTF-8, which other text hardly ever is.
    """
    if not is_suspect(text):
        return text
    return "\n".join(_line(line) if is_suspect(line) else line for line in text.split("\n"))


def _line(line: str) -> str:
    for _ in range(_MAX_ROUNDS):
        for pattern, table in _TABLES:
            try:
                found = line.translate(table).encode("latin-1").decode("utf-8") if pattern.search(line) else line
            except UnicodeError:
                continue
            if found != line:
                line = found
                break
        else:
            break
    return line


def rule(batch: Batch) -> Findings:
    """Repair texts (`mojibake_repaired`); nothing is dropped."""
    findings = Findings.passing(len(batch))
    for position, text in enumerate(batch.texts):
        repaired = repair(text)
        if repaired != text:
            findings.texts[position] = repaired
            findings.count("mojibake_repaired")
    return findings
