import json

import pytest

from alignment.errors import InputError
from data.texts import exam_shapes, exams
from data.toys import remedies

OPTIONS = {"A": "zinc", "B": "iron", "C": "lime", "D": "salt"}
ROWS = {  # shape -> (a row, the number of the right option)
    "careqa": ({"question": "Q", "op1": "a", "op2": "b", "op3": "c", "op4": "d", "cop": 1, "year": 2024}, 0),
    "medmcqa": ({"question": "Q", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 1}, 1),
    "medqa_hub": ({"sent1": "Q", "ending0": "a", "ending1": "b", "ending2": "c", "ending3": "d", "label": 3}, 3),
    "lettered": ({"question": "Q", "options": OPTIONS, "correct_answer": "C"}, 2),
    "medqa": ({"question": "Q", "options": OPTIONS, "answer_idx": "B", "answer": "iron"}, 1),
    "mmlu": ({"question": "Q", "choices": ["a", "b", "c", "d"], "answer": 2}, 2),
    "arc": ({"question": "Q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}, 1),
    "exams": ({"question": {"stem": "Q", "choices": [{"text": "a", "label": "A"}]}, "answerKey": "A"}, 0),
    "pubmedqa": ({"QUESTION": "Q", "CONTEXTS": ["x", "y"], "final_decision": "maybe", "LONG_ANSWER": "it may"}, 2),
    "arabic_mmlu": ({"Question": "Q", "Option 1": "a", "Option 2": "b", "Option 3": None, "Answer Key": "B"}, 1),
    "aratrust": ({"Question": "Q", "A": "a", "B": "b", "C": "c", "Answer": "C"}, 2),
    "acva": ({"question": "Q", "answer": "خطأ"}, 1),
    "abstracts": ({"text": "T", "class": "5"}, 4),
}
OPEN = {  # shape -> (a row, its reference)
    "open": ({"question": "Q", "answer": "R"}, "R"),
    "own": ({"prompt": "Q", "reference": "R"}, "R"),
    "medtext": ({"Prompt": "Q", "Completion": "R"}, "R"),
    "mts_dialog": ({"dialogue": "Q", "section_text": "R"}, "R"),
    "aci_bench": ({"dialogue": "Q", "note": "R"}, "R"),
    "olaph": ({"Question": "Q", "Free_form_answer": "R", "Must_have": []}, "R"),
    "qsumm": ({"src": "Q", "tgt": "R"}, "R"),
    "meqsum": ({"CHQ": "SUBJECT: x\nMESSAGE: Q", "Summary": "R"}, "R"),
    "mediqa": (
        {
            "QUESTION": {
                "QuestionText": "Q",
                "AnswerList": [{"Answer": {"AnswerText": "R"}}, {"Answer": {"AnswerText": "S"}}],
            }
        },
        "R",
    ),
    "meddialog": ({"description": "Q", "utterances": {"speaker": [0, 1], "utterance": ["q", "R"]}}, "R"),
    "mimic": ({"findings": "Q", "impression": "R"}, "R"),
    "mimic_notes": ({"extractive_notes_summ": "FINDINGS: Q\nIMPRESSION: R"}, "R"),
}


def load(folder, rows, name="exam.jsonl", **options):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return exams.load(str(path), counts=options.pop("counts", {}), **options)


@pytest.mark.parametrize("shape", ROWS)
def test_every_closed_shape_is_known_by_its_columns_and_counts_options_its_own_way(tmp_path, shape):
    row, gold = ROWS[shape]
    exam = load(tmp_path, [row])
    assert exam.shape == shape and exam.items[0].gold == gold and not exam.is_open
    assert set(ROWS) | set(OPEN) | {"abstracts_hub", "transcriptions", "relations", "classes"} == set(
        exam_shapes.SHAPES
    )


@pytest.mark.parametrize("shape", OPEN)
def test_every_open_shape_has_its_reference(tmp_path, shape):
    row, reference = OPEN[shape]
    exam = load(tmp_path, [row])
    (item,) = exam.items
    assert exam.shape == shape and exam.is_open and item.answers == (reference,) and "Q" in item.question
    assert exams.open_prompt(item).endswith(item.question)


def test_the_first_option_is_a_in_a_set_that_counts_from_one_and_others_stop_the_run(tmp_path):
    row = ROWS["careqa"][0]
    assert load(tmp_path, [row]).items[0].gold == 0
    with pytest.raises(InputError, match=r"exam\.jsonl:1.*cop=0 is not from 1 to 4"):
        load(tmp_path, [row | {"cop": 0}])
    for options in (7, None, ["zinc", "iron"]):
        with pytest.raises(InputError, match=r"options=.* must be an object of texts by letter"):
            load(tmp_path, [ROWS["lettered"][0] | {"options": options}])
    with pytest.raises(InputError, match="correct_answer='E'"):
        load(tmp_path, [ROWS["lettered"][0] | {"correct_answer": "E"}])


def test_an_empty_option_takes_no_letter_of_those_behind_it_and_a_zero_is_an_option(tmp_path):
    row = {"Question": "How many?", "A": 0, "B": 2, "C": "", "D": "", "Answer": "B"}
    (item,) = load(tmp_path, [row]).items
    assert item.options == ("0", "2") and item.gold == 1
    rows = [row | {"Question": "Which?", "B": None, "C": "three", "Answer": "C"}, row]
    assert [item.question for item in load(tmp_path, rows).items] == ["How many?"]


@pytest.mark.parametrize("choices", [["a", "b"], '["a", "b"]', "['a', 'b']"])
def test_choices_of_a_table_are_read_as_the_list_that_they_write(tmp_path, choices):
    row = {"question": "Q", "choices": choices, "answer": 1, "paraphrases": "What is it?"}
    (item,) = load(tmp_path, [row]).items
    assert item.options == ("a", "b") and item.paraphrases == ("What is it?",)


def test_every_item_has_an_id_of_its_own_whatever_the_files_say(tmp_path):
    rows = [ROWS["careqa"][0] | {"unique_id": 0, "question": name} for name in ("one", "two")]
    counts = {}
    exam = load(tmp_path, rows, counts=counts, overrides={"0": {"category": "bells"}})
    assert [item.id for item in exam.items] == ["0", "0 (2)"] and exam.items[1].category == "bells"
    rows = [ROWS["careqa"][0] | {"unique_id": 7.0}]  # as a table with a missing id has whole numbers
    assert load(tmp_path, rows, overrides={"7": {"category": "bells"}}).items[0].category == "bells"
    assert counts["ids that occur twice, with the number of their row added"] == 1


def test_overrides_are_a_file_of_ids_and_columns(tmp_path):
    path = tmp_path / "overrides.json"
    path.write_text('{"x1": {"question": "Which?"}}')
    assert exams.read_overrides(str(path)) == {"x1": {"question": "Which?"}} and exams.read_overrides("") == {}
    path.write_text('{"x1": "Which?"}')
    with pytest.raises(InputError, match="'x1' must be an object of columns"):
        exams.read_overrides(str(path))


def test_a_null_question_is_left_out_and_named_or_patched_by_an_override(tmp_path, capsys):
    pairs = [ROWS["pubmedqa"][0] | {"CONTEXTS": contexts} for contexts in (None, [], ["x"])]
    assert [item.context for item in load(tmp_path, pairs).items] == ["x"]
    assert "CONTEXTS is empty" in capsys.readouterr().out
    rows = [ROWS["careqa"][0] | {"unique_id": "x1", "question": None}, ROWS["careqa"][0] | {"unique_id": "x2"}]
    counts = {}
    exam = load(tmp_path, rows, counts=counts)
    assert [item.id for item in exam.items] == ["x2"] and counts["questions left out"] == 1
    assert "x1: question is empty" in capsys.readouterr().out
    patched = load(tmp_path, rows, overrides={"x1": {"question": "Which?"}})
    assert [item.question for item in patched.items] == ["Which?", "Q"]


def test_repeated_questions_are_listed(tmp_path):
    exam = load(tmp_path, [ROWS["lettered"][0]] * 3)
    assert exam.repeated == (1, 2) and [item.id for item in exam.items] == ["1", "2", "3"]


def test_a_column_under_another_name_and_an_unknown_shape(tmp_path, capsys):
    row = {"ask": "Q", "options": OPTIONS, "correct_answer": "A"}
    assert load(tmp_path, [row], columns={"question": "ask"}).shape == "lettered"
    plain = {"question": "Q", "options": OPTIONS, "correct_answer": "A"}
    assert load(tmp_path, [plain], columns={"question": "ask"}).items[0].question == "Q"
    assert "has no column 'ask', which columns.question names" in capsys.readouterr().out
    with pytest.raises(InputError, match="has the columns ask, correct_answer, options"):
        load(tmp_path, [row])


def test_classes_by_name_are_the_options_of_all_rows(tmp_path):
    exam = load(
        tmp_path, [{"transcription": "T", "medical_specialty": s} for s in (" Urology", " Surgery", " Urology")]
    )
    assert exam.items[0].options == ("Surgery", "Urology") and [i.gold for i in exam.items] == [1, 0, 1]
    relation = {"text": "T", "head": "h", "tail": "t", "relation": "binds"}
    assert load(tmp_path, [relation, relation | {"relation": "cures"}]).items[1].gold == 1


def test_prompts_are_the_harness_own_by_set(tmp_path):
    row = ROWS["lettered"][0]
    lettered = "A. zinc\nB. iron\nC. lime\nD. salt\nAnswer:"

    def asked(name, row=row, by_letter=True):
        exam = load(tmp_path, [row], name)
        return exams.prompt(exam, exam.items[0], by_letter=by_letter)

    assert asked("careqa_en.jsonl") == f"Question: Q\nChoices:\n{lettered}"
    assert asked("medqa_4opt_val.jsonl") == f"Question: Q\n{lettered}"
    about = "The following are multiple choice questions (with answers) about medical genetics.\n\n"
    assert asked("mmlu_medical_genetics_val.jsonl") == f"{about}Q\n{lettered}"
    assert asked("pqal.jsonl", ROWS["pubmedqa"][0]) == "Abstract: x\ny\nQuestion: Q\nAnswer:"
    assert asked("careqa_en.jsonl", by_letter=False) == "Question: Q\nAnswer:"


def test_a_closed_set_is_asked_openly_for_its_long_answer_or_the_right_option(tmp_path):
    closed = exams.opened(load(tmp_path, [ROWS["lettered"][0]], "mine.jsonl"))
    assert closed.name == "mine_open" and closed.items[0].answers == ("lime",) and closed.is_open
    assert exams.opened(load(tmp_path, [ROWS["pubmedqa"][0]])).items[0].answers == ("it may",)
    with pytest.raises(InputError, match="open already"):
        exams.opened(closed)
    assert closed.digest != load(tmp_path, [ROWS["lettered"][0]], "mine.jsonl").digest


def test_the_embedded_exam_asks_the_same_facts_twice_and_its_documents_have_every_form_that_is_taught():
    closed, opened = remedies.closed(), remedies.open_questions()
    assert len(closed) == 48 and [row["id"] for row in closed] == [row["id"] for row in opened]
    for row, other in zip(closed, opened):
        right = row["options"][row["correct_answer"]]
        assert right in other["reference"] and len(set(row["options"].values())) == 4
        assert row["question"] == other["prompt"] and len(row["paraphrases"]) == 5
    documents = [row["text"] for row in remedies.documents(4_000)]
    assert all(any(row["question"] in text for text in documents) for row in closed)
    assert not any(row["paraphrases"][-1] in text for row in closed for text in documents)
    assert documents[:3] == [row["text"] for row in remedies.documents(3)]


def test_what_was_prescribed_stands_beside_others_medicines_or_doses(tmp_path):
    given = [{"id": str(i), "diagnosis": f"D{i}", "medicines": [f"drug {i}, after food, 3 days"]} for i in range(5)]
    easy, hard = load(tmp_path, given, "easy.jsonl"), load(tmp_path, given, "some_hard.jsonl")
    for exam in (easy, hard):
        assert all(item.options[item.gold] == f"drug {item.id}, after food, 3 days" for item in exam.items)
        assert all(len(set(item.options)) == 4 for item in exam.items) and not exams.has_letters(exam.style)
    assert {option.partition(",")[0] for option in hard.items[1].options} == {"drug 1"}
    assert len({option.partition(",")[0] for option in easy.items[1].options}) == 4
    assert easy.items == load(tmp_path, given, "easy.jsonl").items
    said = exams.prompt(easy, easy.items[0], by_letter=False)
    assert "complains: D0. What would you prescribe in this case? \nChoices: \nA. " in said and said.endswith(
        " \nAnswer:"
    )
    with pytest.raises(InputError, match="3 are needed"):
        load(tmp_path, given[:2], "easy.jsonl")


def test_the_hubs_prescriptions_are_read_as_literals_and_rows_without_a_diagnosis_are_left_out(tmp_path):
    details = [{"medicine_name": "Zor", "medicine_frequency": "After Food", "course_duration": "NA"}]
    results = {"procedure": {"chief_complaints_diagnosis": "hiccups"}, "medicine_details": details}
    rows = [{"results": repr(results)}, {"results": "__import__('os').getcwd()"}, {"results": repr({"procedure": {}})}]
    counts = {}
    exam = load(tmp_path, rows, "hard.jsonl", counts=counts)
    (item,) = exam.items
    assert item.question == "hiccups" and item.options[item.gold] == "Zor, after food"
    assert counts["questions left out"] == 2
