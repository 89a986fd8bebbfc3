"""Files to lines with bounded memory: plain, .gz and .zst, however long a line is, up to where a file breaks off."""

import contextlib
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

from alignment.errors import InputError

CHUNK = 1 << 20  # bytes read, or decompressed, at a time
SKIPPABLE = tuple(bytes([low, 0x2A, 0x4D, 0x18]) for low in range(0x50, 0x60))  # frames of zstandard that hold no data
MAGIC = {".gz": (b"\x1f\x8b",), ".zst": (b"\x28\xb5\x2f\xfd", *SKIPPABLE)}


class Damaged(Exception):
    """The stream ends before its end; `offset` is where the line that breaks off starts, once `lines` knows."""

    offset = 0


def chunks(file: str, start: int = 0) -> Iterator[bytes]:
    """The content of a file from byte `start` of it (0 for compressed ones), decompressed, at most 1 MB at a time.

    Raises:
        Damaged: after all that can be had of a compressed file that is cut short or altered.
        InputError: when the file cannot be opened or read.
    """
    try:
        with open(file, "rb", buffering=0) as f:
            if file.endswith(".gz"):
                yield from _gzip(f)
            elif file.endswith(".zst"):
                yield from _zstandard(f)
            else:
                f.seek(start)
                while chunk := f.read(CHUNK):
                    yield chunk
    except OSError as e:
        raise InputError(f"cannot read {file}: {e.strerror or e}. Check that it is there and may be read") from e


def split(
    pieces: Iterator[bytes], *, first: int = 0, start: int = 0, stop: int | None = None, limit: int = 1 << 62
) -> Iterator[tuple[int, bytes | int]]:
    r"""The lines that start in [start, stop), as (offset, line without its \n); a long line as (offset, its length).

    Args:
        pieces: chunks of a stream, the first of which is at offset `first`.
        first: at most start - 1 where `start` is not the stream's own start, so that a line's start can be seen.
        stop: None reads to the end.
        limit: bytes above which a line's length comes in place of the line; nothing of it is kept.

    Raises:
        Damaged: from `pieces`, with the offset of the line that broke off.
    """
    stop = 1 << 62 if stop is None else stop
    at, parts, held = first, [], 0  # the open line: its offset, its bytes so far unless too many, their number
    try:
        for piece in pieces:
            ends = piece.split(b"\n")
            tail = ends.pop()
            if ends:
                head = ends[0]
                held += len(head)
                if at >= stop:
                    return
                if at >= start:
                    yield at, held if held > limit else b"".join([*parts, head]) if parts else head
                at += held + 1
                del ends[0]
                for line in ends:
                    if start <= at < stop:
                        yield at, line if len(line) <= limit else len(line)
                    at += len(line) + 1
                parts, held = [], 0
            held += len(tail)
            if held <= limit:
                parts.append(tail)
            else:
                parts.clear()
            if at >= stop or (at < start and at + held >= stop):  # nothing more can start here
                return
    except Damaged as e:
        e.offset = at
        raise
    if held and start <= at < stop:
        yield at, held if held > limit else b"".join(parts)


def _gzip(f: BinaryIO) -> Iterator[bytes]:
    """All members of a gzip file; zero bytes after the last one are padding."""
    member, raw = zlib.decompressobj(wbits=31), b""
    is_new = True  # no byte of this member was read yet
    while True:
        raw = raw or f.read(CHUNK)
        if not raw:
            break
        if is_new:
            raw = raw.lstrip(b"\0")
            if not raw:
                continue
        is_new, before = False, member.copy()
        try:
            out = member.decompress(raw, CHUNK)
        except zlib.error as e:
            yield from _until_it_breaks(before, raw)
            raise Damaged(f"damaged gzip data: {e}") from e
        raw = member.unconsumed_tail
        if out:
            yield out
        if member.eof:
            raw = member.unused_data
            member, is_new = zlib.decompressobj(wbits=31), True
    while not is_new and not member.eof:  # what the decompressor still holds
        out = member.decompress(b"", CHUNK)
        if not out and not member.eof:
            raise Damaged("truncated gzip data")
        yield out


def _until_it_breaks(member, raw: bytes, num_bytes: int = 64) -> Iterator[bytes]:
    """What can be had of `raw` in small steps."""
    with contextlib.suppress(zlib.error):
        while out := member.decompress(raw, num_bytes):
            yield out
            raw = member.unconsumed_tail


def _zstandard(f: BinaryIO) -> Iterator[bytes]:
    """All frames of a zstandard file; the reader takes a cut frame for a whole one, so their headers are walked."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # as zstd --long=31 packs; taken only where needed
    reader = unpacker.stream_reader(f, read_across_frames=True, closefd=False)
    try:
        while out := reader.read1(CHUNK):
            yield out
    except zstandard.ZstdError as e:
        raise Damaged(f"damaged zstandard data: {e}") from e
    if not _is_whole(f):
        raise Damaged("truncated zstandard data")


def _is_whole(f: BinaryIO) -> bool:
    """Whether the last frame of a zstandard file has its end (RFC 8878, section 3.1)."""
    size, at = os.fstat(f.fileno()).st_size, 0

    def number(num_bytes: int) -> int:
        f.seek(at)
        return int.from_bytes(f.read(num_bytes), "little")

    while at + 5 <= size:
        if number(4).to_bytes(4, "little") in SKIPPABLE:  # its length follows
            at += 4
            at += 4 + number(4)
            continue
        at += 4
        descriptor = number(1)
        is_single = descriptor >> 5 & 1
        at += 2 - is_single + (0, 1, 2, 4)[descriptor & 3] + (is_single, 2, 4, 8)[descriptor >> 6]
        is_last = False
        while not is_last and at + 3 <= size:
            block = number(3)
            is_last = bool(block & 1)
            at += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)
        if not is_last:
            return False
        at += 4 * (descriptor >> 2 & 1)
    return at == size
