import itertools
import json

import numpy as np
import pytest

from alignment.errors import InputError
from data import loader


def make(index, weight):
    return {"index": index, "weights": weight}


def take(it, num):
    return [next(it)["index"].tolist() for _ in range(num)]


def test_same_seed_same_batches_and_another_seed_another_order():
    build = lambda seed: take(loader.build(make, num_examples=50, batch_size=4, seed=seed), 30)  # noqa: E731
    assert build(3) == build(3) != build(4)


def test_each_epoch_has_each_example_once_in_another_order():
    flat = np.concatenate(take(loader.build(make, num_examples=10, batch_size=4, seed=1), 10)).tolist()
    epochs = [flat[k : k + 10] for k in range(0, 40, 10)]
    assert all(sorted(e) == list(range(10)) for e in epochs) and len({tuple(e) for e in epochs}) > 1


@pytest.mark.parametrize("num_threads", [0, 1, 4])
@pytest.mark.parametrize("at", [0, 1, 7, 23])
def test_state_continues_with_exactly_the_next_batch(num_threads, at):
    build = lambda: loader.build(make, num_examples=13, batch_size=4, seed=2, num_threads=num_threads)  # noqa: E731
    one = build()
    take(one, at)
    state = json.loads(json.dumps(one.get_state()))
    rest = take(one, 6)
    two = build()
    take(two, 3)
    two.set_state(state)
    assert take(two, 6) == rest


def test_processes_share_out_one_global_batch():
    whole = take(loader.build(make, num_examples=13, batch_size=6, seed=5), 8)
    parts = [
        take(loader.build(make, num_examples=13, batch_size=6, seed=5, process_index=p, process_count=3), 8)
        for p in range(3)
    ]
    assert [list(itertools.chain(*step)) for step in zip(*parts)] == whole


def test_finite_loader_covers_each_example_once_and_starts_over():
    finite = loader.build(make, num_examples=10, batch_size=4, endless=False)
    for _ in range(2):
        batches = list(finite)
        index = np.concatenate([b["index"] for b in batches])
        weight = np.concatenate([b["weights"] for b in batches])
        assert len(batches) == finite.num_batches == 3
        assert index[weight > 0].tolist() == list(range(10)) and len(index) == 12 and weight.sum() == 10


def test_fewer_examples_than_a_batch_still_fill_it():
    assert len(take(loader.build(make, num_examples=2, batch_size=5), 1)[0]) == 5


@pytest.mark.parametrize(
    ("kw", "words"), [({"batch_size": 5, "process_count": 2}, "4 would"), ({"batch_size": 0}, "batch_size=0")]
)
def test_uneven_batches_are_refused(kw, words):
    with pytest.raises(InputError, match=words):
        loader.build(make, num_examples=10, **kw)
    with pytest.raises(InputError, match="no examples"):
        loader.build(make, num_examples=0, batch_size=1)


def test_one_pass_over_nothing_has_no_batch():
    assert list(loader.build(make, num_examples=0, batch_size=2, endless=False)) == []


@pytest.mark.parametrize("num_examples", [10**3, 10**7])
def test_a_position_is_restored_without_making_what_came_before(num_examples):
    """Far into a large set as near the start of a small one: the batches after the position are all that is made."""
    made = []

    def make(index, weight):
        made.append(index)
        return {"index": index}

    options = dict(num_examples=num_examples, batch_size=4, seed=1, num_threads=0)
    loader_ = loader.build(make, **options)
    next(loader_)
    far = 3 * num_examples // 16 + 1  # in the first epoch, in which no example comes twice
    made.clear()
    jumped = loader.build(make, **options)
    jumped.set_state({**loader_.get_state(), "next_index": far})
    batches = [next(jumped)["index"].tolist() for _ in range(2)]
    assert len(made) <= 3  # two, and at most one that is made ahead
    assert len({i for batch in batches for i in batch}) == 8
