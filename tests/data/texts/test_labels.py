import json

import numpy as np
import pytest

from alignment.errors import InputError
from data.texts import labels
from data.toys import remarks


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_labels_become_levels_in_the_order_of_numbers_or_of_words(tmp_path):
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate([10, 2.0, "2", True, 10])]
    labelled, counts = labels.load(jsonl(tmp_path / "a.jsonl", rows))
    assert labelled.levels == ("1", "2", "10") and labelled.labels_N.tolist() == [2, 1, 1, 0, 2]
    assert counts == {"records": 5, "texts": 5}
    labelled, _ = labels.load(jsonl(tmp_path / "b.jsonl", [{"text": "x", "label": w} for w in ("spam", "ham")]))
    assert labelled.levels == ("ham", "spam") and labelled.labels_N.tolist() == [1, 0]


def test_levels_gather_labels_and_columns_have_names(tmp_path):
    (tmp_path / "a.csv").write_text('row,class,tweet\n1,0,"a ""b"", c"\n2,1,d\n3,2,e\n4,9,f\n', encoding="utf-8")
    columns = {"text": "tweet", "label": "class"}
    labelled, counts = labels.load(str(tmp_path / "a.csv"), columns=columns, levels=("2", "0, 1"))
    assert labelled.texts == ['a "b", c', "d", "e"] and labelled.labels_N.tolist() == [1, 1, 0]
    assert labelled.levels == ("2", "0,1") and counts["labels of no level"] == 1
    assert labels.load(str(tmp_path / "a.csv"), columns=columns, limit=2)[0].texts == ['a "b", c', "d"]


def test_bad_rows_are_set_aside_with_their_lines(tmp_path):
    good = "".join(f"text {i},{i % 2}\n" for i in range(400))
    content = ("text,label\n" + good + "one,two,three\n").encode() + b"\xff\xfe,1\n ,1\nempty label,\n"
    (tmp_path / "a.csv").write_bytes(content)
    labelled, counts = labels.load(str(tmp_path / "a.csv"), bad_records_path=str(tmp_path / "bad.jsonl"))
    assert len(labelled) == 400
    assert counts == {"records": 404, "unreadable lines": 2, "empty text": 1, "no label": 1, "texts": 400}
    bad = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in bad] == [
        (402, "3 fields under 2 column names"),
        (403, "not UTF-8"),
    ]
    (tmp_path / "b.csv").write_text("text,label\n" + "a,b,c\n" * 5 + good)
    with pytest.raises(InputError, match="more than 1 %"):
        labels.load(str(tmp_path / "b.csv"))


def test_pairs_become_their_last_answers(tmp_path):
    dialogue = "\n\nHuman: What is a Glorp?\n\nAssistant:"
    rows = [{"chosen": f"{dialogue} A made-up person {i}.", "rejected": f"{dialogue} [insult {i}]"} for i in range(3)]
    labelled, _ = labels.load(jsonl(tmp_path / "pairs.jsonl", rows))
    assert [text.strip() for text in labelled.texts[:2]] == ["A made-up person 0.", "[insult 0]"]
    assert labelled.labels_N.tolist() == [0, 1] * 3 and labelled.levels == ("chosen", "rejected")
    assert len(set(labelled.groups)) == 1 and "What is a Glorp?" in labelled.groups[0]


def test_no_dialogue_and_no_text_is_on_two_sides_of_a_split(tmp_path):
    rows = []
    for i in range(60):
        opening = f"\n\nHuman: Tell me about the long bridge number {i // 2} near the river"
        later = "\n\nAssistant: It is old.\n\nHuman: Go on" if i % 2 else ""
        rows.append({side: f"{opening}{later}\n\nAssistant: {side} {i}" for side in ("chosen", "rejected")})
    labelled, _ = labels.load(jsonl(tmp_path / "pairs.jsonl", rows))
    parts = labels.split(labelled, fractions=(0.2, 0.2), seed=0)
    assert sum(map(len, parts)) == 120
    bridges = [{group.partition("number ")[2].split()[0] for group in part.groups} for part in parts]
    assert all(not a & b for i, a in enumerate(bridges) for b in bridges[:i]) and all(map(len, bridges))
    twice = [{"text": f"text {i % 40}", "label": i % 2} for i in range(200)]
    parts = labels.split(labels.load(jsonl(tmp_path / "twice.jsonl", twice))[0], fractions=(0.2, 0.3), seed=1)
    assert all(not set(a.texts) & set(b.texts) for i, a in enumerate(parts) for b in parts[:i])
    again = labels.split(labels.load(str(tmp_path / "twice.jsonl"))[0], fractions=(0.2, 0.3), seed=1)
    assert [part.texts for part in again] == [part.texts for part in parts]


def test_dialogues_that_share_a_text_are_on_one_side_of_a_split():
    texts = [f"text {i}" for i in range(200)] + ["Yes, of course."] * 40 + ["  yes, of COURSE. "]
    groups = [f"dialogue {i // 2}" for i in range(200)] + [f"dialogue {i}" for i in range(40)] + [""]
    labelled = labels.Labelled(tuple(texts), np.arange(len(texts)) % 2, ("a", "b"), tuple(groups))
    parts = labels.split(labelled, fractions=(0.2, 0.2), seed=3)
    assert sum(map(len, parts)) == len(texts)
    same = [{" ".join(text.split()).casefold() for text in part.texts} for part in parts]
    whose = [set(part.groups) - {""} for part in parts]
    assert all(not a & b for sets in (same, whose) for i, a in enumerate(sets) for b in sets[:i])


def test_the_embedded_texts_are_bilingual_seeded_and_inert():
    rows = remarks.labelled(600)
    assert rows[:100] == remarks.labelled(100) != remarks.labelled(100, seed=1)
    assert {row["language"] for row in rows} == {"en", "ar"}
    assert 0.25 < np.mean([row["label"] for row in rows]) < 0.45
    is_marked = np.array([any(m in row["text"] for m in ("[unsafe", "[insult", "[طلب", "[إهانة")) for row in rows])
    assert np.mean([row["label"] for row, marked in zip(rows, is_marked) if marked]) > 0.9


def test_what_cannot_be_learnt_from_is_refused_by_name(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "x", "label": 1}, {"text": "y", "label": 1}])
    with pytest.raises(InputError, match="has 1 levels"):
        labels.load(path)
    with pytest.raises(InputError, match="Columns found: text, label"):
        labels.load(path, columns={"label": "class"})
    with pytest.raises(InputError, match="labelled 0; its labels are 1"):
        labels.load(path, levels=("0", "1"))
    with pytest.raises(InputError, match="no such file"):
        labels.load(str(tmp_path / "none.csv"))
    (tmp_path / "empty.csv").write_text("text,label\n")
    with pytest.raises(InputError, match="no records"):
        labels.load(str(tmp_path / "empty.csv"))
    labelled, _ = labels.load(jsonl(tmp_path / "b.jsonl", [{"text": "x", "label": 1}, {"text": "y", "label": 0}]))
    with pytest.raises(InputError, match="leave none for the"):
        labels.split(labelled, fractions=(0.1, 0.1))
    with pytest.raises(InputError, match="leave something to train on"):
        labels.split(labelled, fractions=(0.5, 0.5))
