from hypothesis import given
from hypothesis import strategies as st

from alignment.decoding import stopping
from alignment.decoding.requests import Token
from experiments.serving import text
from experiments.serving.driving import Event

PIECES = [
    b"a",
    b"b",
    b" b",
    b"",
    b"ab",
    "é".encode(),
    "é".encode()[:1],
    "é".encode()[1:],
    "€".encode()[:2],
    b"\xac",
    b"\xff",
]
STOPS = ["b", "ab", "éa", "€", "bb a"]


def events_of(ids, stops, cuts, limit_reason="length", stop_id=None):
    """An answer's events as the engine would send them: the tokens in groups, up to what ends the answer."""
    matcher, groups, group = stopping.Matcher(PIECES, stops), [], []
    for k, i in enumerate(ids):
        group.append(Token(i, -float(k)))
        is_stop_id = i == stop_id
        stop = i if is_stop_id else matcher.feed(i)
        is_last = stop is not None or k == len(ids) - 1
        if is_last or k in cuts:
            reason = "stop" if stop is not None else limit_reason if is_last else ""
            groups.append(Event(0, group, matcher.text, is_last, reason, stop))
            group = []
        if is_last:
            break
    return groups


@given(
    st.lists(st.integers(0, len(PIECES)), min_size=1, max_size=12),  # one id has no piece
    st.lists(st.sampled_from(STOPS), max_size=3),
    st.sets(st.integers(0, 11)),
    st.sampled_from([None, 1, 3]),
)
def test_parts_joined_are_the_answer_however_it_came(ids, stops, cuts, stop_id):
    events = events_of(ids, stops, cuts, stop_id=stop_id)
    writer = text.Writer(PIECES, stops)
    parts = [writer.take(event) for event in events]
    whole = events[-1].text
    assert "".join(part.text for part in parts) == whole.decode("utf-8", "replace")
    raw = b""
    for part in parts:
        raw += part.text.encode()
        assert not any(stop.encode() in raw for stop in stops)
    tokens = [written for part in parts for written in part.tokens]
    wanted = [token for event in events for token in event.tokens]
    if isinstance(events[-1].stop, int):
        wanted = wanted[:-1]
    assert [t.token for t in tokens] == wanted[: len(tokens)]
    if events[-1].stop is None or isinstance(events[-1].stop, int):
        assert len(tokens) == len(wanted)
    else:  # those that lie in the stop text are not there; one that begins before it is
        joined = b"".join(PIECES[t.token.id] for t in tokens if t.token.id < len(PIECES))
        assert joined.startswith(whole)
    offsets = [t.offset for t in tokens]
    length = len(whole.decode("utf-8", "replace"))
    assert offsets == sorted(offsets) and all(0 <= offset <= length for offset in offsets)


def test_offsets_count_whole_characters_before_a_token():
    writer = text.Writer(PIECES, ())
    (event,) = events_of([0, 6, 7, 5, 0], [], set())
    part = writer.take(event)
    assert part.text == "aééa" and [t.offset for t in part.tokens] == [0, 1, 1, 2, 3]


def test_a_space_at_the_beginning_is_dropped_where_the_tokenizer_drops_it():
    for drops, wanted in ((True, "b b"), (False, " b b")):
        writer = text.Writer(PIECES, (), drops_space=drops)
        parts = [writer.take(event) for event in events_of([3, 2, 2], [], {0, 1})]
        assert "".join(part.text for part in parts) == wanted


def test_a_token_that_is_not_text_is_written_as_its_bytes_or_its_name():
    assert text.shown(b"a", lambda: "no") == "a" and text.shown(b"", lambda: "<|eos|>") == "<|eos|>"
    assert text.shown(b"\xe2\x82", lambda: "no") == "bytes:\\xe2\\x82"
