"""Near duplicates of a list in memory, such as the requests of a set of prompts.

Candidates share a band of their MinHash signatures; the Jaccard similarity of their word shingles then decides.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

from alignment.errors import within
from alignment.filtering.duplicates import bands, minhash


def removed(
    texts: Sequence[str],
    *,
    threshold: float = 0.7,
    n_grams: int = 3,
    num_buckets: int = 32,
    hashes_per_bucket: int = 4,
    seed: int = 1,
) -> dict[int, int]:
    """Place of each text that is too like an earlier one that stays -> the place of that one.

    Of texts that stay no two reach the threshold, but for pairs that share no band: of similarity .7 that happens once
    in 6,000 (see `minhash.probability`).

    Args:
        threshold: Jaccard similarity from which on a text goes, in (0, 1].
        num_buckets, hashes_per_bucket: bands and rows; 32 x 4 = 128 permutations.
    """
    within("(0, 1]", threshold=threshold)
    settings = minhash.Settings(
        n_grams=n_grams, num_buckets=num_buckets, hashes_per_bucket=hashes_per_bucket, seed=seed
    )
    keys_NB = minhash.band_keys(minhash.signatures(texts, settings), settings)
    shingles = [_shingles(text, n_grams) for text in texts]
    staying: dict[tuple[int, int], list[int]] = defaultdict(list)  # (band, key) -> places of texts that stay
    out: dict[int, int] = {}
    for place, keys_B in enumerate(keys_NB.tolist()):
        own = [(band, key) for band, key in enumerate(keys_B) if key != int(bands.NO_KEY)]
        candidates = sorted({other for key in own for other in staying[key]})
        like = (other for other in candidates if _share(shingles[place], shingles[other]) >= threshold)
        earlier = next(like, None)
        if earlier is not None:
            out[place] = earlier
            continue
        for key in own:
            staying[key].append(place)
    return out


def _shingles(text: str, n: int) -> set[tuple[str, ...]]:
    """Word n-grams; a shorter text has one of all its words. Numbers stay, unlike those of a signature."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def _share(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b) if a or b else 0.0
