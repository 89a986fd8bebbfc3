"""JSON objects to documents: {"id", "text", "source", "metadata"}, or the reason why an object makes none.

A document's text is its `text` column, its address goes to `metadata["url"]`, and its other fields become metadata. The
fields of an object called "metadata" come first: a field beside it joins them unless one of them has its name. So a
document that `data/corpus/shards.py` wrote is read back unchanged.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import orjson

from data import records

COLUMNS = {"text": "text", "id": "id", "url": "url"}


@dataclasses.dataclass(frozen=True)
class Bad:
    """A piece of a file that was set aside.

    Attributes:
        offset: its first byte (decompressed, in .gz and .zst files), or its row in a parquet file.
        reason: why it makes no document.
        line: from 1; -1 where lines were not counted.
    """

    file: str
    offset: int
    reason: str
    line: int = -1


def from_line(raw: bytes, *, columns: Mapping[str, str], name: str, source: str, max_bytes: int) -> dict | str:
    """The document of one line of JSON, or the reason why it makes none; see `from_object`."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        if b"\0" in raw:
            return "NUL bytes"
        parsed, reason = records.parse(raw)  # by Python's json, which reads more than JSON, such as NaN
        if reason:
            return reason
        value = storable(parsed)
        if value is None:
            return "a number or nesting that JSON files cannot hold"
    if type(value) is not dict:
        return f"a JSON {type(value).__name__}, not an object"
    return from_object(value, columns=columns, name=name, source=source, max_bytes=max_bytes)


def from_object(value: dict, *, columns: Mapping[str, str], name: str, source: str, max_bytes: int) -> dict | str:
    """The document of one object, or the reason why it makes none.

    Args:
        value: the object, with values that JSON can express. It is changed: its fields move into the document.
        columns: the file's names for `text`, `id` and `url`. With an empty `id` the document's id is `name`.
        name: this place in the input.
        source: for documents that name none themselves, in a text called "source".
        max_bytes: of the text in UTF-8.
    """
    text = value.pop(columns["text"], None)
    if type(text) is not str:
        key = columns["text"]
        return f"no {key!r}" if text is None else f"{key!r} is not a text: {type(text).__name__}"
    if (reason := reason_against(text, max_bytes)) is not None:
        return reason
    key = columns.get("id", "")
    if key:
        name = value.pop(key, None)
        if type(name) is not str:
            if name is not None and type(name) not in (int, float):
                return f"{key!r} is neither text nor number: {type(name).__name__}"
            if type(name) is float and not abs(name) < 2**53:  # two ids may have been rounded to one number
                return f"{key!r} is a number of more digits than JSON readers keep, {name!r}: write it as text"
            name = "" if name is None else str(name)
        if not name:
            return f"no {key!r}"
    if type(value.get("source")) is str and value["source"]:
        source = value.pop("source")
    metadata = value.pop("metadata", None)
    if type(metadata) is str and metadata[:1] == "{":  # a parquet shard has metadata as JSON text
        metadata = _object(metadata)
    if type(metadata) is not dict:
        if metadata is not None:
            value["metadata"] = metadata
        metadata = {}
    url = value.pop(columns.get("url") or "url", None)
    if url is not None and metadata.get("url") is None:
        metadata["url"] = url if type(url) is str else str(url)
    if value:
        metadata = {**value, **metadata} if metadata else value
    if any(type(v) in (dict, list) for v in metadata.values()) and storable([[metadata]]) is None:
        return "nested too deeply"
    return {"id": name, "text": text, "source": source, "metadata": metadata}


def from_text(raw: bytes, *, name: str, source: str, max_bytes: int) -> dict | str:
    """The document of a line or paragraph of plain text, or the reason why it makes none."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        return f"not UTF-8: byte {e.start} of it"
    reason = reason_against(text, max_bytes)
    return reason if reason is not None else {"id": name, "text": text, "source": source, "metadata": {}}


def reason_against(text: str, max_bytes: int) -> str | None:
    """Why this text makes no document: empty, NUL characters, or more than `max_bytes` in UTF-8."""
    if not text or text.isspace():
        return "empty text"
    if "\0" in text:
        return "NUL bytes"
    if len(text) * 4 > max_bytes and (size := len(text.encode())) > max_bytes:
        return too_long(size, max_bytes)
    return None


def too_long(size: int, max_bytes: int) -> str:
    return f"{size} bytes long, more than {max_bytes}"


def storable(value: Any) -> Any:
    """The value as it would be read back from JSON (NaN is null, dates are text), or None if JSON cannot express it."""
    try:
        return orjson.loads(orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS))
    except (TypeError, orjson.JSONDecodeError, RecursionError):
        return None


def _plain(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _object(text: str) -> dict | str:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return value if type(value) is dict else text


def folder_of(file: str) -> str:
    """The name of the folder that holds a file: the source of documents that name none."""
    return os.path.basename(os.path.dirname(os.path.abspath(file)))
