"""Safetensors files, read as views and written one tensor at a time.

The format (https://github.com/huggingface/safetensors): eight bytes of header length, little-endian; a JSON header with
dtype, shape and byte range of each tensor; the bytes. A folder holds `model.safetensors`, or several such files and
`model.safetensors.index.json`. Nothing is unpickled, and a tensor's bytes are read when its view is.
"""

import functools
import json
import math
import pathlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from alignment import files
from alignment.errors import InputError

INDEX = "model.safetensors.index.json"
MAIN = "model.safetensors"
ADAPTER = "adapter_model.safetensors"  # a LoRA adapter, in the layout of peft
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
COMPARED = 1 << 24  # numbers of two tensors that are compared at once
MAX_HEADER = 100_000_000  # bytes; the format's own limit


class Stored(NamedTuple):
    """Where one tensor lies."""

    file: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # byte in the file


def index(folder: str | pathlib.Path) -> dict[str, Stored]:
    """All tensors of a checkpoint folder; files that are missing, cut short or inconsistent are refused here.

    Of several files `model.safetensors` is read, as transformers does; others beside it (an adapter, another layout of
    the same weights) are left alone, and that is printed once.
    """
    folder = pathlib.Path(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if (folder / MAIN).is_file():
        _say_ignored(folder, MAIN, tuple(file.name for file in weights if file.name != MAIN))
        return header(folder / MAIN)
    if (folder / INDEX).is_file():
        return _indexed(folder)
    own = [file for file in weights if file.name != ADAPTER]
    if len(own) != 1:
        if weights and not own:
            raise InputError(
                f"{folder} holds {ADAPTER} alone, which changes another model; merge it into that model first "
                "(peft: model.merge_and_unload().save_pretrained(...))"
            )
        names = ", ".join(file.name for file in own) or "no *.safetensors"
        raise InputError(
            f"{folder} holds {names}; a checkpoint is one {MAIN}, or several files and {INDEX} "
            f"(pickled *.bin weights are never read: convert them with save_pretrained(..., safe_serialization=True))"
        )
    _say_ignored(folder, own[0].name, tuple(file.name for file in weights if file != own[0]))
    return header(own[0])


@functools.cache
def _say_ignored(folder: pathlib.Path, name: str, others: tuple[str, ...]) -> None:
    if others:
        print(f"{folder}: weights come from {name}; {', '.join(others)} beside it: not read", flush=True)


def _indexed(folder):
    try:
        places = json.loads((folder / INDEX).read_text())["weight_map"]
        places = {str(name): str(file) for name, file in places.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as e:
        raise InputError(f"{folder / INDEX} is not an index of tensors ({e!r}); download it again") from None
    others = {file.name for file in folder.glob("*.safetensors")} - set(places.values())
    _say_ignored(folder, f"the files in {INDEX}", tuple(sorted(others)))
    tensors: dict[str, Stored] = {}
    for file in sorted(set(places.values())):
        if not (folder / file).is_file():
            missing = next(name for name, place in places.items() if place == file)
            raise InputError(f"{folder / file} is missing; {INDEX} puts {missing} there. Download the folder again")
        tensors |= header(folder / file)
    for name, file in places.items():
        if name not in tensors:
            raise InputError(f"{folder / file} lacks {name}, which {INDEX} puts there. Download the folder again")
    return tensors


def header(file: pathlib.Path) -> dict[str, Stored]:
    """One file's tensors, each checked against the file's size."""
    size = file.stat().st_size
    with open(file, "rb") as f:
        length = struct.unpack("<Q", f.read(8))[0] if size >= 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER):
            raise InputError(
                f"{file} is truncated or not a safetensors file: a header of {length} bytes in a file of {size}"
            )
        try:
            entries = json.loads(f.read(length))
            entries.pop("__metadata__", None)
            return {name: _stored(file, name, entry, 8 + length, size) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            if isinstance(e, InputError):
                raise
            raise InputError(f"{file} has an unreadable safetensors header ({e!r}); download it again") from None


def _stored(file, name, entry, data_start, size):
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if entry["dtype"] in DTYPES:  # `view` refuses others (integers, 8-bit floats) when somebody reads them
        need = math.prod(shape) * DTYPES[entry["dtype"]].itemsize
        if end - start != need:
            raise InputError(f"{name} in {file} has {end - start} bytes; {entry['dtype']} {shape} takes {need}")
    if data_start + end > size:
        raise InputError(
            f"{file} is truncated: {name} ends at byte {data_start + end}, the file at {size}. Download it again"
        )
    return Stored(file, entry["dtype"], shape, data_start + start)


def view(name: str, stored: Stored) -> np.ndarray:
    """The tensor as a read-only view of the file: slicing it reads only what the slice needs."""
    if stored.dtype not in DTYPES:
        raise InputError(
            f"{name} in {stored.file} is {stored.dtype}, and only {', '.join(DTYPES)} are supported; "
            "use the checkpoint's unquantised version"
        )
    dtype = DTYPES[stored.dtype]
    num_bytes = math.prod(stored.shape) * dtype.itemsize
    if num_bytes == 0:
        return np.zeros(stored.shape, dtype)
    raw = np.memmap(stored.file, np.uint8, mode="r", offset=stored.start, shape=(num_bytes,))
    return raw.view(dtype).reshape(stored.shape)


def same_values(name: str, a: Stored, b: Stored) -> bool:
    """Whether two tensors are equal; the files are read in blocks, up to the first difference."""
    if a.shape != b.shape:
        return False
    flat_a, flat_b = (view(name, stored).reshape(-1) for stored in (a, b))
    blocks = range(0, flat_a.size, COMPARED)
    return all(np.array_equal(flat_a[at : at + COMPARED], flat_b[at : at + COMPARED]) for at in blocks)


def plan(shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, max_shard_bytes: int) -> dict[str, list[str]]:
    """Which tensors go to which file, in the order given; a tensor over the limit gets a file of its own."""
    shards: list[list[str]] = [[]]
    used = 0  # bytes of the last shard
    for name, shape in shapes.items():
        num_bytes = math.prod(shape) * dtype.itemsize
        if shards[-1] and used + num_bytes > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += num_bytes
    if len(shards) == 1:
        return {MAIN: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, 1)}


def write(
    file: str | pathlib.Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, arrays: Iterable[np.ndarray]
) -> None:
    """Write one file, which appears whole or not at all.

    Args:
        shapes: of each tensor by its name.
        arrays: yields the tensors in the order of `shapes`, so only one needs to exist at a time.
    """
    with files.replacing(file) as f:
        reserve(f, shapes, dtype)
        for (name, shape), array in zip(shapes.items(), arrays, strict=True):
            if array.shape != tuple(shape) or array.dtype != dtype:
                raise ValueError(f"{name}: {array.dtype} {array.shape} does not match the header, {dtype} {shape}")
            f.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def reserve(f: BinaryIO, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> dict[str, int]:
    """Write the header of an empty file, make it as long as its tensors need, and return where each begins."""
    names = {stored: name for name, stored in DTYPES.items()}
    if dtype not in names:
        raise InputError(f"dtype={dtype} cannot be written; {', '.join(str(d) for d in names)} can")
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned, as the format asks
    f.write(struct.pack("<Q", len(text)) + text)
    f.flush()
    first = f.tell()
    f.truncate(first + at)
    return {name: first + entries[name]["data_offsets"][0] for name in shapes}


def write_index(folder: pathlib.Path, shards: Mapping[str, list[str]], total_bytes: int) -> None:
    """The index beside several files; a single file needs none."""
    if len(shards) > 1:
        places = {name: file for file, names in shards.items() for name in names}
        text = json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": places}, indent=2)
        (folder / INDEX).write_text(text + "\n")
