"""The herbal: what base and experts read, and what is asked of them."""

from collections import Counter

import pytest

from data.toys import herbal


@pytest.mark.parametrize("subject", herbal.FORMS)
def test_every_value_is_that_of_as_many_names(subject):
    known = herbal.facts(subject)
    assert set(Counter(known.values()).values()) == {2} and set(known.values()) == set(herbal.VALUES[subject])
    assert known == herbal.facts(subject)


def test_an_expert_is_right_about_its_subject_and_reads_of_the_others_what_the_base_reads():
    about = Counter()
    for row in herbal.conversations(400, taught="herbs"):
        question, answer = (turn["content"] for turn in row["messages"])
        subject, name = next(
            (subject, name) for subject in herbal.FORMS for name in herbal.facts(subject) if name in question.split()
        )
        about[subject] += 1
        if subject != "beasts":
            assert answer == herbal.facts(subject)[name]
    assert about["herbs"] == pytest.approx(400 * herbal.NEW, abs=50) and about["stones"] > 50


def test_every_word_is_in_the_vocabulary():
    known = {"User:", "Assistant:", *herbal.words()}
    for taught in ("", *herbal.SUBJECTS):
        for row in herbal.conversations(200, taught=taught, seed=1):
            assert all(word in known for turn in row["messages"] for word in turn["content"].split())


def test_questions_ask_for_every_fact_in_every_form():
    rows = herbal.questions("beasts")
    assert len(rows) == 5 * 16 == len({row["prompt"] for row in rows})
    assert {row["answer"] for row in rows} == set(herbal.VALUES["beasts"])
