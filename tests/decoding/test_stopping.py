import itertools

import pytest

from alignment.decoding import stopping

PIECES = [b"a", b"b", b"ab", "\u00e9".encode()[:1], "\u00e9".encode()[1:], b"", b"\nUser"]


def feed(stops, tokens):
    matcher = stopping.Matcher(PIECES, stops)
    for number, token in enumerate(tokens):
        if (stop := matcher.feed(token)) is not None:
            return matcher.text, stop, number + 1
    return matcher.text, None, len(tokens)


@pytest.mark.parametrize(
    ("stops", "tokens", "wanted"),
    [
        (["bab"], [0, 2, 2, 0], (b"aa", "bab", 3)),  # across three tokens
        (["\u00e9"], [0, 3, 4, 0], (b"a", "\u00e9", 3)),  # across the two bytes of a letter
        (["b", "ab"], [2], (b"", "ab", 1)),  # the one that begins first
        (["User"], [0, 6], (b"a\n", "User", 2)),  # within a token
        (["x"], [0, 5, 1], (b"ab", None, 3)),
        ([], [0, 1], (b"ab", None, 2)),
        (["aa"], [0, 5, 0], (b"", "aa", 3)),  # a special token has no bytes
    ],
)
def test_an_answer_ends_before_the_stop_text(stops, tokens, wanted):
    assert feed(stops, tokens) == wanted


def test_bytes_that_may_begin_a_stop_text_are_not_safe_yet():
    for tokens in itertools.product(range(3), repeat=4):
        matcher, shown = stopping.Matcher(PIECES, ["aba"]), b""
        for token in tokens:
            stop = matcher.feed(token)
            assert matcher.text[: len(shown)] == shown  # nothing that was shown is ever taken back
            if stop is not None:
                break
            shown = matcher.text[: matcher.num_safe]
