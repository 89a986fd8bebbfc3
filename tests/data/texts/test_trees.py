"""Which answers stand where: packing a step's pairs into rows of prefix trees."""

import collections
import itertools

import numpy as np
import pytest

from data.texts import orders, preferences, trees

LENGTHS = {  # mean tokens of prompt and answer
    "short": (127, 59),  # dialogues as in HH-RLHF
    "long answers": (121, 288),  # UltraFeedback
    "long prompts": (670, 105),
}


def ids(*tokens):
    return np.array(tokens, np.int32)


def make_pairs(sides):
    """`preferences.Pairs` of [(chosen ids, rejected ids, prompt length)]."""
    sequences = [one for chosen, rejected, _ in sides for one in (chosen, rejected)]
    return preferences.Pairs(
        tokens=np.concatenate(sequences).astype(np.int32),
        starts=np.cumsum([0, *map(len, sequences)]),
        prompt_len_NP=np.array([[n, n] for *_, n in sides], np.int32),
        trunk_len_N=np.array([n for *_, n in sides], np.int32),
        label_N=None,
        items=(None,) * len(sides),
        limits={"sequence": max(map(len, sequences)), "row": 1, "answer": max(map(len, sequences))},
        pad_id=0,
    )


def profile(name, num, seed=0):
    """Pairs whose lengths spread as in the real sets: lognormal, prompts wider than answers; token ids are drawn."""
    rng = np.random.default_rng(seed)
    prompt, answer = LENGTHS[name]

    def drawn(mean, sigma):
        return int(np.clip(mean * np.exp(rng.normal(-(sigma**2) / 2, sigma)), 2, 4 * mean))

    sides = []
    for _ in range(num):
        start, base = rng.integers(1, 30_000, drawn(prompt, 0.6)), int(rng.integers(1, 30_000))
        answers = [np.arange(base + p, base + p + drawn(answer, 0.55)) for p in (0, 1)]
        sides.append((*(np.concatenate([start, one]) for one in answers), len(start)))
    return make_pairs(sides)


def seen_by(forest, place):
    """Tokens on the path to a place, by the rule of `tree_attention`."""
    before = [j for j in range(place + 1) if place < forest.ends[j]]
    assert forest.positions[before].tolist() == list(range(len(before)))
    return forest.tokens[before].tolist()


def random_sequences(rng, num):
    """Sequences that share beginnings of all lengths, some of them whole others."""
    pool = [rng.integers(0, 5, rng.integers(1, 9))]
    for _ in range(num - 1):
        before = pool[rng.integers(len(pool))]
        pool.append(np.concatenate([before[: rng.integers(len(before) + 1)], rng.integers(0, 5, rng.integers(0, 6))]))
    return [one.astype(np.int32) for one in pool if len(one)]


@pytest.mark.parametrize("seed", range(20))
def test_every_token_sees_its_sequence_so_far_and_every_prefix_stands_once(seed):
    rng = np.random.default_rng(seed)
    sequences = random_sequences(rng, 9)
    forest = trees.lay_out(sequences)
    prefixes = {tuple(one[: t + 1]) for one in sequences for t in range(len(one))}
    assert len(forest.tokens) == len(prefixes) == trees.num_tokens(sequences)
    for one, places in zip(sequences, forest.places):
        for t, place in enumerate(places):
            assert seen_by(forest, place) == one[: t + 1].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_places_every_pair_once_and_every_target_behind_its_context(seed):
    rng = np.random.default_rng(seed)
    step = []
    for _ in range(7):
        prompt = rng.integers(0, 3, rng.integers(1, 5))
        answers = [np.concatenate([prompt, rng.integers(0, 3, rng.integers(1, 5))]).astype(np.int32) for _ in range(2)]
        step.append(tuple(trees.Answer(one, len(prompt)) for one in answers))
    rows = trees.plan(step, 3)
    size = max(row.size for row in rows)
    batch = trees.fill(rows, num_time=size + 3, num_pairs=7, pad_id=9, of_pairs={"index": np.arange(10, 17)})
    placed = collections.Counter(b for row in rows for b, *_ in row.pairs)
    assert placed == dict.fromkeys(range(7), 1)
    assert sorted(batch["index"][batch["weights"] > 0]) == list(range(10, 17)) and batch["weights"].sum() == 7
    for r, row in enumerate(rows):
        for s, (b, *_) in enumerate(row.pairs):
            for side, slot in zip(step[b], batch["sides"][r, s]):
                own = batch["owners"][r] == slot
                targets, sources = batch["targets"][r][own], batch["sources"][r][own]
                assert targets.tolist() == side.ids[side.prompt_len :].tolist() and (batch["mask"][r][own] == 1).all()
                assert batch["ordinals"][r][own].tolist() == list(range(1, len(targets) + 1))
                for t, source in enumerate(sources):
                    assert seen_by(row.forest, source) == side.ids[: side.prompt_len + t].tolist()
        stop = len(row.forest.tokens)
        assert (batch["ends"][r, stop:] == 0).all() and (batch["tokens"][r, stop:] == 9).all()


def test_four_answers_and_all_their_pairs_hold_the_prompt_and_each_answer_once():
    prompt, length = np.arange(1, 41), 10
    answers = [
        trees.Answer(np.concatenate([prompt, 100 * k + np.arange(length)]).astype(np.int32), 40) for k in range(1, 5)
    ]
    step = [(answers[i], answers[j]) for i in range(4) for j in range(i + 1, 4)]
    (row,) = trees.plan(step, 1)
    assert len(row.forest.tokens) == 40 + 4 * length and row.num_targets == 4 * length and len(row.pairs) == 6


def test_turns_of_a_dialogue_share_what_they_have_in_common_across_prompts():
    turn = np.arange(1, 1 + trees.MIN_SHARED)
    first = [trees.Answer(np.concatenate([turn, [k]]).astype(np.int32), len(turn)) for k in (100, 101)]
    longer = np.concatenate([first[0].ids, [200, 201]])
    second = [trees.Answer(np.concatenate([longer, [k]]).astype(np.int32), len(longer)) for k in (300, 301)]
    (row,) = trees.plan([tuple(first), tuple(second)], 1)
    assert len(row.forest.tokens) == len(turn) + 2 + 2 + 2


def test_a_few_tokens_in_common_do_not_join_two_prompts():
    step = [tuple(trees.Answer(ids(1, 2, k, 10 * k + p), 3) for p in range(2)) for k in (3, 4)]  # a template's opening
    (row,) = trees.plan(step, 1)
    assert len(row.forest.tokens) == 2 * (3 + 2)


def test_stored_log_probabilities_stand_beside_their_targets():
    step = [(trees.Answer(ids(1, 2, 3), 1), trees.Answer(ids(1, 4), 1))]
    stored = np.array([[[-1.0, -2.0, 0.0], [-3.0, 0.0, 0.0]]], np.float32)
    rows = trees.plan(step, 1)
    batch = trees.fill(rows, num_time=4, num_pairs=1, pad_id=0, reference_fn=lambda b, p: stored[b, p])
    by_target = dict(zip(batch["targets"][0][:3].tolist(), batch["reference"][0][:3].tolist()))
    assert by_target == {2: -1.0, 3: -2.0, 4: -3.0} and not batch["reference"][0][3:].any()


def test_levels_leave_few_places_empty():
    sizes = [10, 11, 12, 100, 101, 200]
    chosen = trees.levels(sizes)
    assert chosen == (16, 104, 200)
    assert trees.level_of(17, chosen) == 104 and trees.level_of(201, chosen) == 208
    assert trees.levels([8] * 5) == (8,) and trees.levels([998, 1000, 1024]) == (1024,)
    assert trees.levels([512] * 9 + [1024] * 9) == (512, 1024) and len(trees.levels(range(8, 4000, 40))) == 3


def empty_share(pairs, **options):
    """Of an epoch's rows the share of empty places, and how many lengths they have."""
    loader = preferences.batches(pairs, layout="tree", num_threads=0, **options)
    used, places, lengths = 0, 0, set()
    for _ in range(len(pairs) // options["batch_size"]):
        batch = next(loader)
        assert batch["weights"].sum() == options["batch_size"]
        used += (batch["ends"] > 0).sum()
        places += batch["ends"].size
        lengths.add(batch["ends"].shape[1])
    return 1 - used / places, len(lengths)


@pytest.mark.parametrize("name", LENGTHS)
def test_rows_of_natural_lengths_are_full(name):
    pairs = profile(name, 960)
    share, num_lengths = empty_share(pairs, batch_size=64)
    assert share < 0.08 and num_lengths <= 3
    share, num_lengths = empty_share(pairs, batch_size=64, order="balanced")
    assert share < 0.03 and num_lengths == 1
    share, num_lengths = empty_share(pairs, batch_size=64, order="balanced", num_rows=4)  # a row a device
    assert share < 0.01 and num_lengths == 1
    share, num_lengths = empty_share(pairs, batch_size=64, order="balanced", num_rows=8)
    assert share < 0.04 and num_lengths <= 2


@pytest.mark.parametrize("expand", trees.EXPANDS)
def test_strands_are_the_sequences_and_every_token_has_its_copies(expand):
    pairs = profile("short", 12)
    for batch in batches_of(pairs, expand=expand, num_rows=2, num_threads=0):
        N, _, L = batch["seats"].shape
        assert 128 * -(-pairs.limits["sequence"] // 128) == L
        for n in range(N):
            found = set()
            for seats, strands in zip(batch["seats"][n], batch["strands"][n]):
                assert ((seats >= 0) == (strands > 0)).all() and (expand == "packed" or strands.max() <= 1)
                for number in range(1, strands.max() + 1):
                    found.add(batch["tokens"][n, seats[strands == number]].tobytes())
            sides = [pairs.sides(i) for i in batch["index"][n] if i >= 0]
            assert found == {answer.ids.tobytes() for pair in sides for answer in pair}
            copies, seats = batch["copies"][n], batch["seats"][n].reshape(-1)
            assert sorted(copies[copies >= 0].tolist()) == np.flatnonzero(seats >= 0).tolist()
            places = np.broadcast_to(np.arange(copies.shape[1]), copies.shape)
            assert (seats[copies[copies >= 0]] == places[copies >= 0]).all()
            assert ((copies[0] >= 0) == (batch["ends"][n] > 0)).all()


def test_strands_of_an_epoch_have_as_many_shapes_as_its_rows_and_few_empty_places():
    pairs = profile("long prompts", 480)
    loader = preferences.batches(pairs, batch_size=32, layout="tree", order="balanced", expand="packed", num_threads=0)
    batches = [next(loader) for _ in range(15)]
    assert len({(batch["seats"].shape, batch["copies"].shape) for batch in batches}) <= 2
    assert np.mean([(batch["seats"] >= 0).mean() for batch in batches]) > 0.8


@pytest.mark.parametrize("batch_size", [16, 20])
def test_steps_hold_whole_families_where_these_fit(batch_size):
    rng = np.random.default_rng(0)
    families = np.repeat(np.arange(160), rng.choice([1, 2, 3, 6], 160))
    order_fn = orders.together(families, batch_size=batch_size, seed=0)
    first, second = order_fn(0), order_fn(1)
    for order in (first, second):
        assert sorted(order) == list(range(len(families)))
        assert np.count_nonzero(np.diff(families[order])) == 159  # the members of a family follow each other
    both = np.concatenate([first, second])
    steps = both[: len(both) // batch_size * batch_size].reshape(-1, batch_size)
    cut = sum(families[a[-1]] == families[b[0]] for a, b in itertools.pairwise(steps))
    assert cut <= 3 and cut < 0.1 * len(steps)
    assert orders.across(families, first, batch_size) <= cut


def batches_of(pairs, num=5, **options):
    loader = preferences.batches(pairs, batch_size=4, layout="tree", **options)
    return [next(loader) for _ in range(num)]


@pytest.mark.parametrize("order", preferences.ORDERS)
def test_batches_follow_from_seed_and_step_alone(order):
    pairs = profile("short", 10)
    first, again, other = (batches_of(pairs, seed=seed, order=order) for seed in (0, 0, 1))
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(first, again) for name in a)
    assert any(not np.array_equal(a["index"], b["index"]) for a, b in zip(first, other))
    seen = collections.Counter(int(i) for batch in first for i in batch["index"].reshape(-1) if i >= 0)
    assert seen == dict.fromkeys(range(10), 2)  # 5 steps of 4 are two epochs of 10, each in an order of its own


@pytest.mark.parametrize("order", preferences.ORDERS)
def test_a_loader_goes_on_where_another_stopped(order):
    options = dict(batch_size=4, layout="tree", order=order, num_threads=0)
    one, two = (preferences.batches(profile("short", 10), **options) for _ in range(2))
    for _ in range(3):  # the next batch lies across the border of two epochs
        next(one)
    two.set_state(one.get_state())
    first, second = next(one), next(two)
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("order", preferences.ORDERS)
def test_a_step_has_the_pairs_of_the_other_layouts_and_each_row_keeps_their_order(order):
    pairs = profile("short", 10)
    for num_rows in (1, 3):
        plain = preferences.batches(pairs, batch_size=4, seed=3, order=order, max_len=1024)
        for batch in batches_of(pairs, seed=3, order=order, num_rows=num_rows):
            step = next(plain)["index"].tolist()
            placed = [[step.index(i) for i in row[row >= 0]] for row in batch["index"]]
            assert sorted(itertools.chain(*placed)) == [0, 1, 2, 3]
            assert all(places == sorted(places) for places in placed)


def test_processes_make_the_rows_that_one_process_would():
    pairs = profile("short", 12)
    whole = batches_of(pairs, num_rows=4)
    parts = [batches_of(pairs, num_rows=4, process_index=p, process_count=2) for p in range(2)]
    for batch, *halves in zip(whole, *parts):
        assert all(np.array_equal(batch[name], np.concatenate([h[name] for h in halves])) for name in batch)


def test_the_last_heldout_batch_holds_what_is_left():
    pairs = profile("short", 6)
    batches = list(preferences.batches(pairs, batch_size=4, layout="tree", endless=False))
    assert [batch["weights"].sum() for batch in batches] == [4, 2]
    assert sorted(i for batch in batches for i in batch["index"].reshape(-1) if i >= 0) == list(range(6))


def test_balanced_steps_have_nearly_equal_sums():
    sizes = np.random.default_rng(0).lognormal(5, 0.6, 320)
    order = orders.balanced(sizes, batch_size=16, seed=0)
    for epoch in range(2):
        places = order(epoch)
        assert sorted(places) == list(range(320))
        totals = sizes[places].reshape(20, 16).sum(axis=1)
        plain = sizes[np.random.default_rng(epoch).permutation(320)].reshape(20, 16).sum(axis=1)
        assert totals.std() < 0.2 * plain.std()  # a pair much longer than the rest cannot be evened out
    assert not np.array_equal(order(0), order(1)) and np.array_equal(order(0), order(0))


def test_the_pairs_of_a_family_stay_next_to_each_other():
    families = np.array([5, 7, 5, 9, 7, 5])
    places = orders.together(families, batch_size=4, seed=0)(3)
    assert sorted(places) == list(range(6))
    runs = [f for f, before in zip(families[places], [None, *families[places][:-1]]) if f != before]
    assert sorted(runs) == [5, 7, 9]


def test_answers_to_be_scored_stand_in_rows_with_their_numbers():
    pairs = profile("short", 5)
    answers = [side for i in range(5) for side in pairs.sides(i)]
    lengths = set()
    found = {}
    for batch, numbers in trees.scoring_batches(answers, num_places=500, num_rows=2, pad_id=0):
        lengths.add(batch["tokens"].shape)
        for r, in_row in enumerate(numbers):
            targets = batch["targets"][r][batch["mask"][r] > 0]
            for number in in_row:
                n = len(answers[number].ids) - answers[number].prompt_len
                found[number], targets = targets[:n].tolist(), targets[n:]
            assert not len(targets)
    assert len(lengths) == 1
    assert found == {k: answer.ids[answer.prompt_len :].tolist() for k, answer in enumerate(answers)}
