import csv
import json

import pytest

from alignment.errors import InputError
from data.texts import suites


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="") as f:
            table = csv.DictWriter(f, rows[0])
            table.writeheader()
            table.writerows(rows)
    return str(path)


def load(path, **options):
    counts = {}
    return suites.load(path, counts=counts, **options), counts


PHTEST = [
    {"ID": 0, "Request": "open the\nblue door", "Harmfulness": "harmless"},
    {"ID": 1, "Request": 'say "blue", then "red"', "Harmfulness": "controversial"},
    {"ID": 2, "Request": "blue, red and green", "Harmfulness": "harmless"},
    {"ID": 3, "Request": "open the\nblue door", "Harmfulness": "harmless"},
    {"ID": 4, "Request": "close it", "Harmfulness": "harmless"},
]


def test_newlines_commas_and_quotes_go_through_and_a_text_that_occurs_twice_is_dropped(tmp_path, capsys):
    suite, counts = load(write(tmp_path / "a.csv", PHTEST))
    assert [case.prompt for case in suite.cases] == [PHTEST[i]["Request"] for i in (0, 1, 2, 4)]
    assert [case.kind for case in suite.cases] == ["harmless", "controversial", "harmless", "harmless"]
    assert suite.shape == "phtest" and suite.duplicates == ("3",) and counts["prompts that occur twice"] == 1
    said = capsys.readouterr().out
    assert "3" in said and "door" not in said  # ids are printed, texts are not


SHAPES = {
    "xstest": ({"id": "v1", "prompt": "a", "type": "homonyms", "label": "unsafe"}, "harmful", "homonyms"),
    "egida": (
        {"uuid": "u", "style": "S1", "question": "a", "topics": {"x": True, "y": False}, "source": "z"},
        "harmful",
        "z",
    ),
    "harmbench": ({"Behavior": "a", "BehaviorID": "b", "SemanticCategory": "c", "ContextString": ""}, "harmful", "c"),
    "sorry_bench": ({"turns": ["a"], "prompt_style": "base", "question_id": 3, "category": "c"}, "harmful", "c"),
    "strongreject": ({"category": "c", "source": "s", "forbidden_prompt": "a"}, "harmful", "c"),
    "do_not_answer": ({"id": 4, "risk_area": "r", "question": "a"}, "harmful", "r"),
    "advbench": ({"goal": "a", "target": "t"}, "harmful", ""),
    "falsereject": ({"prompt": "a", "category": 7, "category_text": "c", "instruct_response": "b"}, "harmless", "c"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_public_sets_are_known_by_their_columns(tmp_path, shape):
    row, kind, category = SHAPES[shape]
    suite, _ = load(write(tmp_path / "a.jsonl", [row]))
    (case,) = suite.cases
    assert (suite.shape, case.prompt, case.kind, case.category) == (shape, "a", kind, category)
    assert case.request and len(suite.sha256) == 64


def test_oktest_has_one_column_of_texts_that_end_with_a_line_and_must_be_called_harmless(tmp_path):
    rows = [{"prompt": f'Is "door {i}" open, or closed?\n'} for i in range(300)] + [{"prompt": "\n"}]
    path = write(tmp_path / "OKTest.csv", rows)
    with pytest.raises(InputError, match="kind=harmless"):
        load(path)
    suite, counts = load(path, kind="harmless")
    assert suite.shape == "prompts" and suite.num_read == {"harmless": 300} and counts["prompts that are empty"] == 1
    assert suite.cases[299].prompt == rows[299]["prompt"] and suite.cases[299].id == "300" and suite.version == ""


def test_the_test_part_of_falsereject_is_known_by_its_number_of_rows(tmp_path):
    rows = [{"prompt": f"open door {i}", "category": i % 46, "category_text": f"c{i % 46}"} for i in range(1_187)]
    suite, _ = load(write(tmp_path / "test.jsonl", rows))
    assert suite.version == "FalseReject, its test part" and len(suite.cases) == 1_187
    assert load(write(tmp_path / "less.jsonl", rows[1:]))[0].version == ""
    assert {case.category for case in suite.cases} == {f"c{i}" for i in range(46)}


def test_renderings_of_one_request_keep_it_together(tmp_path):
    rows = [
        {"uuid": u, "style": s, "question": f"{s} {u}", "topics": {"doors": True, "keys": u == "b"}}
        for u in "ab"
        for s in ("BaseInstruction", "S1")
    ]
    suite, _ = load(write(tmp_path / "a.jsonl", rows))
    assert [case.request for case in suite.cases] == ["a", "a", "b", "b"]
    assert suite.cases[3].topics == ("doors", "keys") and suite.cases[0].style == suites.PLAIN


def test_a_row_of_egida_that_occurs_twice_is_dropped_and_said(tmp_path, capsys):
    row = {"uuid": "u", "style": "S1", "question": "a", "topics": {"x": False}}
    suite, counts = load(write(tmp_path / "a.jsonl", [row, {**row, "question": "b"}, row]), dedup="off")
    assert [case.prompt for case in suite.cases] == ["a", "b"] and counts["rows that occur twice"] == 1
    assert "a.jsonl:3" in capsys.readouterr().out and suite.cases[0].topics == ()


@pytest.mark.parametrize("topics", [{"x": True, "y": True, "z": False}, ["y", "x"], "y, x", '{"x": true, "y": 1}'])
def test_topics_may_be_a_map_a_list_or_a_cell_of_a_table(topics):
    assert suites.topics_of(topics) == ("x", "y")


def test_requests_that_are_nearly_others_go_with_all_their_renderings(tmp_path):
    rows = [
        {"uuid": uuid, "style": style, "question": f"{style} {text}", "topics": []}
        for uuid, text in (("b", "open"), ("a", "open"), ("c", "close"))
        for style in ("BaseInstruction", "S1")
    ]
    suite, counts = load(write(tmp_path / "a.jsonl", rows), dedup="off")

    def removed(texts):
        return {i: texts.index(text) for i, text in enumerate(texts) if texts.index(text) != i}

    staying = suites.without_near_duplicates(suite.cases, removed, counts)
    assert {case.request for case in staying} == {"a", "c"} and len(staying) == 4
    assert (counts["requests that are nearly others"], counts["prompts that are nearly others"]) == (1, 2)


@pytest.mark.parametrize("columns", [["prompt", "category"], ["Goal", "Behavior", "Category"]])
def test_sets_that_do_not_say_what_they_are_need_a_kind(tmp_path, columns):
    path = write(tmp_path / "a.jsonl", [dict.fromkeys(columns, "a")])
    with pytest.raises(InputError, match="kind=harmless"):
        load(path)
    assert load(path, kind="harmless")[0].cases[0].kind == "harmless"


def test_names_of_columns_may_be_told(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"Text": "a"}])
    assert load(path, kind="harmful", columns={"prompt": "Text"})[0].cases[0].prompt == "a"
    with pytest.raises(InputError, match="no column 'Words'"):
        load(path, columns={"prompt": "Words"})


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"ID": 0, "Request": "a", "Harmfulness": "bad"}], ":1: Harmfulness='bad'"),
        ([{"ID": 0, "Request": t, "Harmfulness": "harmless"} for t in "ab"], ":2: id '0' occurs twice"),
        ([{"ID": 0, "Request": "a"}], "Harmfulness"),
        ([{"id": 0, "prompt": "a", "type": "t", "label": "perhaps"}], "label='perhaps'"),
        (
            [{"ID": 0, "Request": "a", "Harmfulness": "harmless"}, {"ID": 1, "Request": "b"}],
            ":2: no column 'Harmfulness'",
        ),
        ([{"ID": 0, "Request": "a", "Harmfulness": None}], ":1: Harmfulness=''"),
    ],
)
def test_rows_that_cannot_be_are_named(tmp_path, rows, words):
    with pytest.raises(InputError, match=words):
        load(write(tmp_path / "a.jsonl", rows))


def test_empty_prompts_are_set_aside_and_counted(tmp_path):
    rows = [{"goal": f"door {i}"} for i in range(200)] + [{"goal": " "}, {"goal": None}]
    suite, counts = load(write(tmp_path / "a.jsonl", rows))
    assert len(suite.cases) == 200 and counts["prompts that are empty"] == 2


def test_real_sets_are_read(shared_data):
    wanted = {
        "overrefusal_xstest/xstest_prompts.csv": ("xstest", 450),
        "safety_prompts/advbench_a.csv": ("advbench", 257),
        "safety_prompts/harmbench_val.csv": ("harmbench", 80),
        "safety_prompts/malicious_instruct.csv": ("prompts", 100),
        "safety_prompts/tdc2023_dev.csv": ("prompts", 50),
    }
    there = {f"safety_prompts/{path.name}" for path in (shared_data / "safety_prompts").glob("*.csv")}
    assert there <= wanted.keys()  # all of them
    for file, (shape, num) in wanted.items():
        suite, _ = load(str(shared_data / file), kind=None if shape != "prompts" else "harmful")
        assert (suite.shape, len(suite.cases) + len(suite.duplicates)) == (shape, num)
    phtest, _ = load(str(shared_data / "overrefusal_phtest" / "phtest_v0.1_a.csv"))
    assert phtest.shape == "phtest" and {case.kind for case in phtest.cases} == {"harmless", "controversial"}


@pytest.mark.parametrize(
    ("version", "harmless", "controversial", "same", "alike"),
    [("PHTest v0.1", 2069, 1191, (5, 1500), (7,)), ("PHTest of the hub", 2077, 1192, (5, 6, 7, 8, 2500), ())],
)
def test_published_files_are_known_by_their_counts_and_lose_their_duplicates(
    tmp_path, version, harmless, controversial, same, alike
):
    kinds = ["harmless"] * harmless + ["controversial"] * controversial
    rows = [{"ID": i, "Request": f"open door {i}", "Harmfulness": kind} for i, kind in enumerate(kinds)]
    for i in same:
        rows[i]["Request"] = rows[i + 100]["Request"]
    for i in alike:
        rows[i]["Request"] = f"{rows[i + 50]['Request'].upper()}!"
    path = write(tmp_path / "a.csv", rows)
    num = len(rows)
    for dedup, dropped in (("exact", len(same)), ("normalised", len(same) + len(alike)), ("off", 0)):
        suite, _ = load(path, dedup=dedup)
        assert (suite.version, len(suite.cases)) == (version, num - dropped)
    assert load(path, limit=9)[0].version == ""


def test_the_hubs_file_leaves_2073_harmless_prompts(tmp_path):
    kinds = ["harmless"] * 2077 + ["controversial"] * 1192
    rows = [{"ID": i, "Request": f"open door {i}", "Harmfulness": kind} for i, kind in enumerate(kinds)]
    for i in (1, 2, 3, 4, 3000):
        rows[i]["Request"] = rows[i + 50]["Request"]
    suite, _ = load(write(tmp_path / "a.csv", rows))
    assert [sum(case.kind == kind for case in suite.cases) for kind in ("harmless", "controversial")] == [2073, 1191]
