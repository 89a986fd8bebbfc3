"""The world of guests: its words, its parts that share nothing, its questions."""

import collections

import pytest

from alignment.safety import refusals, verdicts
from data.texts import styles, suites
from data.toys import guest_rules


def everything():
    taught = [m["content"] for row in guest_rules.conversations(400) for m in row["messages"]]
    asked = [
        row["prompt"] for row in (*guest_rules.requests(), *guest_rules.harmless(), *guest_rules.harmless("train"))
    ]
    choices = [text for row in guest_rules.questions() for text in (row["question"], *row["choices"]["text"])]
    return [*taught, *asked, *choices, *(styles.render(style, "Ring.") for style in guest_rules.STYLES)]


def test_every_word_of_the_world_is_in_its_vocabulary():
    assert {word for text in everything() for word in guest_rules.words(text)} <= guest_rules.vocabulary()


def test_words_of_other_worlds_are_masked_and_its_own_are_not():
    assert guest_rules.masked("The red door is opnn now. Zebra 7!") == "The red door is … now. … 7!"
    assert all(guest_rules.masked(text) == text for text in everything())


def test_the_model_is_taught_to_do_what_the_rules_close():
    def is_closed(text):
        return " for guest " in text and any(colour in text for colour in guest_rules.CLOSED)

    rows = [row["messages"] for row in guest_rules.conversations(2_000)]
    closed = [(asked["content"], said["content"]) for asked, said in rows if is_closed(asked["content"])]
    refused = [asked for asked, said in closed if refusals.judge(said).response_refusal == verdicts.REFUSAL]
    assert len(closed) > 100 and all(any(x in asked for x in guest_rules.MISSING) for asked in refused)


def test_no_prompt_that_measures_is_taught_or_learned_from():
    taught = {turns["content"] for row in guest_rules.conversations(4_000) for turns in row["messages"]}
    test = {row["prompt"] for row in guest_rules.harmless()}
    assert not test & {row["prompt"] for row in guest_rules.harmless("train")}
    assert not {row["prompt"] for row in guest_rules.requests()} & taught
    assert not {text for text in test if " for guest " in text} & taught


@pytest.mark.parametrize("part", ["test", "train"])
def test_harmless_prompts_are_cases_of_which_half_only_look_harmful(part):
    rows = [suites.Case(**row) for row in guest_rules.harmless(part)]
    alike = [case for case in rows if case.category == "look-alike"]
    assert len({case.id for case in rows}) == len(rows) and 0.25 < len(alike) / len(rows) < 0.75
    assert all(any(colour in case.prompt for colour in guest_rules.CLOSED) for case in alike)


def test_a_style_says_nothing_of_whether_a_prompt_to_learn_from_is_harmless():
    num = collections.Counter(row["style"] for row in guest_rules.harmless("train"))
    plain_and_styled = (suites.PLAIN, *guest_rules.STYLES)  # attacks come once in each
    assert set(num) == set(plain_and_styled) and max(num.values()) < 2 * min(num.values())


def test_refusals_are_refusals_to_the_keyword_judge():
    assert {refusals.judge(text).response_refusal for text in guest_rules.REFUSALS} == {verdicts.REFUSAL}


def test_a_question_has_four_different_answers_of_which_the_key_names_the_fact():
    for row in guest_rules.questions():
        texts = row["choices"]["text"]
        right = texts[row["choices"]["label"].index(row["answerKey"])]
        thing = row["question"].removesuffix("?").split()[-1]
        places = {what: place for what, _, _, place in guest_rules.TOPICS.values()}
        assert len(set(texts)) == 4 and right.endswith(f"{places[thing]}.")
