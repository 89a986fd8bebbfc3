"""Keys that are equal for equal texts, and for equal identifiers.

Dimensions: N documents, 2 = the two 64-bit words of a 128-bit key.
"""

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np

from alignment.filtering.duplicates import bands
from alignment.filtering.rules import arabic


def normalise(text: str) -> str:
    """Composed characters (NFC), one space for each run of white space, none at the ends; letters keep their case.

    Arabic letters come in one spelling (`arabic.letters`).

    Exact duplicates are texts that look the same; MinHash judges anything looser.
    """
    return " ".join(unicodedata.normalize("NFC", arabic.letters(text)).split())


def keys(texts: Sequence[str]) -> np.ndarray:
    """First 128 bits of SHA-256 of each normalised text, uint64 [N, 2]; an empty text has bands.NO_KEY twice.

    A false match deletes a document, hence 128 bits: among 10^9 documents one happens with probability 1.5e-21
    (n^2 / 2^129). `bands.write(path, keys_N2[:, None], index_N)` writes them as one band of two-word keys.
    """
    return _keys([normalise(text) for text in texts])


def identifier_keys(sources: Sequence[str], ids: Sequence[str]) -> np.ndarray:
    """The same for (source, id), to find identifiers that a source uses twice."""
    # The length in front keeps ("ab", "c") and ("a", "bc") apart.
    return _keys([f"{len(source)}:{source}{name}" for source, name in zip(sources, ids, strict=True)])


def _keys(texts: Sequence[str]) -> np.ndarray:
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16] for text in texts]
    keys_N2 = np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)
    # Empty texts would all be duplicates of each other.
    keys_N2[[i for i, text in enumerate(texts) if not text]] = bands.NO_KEY
    return keys_N2
