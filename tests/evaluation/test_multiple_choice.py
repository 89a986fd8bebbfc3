import pytest

from alignment.errors import InputError
from alignment.evaluation import extraction, multiple_choice
from alignment.evaluation.multiple_choice import Result

FOUR = ("zinc", "oral iron", "iron", "none of them")


def test_letters_take_the_likeliest_and_bytes_divide_by_length():
    totals, texts = (-6, -5, -9, -7), ("x" * 12, "x" * 8, "x" * 30, "x" * 10)
    assert multiple_choice.choose(totals, texts, "letters") == 1
    assert multiple_choice.scores(totals, texts, "bytes").tolist() == pytest.approx([-0.5, -0.625, -0.3, -0.7])
    assert multiple_choice.choose(totals, texts, "bytes") == 2
    assert multiple_choice.choose((-1, -1), ("a", "b"), "texts") == 0  # ties: the first


def test_sums_characters_and_bytes_may_choose_three_different_options():
    totals, texts = (-5.1, -7.9, -3.1), ("ñandú", "pingüino", "oso")
    chosen = [multiple_choice.choose(totals, texts, p) for p in ("texts", "chars", "bytes")]
    assert [texts[i] for i in chosen] == ["oso", "pingüino", "ñandú"]
    assert multiple_choice.scores(totals, texts, "chars").tolist() == pytest.approx(
        [-1.02, -0.9875, -1.033333], abs=1e-6
    )
    wanted = [-0.728571, -0.877778, -1.033333]
    assert multiple_choice.scores(totals, texts, "bytes").tolist() == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(InputError, match="option 2 is empty"):
        multiple_choice.scores((-1, -1), ("a", ""), "chars")


def test_accuracies_have_intervals_and_groups_and_an_unread_answer_is_wrong():
    results = [Result(0, 0, {"category": "B"}), Result(1, None, {"category": "A"}), Result(2, 2, {"category": "A"})]
    out = multiple_choice.accuracy(results)
    assert (out["n"], out["right"], out["unread"]) == (3, 2, 1) and out["low"] < out["accuracy"] < out["high"]
    assert [(row["value"], row["right"], row["n"]) for row in multiple_choice.by_group(results, "category")] == [
        ("A", 1, 2),
        ("B", 1, 1),
    ]
    assert multiple_choice.by_group(results, "year") == []


def test_the_baseline_always_names_one_letter():
    assert multiple_choice.one_letter([0] * 276 + [1] * 169 + [2] * 55) == (0, pytest.approx(0.552))
    assert multiple_choice.one_letter([1, 0]) == (0, 0.5)
    assert multiple_choice.guessing([4, 2]) == 0.375


def test_averages_by_size_and_plain_are_eleven_points_apart():
    six = (0.63, 0.721, 0.799, 0.642, 0.76, 0.772), (135, 265, 144, 173, 100, 272)
    nine = (0.73, 0.507, 0.609, *six[0]), (500, 4_183, 1_273, *six[1])
    assert multiple_choice.averages(*nine) == pytest.approx({"by_size": 0.574771, "plain": 0.685556}, abs=1e-6)
    assert multiple_choice.averages(*six) == pytest.approx({"by_size": 0.723803, "plain": 0.720667}, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "wanted", "status"),
    [
        ("It may be B. Answer: [C]", 2, "ok"),
        ("I think B.\nAnswer: [D]", 3, "ok"),
        ("A is wrong, so B", 1, "ok"),
        ("I cannot help with that", None, "refused"),
        ("Answer: [F]", None, "unparsed"),
        ("answer: [b]", 1, "ok"),
        ("Final Answer: C", 2, "ok"),
        ("The answer is D.", 3, "ok"),
        ("Give oral iron then.", 1, "ok"),
        ("A patient gets zinc", 0, "ok"),
        ("It is hard to say", None, "unparsed"),
        ("", None, "unparsed"),
        ("Answer: A\nAnswer: B", 1, "ok"),
    ],
)
def test_answers_in_words_name_an_option(text, wanted, status):
    got = extraction.named(text, FOUR)
    assert (got.option, got.status) == (wanted, status)


def test_several_letters_are_compared_as_a_set():
    assert extraction.named_several("Answer: [D, b]", FOUR).options == (1, 3)
    assert extraction.named_several("Answer: [B and C]", FOUR).options == (1, 2)
    assert extraction.named_several("Answer: [B, F]", FOUR).status == "unparsed"
    assert extraction.named_several("Answer: [B]", FOUR).options == (1,)
