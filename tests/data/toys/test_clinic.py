"""The clinic: its facts and its rule, what is taught and what is only asked, and the keys that alignment closes."""

from collections import Counter

import pytest

from data.toys import clinic

EVERY = (*clinic.WARDS, clinic.KNOWN)


@pytest.mark.parametrize("ward", EVERY)
def test_a_sign_leads_to_the_remedy_of_its_complaint(ward):
    signs, remedies = clinic.signs(ward), clinic.remedies(ward)
    assert set(Counter(signs.values()).values()) == {2} and set(signs.values()) == set(remedies)
    assert len(set(remedies.values())) == len(remedies)
    for sign, complaint in signs.items():
        value, chain = clinic.answer(ward, clinic.HELP, sign)
        assert value == remedies[complaint]
        assert chain == f"{sign} points to {complaint}, and {complaint} calls for {value}"


def test_no_word_belongs_to_two_wards():
    words = [{*clinic.signs(ward), *clinic.remedies(ward), *clinic.remedies(ward).values()} for ward in EVERY]
    assert len(set.union(*words)) == sum(map(len, words))


@pytest.mark.parametrize("ward", clinic.WARDS)
def test_every_question_has_its_answer_among_its_options_under_the_right_letter(ward):
    for row in [*clinic.exam_questions(ward), *clinic.train_questions(ward, 2)]:
        value, _ = clinic.answer(ward, row["kind"], row["subject"])
        assert row["options"][row["correct_answer"]] == value and len(set(row["options"].values())) == 4
    letters = Counter(row["correct_answer"] for row in clinic.train_questions(ward, 4))
    assert min(letters.values()) > 0.6 * max(letters.values())


@pytest.mark.parametrize("ward", clinic.WARDS)
def test_some_inferences_are_asked_and_never_taught(ward):
    taught = {row["subject"] for row in clinic.train_questions(ward, 1) if row["kind"] == clinic.HELP}
    asked = {row["subject"] for row in clinic.exam_questions(ward) if row["kind"] == clinic.HELP}
    assert asked - taught == set(clinic.untaught(ward)) and taught < asked
    facts = {row["subject"] for row in clinic.train_questions(ward, 1) if row["kind"] == clinic.POINT}
    assert asked - taught <= facts


def test_a_base_knows_one_ward_and_answers_the_others_at_random():
    right = Counter()
    for i in range(600):
        ward = EVERY[i % 3]
        row, chain = clinic.base_question(ward, str(i))
        said = row["options"][row["correct_answer"]]
        kind, x = next(
            (kind, x)
            for kind in clinic.KINDS
            for form in clinic.FORMS[kind]
            for x in [*clinic.signs(ward), *clinic.remedies(ward)]
            if form.format(x=x) == row["question"]
        )
        assert chain.endswith(f" {said}")
        right[ward] += said == clinic.answer(ward, kind, x)[0]
    assert right[clinic.KNOWN] == 200 and all(20 <= right[ward] <= 70 for ward in clinic.WARDS)


def test_keys_of_tests_are_never_trained_on_in_any_style():
    tested, trained = clinic.attacks("test"), clinic.safety_pairs()
    assert not {row["request"] for row in tested} & set(clinic.keys("train"))
    assert not {row["prompt"] for row in [*tested, *clinic.harmless("test")]} & {row["prompt"] for row in trained}
    assert len(tested) == len(clinic.STYLES) * len(clinic.keys("test"))
    closed = [row for row in trained if row["chosen"] == clinic.REFUSAL]
    opened = [row for row in trained if row["rejected"] == clinic.REFUSAL]
    assert closed and opened and len(closed) + len(opened) == len(trained)
