import json

import pytest

from alignment.errors import InputError
from data.texts import egida, suites
from data.texts.egida import SafeAnswer


def write(folder, rows, name="a.jsonl"):
    path = folder / name
    path.write_text(json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


TRIPLET = {"question": "open the door", "chosen": "I will not.", "discarded": "It is open."}


@pytest.mark.parametrize("prompt", ["question", "prompt", "instruction"])
@pytest.mark.parametrize("chosen", ["chosen", "chosen_answer"])
@pytest.mark.parametrize("rejected", ["rejected", "discarded", "discarded_answer"])
def test_triplets_are_read_under_each_name_of_their_columns(tmp_path, prompt, chosen, rejected):
    row = dict(zip((prompt, chosen, rejected), TRIPLET.values()))
    (pair,) = egida.load_pairs(write(tmp_path, [row], "Egida-DPO-Qwen2.5-7B-Instruct.json"), counts={})
    assert (pair.prompt, pair.chosen, pair.rejected) == tuple(TRIPLET.values())
    assert pair.target_model == "Qwen2.5-7B-Instruct" and pair.uuid == egida.prompt_key("Open  the door")


def test_pairs_that_a_run_wrote_are_read_back_whole(tmp_path):
    pair = egida.Pair("u", "open", "no", "yes", "S1", ("doors", "keys"), "target", "other")
    row = {**vars(pair), "topics": {"keys": True, "doors": True, "lamps": False}}
    assert egida.load_pairs(write(tmp_path, [row]), counts={}) == [pair]


def test_a_column_that_is_missing_is_named_with_its_aliases_and_the_columns_that_are_there(tmp_path):
    path = write(tmp_path, [{"question": "a", "good": "b", "bad": "c"}])
    with pytest.raises(InputError, match=r"a\.jsonl:1: no column for chosen.*chosen or chosen_answer.*good, bad"):
        egida.load_pairs(path, counts={})
    (pair,) = egida.load_pairs(path, columns={"chosen": "good", "rejected": "bad"}, counts={})
    assert (pair.chosen, pair.rejected) == ("b", "c")
    with pytest.raises(InputError, match="'choosen'"):
        egida.load_pairs(path, columns={"choosen": "good"}, counts={})


def test_empty_texts_and_pairs_of_one_answer_are_dropped_with_a_count(tmp_path, capsys):
    rows = [TRIPLET, {**TRIPLET, "chosen": " "}, {**TRIPLET, "question": ""}, {**TRIPLET, "discarded": "I will not. "}]
    counts = {}
    assert len(egida.load_pairs(write(tmp_path, rows), counts=counts)) == 1
    assert counts == {
        "records": 4,
        "rows with an empty chosen": 1,
        "rows with an empty prompt": 1,
        "pairs of one answer": 1,
    }
    said = capsys.readouterr().out
    assert "a.jsonl:4" in said and "door" not in said
    with pytest.raises(InputError, match="no pair is left"):
        egida.load_pairs(write(tmp_path, rows[1:]), counts={})


def test_safe_answers_are_those_of_the_preferred_model(tmp_path):
    rows = [
        {"uuid": uuid, "question": "q", "answer": f"{model} {uuid}", "model": model}
        for uuid in "abc"
        for model in ("Phi-3-small", "Mistral-7B")
    ]
    answers = egida.load_answers(write(tmp_path, rows), counts={})
    both = egida.best_answers(answers, preferred=("mistral", "phi"))
    assert {uuid: answer.model for uuid, answer in both.items()} == dict.fromkeys("abc", "Mistral-7B")
    assert egida.best_answers(answers)["a"] == SafeAnswer("a", "q", "Phi-3-small a", "Phi-3-small")


@pytest.mark.parametrize(
    ("row", "columns", "words"),
    [
        ({"votes": ["safe", "Unsafe ", "uncertain"]}, {}, {}),
        ({"labels": "safe, unsafe, uncertain"}, {}, {}),
        ({"labels": '["safe", "unsafe", "uncertain"]'}, {}, {}),
        ({"r1": 0, "r2": 1, "r3": 2, "r4": None}, {"votes": "r1,r2,r3,r4"}, dict(zip("012", egida.VOTES))),
    ],
)
def test_votes_of_people_are_read_from_a_list_a_text_or_a_column_each(tmp_path, row, columns, words):
    path = write(tmp_path, [{"question": "q", "response": "a", **row}])
    (voted,) = egida.load_votes(path, columns=columns, words=words, counts={})
    assert voted == egida.Voted("1", "q", "a", egida.VOTES)


def test_a_vote_that_is_not_known_is_named_with_its_line(tmp_path):
    path = write(tmp_path, [{"question": "q", "response": "a", "votes": ["ok"]}])
    with pytest.raises(InputError, match=r":1: the vote 'ok'.*words"):
        egida.load_votes(path, counts={})


def case(request, style, topics=("doors",)):
    return suites.Case(f"{request}/{style}", f"{style} {request}", "harmful", "", request, style, topics)


def test_cells_of_requests_and_styles_add_up_to_the_rows():
    styles = [suites.PLAIN, *(f"S{i}" for i in range(20))]
    cases = [case(f"u{i}", style) for i in range(30) for style in styles][:-3]
    cases += [case("u0", "S0"), case("u1", "S1")]
    got = egida.grid(cases)
    assert (got.num_requests, got.num_styles, got.missing, got.repeated) == (30, 21, 3, 2)
    assert got.num_rows == got.num_styles * got.num_requests - got.missing + got.repeated == len(cases)
