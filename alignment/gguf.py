"""llama.cpp's GGUF files: metadata, and tensors that are dequantised when somebody reads them.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) is read by llama.cpp's own package `gguf` (MIT),
an extra: pip install 'plumbline[gguf]'. A model split over several files (`NAME-00001-of-00003.gguf`) is read as one.
"""

import functools
import importlib.util
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from alignment.errors import InputError

QUANTISATIONS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


class Quantised(NamedTuple):
    """One tensor as it lies in a file."""

    file: pathlib.Path
    name: str
    dtype: str  # a key of QUANTISATIONS
    shape: tuple[int, ...]  # in the order of PyTorch and numpy, which is the reverse of GGUF's
    raw: np.ndarray  # a view of the file

    def array(self) -> np.ndarray:
        """The tensor's values, float32."""
        import gguf

        if self.dtype == "F32":
            return self.raw.reshape(self.shape)
        values = gguf.quants.dequantize(self.raw, gguf.GGMLQuantizationType[self.dtype])
        return values.astype(np.float32, copy=False).reshape(self.shape)


class Model(NamedTuple):
    """The content of one GGUF model, over all of its files."""

    file: pathlib.Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Quantised]

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata; a key that begins with a dot belongs to the architecture, such as `.block_count`."""
        return self.metadata.get(self.architecture + key if key.startswith(".") else key, default)

    def need(self, key: str) -> Any:
        """`get` of a value that the model cannot do without."""
        value = self.get(key)
        if value is None:
            raise InputError(
                f"{self.file} lacks the metadata {key.removeprefix('.')!r}; convert the model to GGUF anew"
            )
        return value

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))


def check(path: str) -> None:
    """Refuse a model whose files are missing, or the package that reads them, without opening one."""
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"reading {path} needs llama.cpp's package: pip install 'plumbline[gguf]'")
    _parts(pathlib.Path(path).expanduser())


@functools.lru_cache(maxsize=2)
def read(path: str) -> Model:
    """Metadata and tensors of a model; no tensor is dequantised yet.

    Raises:
        InputError: the file is missing, truncated or not GGUF, a part of a split model is missing, a tensor has a
            quantisation that is not in QUANTISATIONS, or the package `gguf` is not installed.
    """
    check(path)
    import gguf

    metadata: dict[str, Any] = {}
    tensors: dict[str, Quantised] = {}
    for file in _parts(pathlib.Path(path).expanduser()):
        try:
            reader = gguf.GGUFReader(file)
            metadata = {name: field.contents() for name, field in reader.fields.items()} | metadata
            for tensor in reader.tensors:
                shape = tuple(int(n) for n in reversed(tensor.shape))
                tensors[tensor.name] = Quantised(file, tensor.name, tensor.tensor_type.name, shape, tensor.data)
        except (ValueError, IndexError, KeyError, OverflowError, TypeError) as e:  # what the reader raises on damage
            raise InputError(f"{file} is truncated or not a GGUF file ({e}); download it again") from e
    for quantised in tensors.values():
        if quantised.dtype not in QUANTISATIONS:
            raise InputError(
                f"{quantised.name} in {quantised.file} is quantised as {quantised.dtype}; supported are "
                f"{', '.join(QUANTISATIONS)}: take another file of the same model, such as its Q8_0 or Q4_K_M"
            )
    return Model(pathlib.Path(path), metadata, tensors)


def _parts(file: pathlib.Path) -> list[pathlib.Path]:
    """The files of a model: itself, or all parts of a split one, the first of which has the metadata."""
    if not file.is_file():
        raise InputError(f"{file} is not there; give the path of a .gguf file, as gguf:FILE")
    split = _SPLIT.search(file.name)
    if not split:
        return [file]
    stem, number = file.name[: split.start()], int(split[2])
    parts = [file.with_name(f"{stem}-{i:05d}-of-{number:05d}.gguf") for i in range(1, number + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise InputError(f"{file} is one part of {number}; {', '.join(missing[:3])} is missing beside it")
    return parts
