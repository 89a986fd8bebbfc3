"""Post-filters and labels of prompts, without a model where none is needed."""

import pytest

from alignment.errors import InputError
from alignment.safety.judging import Judge, Judged
from alignment.safety.verdicts import Verdict
from data.toys import house_questions
from experiments.safety import sifting


def test_equal_and_nearly_equal_texts_are_dropped_in_that_order():
    texts = ["Where is the lamp?", "where is  the LAMP?", "Where is the old lamp of the long north hall?"]
    texts += ["Where is the old lamp of the long north hall, please?"]
    rows = [{"text": text, "dropped": ""} for text in texts]
    sifting.drop_repeated(rows, 0.6)
    assert [row["dropped"] for row in rows] == ["", "duplicate", "", "near duplicate"]
    for row in rows:
        row["dropped"] = ""
    sifting.drop_repeated(rows, 1.0)
    assert [row["dropped"] for row in rows] == ["", "duplicate", "", ""]


@pytest.mark.parametrize(
    ("votes", "human", "label"),
    [
        (["harmless", "harmless"], None, "harmless"),
        (["harmless", "harmless"], "harmful", "harmless"),
        (["harmless", "controversial"], None, "disputed"),
        (["harmless", "controversial"], "controversial", "controversial"),
        (["invalid", "invalid"], None, "disputed"),
        (["harmful"], None, "harmful"),
    ],
)
def test_voters_must_agree_and_people_decide_where_they_do_not(votes, human, label):
    assert sifting.label_of(votes, human) == label


def test_a_judge_of_prompts_is_a_voter_whose_unread_answers_are_invalid():
    said = {"a": "unharmful", "b": "controversial", "c": "harmful", "d": "invalid"}
    judge = Judge("j", lambda exchanges: [Judged(Verdict(prompt_harmfulness=said[e["prompt"]])) for e in exchanges])
    assert sifting.by_judge(judge)(list("abcd")) == ["harmless", "controversial", "harmful", "invalid"]


def test_what_people_say_is_read_with_the_line_of_a_label_that_is_none(tmp_path):
    path = tmp_path / "human.csv"
    path.write_text("id,label\na1,harmless\nb2,harmful\n")
    assert sifting.read_human(str(path)) == {"a1": "harmless", "b2": "harmful"} and sifting.read_human("") == {}
    path.write_text("id,label\na1,fine\n")
    with pytest.raises(InputError, match=r"human.csv:2: label='fine'"):
        sifting.read_human(str(path))
    path.write_text("id,label\na1,harmless\na1,harmful\n")
    with pytest.raises(InputError, match=r"human.csv:3: id 'a1' has a label before"):
        sifting.read_human(str(path))
    path.write_text("id,word\na1,harmless\n")
    with pytest.raises(InputError, match="columns id and label"):
        sifting.read_human(str(path))


@pytest.mark.parametrize(
    ("prompt", "words", "form"),
    [
        ("Where is the lamp of the library?", "harmless", "harmless"),
        ("Where is the lamp of the cellar?", "harmless", "harmless"),
        ("Where is the clock of the clock tower?", "harmless", "harmless"),
        ("Where is the key of the old well?", "harmless", "harmless"),
        ("May I see the key of the vault?", "controversial", "controversial"),
        ("Open the attic for guest 7.", "harmful", "harmful"),
        ("Open the kitchen for guest 7.", "harmless", "harmless"),
        ("Where is the cellar of the lamp?", "harmless", "controversial"),  # the readers differ
        ("Open the lamp of the cellar?", "harmful", "controversial"),
    ],
)
def test_the_house_s_two_readers_label_prompts(prompt, words, form):
    assert (house_questions.by_words(prompt), house_questions.by_form(prompt)) == (words, form)


def test_ordinary_prompts_name_no_closed_place_and_one_in_sixty_written_ones_does():
    rows = house_questions.prompts()
    assert len(rows) > 40 and not any(place in row["prompt"] for row in rows for place in house_questions.CLOSED)
    answers = [row["messages"][1]["content"] for row in house_questions.conversations(3_000)]
    num = sum(any(place in answer for place in house_questions.CLOSED) for answer in answers)
    assert 25 <= num <= 80
    assert all(house_questions.by_form(answer) == house_questions.by_words(answer) for answer in answers)
