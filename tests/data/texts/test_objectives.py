import json

import pytest

from alignment.errors import InputError
from data.texts import objectives
from data.toys import manners


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(prompt="p", chosen=" a", rejected=" b", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def test_a_column_or_else_the_file_says_what_a_pair_is_about(tmp_path):
    first = written(tmp_path / "kind.jsonl", [pair(dimension="short"), pair("q"), pair("r", dimension=None)])
    second = written(tmp_path / "b.jsonl", [pair("s")])
    counts = {}
    read = objectives.read(f"{first},mild={second}", counts=counts)
    assert {name: [item.prompt for item in items] for name, items in read.items()} == {
        "short": ["p"],
        "kind": ["q", "r"],
        "mild": ["s"],
    }
    assert counts["records"] == 4


def test_a_record_of_pku_is_a_pair_of_each_of_its_two_objectives_and_strange_ids_are_dropped(tmp_path):
    row = {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0}
    rows = [row, row | {"better_response_id": 2}, row | {"response_1": "a"}]
    counts = {}
    read = objectives.read(written(tmp_path / "pku.jsonl", rows), counts=counts)
    assert [item.answers for item in read["helpful"]] == [("b", "a")]
    assert [item.answers for item in read["harmless"]] == [("a", "b"), ("a", "b")]
    assert all(item.is_chat for item in read["harmless"])
    assert counts["records whose better_response_id is neither 0 nor 1"] == 1 and counts["identical answers"] == 2


def test_pairs_that_teach_nothing_are_dropped_with_a_count_and_none_left_is_refused(tmp_path):
    rows = [pair(rejected=" a"), pair(chosen=" "), pair("long " * 9)]
    counts = {}
    with pytest.raises(InputError, match="no pair of 'x' is left"):
        objectives.read(written(tmp_path / "x.jsonl", rows), max_chars=20, counts=counts)
    assert counts["identical answers"] == counts["empty answer"] == 1
    assert counts["pairs longer than data.max_len characters"] == 1


def test_a_prompt_that_ends_with_the_assistants_turn_is_refused_with_its_line(tmp_path):
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}, {"role": "user", "content": "w"}]
    good = {"prompt": turns, "chosen": "a", "rejected": "b"}
    bad = {"prompt": [turns[1], turns[2]], "chosen": "a", "rejected": "b"}
    with pytest.raises(InputError, match=r"x.jsonl:2: the prompt has 2 turns"):
        objectives.read(written(tmp_path / "x.jsonl", [good, bad]), counts={})


def test_two_files_of_one_name_no_file_and_a_template_without_a_place_are_refused(tmp_path):
    file = written(tmp_path / "a.jsonl", [pair()])
    for path, word in ((f"{file},{file}", "name=path"), (" , ", "names no file"), (f"{tmp_path}/none.jsonl", "none")):
        with pytest.raises(InputError, match=word):
            objectives.sources(path)
    with pytest.raises(InputError, match="must hold"):
        objectives.check_template("templates.base", "USER: ")


def test_a_template_stands_around_the_prompt_and_answers_stay_as_they_are(tmp_path):
    rows = [pair("What?"), {"instruction": "Why?", "output_1": "x", "output_2": "y", "preference": 2}]
    counts = {}
    read = objectives.read(written(tmp_path / "a.jsonl", rows[:1]), counts=counts)["a"]
    read += objectives.read(written(tmp_path / "b.jsonl", rows[1:]), counts=counts)["b"]
    objectives.prepare(tmp_path / "out.jsonl", read, "USER: {prompt} ASSISTANT:", counts)
    plain = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in plain] == ["USER: What? ASSISTANT:", "USER: Why? ASSISTANT:"]
    assert plain[1]["chosen"] == "y" and plain[1]["group"] == "Why?"
    objectives.prepare(tmp_path / "own.jsonl", read, "", counts)
    own = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    assert own[0]["prompt"] == "What?" and own[1]["prompt"] == [{"role": "user", "content": "Why?"}]


def test_the_embedded_pairs_have_two_objectives():
    read = objectives.read(objectives.EMBEDDED, limit=10, counts={})
    assert list(read) == list(manners.RULES) and all(len(items) == 10 for items in read.values())
