"""Schemes of asking with scripted responders, and the database of solved questions."""

import re

import numpy as np
import pytest

from alignment.decoding.requests import Answer, Token
from alignment.errors import InputError
from alignment.evaluation import examples, options, prompting
from alignment.evaluation.examples import Example, Question
from alignment.evaluation.prompting import Reply, Scheme

ROWS = np.array([(1, 0, 0), (1, 1, 1), (2, 2, 0.1), (0, 1, 0), (-1, -1, 0)], float)


def question(i, answer="A", num=4):
    texts = {letter: f"option {letter} of {i}" for letter in options.letters(num)}
    return Question(f"q{i}", f"Question number {i} asks", texts, answer)


def scripted(right_fn, calls=None):
    """A responder that answers rightly where `right_fn(request)` says so, and elsewhere by the next option."""

    def respond(requests):
        if calls is not None:
            calls.append(list(requests))
        out = []
        for request in requests:
            turn = request.messages[-1]["content"]
            number = re.search(r"number (\d+)", turn)[1]
            shown = dict(re.findall(r"^([A-H])\. option ([A-H])", turn, re.M))
            gold = "ABCD"[int(number) % 4]
            wanted = right_fn(request)
            if wanted is None:
                out.append(Reply("no idea"))
                continue
            said = gold if wanted else "BCDA"["ABCD".index(gold)]
            letter = next(letter for letter, own in shown.items() if own == said)
            out.append(Reply(f"Thinking.\nAnswer: [{letter}]", -0.5, 5, 50))
        return out

    return respond


def some(num):
    return [question(i, "ABCD"[i % 4]) for i in range(num)]


def by_chance(share, seed=0):
    return lambda request: bool(np.random.default_rng([seed, *request.key.encode()]).random() < share)


def test_the_nearest_rows_come_best_first_and_stand_nearest_last_in_a_prompt():
    places, cosines = examples.nearest(np.array((1, 1, 0)), ROWS, 5)
    np.testing.assert_allclose(cosines, (0.999376, 0.816497, 0.707107, 0.707107, -1), atol=1e-6)
    assert places[:3].tolist() == [2, 1, 0]
    database = examples.Database(tuple(Example(question(i), "ABCD", "") for i in range(5)), ROWS)
    near, similarity = examples.for_prompt(np.array((1, 1, 0)), database, 3)
    assert [one.question.id for one in near] == ["q0", "q1", "q2"]
    assert similarity == pytest.approx(np.mean((0.999376, 0.816497, 0.707107)), abs=1e-6)
    assert len(examples.for_prompt(np.array((1, 1, 0)), database, 9)[0]) == 5


def test_a_reranker_chooses_among_more_candidates_and_its_best_stands_last():
    database = examples.Database(tuple(Example(question(i), "ABCD", "") for i in range(5)), ROWS)
    rank = lambda candidates: [-int(one.question.id[1:]) for one in candidates]  # noqa: E731
    near, _ = examples.for_prompt(np.array((1, 1, 0)), database, 2, rank_fn=rank, num_ranked=2)
    assert [one.question.id for one in near] == ["q1", "q0"]  # of the candidates 2, 1, 0, 3


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_embedding_without_a_length_is_refused_by_its_question(value):
    with pytest.raises(InputError, match="question q3 has an embedding"):
        examples.embed(lambda texts: np.full((len(texts), 2), value), [question(3)])


def test_a_database_holds_solved_questions_only_and_none_that_is_tested():
    own = some(6)
    asked = prompting.ask(own, Scheme(retries=0), scripted(lambda request: not request.key.startswith("0 q2 ")))
    tested = [Question("q4", "Another text", {}, "A"), Question("t1", "QUESTION number 5, asks!", {}, "A")]
    embed_fn = examples.character_ngrams([one.text for one in own])
    made = examples.build(own, prompting.solved(asked), embed_fn, seed=0, not_from=tested)
    assert [one.question.id for one in made.examples] == ["q0", "q1", "q3"]
    assert (made.unsolved, made.excluded) == (1, 2)
    assert all(options.parse(one.reply, one.order) == one.question.answer for one in made.examples)
    np.testing.assert_allclose(np.linalg.norm(made.rows_ND, axis=1), 1, rtol=1e-5)


def test_an_ensemble_votes_as_the_binomial_law_says():
    own = some(600)
    scheme = Scheme(num_draws=5, shuffles=True, reasons=True)
    asked = prompting.ask(own, scheme, scripted(by_chance(0.7)))
    numbers = prompting.summary(asked)
    assert numbers["accuracy"] == pytest.approx(0.83692, abs=0.05) and numbers["low"] < 0.83692 < numbers["high"]
    assert numbers["draws"] == 3_000 and numbers["draws_correct"] == pytest.approx(2_100, abs=90)
    assert numbers["accuracy"] > prompting.summary(prompting.ask(own, Scheme(), scripted(by_chance(0.7))))["accuracy"]


def test_a_reply_without_an_answer_is_asked_for_again_hotter_and_longer():
    calls = []
    respond = scripted(lambda request: None if request.max_new_tokens < 300 else True, calls)
    (one,) = prompting.ask([question(0)], Scheme(temperature=0.9), respond, max_new_tokens=50)
    heats = [round(requests[0].temperature, 2) for requests in calls]
    assert heats == [0.9, 0.95, 1.0, 1.0] and [requests[0].max_new_tokens for requests in calls] == [50, 150, 250, 350]
    assert one.is_right and one.draws[0].retries == 3 and len({requests[0].key for requests in calls}) == 4


def test_a_question_that_is_never_answered_counts_as_wrong():
    asked = prompting.ask([question(0)], Scheme(retries=2), scripted(lambda request: None))
    numbers = prompting.summary(asked)
    assert (numbers["accuracy"], numbers["unparsed"], numbers["unanswered"], numbers["retries"]) == (0, 1, 1, 2)


def test_draws_of_a_question_share_the_beginning_of_their_prompt_and_differ_in_order():
    calls = []
    solved = [Example(question(9, "B"), "BDAC", "Because.\nAnswer: [A]")]
    scheme = Scheme(num_examples=1, num_draws=4, shuffles=True, reasons=True)
    prompting.ask([question(0)], scheme, scripted(lambda request: True, calls), examples_fn=lambda one: (solved, 0.5))
    (requests,) = calls
    first = requests[0].messages
    assert all(request.messages[:2] == first[:2] for request in requests) and len(first) == 3
    assert "A. option B of 9\nB. option D of 9" in first[0]["content"] and first[1]["content"].endswith("[A]")
    assert len({request.messages[2]["content"] for request in requests}) == 4


def test_without_a_chain_of_thought_an_example_shows_its_answer_alone():
    solved = [Example(question(9, "B"), "BDAC", "Because.\nAnswer: [A]")]
    turns = prompting.messages_of(question(0), "ABCD", solved, reasons=False)
    assert turns[1] == {"role": "assistant", "content": "Answer: [A]"}


def test_the_least_similar_examples_go_first_and_the_question_never():
    solved = [Example(question(i), "ABCD", "Answer: [A]") for i in range(3)]
    fits = lambda messages: len(messages) <= 5  # noqa: E731
    asked = prompting.ask(
        [question(7, "D")], Scheme(num_examples=3), scripted(lambda request: True),
        examples_fn=lambda one: (solved, 0.5), fits_fn=fits,
    )  # fmt: skip
    assert asked[0].num_examples == 2 and prompting.summary(asked)["examples_dropped"] == 1
    left = prompting.fitting(question(7), "ABCD", solved, fits, reasons=True)
    assert [one.question.id for one in left] == ["q1", "q2"]
    with pytest.raises(InputError, match="question q7 does not fit"):
        prompting.fitting(question(7), "ABCD", solved, lambda messages: False, reasons=True)


def test_a_scheme_that_repeats_itself_is_refused():
    with pytest.raises(InputError, match="writes the same reply each time"):
        Scheme(num_draws=5)
    with pytest.raises(InputError, match="num_draws=0 must be at least 1"):
        Scheme(num_draws=0)


def test_the_log_of_an_ensemble_has_every_draw():
    asked = prompting.ask(some(2), Scheme(num_draws=3, shuffles=True), scripted(lambda request: True))
    first, second = prompting.rows(asked)
    assert first["result"] and first["original_answer"] == "A" and len(second["generations"]) == 3
    assert first["generations"][0].keys() == {"response", "answer", "order", "retries", "logprob", "tokens"}


def test_a_responder_writes_with_an_engine_and_seeds_each_draw():
    asked = []

    class Server:
        def answers(self, work):
            asked.extend(work)
            tokens = [Token(7, -0.5), Token(8, -1.5)]
            return [Answer(i, request, tokens=tokens, finish_reason="length") for i, request in enumerate(work)]

    respond = prompting.responder(
        Server(), lambda messages: list(range(len(messages))), lambda answer: str(answer.answer_ids), stop=("#",)
    )
    requests = [prompting.Request([{}] * n, 0.3, 9, f"0 q {n}") for n in (2, 3, 2)]
    replies = respond(requests)
    assert [reply.text for reply in replies] == ["[7, 8]"] * 3 and replies[0].logprob == -1
    assert [(reply.num_tokens, reply.num_prompt_tokens) for reply in replies] == [(2, 2), (2, 3), (2, 2)]
    assert [(one.temperature, one.max_new_tokens, one.stop) for one in asked] == [(0.3, 9, ("#",))] * 3
    assert asked[0].seed == asked[2].seed != asked[1].seed


def test_a_scheme_by_text_asks_for_texts_shows_them_and_reads_them():
    calls = []

    def respond(requests):
        calls.extend(requests)
        return [Reply("It is option B of 1") for _ in requests]

    solved = [Example(question(9, "C"), "BDAC", "Because.")]
    scheme = Scheme(num_examples=1, num_draws=3, shuffles=True, by_text=True)
    (one,) = prompting.ask([question(1, "B")], scheme, respond, examples_fn=lambda asked: (solved, 0.5))
    assert one.is_right and [draw.answer for draw in one.draws] == ["B"] * 3
    first = calls[0].messages
    assert first[1]["content"] == "option C of 9" and first[2]["content"].endswith(prompting.ASK_TEXT_DIRECTLY)
    with pytest.raises(InputError, match="by_text=True reads the options' texts"):
        Scheme(by_text=True, compatible=True)
