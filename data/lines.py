"""Files to lines with bounded memory, plain or compressed, however long a line is, up to where a file breaks off."""

import bz2
import contextlib
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import zstandard

from alignment.errors import InputError

CHUNK = 1 << 20  # bytes read, or decompressed, at a time
SKIPPABLE = tuple(bytes([low, 0x2A, 0x4D, 0x18]) for low in range(0x50, 0x60))  # frames of zstandard that hold no data
_ZSTANDARD = (b"\x28\xb5\x2f\xfd", *SKIPPABLE)
MAGIC = {  # how a compressed file begins, by the ending of its name
    ".gz": (b"\x1f\x8b",),
    ".zst": _ZSTANDARD,
    ".zstd": _ZSTANDARD,
    ".xz": (b"\xfd7zXZ\0",),
    ".bz2": (b"BZh",),
}
PACKED = tuple(MAGIC)


class Damaged(Exception):
    """A stream breaks off; `split` sets `offset` to where the line starts that is incomplete."""

    offset = 0


def unpacked(file: str) -> str:
    """The name of a file without the ending that says how it is compressed."""
    return file[: -len(ending)] if (ending := os.path.splitext(file)[1]) in MAGIC else file


def check_opening(file: str) -> None:
    """Refuse a file that is, by its first bytes, something else than its name says; see `check_head`."""
    with contextlib.suppress(Damaged):  # who reads the file says where it breaks off
        check_head(next(chunks(file), b""), file)


def check_head(head: bytes, file: str) -> None:
    """Refuse the first bytes of another kind of file.

    Read as UTF-8, text in UTF-16 would mostly pass: every second byte of English is zero, which is a character too.

    Raises:
        InputError: text in UTF-16 or UTF-32, a pointer of Git LFS, a web page.
    """
    name = unpacked(file)
    is_text = not name.endswith(".parquet")
    if is_text and (head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")) or head[:64].count(0) > 16):
        raise InputError(f"{file} is not in UTF-8 but, as it looks, in UTF-16 or UTF-32; convert it: iconv -t UTF-8")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{file} is a pointer of Git LFS, not the data; fetch them with git lfs pull")
    page = head[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if page.startswith((b"<!doctype", b"<html")) and not name.endswith(".txt"):
        raise InputError(f"{file} is a web page, as a download leaves that needs a login; fetch the data again")


def chunks(file: str, start: int = 0) -> Iterator[bytes]:
    """The content of a file from byte `start` on (0 for compressed files), decompressed, at most 1 MB at a time.

    Raises:
        Damaged: a compressed file is cut short or altered; everything readable came before.
        InputError: the file cannot be opened or read.
    """
    try:
        with open(file, "rb", buffering=0) as f:
            ending = os.path.splitext(file)[1]
            if ending in READERS:
                yield from READERS[ending](f)
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
        pieces: chunks of a stream; the first one begins at offset `first`.
        first: at most start - 1, unless both are 0: the byte before `start` decides whether a line begins there.
        stop: None reads to the end.
        limit: bytes; of a longer line only the length is returned, and never more than a chunk is in memory.

    Raises:
        Damaged: from `pieces`, with the offset of the line that broke off.
    """
    stop = 1 << 62 if stop is None else stop
    # The line whose end has not come yet: its offset, its bytes so far (none once they are too many), their number.
    at, num_bytes = first, 0
    parts: list[bytes] = []
    try:
        for piece in pieces:
            ends = piece.split(b"\n")
            tail = ends.pop()
            if ends:
                head = ends[0]
                num_bytes += len(head)
                if at >= stop:
                    return
                if at >= start:
                    yield at, num_bytes if num_bytes > limit else b"".join([*parts, head]) if parts else head
                at += num_bytes + 1
                del ends[0]
                for line in ends:
                    if start <= at < stop:
                        yield at, line if len(line) <= limit else len(line)
                    at += len(line) + 1
                parts, num_bytes = [], 0
            num_bytes += len(tail)
            if num_bytes <= limit:
                parts.append(tail)
            else:
                parts.clear()
            if at >= stop or (at < start and at + num_bytes >= stop):  # nothing more can start here
                return
    except Damaged as e:
        e.offset = at
        raise
    if num_bytes and start <= at < stop:
        yield at, num_bytes if num_bytes > limit else b"".join(parts)


def _gzip(f: BinaryIO) -> Iterator[bytes]:
    """All members of a gzip file; zero bytes after the last one are padding.

    Python's gzip module would drop up to a buffer of good bytes before the damage, so members are walked here.
    """
    member, raw = zlib.decompressobj(wbits=31), b""  # 31: a gzip header, and the largest window
    is_new = True  # no byte of this member was read yet
    while True:
        raw = raw or f.read(CHUNK)
        if not raw:
            break
        if is_new:
            raw = raw.lstrip(b"\0")
            if not raw:
                continue
        is_new, before = False, member.copy()  # a decompressor that met damage gives nothing back of its last call
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
    while not is_new and not member.eof:  # the file has ended; the decompressor may still have output
        out = member.decompress(b"", CHUNK)
        if not out and not member.eof:
            raise Damaged("truncated gzip data")
        yield out


def _until_it_breaks(member: Any, raw: bytes, num_bytes: int = 64) -> Iterator[bytes]:
    """The output of `raw` up to its damage, in small steps, since the step that meets the damage is lost."""
    with contextlib.suppress(zlib.error):
        while out := member.decompress(raw, num_bytes):
            yield out
            raw = member.unconsumed_tail


def _zstandard(f: BinaryIO) -> Iterator[bytes]:
    """All frames of a zstandard file.

    The reader takes a frame that is cut between two blocks for a complete one, so `_is_whole` walks the headers.
    """
    # The window of zstd --long=31. It is a limit: memory is allocated for the window that a frame declares.
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
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
        descriptor = number(1)  # flags that say which fields the header has, and of how many bytes
        is_single = descriptor >> 5 & 1
        at += 2 - is_single + (0, 1, 2, 4)[descriptor & 3] + (is_single, 2, 4, 8)[descriptor >> 6]
        is_last = False
        while not is_last and at + 3 <= size:
            block = number(3)  # bit 0: the last one; bits 1-2: its type; the rest: its size
            is_last = bool(block & 1)
            at += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)  # type 1 repeats a single byte
        if not is_last:
            return False
        at += 4 * (descriptor >> 2 & 1)  # a checksum
    return at == size


def _streams(f: BinaryIO, name: str, open_fn: Callable[[], Any], step: int = 4096) -> Iterator[bytes]:
    """All streams of an .xz or .bz2 file, with zero bytes after one as padding.

    Python's decompressors lose the output of the call that meets damage, so a call returns no more than `step` bytes.

    Args:
        name: of the format, for messages.
        open_fn: makes a decompressor of one stream.
    """
    stream, raw, out = open_fn(), b"", bytearray()
    is_new = True  # no byte of this stream was read yet
    while True:
        # the decompressor keeps what it has not used of `raw`, and says whether it wants more
        raw = f.read(CHUNK) if not raw and stream.needs_input else raw
        if not raw and stream.needs_input:
            break
        if is_new and not (raw := raw.lstrip(b"\0")):
            continue
        is_new = False
        try:
            out += stream.decompress(raw, step)
        except (lzma.LZMAError, OSError, ValueError, EOFError) as e:
            yield bytes(out)
            raise Damaged(f"damaged {name} data: {e}") from e
        raw = b""
        if stream.eof:
            raw, stream, is_new = stream.unused_data, open_fn(), True
        if len(out) >= CHUNK:
            yield bytes(out)
            out.clear()
    yield bytes(out)
    if not is_new:
        raise Damaged(f"truncated {name} data")


def _xz(f: BinaryIO) -> Iterator[bytes]:
    return _streams(f, "xz", lzma.LZMADecompressor)


def _bzip2(f: BinaryIO) -> Iterator[bytes]:
    return _streams(f, "bzip2", bz2.BZ2Decompressor)


READERS: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    ".gz": _gzip,
    ".zst": _zstandard,
    ".zstd": _zstandard,
    ".xz": _xz,
    ".bz2": _bzip2,
}
