"""Questions with options in a shuffled order: what is displayed, what an answer means, which answer wins a vote.

A question's options have letters, A, B, ... An order is a string of these letters: at place j stands the letter of the
option whose text is displayed under the j-th letter. Under "BDAC" the text of B is displayed as A.
"""

import itertools
import random
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from alignment.errors import InputError, one_of

MARKER = "\nAnswer: "  # an answer stands in brackets behind the last of these
MOST_LISTED = 6  # options whose orders are all written down: 720
FIRST_SEEN, FIRST_REACHED, LIKELIEST = "first_seen", "first_reached", "likeliest"
TIES = (FIRST_SEEN, FIRST_REACHED, LIKELIEST)


def letters(num: int) -> str:
    """The letters of so many options."""
    return string.ascii_uppercase[:num]


def orders(num: int, key: str, *, repeats_identity: bool = False) -> Iterator[str]:
    """Orders of a question's options without end, none twice before all have been used.

    Args:
        num: of options.
        key: of the draw, such as a seed with the question's id.
        repeats_identity: once all orders have been used, give the options' own order for ever, as the reference does;
            False begins another round of all.
    """
    own = letters(num)
    rng = random.Random(f"orders {key}")
    if num > MOST_LISTED:  # more orders than anybody draws
        used: set[str] = set()
        while True:
            order = "".join(rng.sample(own, num))
            if order not in used:
                used.add(order)
                yield order
    every = ["".join(order) for order in itertools.permutations(own)]
    while True:
        rng.shuffle(every)
        yield from every
        if repeats_identity:
            yield from itertools.repeat(own)


def unshuffle(answer: str, order: str) -> str:
    """The letter of the option that is displayed under `answer`."""
    return order[letters(len(order)).index(answer)]


def shuffle(letter: str, order: str) -> str:
    """The letter under which an option is displayed."""
    return letters(len(order))[order.index(letter)]


def parse(reply: str, order: str, *, compatible: bool = False) -> str | None:
    """The option that a reply chooses, by its own letter; None where it names none.

    Behind the last "Answer: " that begins a line, the last displayed letter in brackets counts.

    Args:
        compatible: read as the reference does: a reply without "Answer: " is read whole, and of several letters the
            one counts that stands last in `order`, not in the reply.
    """
    displayed = letters(len(order))
    if compatible:
        tail = reply.rpartition(MARKER)[2]
        named = [letter for letter in order if f"[{letter}]" in tail]
    else:
        _, marker, tail = f"\n{reply}".rpartition(MARKER)
        named = re.findall(rf"\[([{displayed}])\]", tail) if marker else []
    return unshuffle(named[-1], order) if named else None


def parse_text(reply: str, texts: Mapping[str, str]) -> str | None:
    """The option whose text a reply names last; None where it names none.

    A text counts as whole words, in any case, and not where it is part of a longer option's.

    Args:
        texts: of the options by their own letters; of equal texts the first letter counts.
    """
    letters_of: dict[str, str] = {}
    for letter, text in texts.items():
        letters_of.setdefault(text.strip().casefold(), letter)
    longest_first = sorted(letters_of, key=len, reverse=True)
    pattern = "|".join(re.escape(text) for text in longest_first if text)
    named = re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", reply.casefold())
    return letters_of[named[-1]] if named else None


def vote(
    answers: Sequence[str | None], *, ties: str = FIRST_SEEN, logprobs: Sequence[float] | None = None
) -> tuple[str | None, bool]:
    """The most frequent answer, and whether others were as frequent.

    Args:
        answers: in the order of the draws; those that are None do not vote.
        ties: which of equally frequent answers wins: `first_seen`, the one drawn first, as in the reference;
            `first_reached`, the one that had so many votes first; `likeliest`, by its mean log-probability.
        logprobs: of each draw's reply, in nats, for `likeliest`.

    Returns:
        None where no answer votes.
    """
    one_of("ties", ties, TIES)
    counts: Counter[str] = Counter()
    reached: dict[str, list[int]] = {}  # the draws at which an answer had 1, 2, ... votes
    for draw, answer in enumerate(answers):
        if answer is not None:
            counts[answer] += 1
            reached.setdefault(answer, []).append(draw)
    if not counts:
        return None, False
    most = max(counts.values())
    best = [answer for answer in counts if counts[answer] == most]  # in the order in which they were seen
    if ties == FIRST_REACHED:
        best.sort(key=lambda answer: reached[answer][-1])
    elif ties == LIKELIEST:
        if logprobs is None:
            raise InputError("ties='likeliest' needs the log-probability of every reply, and this responder gives none")
        best.sort(key=lambda answer: -sum(logprobs[draw] for draw in reached[answer]) / most)
    return best[0], len(best) > 1
