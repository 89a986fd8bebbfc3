"""Concepts and counterfactuals by a model: malformed answers, two passes, and a cache that stands in for the model."""

import pytest

from alignment.concepts import annotate
from alignment.decoding import backends, cache
from alignment.errors import InputError

CONCEPTS = ("food", "service")


class Scripted:
    """A model that names the concepts whose word stands in a text."""

    def __init__(self, spoil_fn=lambda number, answer: answer):
        self.num_requests, self._spoil_fn = 0, spoil_fn

    def __call__(self, chats, max_new):
        out = []
        for chat in chats:
            lines = []
            for line in chat[-1]["content"].splitlines():
                number, _, text = line.partition(". ")
                named = [concept for concept in CONCEPTS if concept in text]
                lines.append(f"{number}. {', '.join(named) or 'none'}")
            out.append(self._spoil_fn(self.num_requests, "\n".join(lines)))
            self.num_requests += 1
        return out


def asker(complete, kept, **options):
    return annotate.Asker(complete, kept, who="scripted", way_out="ask a model", **options)


def run(one, texts, **options):
    return annotate.annotate(one, texts, about="reviews", concepts=CONCEPTS, **options)


TEXTS = ["good food", "food and service", "nothing", "fast service", "food", "a long\nservice"]
WANTED = [{"food"}, {"food", "service"}, set(), {"service"}, {"food"}, {"service"}]


def test_answers_are_read_line_by_line_and_others_are_malformed():
    assert annotate.parse("1. food, service\n2: None", 2, CONCEPTS) == [{"food", "service"}, set()]
    assert annotate.parse("1. Food.\n\n2) wine", 2, CONCEPTS) == [{"food"}, set()]
    for answer in ("1. food", "1. food\n2. none\n3. none", "food\nnone", "1. food\n1. none", ""):
        assert annotate.parse(answer, 2, CONCEPTS) is None


def test_two_passes_keep_what_they_agree_on():
    first = [frozenset({"food", "service"}), frozenset({"food"}), frozenset(), None]
    second = [frozenset({"service", "food"}), frozenset({"food", "service"}), frozenset(), frozenset()]
    assert annotate.agreed(first, second) == [{"food", "service"}, None, frozenset(), None]


@pytest.mark.parametrize("draw", [0, 1])
def test_texts_go_in_batches_and_come_back_in_their_order(draw):
    model = Scripted()
    assert run(asker(model, cache.Cache()), TEXTS, batch_size=4, draw=draw) == WANTED
    assert model.num_requests == 2


def test_a_malformed_answer_is_requested_again_and_then_given_up():
    once = Scripted(lambda number, answer: "what?" if number == 0 else answer)
    one = asker(once, cache.Cache())
    assert run(one, TEXTS[:2]) == WANTED[:2] and one.counts["malformed answers"] == 1
    never = asker(Scripted(lambda number, answer: "what?"), cache.Cache())
    assert run(never, TEXTS[:2], retries=1) == [None, None] and never.counts["requests given up"] == 1


def test_a_second_run_asks_nothing_and_one_without_a_model_reads_the_cache(tmp_path):
    model = Scripted(lambda number, answer: "what?" if number == 0 else answer)
    with cache.Cache(tmp_path / "annotations.jsonl") as kept:
        first = run(asker(model, kept), TEXTS)
    asked = model.num_requests
    with cache.Cache(tmp_path / "annotations.jsonl") as kept:
        assert run(asker(model, kept), TEXTS) == first == WANTED and model.num_requests == asked
        assert run(asker(None, kept), TEXTS) == first
        with pytest.raises(InputError, match="lacks 1 of 1 answers; ask a model"):
            run(asker(None, kept), ["other"])


def test_answers_that_came_before_a_backend_went_down_are_kept():
    def broken(chats, max_new):
        raise backends.Down("gone", [Scripted()(chats[:1], [1])[0]])

    kept = cache.Cache()
    with pytest.raises(backends.Down):
        run(asker(broken, kept), TEXTS, batch_size=3)
    model = Scripted()
    assert run(asker(model, kept), TEXTS, batch_size=3) == WANTED and model.num_requests == 1


def test_a_counterfactual_is_one_line_that_differs_from_its_source():
    assert annotate.parse_injection(' "Soup, and a dull evening" ', "a dull evening") == "Soup, and a dull evening"
    for answer in ("", "a  dull evening", "a dull\nevening with soup", "soup " * 200):
        assert annotate.parse_injection(answer, "a dull evening") is None


def test_a_text_cannot_close_its_line():
    chat = annotate.annotation("reviews", CONCEPTS, ["one\n2. food"], [("soup", frozenset({"food"}))])
    assert chat[-1]["content"] == "1. one 2. food" and chat[2]["content"] == "1. food"
