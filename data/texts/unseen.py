"""Requests to train on and to test on, with topics and styles of attack that training never meets.

All renderings of a request stay on one side, since one that was trained on would give the others away. Of the tests
each has a cell: its topic was trained on or not, and so was its style (Garcia-Gasulla et al. 2025, arXiv:2502.13603).
"""

import dataclasses
import random
from collections.abc import Collection, Mapping, Sequence

import xxhash

from alignment import errors
from alignment.errors import InputError, within
from data.texts.suites import PLAIN, Case

CELLS = ("seen_topic_seen_style", "seen_topic_unseen_style", "unseen_topic_seen_style", "unseen_topic_unseen_style")
PLAIN_CELL = "plain"  # the request without an attack, which is reported apart


@dataclasses.dataclass(frozen=True)
class Split:
    """Both sides of a set.

    Attributes:
        train: of training requests, in styles that are seen.
        test: all renderings of test requests.
        unseen_topics, unseen_styles: sorted; () where the set has too few to hold any back.
        num_left_out: renderings of training requests in unseen styles, which are on neither side.
    """

    train: tuple[Case, ...]
    test: tuple[Case, ...]
    unseen_topics: tuple[str, ...]
    unseen_styles: tuple[str, ...]
    num_left_out: int

    def cell(self, case: Case) -> str:
        """One of CELLS, or PLAIN_CELL. A topic is unseen where any of the case's topics is."""
        if case.style == PLAIN:
            return PLAIN_CELL
        is_topic_seen = not set(case.topics) & set(self.unseen_topics)
        is_style_seen = case.style not in self.unseen_styles
        return f"{'seen' if is_topic_seen else 'unseen'}_topic_{'seen' if is_style_seen else 'unseen'}_style"


def check(*, test_share: float, topic_share: float, num_unseen_styles: int) -> None:
    """Refuse settings of `split` that no set of cases could take."""
    within("(0, 1)", test_share=test_share)
    within("[0, 1)", topic_share=topic_share)
    within("[0, inf)", num_unseen_styles=num_unseen_styles)


def split(
    cases: Sequence[Case],
    *,
    test_share: float = 0.2,
    topic_share: float = 0.2,
    num_unseen_styles: int = 6,
    unseen_topics: Collection[str] | None = None,
    unseen_styles: Collection[str] | None = None,
    topic_groups: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Split:
    """Hold back topics, styles and requests.

    Args:
        test_share: of the requests of seen topics, in (0, 1); a hash of the seed and the request's id draws them.
        topic_share: of the rows, at most so many have an unseen topic; where the smallest topic has more, it alone is
            unseen. A set with fewer than two topics holds back none.
        num_unseen_styles: drawn from the styles of attack; a set without attacks holds back none.
        unseen_topics, unseen_styles: instead of drawing them.
        topic_groups: topic -> group; whole groups are then held back.
        seed: of all draws.

    Raises:
        InputError: a name that the cases do not have, as many styles held back as there are, or an empty side.
    """
    check(test_share=test_share, topic_share=topic_share, num_unseen_styles=num_unseen_styles)
    topics_of: dict[str, set[str]] = {}
    for case in cases:  # renderings of one request may name different topics
        topics_of.setdefault(case.request, set()).update(case.topics)
    topics = sorted(set().union(*topics_of.values())) if topics_of else []
    styles = sorted({case.style for case in cases} - {PLAIN})
    if unseen_topics is None:
        unseen_topics = _topics(cases, topics_of, topics, topic_groups or {}, topic_share, seed)
    for topic in unseen_topics:
        errors.one_of("unseen topic", topic, topics)
    if unseen_styles is None:
        unseen_styles = _styles(styles, num_unseen_styles, seed)
    for style in unseen_styles:
        errors.one_of("unseen style", style, styles)
    tested = {request for request, own in topics_of.items() if own & set(unseen_topics)}
    tested |= _requests(sorted(set(topics_of) - tested), test_share, seed)
    test = tuple(case for case in cases if case.request in tested)
    rest = [case for case in cases if case.request not in tested]
    train = tuple(case for case in rest if case.style not in unseen_styles)
    if not train or not test:
        raise InputError(
            f"{len(train)} rows to train on and {len(test)} to test on are left of {len(cases)} rows of "
            f"{len(topics_of)} requests, with {len(unseen_topics)} topics and {len(unseen_styles)} styles held back; "
            "hold back less, or give more requests"
        )
    # every rendering has the topics of its request, so that its cell is that of the request's side
    test = tuple(dataclasses.replace(case, topics=tuple(sorted(topics_of[case.request]))) for case in test)
    train = tuple(dataclasses.replace(case, topics=tuple(sorted(topics_of[case.request]))) for case in train)
    return Split(train, test, tuple(sorted(unseen_topics)), tuple(sorted(unseen_styles)), len(rest) - len(train))


def _topics(
    cases: Sequence[Case],
    topics_of: Mapping[str, set[str]],
    topics: Sequence[str],
    groups: Mapping[str, str],
    share: float,
    seed: int,
) -> set[str]:
    units: dict[str, set[str]] = {}
    for topic in topics:
        units.setdefault(groups.get(topic, topic), set()).add(topic)
    if len(units) < 2 or share == 0:
        return set()

    def mass(unseen: set[str]) -> int:
        return sum(bool(topics_of[case.request] & unseen) for case in cases)

    names = sorted(units)
    random.Random(f"unseen topics {seed}").shuffle(names)
    unseen: set[str] = set()
    for name in names:
        if mass(unseen | units[name]) <= share * len(cases):
            unseen |= units[name]
    return unseen or units[min(names, key=lambda name: mass(units[name]))]


def _styles(styles: Sequence[str], num: int, seed: int) -> list[str]:
    if not styles:
        return []
    if num >= len(styles):
        raise InputError(f"num_unseen_styles={num} of {len(styles)} styles leaves none to train on; hold back fewer")
    return random.Random(f"unseen styles {seed}").sample(styles, num)


def _requests(requests: Sequence[str], share: float, seed: int) -> set[str]:
    ordered = sorted(requests, key=lambda request: xxhash.xxh64_intdigest(f"{seed} {request}".encode()))
    return set(ordered[: max(1, round(share * len(ordered)))])
