"""Texts with labels and concepts: three shapes, splits by groups, counterfactuals, and bad input with its line."""

import json

import numpy as np
import pytest

from alignment.errors import InputError
from data.texts import concept_sets

ASPECTS = {f"{name}_aspect_majority": "" for name in concept_sets.CEBAB_ASPECTS}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(tmp_path, rows, **options):
    counts = {}
    return concept_sets.load(write(tmp_path / "rows.jsonl", rows), counts=counts, **options), counts


def cebab(number, edit=0, stars="3", **more):
    name = f"{number:06d}"
    about = {"id": f"{name}_{edit:06d}", "original_id": name, "description": f"text {number} {edit}"}
    return about | {"review_majority": stars, "edit_type": None, "edit_goal": None} | ASPECTS | more


def edit(number, concept, **more):
    about = {"edit_type": concept, "edit_goal": "Positive", f"{concept}_aspect_majority": "Positive"}
    return cebab(number, 1, **(about | more))


def test_cebab_s_columns_become_rows_and_reviews_without_majority_are_counted(tmp_path):
    rows = [
        cebab(1, stars="5", food_aspect_majority="Positive", service_aspect_majority="unknown"),
        cebab(2, stars="no majority"),
        cebab(3, stars="1", food_aspect_majority="no majority", noise_aspect_majority="Negative"),
    ]
    found, counts = load(tmp_path, rows)
    assert [(row.label, set(row.concepts)) for row in found.rows] == [(4, {"food"}), (0, {"noise"})]
    assert found.num_labels == 5 and found.concepts() == {"food": 1, "noise": 1}
    assert counts["reviews without a majority for their stars, set aside"] == 1
    assert counts["aspects without a majority, which count as not mentioned"] == 1


def test_edits_that_write_a_concept_in_are_marked_unless_they_change_the_label(tmp_path):
    rows = [
        cebab(1),
        edit(1, "food"),
        cebab(2),
        edit(2, "food", stars="5"),
        edit(3, "service"),  # its original is not in the file, as of most edits
        edit(4, "service", edit_goal="unknown", service_aspect_majority="unknown"),
    ]
    found, counts = load(tmp_path, rows)
    marked = {row.id: (row.injects, row.source, row.source_id) for row in found.rows if row.injects}
    assert marked == {
        "000001_000001": ("food", "000001", "000001_000000"),
        "000003_000001": ("service", "000003", ""),
    }
    assert counts["edits whose label differs from their source's, which stand in for no counterfactual"] == 1


def test_the_authors_columns_and_one_s_own_are_read(tmp_path):
    rows = [
        {"label": 0, "text": "a", "concepts": "food, service"},
        {"label": "1", "text": "b", "concepts": "none"},
        {"label": True, "passage": "p", "question": "q", "concepts": ["History"]},
        {"label": 1, "text": " ", "concepts": ""},
    ]
    found, counts = load(tmp_path, rows)
    assert [(row.text, row.label, set(row.concepts)) for row in found.rows] == [
        ("a", 0, {"food", "service"}),
        ("b", 1, set()),
        ("p q", 1, {"history"}),
    ]
    assert counts["empty texts, left out"] == 1


def test_texts_without_concepts_are_left_to_be_annotated(tmp_path):
    found, _ = load(tmp_path, [{"label": 0, "text": "a"}, {"label": 1, "text": "b"}])
    assert [row.concepts for row in found.rows] == [None, None]


def test_sentences_and_unknown_names_among_concepts_are_ignored_and_counted():
    counts = {}
    value = "food, the passage does not name any of them, wine"
    assert concept_sets.parse_concepts(value, counts, known=("food",)) == {"food"}
    assert counts == {"concepts that are sentences or not known, ignored": 2}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"text": "a", "label": 0}, {"text": "b", "label": "x"}], {}, r"rows\.jsonl:2: label='x' must be a whole"),
        (
            [{"text": "a", "label": 0}, {"text": "b", "label": 3}],
            {"num_labels": 2},
            r"rows\.jsonl:2: label 3 is outside",
        ),
        ([{"text": "a", "label": 0}, {"text": "b", "label": 0.7}], {}, r"rows\.jsonl:2: label=0\.7 must be a whole"),
        ([{"text": "a", "label": 3.7}, {"text": "b", "label": 1}], {}, r"rows\.jsonl:1: label=3\.7 must be a whole"),
        (
            [{"text": "a", "label": 0}, {"text": "b", "label": "3.7"}],
            {},
            r"rows\.jsonl:2: label='3\.7' must be a whole",
        ),
        ([{"text": "a", "label": -1}, {"text": "b", "label": 1}], {}, r"rows\.jsonl:1: label -1 is outside"),
        ([{"body": "a", "label": 0}], {}, r"rows\.jsonl:1: columns found: body, label"),
        ([{"id": 1, "text": "a", "label": 0}, {"id": 1, "text": "b", "label": 1}], {}, "id '1' occurs twice"),
        ([{"text": "a", "label": 0}], {}, "two labels are needed"),
        ([{"text": "", "label": 0}], {}, "leaves no text"),
        ([{"text": "a", "label": 0}, {"text": "b", "label": 10**12}], {}, "label 1000000000000 of 2 texts"),
        ([cebab(0, id=None), cebab(1, id=None, stars="9")], {}, r"rows\.jsonl:2: label 8"),
    ],
)
def test_bad_rows_are_refused_with_their_place(rows, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load(tmp_path, rows, **options)


def test_rows_without_an_id_or_a_group_are_their_own(tmp_path):
    rows = [{"id": None, "group": group, "text": f"text {i}", "label": i} for i, group in enumerate((None, "", "g"))]
    found, _ = load(tmp_path, rows)
    names = [row.id.rpartition(":")[2] for row in found.rows]
    assert names == ["1", "2", "3"] and [row.group.rpartition(":")[2] for row in found.rows] == ["1", "2", "g"]


def test_a_counterfactual_without_a_text_is_counted_as_empty(tmp_path):
    rows = [{"id": f"r{i}", "text": f"text {i}", "label": i, "concepts": []} for i in range(2)]
    written = [{"cf_text": text, "ori_text": "text 0", "label": 0, "concept": "food"} for text in (None, " ", ["a"])]
    found, counts = load(tmp_path, rows, counterfactuals=write(tmp_path / "written.jsonl", written))
    assert found.counterfactuals == () and counts["empty counterfactuals, left out"] == 3


def test_counterfactuals_need_a_source_of_the_same_label(tmp_path):
    rows = [{"id": f"r{i}", "text": f"text {i}", "label": i % 2, "concepts": []} for i in range(4)]
    written = [
        {"cf_text": "soup 0", "ori_text": "text 0", "label": 0, "concepts": ""},
        {"cf_text": "soup 1", "ori_text": "text 1", "label": 0, "concepts": ""},
        {"cf_text": "soup 9", "ori_text": "text 9", "label": 0, "concepts": ""},
    ]
    path = write(tmp_path / "chatgpt_concepts_cf_own_food_explicit.jsonl", written)
    found, counts = load(tmp_path, rows, counterfactuals=path)
    (row,) = found.counterfactuals
    assert (row.text, row.label, row.injects, row.source) == ("soup 0", 0, "food", "r0") and "food" in row.concepts
    assert counts["counterfactuals whose label differs from their source's, left out"] == 1
    assert counts["counterfactuals whose source is not among the texts, left out"] == 1
    other = write(tmp_path / "written.jsonl", written)
    with pytest.raises(InputError, match="nothing says which concept"):
        load(tmp_path, rows, counterfactuals=other)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_label_that_is_no_finite_number_is_refused_with_its_place(value):
    record = concept_sets.records.Record({"text": "a", "label": value}, "rows.parquet", 7)
    with pytest.raises(InputError, match=r"rows\.parquet:7: label=(inf|nan) must be a whole"):
        concept_sets._plain(record, {})


def test_of_equal_texts_the_one_with_the_counterfactual_s_label_that_is_in_training_is_its_source(tmp_path):
    labels = [0, 1, 1, 0]
    rows = [{"id": f"r{i}", "text": "the same", "label": k, "concepts": []} for i, k in enumerate(labels)]
    written = [{"cf_text": f"soup {k}", "ori_text": "the same", "label": k, "concept": "food"} for k in (0, 1)]
    path = write(tmp_path / "written.jsonl", written)
    found, counts = load(tmp_path, rows, counterfactuals=path)
    assert [row.source_id for row in found.counterfactuals] == ["r0", "r1"]
    assert not [what for what in counts if "left out" in what]
    moved = concept_sets.with_training_sources(found.rows, found.counterfactuals, np.array([0, 2, 3]))
    assert [(row.source_id, row.source, row.label) for row in moved] == [("r0", "r0", 0), ("r2", "r2", 1)]
    assert concept_sets.with_training_sources(found.rows, moved, np.array([3]))[1] == moved[1]


def test_a_split_keeps_groups_together_and_the_same_seed_gives_the_same_sides(tmp_path):
    rows = [{"id": str(i), "text": f"t{i}", "label": i % 2, "concepts": [], "group": str(i // 3)} for i in range(60)]
    found, _ = load(tmp_path, rows)
    sides = concept_sets.split(found.rows, test=0.3, validation=0.1, seed=0)
    assert [len(side) for side in sides] == [36, 6, 18]
    groups = [{found.rows[i].group for i in side} for side in sides]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    again = concept_sets.split(found.rows, test=0.3, validation=0.1, seed=0)
    other = concept_sets.split(found.rows, test=0.3, validation=0.1, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(sides, again))
    assert not np.array_equal(sides[2], other[2])
    with pytest.raises(InputError, match=r"another data\.test"):
        concept_sets.split(found.rows[:3], test=0.9, validation=0.0, seed=0)


def test_the_authors_split_is_scikit_learn_s(tmp_path):
    found, _ = load(tmp_path, [{"text": f"t{i}", "label": i % 2, "concepts": []} for i in range(50)])
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(np.arange(50), test_size=10, random_state=10)
    sides = concept_sets.split(found.rows, how="released", test=10, validation=5, seed=10)
    assert np.array_equal(np.concatenate(sides[:2]), train) and np.array_equal(sides[2], test) and len(sides[1]) == 5


def test_the_authors_split_refuses_groups_and_sides_that_leave_nothing(tmp_path):
    rows = [{"text": f"t{i}", "label": i % 2, "concepts": [], "group": f"g{i // 2}"} for i in range(10)]
    found, _ = load(tmp_path, rows)
    options = dict(how="released", seed=10)
    with pytest.raises(InputError, match=r"5 groups, such as 'g0', have several.*data\.split=groups"):
        concept_sets.split(found.rows, test=2, validation=0, **options)
    for test, validation in ((10, 0), (12, 0), (2, 9), (4, 0.9)):
        with pytest.raises(InputError, match="of 5 texts leave 0 to train on"):
            concept_sets.split(found.rows[::2], test=test, validation=validation, **options)


def test_equal_texts_on_both_sides_are_counted(tmp_path):
    found, _ = load(tmp_path, [{"text": t, "label": i % 2, "concepts": []} for i, t in enumerate("abca")])
    assert concept_sets.num_shared_texts(found.rows, np.array([0, 1]), np.array([2, 3])) == 1


def test_cebab_as_it_is_distributed(shared_data):
    folder = shared_data / "textcls_cebab"
    if not folder.is_dir():
        pytest.skip("no textcls_cebab among the real data")
    counts = {}
    found = concept_sets.load(str(folder), counts=counts)
    assert counts["records"] == 3_428 and len(found.rows) == 3_136
    assert counts["reviews without a majority for their stars, set aside"] == 292
    assert {name: found.concepts()[name] for name in ("food", "service", "ambiance")} == {
        "food": 2_306,
        "service": 1_628,
        "ambiance": 1_123,
    }
