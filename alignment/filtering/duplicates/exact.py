"""Keys under which equal texts, and equal identifiers, meet.

Dimensions: N documents, 2 = the two 64-bit words of a 128-bit key.
"""

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np

from alignment.filtering.duplicates import bands


def normalise(text: str) -> str:
    """Composed characters (NFC), one space for each run of white space, none at the ends; letters keep their case.

    What "the same text" means for exact duplicates: it looks the same. Anything looser is for MinHash to judge.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def keys(texts: Sequence[str]) -> np.ndarray:
    """First 128 bits of SHA-256 of each normalised text, uint64 [N, 2]; an empty text has bands.NO_KEY twice.

    128 bits, since a false match deletes a document: among 10^9 one happens with probability 1.5e-21. Written by
    `bands.write(path, keys_N2[:, None], index_N)`, one band of two-word keys.
    """
    return _keys([normalise(text) for text in texts])


def identifier_keys(sources: Sequence[str], ids: Sequence[str]) -> np.ndarray:
    """The same of (source, id), for finding identifiers used twice in a source."""
    return _keys([f"{len(source)}:{source}{name}" for source, name in zip(sources, ids, strict=True)])


def _keys(texts):
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16] for text in texts]
    keys_N2 = np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)
    keys_N2[[i for i, text in enumerate(texts) if not text]] = bands.NO_KEY
    return keys_N2
