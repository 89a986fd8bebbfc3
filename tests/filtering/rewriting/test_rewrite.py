import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.decoding import backends, cache
from alignment.errors import InputError
from alignment.filtering.rewriting import conduct, rewrite
from tests.decoding.test_backends import FAST, said, server

CODE = conduct.load("en-neutral")
ODD = st.text(st.sampled_from(list("ab.!؟ \t\n\r\x0b\x0c\x1c\x85\u2028\u3000\u200bé漢")), max_size=120)


def rewritten(texts, complete=None, **options):
    records = [{"text": text} for text in texts]
    options = {"cache": cache.Cache(), "code": CODE, **options}
    return rewrite.rewrite(records, complete or rewrite.echo(), **options)


def words(text):
    return len(text.split())


@given(st.lists(ODD | st.text(max_size=60), max_size=4), st.integers(1, 12))
def test_a_rewriter_that_changes_nothing_gives_back_the_identical_texts(texts, max_tokens):
    assert rewritten(texts, max_tokens=max_tokens) == texts


@given(ODD | st.text(max_size=200), st.integers(2, 12))
def test_chunks_and_gaps_make_up_the_text_and_no_chunk_is_too_long(text, max_tokens):
    gaps, bodies = rewrite.split(text, max_tokens=max_tokens)
    assert "".join(part for pair in zip(gaps, [*bodies, ""]) for part in pair) == text
    assert all(gap.strip() == "" for gap in gaps) and len(gaps) == len(bodies) + 1
    assert all(body and body == body.strip() for body in bodies)
    assert all(rewrite.count_tokens(body) <= max_tokens for body in bodies)


def test_chunks_end_where_paragraphs_do_and_hold_as_many_as_fit():
    text = "one two\n\nthree four\n\nfive six seven\n\neight"
    gaps, bodies = rewrite.split(text, count_tokens=words, max_tokens=4)
    assert bodies == ["one two\n\nthree four", "five six seven\n\neight"] and gaps == ["", "\n\n", ""]


def test_a_long_paragraph_is_cut_at_sentences_then_words_then_letters():
    _, bodies = rewrite.split("One two. Three four! خمسة ستة؟ seven", count_tokens=words, max_tokens=3)
    assert bodies == ["One two.", "Three four!", "خمسة ستة؟ seven"]
    assert rewrite.split("a b c d e", count_tokens=words, max_tokens=2)[1] == ["a b", "c d", "e"]
    assert rewrite.split("abcdefg", count_tokens=len, max_tokens=3)[1] == ["abc", "def", "g"]


def test_a_word_of_a_megabyte_is_cut_and_counted_as_more_than_one():
    _, bodies = rewrite.split("x" * 1_000_000)
    assert len(bodies) > 80 and "".join(bodies) == "x" * 1_000_000


def test_answers_replace_the_chunks_and_white_space_stays():
    assert rewritten(
        [" a b\n\n\nc d \n"], rewrite.echo(lambda t: f"\n{t.upper()} "), count_tokens=words, max_tokens=2
    ) == [" A B\n\n\nC D \n"]


def test_longest_answers_are_a_third_longer_than_the_chunk_plus_64():
    asked = []

    def complete(messages, max_new):
        asked.extend(max_new)
        return ["x"] * len(messages)

    rewritten(["one two three four five six seven eight nine ten"], complete, count_tokens=words)
    assert asked == [13 + 64]


def test_order_is_kept_and_a_text_that_comes_twice_is_asked_once():
    asked = []

    def edit(text):
        asked.append(text)
        return text.upper()

    texts = [f"text {i % 7}" for i in range(20)]
    assert rewritten(texts, rewrite.echo(edit), batch_size=3) == [text.upper() for text in texts]
    assert sorted(asked) == [f"text {i}" for i in range(7)]


def test_a_time_out_is_tried_three_times_more_and_then_the_document_has_no_answer():
    tries = {"slow": 0, "dead": 0}

    def edit(text):
        if text in tries:
            tries[text] += 1
            if text == "dead" or tries[text] <= 3:
                raise TimeoutError
        return text.upper()

    assert rewritten(["slow", "dead\n\nfine", "ok"], rewrite.echo(edit), max_tokens=2) == ["SLOW", None, "OK"]
    assert tries == {"slow": 4, "dead": 4}


def test_a_rewriter_that_goes_down_leaves_its_answers_and_the_next_start_asks_only_for_the_rest(tmp_path):
    texts = [f"text {i}" for i in range(10)]
    asked = []

    def edit_until(last):
        def edit(text):
            if text == last:
                raise backends.Down("gone")
            asked.append(text)
            return text.upper()

        return edit

    with cache.Cache(tmp_path / "a.jsonl") as store, pytest.raises(backends.Down):
        rewritten(texts, rewrite.echo(edit_until("text 6")), cache=store, batch_size=4)
    with cache.Cache(tmp_path / "a.jsonl") as store:
        assert len(store) == 6
        assert rewritten(texts, rewrite.echo(edit_until("")), cache=store) == [text.upper() for text in texts]
    assert sorted(asked) == texts


def test_another_code_kind_model_or_sampling_is_another_request(tmp_path):
    store = cache.Cache()
    for options in (
        {},
        {"code": conduct.load("ar-gulf")},
        {"kind": "educate"},
        {"model": "b"},
        {"sampling": {"seed": 1}},
    ):
        before = len(store)
        rewritten(["a text"], cache=store, **options)
        assert len(store) == before + 1
        rewritten(["a text"], cache=store, **options)
        assert len(store) == before + 1


def test_a_text_written_anew_is_made_from_the_first_chunk_and_has_no_gaps():
    texts = ["\n one two\n\nthree four\n", "", "  "]
    assert rewritten(texts, kind="refuse", count_tokens=words, max_tokens=2) == ["one two", "", ""]


def test_marks_repeated_by_the_model_are_taken_off():
    assert rewritten(["a b"], lambda messages, _: [messages[0][1]["content"]]) == ["a b"]


def test_limits_that_cannot_work_are_refused():
    with pytest.raises(InputError, match="max_tokens=0"):
        rewritten(["a"], max_tokens=0)


def test_echo_answers_with_the_text_and_with_what_edit_makes_of_it():
    chats = [conduct.prompt(CODE, text) for text in ("a <<<END x>>>", "")]
    assert rewrite.echo()(chats, [99, 99]) == ["a <<<END x>>>", ""]
    assert rewrite.echo(lambda t: f"Analysis: {t}")(chats[1:], [99]) == ["Analysis: "]


def test_an_endpoint_that_goes_away_leaves_its_answers_in_the_cache_and_may_come_back():
    store, texts = cache.Cache(), [{"text": f"text {i}"} for i in range(12)]

    def answer(prompt, _):
        return said(conduct.text_of([{"content": prompt}]).upper())

    with server(answer) as (url, seen):
        complete = backends.openai(url, "m", concurrency=2, retries=0, **FAST)
        rewrite.rewrite(texts[:5], complete, CODE, store)
    with pytest.raises(backends.Down):
        rewrite.rewrite(texts, complete, CODE, store)
    assert len(store) == 5
    with server(answer) as (url, seen):
        complete = backends.openai(url, "m", **FAST)
        assert rewrite.rewrite(texts, complete, CODE, store) == [t["text"].upper() for t in texts]
        assert len(seen) == 7


@pytest.mark.parametrize("answer", ["a smile \ud83d", "a byte \0 inside"])
def test_an_answer_that_cannot_be_stored_is_never_cached_nor_taken_from_a_cache(tmp_path, answer):
    answers = cache.Cache(tmp_path / "answers.jsonl")
    assert rewritten(["good text"], rewrite.echo(lambda text: answer), cache=answers) == [None] and not len(answers)
    put, answers.put = answers.put, lambda key, _: put(key, answer)  # a cache as an earlier version left it
    rewritten(["good text"], cache=answers)
    answers.put = put
    assert rewritten(["good text"], cache=answers) == ["good text"]
