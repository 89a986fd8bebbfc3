"""The same tensor of several models, read from memory maps as blocks of float32 and rounded back.

Dimensions: K models, B entries of a block.  A tensor is flat here; a block is some of its entries, in their order.
"""

import dataclasses
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from alignment.errors import InputError

BLOCK = 1 << 17  # entries: what a core works on stays in its cache, and a large tensor never lies in memory in float32
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
EXPONENTS = {  # the bits of an exponent, all of them set in infinities and in what is not a number
    np.dtype(np.float32): (np.uint32, 0x7F800000),
    np.dtype(np.float16): (np.uint16, 0x7C00),
    BFLOAT16: (np.uint16, 0x7F80),
}
_own = threading.local()


def scratch(name: str, num: int) -> np.ndarray:
    """Memory of this thread for `num` numbers of 32 bits; what lay there under that name is overwritten.

    A new array of a block's size comes from the kernel and goes back to it, and clearing its pages takes several times
    as long as the arithmetic on them.
    """
    array = getattr(_own, name, None)
    if array is None or array.size < num:
        array = np.empty(max(num, BLOCK), np.float32)
        setattr(_own, name, array)
    return array[:num]


def to_float32(raw_B: np.ndarray, out_B: np.ndarray) -> None:
    """Write a block of any float type into one of float32."""
    if raw_B.dtype == BFLOAT16:  # its bits are the upper half of a float32's; ml_dtypes' own cast is slower
        bits_B = out_B.view(np.uint32)
        bits_B[...] = raw_B.view(np.uint16)
        bits_B <<= 16
    else:
        out_B[...] = raw_B


def from_float32(block_B: np.ndarray, out_B: np.ndarray) -> None:
    """Round a block of float32, to nearest with ties to even, into one of any float type."""
    if out_B.dtype == BFLOAT16:
        rounded_B = scratch("rounded", block_B.size).view(np.uint32)
        np.right_shift(block_B.view(np.uint32), 16, out=rounded_B)
        rounded_B &= 1
        rounded_B += 0x7FFF
        rounded_B += block_B.view(np.uint32)
        rounded_B >>= 16
        out_B.view(np.uint16)[...] = rounded_B
    else:
        with np.errstate(over="ignore"):  # `merge` refuses what a narrower type cannot hold
            out_B[...] = block_B


def is_finite(raw: np.ndarray) -> bool:
    """Whether a block has neither infinities nor not-a-numbers, by the bits of the exponents."""
    if raw.dtype not in EXPONENTS:
        return bool(np.isfinite(raw).all())
    kind, exponent = EXPONENTS[raw.dtype]
    return raw.size == 0 or int((raw.view(kind) & kind(exponent)).max()) < exponent


@dataclasses.dataclass(frozen=True)
class Sources:
    """One tensor of K models; where there is a base, the differences from it.

    Attributes:
        views: of equal shape, of any float type, contiguous.
        base: what the others differ from; None: the tensors themselves are merged.
        by_rows: whether a block holds whole rows (the last dimension), for methods that look at a row at a time.
    """

    views: Sequence[np.ndarray]
    base: np.ndarray | None
    by_rows: bool = False

    @property
    def num_models(self) -> int:
        return len(self.views)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.views[0].shape

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def row(self) -> int:
        """Entries of a row."""
        return self.shape[-1] if self.shape else 1

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Entries [start, stop): of each model `[K, B]`, less the base where there is one, and of the base `[B]`.

        They lie in memory that the thread's next call overwrites.
        """
        block_KB = scratch("models", self.num_models * (stop - start)).reshape(self.num_models, -1)
        for block_B, view in zip(block_KB, self.views):
            to_float32(view.reshape(-1)[start:stop], block_B)
        if self.base is None:
            return block_KB, None
        base_B = scratch("base", stop - start)
        to_float32(self.base.reshape(-1)[start:stop], base_B)
        for block_B in block_KB:
            block_B -= base_B
        return block_KB, base_B

    def only(self, model: int) -> "Sources":
        """The same of one model."""
        return dataclasses.replace(self, views=self.views[model : model + 1])

    def places(self) -> list[tuple[int, int]]:
        """Start and stop of all blocks."""
        step = max(1, BLOCK // self.row) * self.row if self.by_rows and self.row else BLOCK
        return [(start, min(start + step, self.size)) for start in range(0, self.size, step)]

    def map(self, block_fn: Callable[[int, int], Any]) -> list[Any]:
        """What a function returns of each block, in the blocks' order."""
        return [block_fn(*place) for place in self.places()]


def check_fits(name: str, out: np.ndarray) -> None:
    """Refuse a tensor that a narrower type cannot hold.

    Raises:
        InputError: with the tensor's name.
    """
    if not is_finite(out):
        raise InputError(f"{name}: merged values lie beyond the largest {out.dtype}; set dtype: bfloat16 in the recipe")
