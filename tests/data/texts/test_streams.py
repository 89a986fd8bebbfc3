"""A stream gives every record once an epoch, resumes at the same row, and is the same for any number of processes."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest

from alignment.errors import InputError
from data import record_index, records
from data.texts import streams, text
from data.tokens import tokenizer

BYTES = tokenizer.load("bytes")
NUM = 90  # records


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four shards of documents of different lengths, and an index of them."""
    folder, numbers = tmp_path_factory.mktemp("corpus"), iter(range(NUM))
    for shard, size in enumerate((40, 1, 29, 20)):
        rows = ({"text": f"<{number}>" + "x" * (7 * number % 50)} for _, number in zip(range(size), numbers))
        (folder / f"{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def opened(corpus, reader, **options):
    names = record_index.find(str(corpus), "")
    record_index.build(names, corpus / "index", describe_fn=reader.describe, made_by=reader.made_by)
    return record_index.Index(names, corpus / "index", made_by=reader.made_by, **options)


READER = streams.Reader(BYTES, max_len=32)


@pytest.fixture(scope="module")
def part(corpus):
    return streams.split(opened(corpus, READER), fraction=0.0, seed=0)[0]


def stream(part, **options):
    return streams.Stream(part, READER, **dict(batch_size=8, seed=1, window=6, lanes=4) | options)


def numbers(batches):
    """How often each record's opening is in the batches."""
    found = Counter()
    for batch in batches:
        for tokens, groups in zip(batch["tokens"], batch["groups"]):
            for group in range(1, groups.max() + 1):
                words = BYTES.decode(tokens[groups == group])
                if words.startswith("<"):
                    found[int(words[1 : words.index(">")])] += 1
    return found


def test_every_record_comes_once_an_epoch_and_none_is_lost(part):
    one = stream(part, lanes=1, batch_size=1, window=6)
    batches = []
    for epoch in (1, 2):
        while one.positions()[0, 0] < epoch * NUM // 6:
            batches.append(next(one))
        assert numbers(batches) == Counter(dict.fromkeys(range(NUM), epoch))
    masks = sum(batch["mask"].sum() for batch in batches)
    assert masks == 2 * sum(len(f"<{n}>") + 7 * n % 50 + 1 for n in range(NUM))  # every token, and an end, is learned


def test_an_epoch_s_order_is_global_and_differs_by_epoch_and_seed(part):
    def order(seed):
        one = stream(part, lanes=1, batch_size=1, seed=seed)
        return [[one._part[one._order[place]].value["text"] for place in range(a, a + NUM)] for a in (0, NUM)]

    first, second = order(1)
    assert sorted(first) == sorted(second) and first != second and order(2)[0] != first
    assert order(1) == [first, second]
    shards = [int(words[1 : words.index(">")]) // 40 for words in first]
    assert len(set(shards[:20])) > 1  # records of several shards lie side by side


@pytest.mark.parametrize("at", [0, 1, 17])
def test_a_position_goes_on_with_exactly_the_next_batch(part, at):
    one, two = stream(part), stream(part)
    for _ in range(at):
        next(one)
    state = json.loads(json.dumps(one.get_state()))
    next(two)
    two.set_state(state)
    for _ in range(3):
        expected, got = next(one), next(two)
        for name, values in expected.items():
            np.testing.assert_array_equal(got[name], values)
    assert one.get_state() == two.get_state()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_read_records_of_their_own_and_make_the_batches_of_one(part, count, monkeypatch):
    read = [set() for _ in range(count)]
    several = []
    for index in range(count):

        class Noting(streams.Part):
            def __getitem__(self, number, seen=read[index]):
                seen.add(number)
                return super().__getitem__(number)

        noting = Noting(part.index, part.left_out, part.is_rest)
        several.append(stream(noting, process_index=index, process_count=count))
        read[index].clear()  # the first window of the run, which every process compares
    whole = stream(part)
    for _ in range(4):
        parts = [next(one) for one in several]
        for name, values in next(whole).items():
            np.testing.assert_array_equal(np.concatenate([batch[name] for batch in parts]), values)
    merged = np.max([one.positions() for one in several], axis=0)
    assert merged.tolist() == whole.get_state()["lanes"]  # so a checkpoint of several restores on one
    assert not read[0] & read[1] and max(map(len, read)) < NUM


class Many:
    """A corpus of any size; notes which records are read."""

    digest = "many"

    def __init__(self, num):
        self.num, self.index, self.read = num, self, []

    def __len__(self):
        return self.num

    def __getitem__(self, number):
        self.read.append(number)
        return records.Record({"text": f"record {number}"}, "many", number)


@pytest.mark.parametrize("num", [10**3, 10**7])
def test_going_on_far_into_a_corpus_reads_one_window_a_lane(num):
    part = Many(num)
    near, far = stream(part), stream(part)
    far_on = near.get_state()
    for lane in far_on["lanes"]:
        lane[0] = num // (6 * 4) - 5  # windows; four of an epoch of six records each lie side by side
    part.read.clear()
    far.set_state(far_on)
    next(far)
    assert len(set(part.read)) == len(part.read) <= 3 * 6 * 4  # the window, and two that may be made ahead


def test_a_position_in_other_data_is_refused(corpus, part):
    state = stream(part).get_state()
    fewer = streams.split(part.index, fraction=0.2, seed=0)[0]
    wider = streams.Reader(BYTES, max_len=40)
    for other in (
        streams.Stream(part, wider, batch_size=8, seed=1, window=6, lanes=4),
        streams.Stream(fewer, READER, batch_size=8, seed=1, window=6, lanes=4),
    ):
        with pytest.raises(InputError, match="have changed since this run began"):
            other.set_state(state)


@pytest.mark.parametrize("fraction", [0.02, 0.3])
def test_held_out_texts_are_those_of_the_reader_of_whole_files(corpus, fraction):
    train, heldout = streams.split(opened(corpus, READER), fraction=fraction, seed=0)
    whole = text.load(path=str(corpus), tokenizer=BYTES, max_len=32, heldout_fraction=fraction, kind="documents")
    texts = READER.texts([heldout[i] for i in range(len(heldout))], {})
    assert texts.digest == whole[1].digest and len(train) + len(heldout) == NUM
    assert READER.texts([train[i] for i in range(len(train))], {}).digest == whole[0].digest
    other = streams.split(opened(corpus, READER), fraction=fraction, seed=3)[1]
    assert other.left_out.tolist() != heldout.left_out.tolist()


def test_a_file_that_goes_during_a_run_ends_it_with_its_name(tmp_path):
    for name in "ab":
        rows = [json.dumps({"text": f"{name}{n}"}) for n in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    one = streams.Stream(streams.split(opened(tmp_path, READER), fraction=0, seed=0)[0], READER, batch_size=8, seed=0)
    one._part.index._opened.cache_clear()  # a file that is open stays so
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(InputError, match=r"cannot read .*b\.jsonl"):
        next(one)


def test_a_reader_goes_to_other_processes():
    assert pickle.loads(pickle.dumps(READER)).made_by == READER.made_by


@pytest.mark.parametrize("options", [{"share_prefixes": True}, {"packed": False}])
def test_rows_are_filled_as_those_in_memory_are(part, options):
    reader = streams.Reader(BYTES, max_len=64, **options)
    one = streams.Stream(part, reader, batch_size=4, seed=0, window=9, lanes=2)
    texts, order, _ = one._packed(0, lane=0, lanes=2)
    batch, first = next(one), text.assemble(texts, order[:2])
    assert batch.keys() == first.keys() and {len(values) for values in batch.values()} == {4}
    for name, values in first.items():
        np.testing.assert_array_equal(batch[name][:2], values)


def test_conversations_stream_too_and_count_what_is_cut(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"question {n % 5}"}, {"role": "assistant", "content": "a" * n}]}
        for n in range(1, 21)
    ]
    unruly = rows[0] | {"tools": [{"name": "clock"}]}  # the plain template does not write tools
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"messages": []}, unruly]))
    reader = streams.Reader(BYTES, max_len=48, kind="answers")
    index = opened(tmp_path, reader)
    assert len(index) == 20 and index.counts == {"empty prompt or answer": 1}
    assert [one.line for one in index.bad] == [22] and "tools" in index.bad[0].reason  # before training
    train, heldout = streams.split(index, fraction=0.3, seed=0)
    asked = [{part[i].value["messages"][0]["content"] for i in range(len(part))} for part in (train, heldout)]
    assert asked[0] and asked[1] and not asked[0] & asked[1]
    one = streams.Stream(train, reader, batch_size=2, seed=0, window=len(train), lanes=1)
    while one.positions()[0, 0] < 1:
        next(one)
    whole = {}
    reader.texts([train[i] for i in range(len(train))], whole)
    assert one.positions()[0, 2] == whole["conversations cut"] > 0


def test_a_corpus_without_a_usable_record_has_two_empty_parts(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": " "}\n\n')
    parts = streams.split(opened(tmp_path, streams.Reader(BYTES, max_len=8)), fraction=0.01, seed=0)
    assert [len(part) for part in parts] == [0, 0]


def test_a_corpus_of_which_no_row_is_left_is_refused_and_not_waited_for(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "long", "completion": "' + "x" * 50 + '"}\n')
    reader = streams.Reader(BYTES, max_len=8, kind="answers", truncation="drop")
    train, _ = streams.split(opened(tmp_path, reader), fraction=0.5, seed=0)
    with pytest.raises(InputError, match="no text is left to train on"):
        next(streams.Stream(train, reader, batch_size=1, seed=0, window=1, lanes=1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(window=0), "at least 1"),
        (dict(lanes=3, batch_size=8), "does not divide batch_size=8.*2 would"),
        (dict(lanes=4, batch_size=12, process_count=3), "over the 3 processes that read; 3 would"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        streams.check(**dict(window=1, lanes=1, batch_size=8) | options)
