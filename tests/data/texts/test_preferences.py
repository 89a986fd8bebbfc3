import json

import numpy as np
import pytest

from alignment.errors import InputError
from data.texts import answers, pair_formats, preferences
from data.tokens import tokenizer

BYTES = tokenizer.load("bytes")


def rows(num):
    return [
        {"prompt": f"Question {i}? ", "chosen": f"yes {i}" + "!" * (i % 5), "rejected": f"no {i}"} for i in range(num)
    ]


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def load(path, **options):
    return preferences.load(path=path, tokenizer=BYTES, **options)


def seen_by_targets(batch, layout):
    """For every real target: the (position, token) pairs its source sees by the visibility rule, and the target."""
    out = []
    num_pairs = len(batch["index"])
    for b in range(num_pairs):
        for p in range(2):
            row = b if layout == "shared" else 2 * b + p
            tokens, positions, groups, branches = (batch[k][row] for k in ("tokens", "positions", "groups", "branches"))
            for r in np.flatnonzero(batch["mask"][b, p]):
                i = batch["sources"][b, p, r]
                sees = (groups == groups[i]) & (groups[i] != 0) & (positions <= positions[i])
                sees &= (branches == 0) | (branches == branches[i])
                if layout == "shared" and branches[i] == 0 and r > 0:
                    raise AssertionError("only the first target may be predicted from the trunk")
                context = sorted(zip(positions[sees].tolist(), tokens[sees].tolist()))
                out.append((context, int(batch["targets"][b, p, r])))
    return out


def test_shared_rows_show_every_target_the_context_of_separate_rows(tmp_path):
    records = rows(12)
    records[3] |= {"chosen": "same start a", "rejected": "same start b, and longer"}
    train, _, _ = load(write(tmp_path / "a.jsonl", records), heldout_fraction=0)
    index = np.arange(len(train))
    by_layout = {}
    for layout in preferences.PADDED:
        num_time, num_answer = preferences.shape(train, layout=layout)
        batch = preferences.assemble(train, index, layout=layout, num_time=num_time, num_answer=num_answer)
        by_layout[layout] = seen_by_targets(batch, layout)
    assert by_layout["shared"] == by_layout["separate"]
    assert len(by_layout["shared"]) == (np.diff(train.starts).reshape(-1, 2) - train.prompt_len_NP).sum()
    # and each context is the prompt and the answer so far
    context, target = by_layout["separate"][0]
    assert [p for p, _ in context] == list(range(len(context)))
    assert [t for _, t in context] == train.prompt(0).tolist() and target == train.sequence(0, 0)[len(context)]


def test_a_boundary_inside_a_token_keeps_that_token_out_of_the_trunk():
    ids = lambda *x: np.array(x, np.int32)  # noqa: E731
    merged = answers.Answered(ids(1, 2, 30, 4), 3, True)
    apart = answers.Answered(ids(1, 2, 3, 5, 6), 3, False)
    assert preferences._trunk_len((merged, apart)) == 2
    pairs = preferences._pack(
        [pair_formats.Comparison("q", ("a", "b"))], [(merged, apart)], {"sequence": 5, "row": 7, "answer": 2}, pad_id=0
    )
    by_layout = []
    for layout in preferences.PADDED:
        batch = preferences.assemble(pairs, np.array([0]), layout=layout, num_time=8, num_answer=3)
        by_layout.append(seen_by_targets(batch, layout))
    assert by_layout[0] == by_layout[1]
    assert by_layout[0][0] == ([(0, 1), (1, 2), (2, 30)], 4)


def test_batches_have_the_documented_keys_shapes_and_types(tmp_path):
    train, heldout, _ = load(write(tmp_path / "a.jsonl", rows(40)), heldout_fraction=0.3)
    for layout, num_rows in (("separate", 8), ("shared", 4)):
        first = next(preferences.batches(train, batch_size=4, layout=layout))
        last = next(preferences.batches(heldout, batch_size=4, layout=layout, endless=False))
        num_time, num_answer = preferences.shape(train, layout=layout)
        for key in ("tokens", "positions", "groups", "branches"):
            assert first[key].shape == (num_rows, num_time) and first[key].dtype == np.int32
        for key, dtype in (("sources", np.int32), ("targets", np.int32), ("mask", np.float32)):
            assert first[key].shape == (4, 2, num_answer) and first[key].dtype == dtype
        assert first["weights"].tolist() == [1] * 4 and first["index"].dtype == np.int32
        assert {k: v.shape for k, v in last.items()} == {k: v.shape for k, v in first.items()}
        assert "labels" not in first


def test_masked_targets_decode_to_the_answers(tmp_path):
    train, _, _ = load(write(tmp_path / "a.jsonl", rows(20)), heldout_fraction=0)
    batch = next(preferences.batches(train, batch_size=8, seed=1))
    for b, i in enumerate(batch["index"]):
        for p in range(2):
            targets = batch["targets"][b, p][batch["mask"][b, p] > 0]
            assert BYTES.decode(targets, skip_special=False) == train.items[i].answers[p] + "<|eos|>"
            row = batch["tokens"][2 * b + p][batch["groups"][2 * b + p] > 0]
            assert BYTES.decode(row, skip_special=False).startswith("<|bos|>" + train.items[i].prompt)


def test_last_heldout_batch_is_filled_with_weight_zero(tmp_path):
    train, _, _ = load(write(tmp_path / "a.jsonl", rows(10)), heldout_fraction=0)
    finite = preferences.batches(train, batch_size=4, endless=False)
    weights = np.concatenate([b["weights"] for b in finite])
    index = np.concatenate([b["index"] for b in finite])
    assert index[weights > 0].tolist() == list(range(10)) and weights.sum() == 10 and len(weights) == 12


def test_loader_state_continues_with_the_next_batch(tmp_path):
    train, _, _ = load(write(tmp_path / "a.jsonl", rows(10)), heldout_fraction=0)
    one, two = (preferences.batches(train, batch_size=4, seed=3, layout="shared") for _ in range(2))
    for _ in range(5):
        next(one)
    two.set_state(json.loads(json.dumps(one.get_state())))
    for _ in range(3):
        a, b = next(one), next(two)
        assert all(np.array_equal(a[k], b[k]) for k in a)


def test_a_group_column_keeps_its_records_together(tmp_path):
    records = [r | {"uuid": f"u{i // 5}"} for i, r in enumerate(rows(60))]
    train, heldout, _ = load(write(tmp_path / "a.jsonl", records), heldout_fraction=0.3, group_column="uuid")
    sides = [{item.group for item in pairs.items} for pairs in (train, heldout)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_heldout_path_and_limit_are_used(tmp_path):
    a, b = write(tmp_path / "a.jsonl", rows(10)), write(tmp_path / "b.jsonl", rows(4))
    train, heldout, report = load(a, heldout_path=b, limit=6)
    assert (len(train), len(heldout)) == (6, 4) and report["training pairs"] == 6


def test_report_counts_everything_that_was_not_used(tmp_path):
    records = rows(300)
    records[1] |= {"chosen": "same", "rejected": "same"}
    records[2] |= {"chosen": ""}
    records[3] |= {"prompt": "long " * 30}
    path = write(tmp_path / "a.jsonl", records)
    with open(path, "a") as f:
        f.write('{"prompt": oops\n')
    _, _, report = load(path, max_len=60, bad_records_path=str(tmp_path / "bad.jsonl"))
    expected = {"records": 301, "unreadable lines": 1, "identical answers": 1, "empty answer": 1, "prompts cut": 1}
    assert {k: report[k] for k in expected} == expected
    assert report["training pairs"] + report["held-out pairs"] == 298
    assert 90 < report["tokens cut or dropped"] / 2 < 110
    assert json.loads((tmp_path / "bad.jsonl").read_text())["line"] == 301


def test_nothing_left_to_train_on_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", "chosen": "x", "rejected": "x"}] * 3)
    with pytest.raises(InputError, match=r"no pair is left.*'identical answers': 3"):
        load(path)


def test_unpaired_records_borrow_another_answer_for_the_kl_term(tmp_path):
    records = [{"prompt": f"q{i}:", "completion": f" a{i}", "label": i % 2 == 0} for i in range(6)]
    train, _, _ = load(write(tmp_path / "a.jsonl", records), heldout_fraction=0)
    batch = next(preferences.batches(train, batch_size=6, layout="shared"))
    for b, i in enumerate(batch["index"]):
        own, other = (BYTES.decode(batch["targets"][b, p][batch["mask"][b, p] > 0]) for p in range(2))
        assert own == f" a{i}" and other == f" a{(i + 1) % 6}" and batch["labels"][b] == (i % 2 == 0)
        assert BYTES.decode(train.sequence(i, 1)) == f"q{i}: a{(i + 1) % 6}"


def test_pairs_can_be_taken_apart(tmp_path):
    train, _, _ = load(write(tmp_path / "a.jsonl", rows(5)), heldout_fraction=0, unpair=True)
    assert len(train) == 10 and train.label_N.tolist() == [1, 0] * 5


def test_a_split_too_small_to_take_apart_names_the_way_out(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(4))
    with pytest.raises(InputError, match=r"data\.heldout_fraction \(0 holds nothing back\)"):
        load(path, unpair=True)
    assert len(load(path, unpair=True, heldout_fraction=0)[0]) == 8


def test_longer_is_better_counts_ties_half():
    items = tuple(pair_formats.Comparison("q", a) for a in (("long", "s"), ("s", "long"), ("ab", "cd"), ("long", "s")))
    pairs = preferences.Pairs(*[np.zeros(0)] * 4, None, items, {}, 0)
    assert preferences.longer_is_better(pairs) == 2.5 / 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"truncation": "middle"}, "data.truncation='middle'"),
        ({"max_len": 1}, "data.max_len=1"),
        ({"heldout_fraction": 1.0}, "data.heldout_fraction=1.0"),
        ({"truncation": "error", "max_len": 10}, r"a\.jsonl:1: prompt"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        load(write(tmp_path / "a.jsonl", rows(3)), **options)


def test_rows_shorter_than_the_data_and_unknown_layouts_are_refused(tmp_path):
    train, _, _ = load(write(tmp_path / "a.jsonl", rows(3)), heldout_fraction=0)
    with pytest.raises(InputError, match="rows of 8 tokens are too short"):
        preferences.batches(train, batch_size=2, max_len=8)
    with pytest.raises(InputError, match=r"batch\.layout='trees' is not one of.*tree"):
        preferences.batches(train, batch_size=2, layout="trees")
    with pytest.raises(InputError, match="max_len=77 is not read with layout 'tree'"):
        preferences.batches(train, batch_size=2, layout="tree", max_len=77)
    with pytest.raises(InputError, match=r"batch\.order='sorted'"):
        preferences.batches(train, batch_size=2, order="sorted")
    assert next(preferences.batches(train, batch_size=2, max_len=77))["tokens"].shape == (4, 77)


def test_pairs_set_aside_share_no_prompt_with_the_others_and_are_the_same_in_every_file(tmp_path):
    write(tmp_path / "pairs.jsonl", [row | {"prompt": f"Question {i // 2}?"} for i, row in enumerate(rows(60))])
    train, _, _ = preferences.load(path=str(tmp_path / "pairs.jsonl"), tokenizer=BYTES, heldout_fraction=0.2)
    aside, others = preferences.set_aside(train, 0.5, seed=1)
    prompts = [{item.prompt for item in part.items} for part in (aside, others, train)]
    assert not prompts[0] & prompts[1] and prompts[0] | prompts[1] == prompts[2] and min(map(len, prompts)) > 4
    by_answer = {item.answers[0]: i for i, item in enumerate(train.items)}
    for part in (aside, others):
        for i, item in enumerate(part.items):
            j = by_answer[item.answers[0]]
            assert all((part.sequence(i, p) == train.sequence(j, p)).all() for p in (0, 1))
            assert (part.prompt_len_NP[i] == train.prompt_len_NP[j]).all()
            assert part.trunk_len_N[i] == train.trunk_len_N[j]
        assert part.starts[-1] == len(part.tokens) and part.limits == train.limits
    fewer, _ = preferences.set_aside(train.subset(range(0, len(train), 2)), 0.5, seed=1)
    assert {item.prompt for item in fewer.items} == prompts[0]
    assert preferences.set_aside(train, 0.0, seed=1) == (None, train)
    with pytest.raises(InputError, match="do not part"):
        preferences.set_aside(train.subset([0]), 0.5, seed=1)
