import multiprocessing
import os
import signal
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.decoding import cache


def key(i):
    return cache.key([{"role": "user", "content": f"text {i}"}])


def fill(path, first, last, pause=0.0):
    with cache.Cache(path) as store:
        for i in range(first, last):
            store.put(key(i), f"answer {i} " + "x" * (i % 300))
            time.sleep(pause)


def check(path, most):
    """How many answers there are; none may be wrong."""
    with cache.Cache(path) as store:
        found = {i: store.get(key(i)) for i in range(most)}
    assert all(answer in (None, f"answer {i} " + "x" * (i % 300)) for i, answer in found.items())
    return sum(answer is not None for answer in found.values())


@settings(max_examples=30)
@given(st.dictionaries(st.integers(0, 50), st.text()))
def test_answers_come_back_whatever_they_hold(answers):
    store = cache.Cache()
    for i, answer in answers.items():
        store.put(key(i), answer)
    assert {i: store.get(key(i)) for i in answers} == answers and store.get(key(-1)) is None


@pytest.mark.parametrize("answer", ["", "two\nlines\r\n\x85\u2028", "\ud800 alone", "ü" * 100_000])
def test_a_file_gives_back_odd_answers(answer, tmp_path):
    with cache.Cache(tmp_path / "sub" / "a.jsonl") as store:
        store.put(key(0), answer)
        assert store.get(key(0)) == answer
    with cache.Cache(tmp_path / "sub" / "a.jsonl") as store:
        assert store.get(key(0)) == answer and len(store) == 1


def test_keys_stand_for_the_whole_request():
    messages = [{"role": "user", "content": "a"}]
    keys = {
        cache.key(messages),
        cache.key([{"content": "b", "role": "user"}]),
        cache.key([{"role": "system", "content": "a"}]),
        cache.key(messages, model="m"),
        cache.key(messages, sampling={"temperature": 0}),
    }
    assert len(keys) == 5
    assert cache.key([{"content": "a", "role": "user"}]) == cache.key(messages)


def test_cut_at_any_byte_the_file_keeps_its_whole_lines_and_takes_new_ones(tmp_path):
    fill(tmp_path / "whole", 0, 4)
    content = (tmp_path / "whole").read_bytes()
    for cut in range(0, len(content) + 1, 5):
        (tmp_path / "cut").write_bytes(content[:cut])
        assert check(tmp_path / "cut", 5) == content[:cut].count(b"\n")
        fill(tmp_path / "cut", 4, 5)
        assert check(tmp_path / "cut", 5) >= content[:cut].count(b"\n") + 1


def test_a_damaged_line_costs_its_answer_alone(tmp_path):
    fill(tmp_path / "a", 0, 3)
    lines = (tmp_path / "a").read_bytes().splitlines(keepends=True)
    (tmp_path / "a").write_bytes(lines[0] + lines[1].replace(b"answer", b"ANSWER") + b"\xff\x00 junk\n[]\n" + lines[2])
    assert check(tmp_path / "a", 3) == 2
    with cache.Cache(tmp_path / "a") as store:
        assert store.num_damaged == 3


def test_what_another_writer_adds_is_seen_without_opening_again(tmp_path):
    with cache.Cache(tmp_path / "a") as first, cache.Cache(tmp_path / "a") as second:
        assert first.get(key(1)) is None
        second.put(key(1), "from the second")
        assert first.get(key(1)) == "from the second"
        first.put(key(2), "from the first")
        assert second.get(key(2)) == "from the first"


def test_several_processes_write_one_file_and_killing_one_harms_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=fill, args=(tmp_path / "a", 1000 * i, 1000 * i + 200, 0.0005)) for i in range(3)]
    for writer in writers:
        writer.start()
    while not (tmp_path / "a").exists() or (tmp_path / "a").stat().st_size < 20_000:
        time.sleep(0.001)
    os.kill(writers[0].pid, signal.SIGKILL)
    for writer in writers:
        writer.join()
    found = check(tmp_path / "a", 3000)
    assert 400 <= found < 600 and [w.exitcode for w in writers] == [-9, 0, 0]
