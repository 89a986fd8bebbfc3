"""One picture from a file, decoded to RGB bytes; damaged files are recognised from their header and their end.

Dimensions: Y X rows and columns, 3 red, green, blue.
"""

import contextlib
import dataclasses
import io
import pathlib
import threading
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.PngImagePlugin
import xxhash

from alignment.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MAX_PIXELS = 1 << 30  # of one picture; Pillow's own limit stops at 179 million and MAMe has larger ones
# first bytes of a JPEG or PNG -> the mark at the end of a complete file, and the bytes from the end that hold it
ENDS = {b"\xff\xd8": (b"\xff\xd9", 64), b"\x89P": (b"IEND", 64)}
_bomb_limit = threading.Lock()
# Pillow refuses a PNG with more than 1 MB of text, which editors write as XMP. The text may stand behind the pixels, so
# that the limit must be up while they are decoded, too.
PIL.PngImagePlugin.MAX_TEXT_CHUNK = 1 << 26
PIL.PngImagePlugin.MAX_TEXT_MEMORY = 1 << 27
WHOLE, PIECE = 1 << 20, 1 << 18  # bytes: files up to WHOLE are hashed as a whole, of larger ones four pieces
FULL = (255, 1_023, 4_095, 16_383, 65_535)  # white of 8, 10, 12, 14 and 16 bits


@dataclasses.dataclass(frozen=True)
class Header:
    """Size and mode of a picture, read before any pixel is decoded."""

    width: int
    height: int
    mode: str  # Pillow's: 'RGB', 'L', 'CMYK', 'RGBA', 'P', 'I;16', ...


def header(source: str | pathlib.Path | bytes | BinaryIO, *, name: str = "") -> Header:
    """Size and mode; refuses a file that is not a picture, is cut short, or has more than `MAX_PIXELS`.

    Args:
        source: a path, a file's bytes, or a stream, whose end is not checked.
        name: of the file in messages, where `source` is not a path.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    name = name or _name(source)
    with _opened(io.BytesIO(source) if isinstance(source, bytes) else source, name) as picture:
        head = Header(*picture.size, picture.mode)
    if not isinstance(source, str | pathlib.Path | bytes):
        return head
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as f:
        start = f.read(2)
        if start in ENDS:
            mark, reach = ENDS[start]
            size = f.seek(0, io.SEEK_END)
            f.seek(max(size - reach, 0))
            if mark in f.read():
                return head
            f.seek(0)  # the file is cut short, or has something behind the picture: only decoding shows which
            try:
                read(f.read())
            except InputError as e:
                raise InputError(
                    f"{name} is cut short: the end of the picture is missing; fetch it again, or remove it"
                ) from e
    return head


def read(source: str | pathlib.Path | bytes, *, at_least: tuple[int, int] | None = None, name: str = "") -> np.ndarray:
    """The picture as RGB, uint8 [Y, X, 3].

    Grey, palette, CMYK and YCCK pictures are converted, transparency is laid on white, whole numbers of 16 or 32 bits
    are scaled by the fewest bits that hold the largest, floating-point pictures by their largest value, and where there
    are negative values from the least to the largest; NaN and infinity are an error.

    Of several frames the first is taken.  A camera's orientation
    (EXIF) is not applied, as in the papers' code: pixels are taken as they are stored.

    Args:
        source: a path, or a file's bytes.
        at_least: (width, height) that is enough; a larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that
            is no smaller.
        name: of the file in messages, where `source` is not a path.

    Raises:
        InputError: naming the file, when it cannot be decoded to its end.
    """
    name = name or _name(source)
    with _opened(io.BytesIO(source) if isinstance(source, bytes) else source, name) as picture:
        if at_least is not None:  # only JPEG can be decoded at a fraction of its size; others ignore it
            picture.draft(None, at_least)
        try:
            return np.asarray(rgb(picture))
        except (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError) as e:
            raise InputError(f"{name} cannot be decoded: {e}; fetch it again, or remove it") from e


def digest(path: str | pathlib.Path) -> int:
    """A hash of a file's bytes, 64 bits: equal files have equal ones.

    Of a file of more than a megabyte its length and four pieces from its start to its end are hashed, so that a data
    set of 100 GB is not read once more at every start. A picture that is encoded anew differs in all of them.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with open(path, "rb") as f:
            size = f.seek(0, io.SEEK_END)
            starts = [0] if size <= WHOLE else [(size - PIECE) * k // 3 for k in range(4)]
            content = xxhash.xxh3_64(str(size))
            for start in starts:
                f.seek(start)
                content.update(f.read(WHOLE if size <= WHOLE else PIECE))
            return content.intdigest()
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e}") from e


def rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A picture of any mode as RGB."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        picture.load()
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        low, high = _range(np.asarray(picture), picture.mode)
        # Pillow's own conversion would clip 16 bits at 255
        grey = np.clip((np.asarray(picture, np.float64) - low) / (high - low) * 255 + 0.5, 0, 255).astype(np.uint8)
        return PIL.Image.fromarray(grey).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        paper = PIL.Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(paper, picture).convert("RGB")
    return picture.convert("RGB")


def _range(values: np.ndarray, mode: str) -> tuple[float, float]:
    """The values that become black and white; a warning says where they are not those of the file's type."""
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinity")
    low, high = float(values.min()), float(values.max())
    if low < 0:
        warnings.warn("pictures with negative values are read from their least to their largest value", stacklevel=3)
        return low, max(high, low + 1e-12)
    if mode == "F":
        return 0.0, max(high, 1e-12)
    full = next((full for full in FULL if high <= full), high)
    if full != FULL[-1]:
        warnings.warn(
            f"pictures of 16 or 32 bits whose values end below {full + 1:.0f} are read with {full:.0f} as white",
            stacklevel=3,
        )
    return 0.0, float(full)


@contextlib.contextmanager
def _opened(content: str | pathlib.Path | BinaryIO, name: str) -> Iterator[PIL.Image.Image]:
    """The file opened by Pillow with its limit on pixels raised to ours, here and nowhere else."""
    try:
        with _bomb_limit:  # Pillow's limit is a global, and pictures are opened in threads
            limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, MAX_PIXELS
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
                    picture = PIL.Image.open(content)
            finally:
                PIL.Image.MAX_IMAGE_PIXELS = limit
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as e:
        raise InputError(f"{name} has more than {MAX_PIXELS:,} pixels; make it smaller first") from e
    except (OSError, SyntaxError, ValueError) as e:
        reason = "is not there" if isinstance(e, FileNotFoundError) else "is not a picture that can be read"
        raise InputError(f"{name} {reason}; known kinds are {', '.join(SUFFIXES)}") from e
    with picture:
        yield picture


def _name(source: str | pathlib.Path | bytes | BinaryIO) -> str:
    return str(source) if isinstance(source, str | pathlib.Path) else "these bytes"
