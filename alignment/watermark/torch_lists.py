"""Green lists as torch's CPU generator draws them, in numpy: what public implementations need to be read.

torch.randperm seeds a Mersenne twister with the low 32 bits of its seed, and for i = 0, 1, ... swaps the entries i and
i + (next 32 bits mod (size - i)). A CUDA generator draws other lists, and text marked there cannot be read here.
"""

import functools

import numpy as np

TABLE_SIZE = 1_000_003  # entries of the permutation that min and self hash look tokens up in
KGW_TABLE_SEED = 2_971_215_073


def raw(seed: int, num: int) -> np.ndarray:
    """The first numbers of the twister, uint32; `seed` counts modulo 2^32."""
    return np.random.RandomState(seed % (1 << 32)).randint(0, 1 << 32, dtype=np.uint32, size=num)


def partners(size: int, num: int, seed: int) -> np.ndarray:
    """The entry that each of the first `num` entries is swapped with."""
    places = np.arange(num)
    return places + (raw(seed, num) % (size - places).astype(np.uint32)).astype(np.int64)


def first(size: int, num: int, seed: int) -> np.ndarray:
    """The first `num` entries of torch.randperm(size) with a generator of this seed."""
    order = list(range(size))
    for i, j in enumerate(partners(size, num, seed).tolist()):
        order[i], order[j] = order[j], order[i]
    return np.array(order[:num], np.int64)


def holds(size: int, num: int, seed: int, entry: int) -> bool:
    """Whether `first` has this entry; follows the one entry and makes no list."""
    swapped_with = partners(size, num, seed)
    at, begin = entry, 0
    while True:
        # a swap with an earlier place ends the entry's way there, inside the list
        if np.any(swapped_with[begin : min(at, num)] == at):
            return True
        if at >= num:
            return False
        begin, at = at + 1, int(swapped_with[at])
        if at == begin - 1:
            return True


@functools.lru_cache(maxsize=4)
def table(seed: int, size: int = TABLE_SIZE) -> np.ndarray:
    """torch.randperm(size) as a look-up table; a second for a million entries."""
    out = first(size, size, seed)
    out.setflags(write=False)
    return out
