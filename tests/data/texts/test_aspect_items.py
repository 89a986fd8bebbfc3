import json

import pytest

from alignment.errors import InputError
from data.texts import aspect_items
from data.toys import wards

ROW = {"id": "1", "aspect": "a", "question": "Q", "options": {"A": "x", "B": "y"}, "answer": "B"}
PRINCIPLES = {"p": ("a", "b")}


def parse(*rows):
    return aspect_items.parse(list(rows), PRINCIPLES)


def test_an_item_has_its_principle_from_the_map_and_its_answers_as_numbers():
    (item,), faults = parse(ROW | {"answer": ["B", "A"], "marks": {"stereotypical": "A"}})
    assert not faults and item.principle == "p" and item.gold == (0, 1) and item.marks == {"stereotypical": 0}
    (item,), _ = parse(ROW | {"group": {"attribute": "wing", "value": "north", "pair_id": "v"}})
    assert (item.value, item.cluster) == ("north", "v")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": "C"}, "answer 'C' is not a letter"),
        ({"answer": []}, "empty list"),
        ({"options": {"A": "x", "B": "x"}}, "a text twice"),
        ({"options": {"A": "x"}}, "2 to 10 texts"),
        ({"options": {"A": "x", "C": "y"}}, "without a gap"),
        ({"aspect": "z"}, "aspect 'z' is not one of: a, b"),
        ({"principle": "q"}, "belongs to 'p', not to 'q'"),
        ({"question": " "}, "question is empty"),
        ({"id": None}, "no id"),
        ({"marks": {"disclosing": "D"}}, "disclosing is 'D'"),
        ({"canary": "X"}, "canary 'X' is not in its question"),
        ({"group": {"value": "x"}}, "attribute, value and pair_id"),
        ({"variant_of": "9"}, "variant_of='9' is not an id"),
    ],
)
def test_every_fault_is_named(change, words):
    _, faults = parse(ROW | change)
    assert any(words in fault for _, fault in faults)


def test_a_file_with_faults_is_refused_with_all_of_them_and_their_lines(tmp_path):
    rows = [ROW, ROW, ROW | {"id": "2", "answer": "Z"}]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"2 faults") as e:
        aspect_items.load(str(tmp_path / "f.jsonl"), PRINCIPLES, counts={})
    assert "f.jsonl:2: id '1' occurs twice" in str(e.value) and "f.jsonl:3: answer 'Z'" in str(e.value)


@pytest.mark.parametrize("text", ["Write to a.b@ward.org", "Call 555 123-4567", "MRN: 1234567"])
def test_what_looks_like_a_person_s_data_is_announced(tmp_path, capsys, text):
    (tmp_path / "f.jsonl").write_text(json.dumps(ROW | {"question": text}))
    aspect_items.load(str(tmp_path / "f.jsonl"), PRINCIPLES, counts={})
    said = capsys.readouterr().out
    assert "WARNING: 1 questions hold what looks like a person's data" in said and text not in said


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_synthetic_items_are_valid_of_every_aspect_and_seeded(difficulty):
    rows = wards.items(20, difficulty=difficulty)
    items, faults = aspect_items.parse(rows, wards.PRINCIPLES)
    assert not faults and rows == wards.items(20, difficulty=difficulty) != wards.items(
        20, difficulty=difficulty, seed=1
    )
    for aspects in wards.PRINCIPLES.values():
        for aspect in aspects:
            own = [item for item in items if item.aspect == aspect]
            assert len(own) >= 20 and {len(item.options) for item in own} == {difficulty + 2}
    vignettes = [item for item in items if item.pair]
    for pair in {item.pair for item in vignettes}:
        assert len({(i.options, i.gold) for i in vignettes if i.pair == pair}) == 1
    assert aspect_items.first(items, 2, {})[:2] == items[:2]
