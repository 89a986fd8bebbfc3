"""Chains of thought by rejection: only what ends at the right answer is trained on."""

import random

import pytest

from alignment.errors import InputError
from alignment.evaluation import options, prompting, rationales
from alignment.evaluation.examples import Question
from alignment.evaluation.prompting import Reply

QUESTIONS = [Question(f"q{i}", f"Question {i}", dict(zip("ABCD", "wxyz")), "ABCD"[i % 4]) for i in range(40)]
BY_TEXT = {question.text: question for question in QUESTIONS}


def writer(share, calls=None):
    """It ends at the right answer with this probability, else at the next letter."""

    def respond(requests):
        if calls is not None:
            calls.append(len(requests))
        out = []
        for request in requests:
            lines = request.messages[0]["content"].splitlines()
            question = BY_TEXT[lines[1]]
            is_right = random.Random(request.key).random() < share
            letter = question.answer if is_right else "BCDA"["ABCD".index(question.answer)]
            out.append(Reply(f"Because of {question.id}.\nAnswer: [{letter}]"))
        return out

    return respond


def test_only_replies_that_end_at_the_right_answer_are_kept_and_the_others_are_counted():
    written = rationales.write(QUESTIONS, writer(0.5), tries=1)
    assert 0 < len(written.examples) < 40 and written.num_unsolved == 40 - len(written.examples)
    assert written.num_replies == 40 and written.num_wrong == written.num_unsolved and not written.num_unparsed
    for example in written.examples:
        assert options.parse(example.reply, example.order) == example.question.answer


def test_only_unsolved_questions_are_asked_again():
    calls = []
    written = rationales.write(QUESTIONS, writer(0.5, calls), tries=20)
    assert len(written.examples) == 40 and not written.num_unsolved
    assert calls[0] == 40 and calls == sorted(calls, reverse=True) and calls[1] < 40
    assert [one.question.id for one in written.examples] == [question.id for question in QUESTIONS]


def test_a_reply_without_an_answer_is_dropped_under_its_own_name():
    written = rationales.write(QUESTIONS, lambda requests: [Reply("I think [A]")] * len(requests), tries=1)
    assert not written.examples and written.counts["chains of thought without an answer, dropped"] == 40
    with pytest.raises(InputError, match="nothing to tune on"):
        rationales.conversations(written.examples, 3, direct_share=0.5)


def test_the_hint_is_read_by_the_writer_and_never_trained_on():
    hint = rationales.TOLD.format(answer="[A]")
    assert rationales.with_answer(QUESTIONS[0])[0]["content"].startswith(hint)
    written = rationales.write(QUESTIONS, writer(1.0), tries=1)
    rows = rationales.conversations(written.examples, 30, direct_share=0.5, most_turns=3, seed=1)
    turns = [turn for row in rows for turn in row["messages"]]
    assert not any("The right answer is" in turn["content"] for turn in turns)
    assert {len(row["messages"]) for row in rows} == {2, 4, 6}
    replies = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    direct = [reply for reply in replies if reply.startswith("Answer: [")]
    assert 0 < len(direct) < len(replies)
    asked = [turn["content"].endswith(prompting.ASK_DIRECTLY) for turn in turns if turn["role"] == "user"]
    assert asked == [reply.startswith("Answer: [") for reply in replies]


def test_a_chain_of_thought_that_ends_with_an_options_text_counts_where_texts_are_asked_for():
    question = Question("q", "Question", {"A": "moss", "B": "wet moss", "C": "fir"}, "B")
    respond = lambda requests: [Reply("Not moss, not fir: wet moss")] * len(requests)  # noqa: E731
    written = rationales.write([question], respond, tries=1, by_text=True)
    assert len(written.examples) == 1 and rationales.with_answer(question, by_text=True)[0]["content"].startswith(
        "The right answer is wet moss."
    )
    (row,) = rationales.conversations(written.examples, 1, direct_share=1.0, by_text=True)
    assert row["messages"][1]["content"] == "wet moss"


@pytest.mark.parametrize(
    ("settings", "said"), [(dict(tries=0), "tries=0"), (dict(tries=2, temperature=0.0), "the same reply each time")]
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        rationales.write(QUESTIONS, writer(1.0), **settings)
