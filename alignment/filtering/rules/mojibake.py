"""Repair text whose UTF-8 was read in another encoding ("CafÃ©" for "Café"), line by line, where nothing is lost."""

import contextlib
import re

from alignment.filtering.rules.batch import Batch, Findings

_MAX_ROUNDS = 3  # some text was decoded wrongly more than once


def _bytes_of(encoding: str) -> dict[int, str]:
    """Character of a one-byte encoding -> its byte, written as the Latin-1 character with that code."""
    table = {}
    for byte in range(0x80, 0x100):
        with contextlib.suppress(
            UnicodeDecodeError
        ):  # Windows-1252 leaves five bytes undefined; they stand for themselves
            table[ord(bytes([byte]).decode(encoding))] = chr(byte)
    return table


_WESTERN, _ARABIC = _bytes_of("cp1252"), _bytes_of("cp1256")


def _pattern(table: dict[int, str]) -> re.Pattern:
    """The first two bytes of a UTF-8 character, as the encoding shows them."""
    first = [chr(code) for code, byte in table.items() if "\xc2" <= byte <= "\xf4"]
    second = [chr(code) for code, byte in table.items() if byte < "\xc0"]
    return re.compile(f"[{re.escape(''.join(first))}][\x80-\x9f{re.escape(''.join(second))}]")


_TABLES = ((_pattern(_WESTERN), _WESTERN), (_pattern(_ARABIC), _ARABIC))


def is_suspect(text: str) -> bool:
    """Whether the text has a pair of characters that is typical of wrongly read UTF-8; good text may have it too."""
    return not text.isascii() and any(pattern.search(text) for pattern, _ in _TABLES)


def repair(text: str) -> str:
    """Decode lines again that are UTF-8 read as Windows-1252, Latin-1 or Windows-1256.

    A line changes only if all of it can be turned back into bytes that are valid UTF-8, which is hardly ever true of
    good text.
    """
    if not is_suspect(text):
        return text
    return "\n".join(_line(line) if is_suspect(line) else line for line in text.split("\n"))


def _line(line: str) -> str:
    for _ in range(_MAX_ROUNDS):  # each round undoes one wrong decoding
        for pattern, table in _TABLES:
            try:
                repaired = line.translate(table).encode("latin-1").decode("utf-8") if pattern.search(line) else line
            except UnicodeError:
                continue
            if repaired != line:
                line = repaired
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
