"""Pairs of a target's unsafe answers with safe answers to the same requests, and a sample of them.

What a target is trained on is its own: the rejected side is what it said itself, the chosen side comes from elsewhere
(Garcia-Gasulla et al. 2025, arXiv:2502.13603).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import xxhash

from data.texts.egida import UNSAFE, Pair, SafeAnswer
from data.texts.suites import Case


def pair_up(
    cases: Sequence[Case],
    responses: Sequence[str],
    verdicts: Sequence[str],
    safe_answers: Mapping[str, SafeAnswer],
    *,
    target_model: str,
    counts: dict[str, int],
) -> list[Pair]:
    """A pair of each unsafe response whose request has a safe answer.

    Args:
        cases: rendered requests; responses: what the target said to each; verdicts: `safe`, `unsafe` or `invalid`.
        safe_answers: `Case.request` -> its safe answer.
        counts: receives why the others gave no pair.
    """

    def drop(what: str) -> None:
        counts[what] = counts.get(what, 0) + 1

    pairs = []
    for case, response, verdict in zip(cases, responses, verdicts, strict=True):
        safe = safe_answers.get(case.request)
        if verdict != UNSAFE:
            drop(f"answers that are {verdict}, not paired")
        elif safe is None:
            drop("unsafe answers to requests without a safe answer")
        elif not response.strip():
            drop("unsafe answers that are empty")
        elif response.strip() == safe.text.strip():
            drop("pairs of one answer")
        else:
            both = dict(chosen=safe.text, rejected=response, target_model=target_model, chosen_model=safe.model)
            pairs.append(Pair(case.request, case.prompt, style=case.style, topics=case.topics, **both))
    return pairs


def sampled(pairs: Sequence[Pair], n: int | None, *, seed: int = 0) -> list[Pair]:
    """`n` of them in proportion to their (style, first topic); all where there are fewer, or n is None.

    The pairs of a smaller n are among those of a larger one, and the order of the input does not matter.
    """

    def hashed(*parts: str) -> int:
        return xxhash.xxh64_intdigest("\0".join((str(seed), *parts)).encode("utf-8", "surrogatepass"))

    def of(pair: Pair) -> int:
        return hashed(pair.uuid, pair.style, pair.prompt, pair.rejected)

    strata: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for pair in pairs:
        strata[pair.style, pair.topics[0] if pair.topics else ""].append(pair)
    placed = []
    for key, members in strata.items():
        # Members spread evenly over [0, 1), so that every cut takes the same share of each stratum. A random start
        # gives strata of one pair, which have a single place, their share on average.
        start = hashed("start", *key) / 2**64
        placed += [((i + start) / len(members), of(pair), pair) for i, pair in enumerate(sorted(members, key=of))]
    placed.sort(key=lambda one: one[:2])
    return [pair for _, _, pair in placed[:n]]
