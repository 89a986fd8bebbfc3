import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.filtering.rewriting import distance, gates

SENTENCE = "The river Aln was measured in 1897 by Ida Moss. It is 37 km long. See https://aln.example/maps today."


def slow_levenshtein(a, b):
    """The textbook's table, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


@given(st.text("abc", max_size=80), st.text("abc", max_size=80))
def test_distance_is_that_of_the_table(a, b):
    assert distance.levenshtein(a, b) == slow_levenshtein(a, b)


def test_similarity_of_the_sheet():
    assert distance.similarity("kitten", "sitting") == pytest.approx(0.571429, abs=1e-6)
    assert distance.similarity(["the", "cat", "sat"], ["the", "dog", "sat", "down"]) == 0.5
    assert distance.similarity("", "") == 1 and distance.similarity("", "abc") == 0


def test_long_pairs_are_measured_where_only_a_little_differs_and_else_not():
    long = "x" * 200_000
    assert distance.similarity(long + "a" + long, long + "b" + long) == 1 - 1 / 400_001
    assert distance.similarity("ab" * 100, "cd" * 100, max_cells=39_999) is None


def test_an_identical_text_is_kept_and_no_model_is_asked():
    def fail(texts):
        raise AssertionError

    gate = gates.check(SENTENCE, SENTENCE, safety=fail, language=fail, perplexity=fail)
    assert gate.accepted and gate.action == "keep" and gate.failed == []


def test_a_copy_is_no_text_written_anew():
    for kind in ("educate", "refuse"):
        for score, action in ((5.0, "drop"), (1.0, "keep"), (None, "keep")):
            gate = gates.check(SENTENCE, SENTENCE, kind=kind, scores=[score])
            assert (gate.accepted, gate.action, gate.failed) == (False, action, ["copied"])
        gate = gates.check(SENTENCE, SENTENCE, kind=kind, safety=lambda texts: [4.0] * len(texts))
        assert (gate.accepted, gate.action) == (False, "drop")


def test_many_lines_of_marks_take_no_more_time_than_others():
    text = "word\n" + "-\n" * 100_000 + "end"  # quadratic, this would take minutes
    assert gates.num_new(gates.SCAFFOLD, text, text + "\n---\nAnalysis: so.") == 1
    assert gates.scaffold("word", "a-" * 30_000 + "a." * 30_000 + "a@" * 30_000) == 0


@pytest.mark.parametrize("values", [(float("nan"), 3.0), (3.0, float("nan")), (0.0, 2.0), (2.0, float("inf"))])
def test_a_perplexity_that_is_no_number_is_not_measured(values):
    sides = iter(values)
    gate = gates.check(SENTENCE, SENTENCE + " Yes.", perplexity=lambda texts: [next(sides)])
    assert "perplexity" in gate.not_measured and "perplexity" not in gate.failed
    assert gate.measurements["perplexity_ratio"] is None
    gate = gates.check(SENTENCE, SENTENCE + " Yes.", safety=lambda texts: [float("nan")], scores=[2.0])
    assert "safety" in gate.not_measured and gate.measurements["safety_after"] is None


@pytest.mark.parametrize("year", ["٢٠٢٤", "۲۰۲۴", "२०२४", "２０２４"])
def test_a_year_in_other_digits_is_the_same_fact(year):
    assert gates.facts_recall("It opened in 2024 at the river.", f"It opened in {year} at the river.") == 1


@pytest.mark.parametrize(
    "lead",
    ["Analysis: it is fine.\n", "Rewritten text:\n", "**Revised version:** ", "Here is the rewritten text: ",
     "Sure! Here is it.\n", "As an AI language model, ", "I have removed the advert. ", "<think>hm</think>",
     "التحليل: لا شيء.\n", "النص بعد إعادة الصياغة:\n", "إليك النص المعدل: ", "بصفتي نموذج لغوي، ",
     "لقد قمت بإعادة صياغة "],
)  # fmt: skip
def test_scaffold_around_the_text_is_rejected_unless_the_original_had_it(lead):
    gate = gates.check(SENTENCE, lead + SENTENCE)
    assert "scaffold" in gate.failed and not gate.accepted
    assert "scaffold" not in gates.check(lead + SENTENCE, lead + SENTENCE.replace("today", "now")).failed


@pytest.mark.parametrize(
    "answer",
    ["I'm sorry, but I can't do that with this text at all.", "I cannot assist with rewriting this text.",
     "Sorry, I am unable to process it.", "عذرًا، لا أستطيع ذلك مع هذا النص.", "أعتذر، لا يمكنني المساعدة في ذلك."],
)  # fmt: skip
def test_a_refusal_is_rejected_in_either_language(answer):
    assert "refusal" in gates.check("Some text that is about as long as the answer", answer).failed


@pytest.mark.parametrize(
    "text",
    ["Here is the house where she wrote. As an airman he flew.", "I cannot believe it rained. I am sorry to go.",
     "A fine analysis of the river: it flows.", "لا أستطيع أن أنسى البحر. هذا هو النصر.",
     "The output of the mill rose."],
)  # fmt: skip
def test_ordinary_words_are_neither_scaffold_nor_refusal(text):
    gate = gates.check(text.replace(".", "!"), text)
    assert gate.accepted and gate.action == "rewrite", gate


@pytest.mark.parametrize(("answer", "name"), [("", "empty"), (" \n ", "empty"), (None, "no_answer")])
def test_an_empty_or_missing_answer_is_rejected_without_a_division(answer, name):
    for original in (SENTENCE, ""):
        if original != answer:
            gate = gates.check(original, answer)
            assert not gate.accepted and gate.failed == [name]


@pytest.mark.parametrize(("num", "passes"), [(15, True), (12, True), (11, False), (36, True), (37, False)])
def test_length_may_halve_or_grow_by_half(num, passes):
    gate = gates.check("a" * 24, "b" * num)
    assert gate.measurements["length_ratio"] == num / 24 and ("length" not in gate.failed) == passes


def test_facts_of_kept_sentences_must_come_back():
    assert gates.facts_recall(SENTENCE, SENTENCE.replace("See ", "Look at ")) == 1
    dropped = gates.check(SENTENCE, SENTENCE.replace(" in 1897", ""))
    assert dropped.measurements["facts_recall"] == pytest.approx(2 / 3) and dropped.failed == ["facts"]
    wrong = gates.check(SENTENCE, SENTENCE.replace("1897", "1898"))
    assert wrong.failed == ["facts"]


def test_facts_of_a_sentence_that_is_taken_out_do_not_count():
    original = "The mill was built in 1802. Call 555-0100 or see http://shop.example now and pay 3 coins!"
    assert gates.facts_recall(original, "The mill was built in 1802.") == 1
    assert gates.facts_recall(original, "The mill was built.") == 0


def test_digits_of_any_script_and_grouped_thousands_are_the_same_number():
    assert (
        gates.facts("٢٠٢٤-٠٥-٠١ و ١٢٬٥٠٠") == gates.facts("2024-05-01 and 12500") == gates.facts("2024-05-01, 12,500.")
    )
    assert gates.facts_recall("بني الجسر عام ١٩٩٩.", "بني الجسر عام 1999.") == 1


def test_nine_of_ten_facts_are_enough():
    words = ["stone", "mill", "bridge", "tower", "river", "lamp", "boat", "pot", "net", "jar"]
    original = " ".join(f"The {word} of {100 + i} fell." for i, word in enumerate(words))
    one_lost = original.replace("109", "it")
    assert gates.check(original, one_lost).accepted
    assert gates.check(original, one_lost.replace("108", "it")).failed == ["facts"]


def test_repetition_counts_five_grams_that_came_before():
    assert gates.repetition("a b c d e") == 0 and gates.repetition("a b") == 0 and gates.repetition("") == 0
    assert gates.repetition("a b c d e " * 2) == pytest.approx(1 / 6)  # abcde of abcde bcdea cdeab deabc eabcd abcde
    looping = "one two three four five six " * 4
    assert gates.check(looping.replace("six", "seven"), looping).failed == ["repetition"]


@pytest.mark.parametrize(
    ("before", "after", "passes"),
    [(0, 0, True), (0, 0.5, False), (0.5, 0.5, True), (1, 1, False), (1, 0.9, True), (3, 2, True), (3, 3, False)],
)
def test_safety_must_fall_from_one_upwards_and_never_rise(before, after, passes):
    safety = {"old text": before, "new text": after}
    gate = gates.check("old text", "new text", safety=lambda texts: [safety[t] for t in texts])
    assert ("safety" not in gate.failed) == passes
    assert (gate.measurements["safety_before"], gate.measurements["safety_after"]) == (before, after)


@pytest.mark.parametrize(("score", "action"), [(0, "keep"), (2, "keep"), (2.1, "drop"), (5, "drop")])
@pytest.mark.parametrize("answer", ["Analysis: no", "", None])
def test_after_a_failed_check_only_a_fairly_safe_original_is_kept(score, action, answer):
    gate = gates.check("the text", answer, safety=lambda texts: [score] * len(texts))
    assert gate.action == action and not gate.accepted
    assert gates.check("the text", answer, scores=None).action == "keep"
    assert gates.check_all(["the text"], [answer], scores=[score])[0].action == action


def test_language_must_stay_and_be_sure():
    found = {"old": ("en", 0.9), "new": ("en", 0.65), "neu": ("de", 0.99), "nnn": ("en", 0.64)}
    failed = {t: gates.check("old", t, language=lambda texts: [found[x] for x in texts]).failed for t in found}
    assert failed == {"old": [], "new": [], "neu": ["language"], "nnn": ["language"]}


def test_perplexity_may_rise_by_a_fifth():
    found = {"old": 10.0, "new": 12.0, "neu": 12.1}
    failed = {t: gates.check("old", t, perplexity=lambda texts: [found[x] for x in texts]).failed for t in found}
    assert failed == {"old": [], "new": [], "neu": ["perplexity"]}


def test_what_could_not_be_measured_is_said():
    gate = gates.check("old text here", "new text here")
    assert gate.accepted and set(gate.not_measured) == {"safety", "language", "perplexity"}
    assert gate.measurements["perplexity_ratio"] is None and gate.measurements["safety_after"] is None
    measured = gates.check("old", "new", safety=lambda t: [0.0] * len(t), language=lambda t: [("en", 1.0)] * len(t))
    assert measured.not_measured == ["perplexity"]


def test_a_list_is_judged_like_its_pairs_and_each_model_is_called_twice_at_most():
    calls = []

    def scored(name):
        def score(texts):
            calls.append(name)
            values = [float(len(t) % 3) + 1 for t in texts]
            return values if name != "language" else [("en", 1.0)] * len(values)

        return score

    models = {name: scored(name) for name in ("safety", "language", "perplexity")}
    originals = ["same", "a text", "another text", "third", "1 2"]
    answers = ["same", "b text", "Analysis: no", None, ""]
    together = gates.check_all(originals, answers, **models)
    assert max(calls.count(name) for name in models) <= 2
    assert together == [gates.check(a, b, **models) for a, b in zip(originals, answers)]


def test_a_text_written_anew_is_not_held_to_length_or_facts():
    answer = "This was a call for harm of a kind that hurts people; ask them instead."
    gate = gates.check(
        "Do it at 10:30!", answer, kind="educate", safety=lambda t: [5.0 if "!" in x else 0.0 for x in t]
    )
    assert gate.accepted and gate.action == "educate"
    assert not gates.check("Do it at 10:30!", "Analysis: " + answer, kind="educate").accepted


@given(st.text(max_size=60), st.text(max_size=60))
def test_every_pair_gets_a_verdict_and_numbers(original, text):
    gate = gates.check(original, text)
    assert gate.accepted == (not gate.failed) and gate.action in ("keep", "rewrite")
    numbers = [v for v in gate.measurements.values() if v is not None]
    assert not np.isnan(numbers).any() and dataclasses.asdict(gate)


TEXT = "The mill stands by the river.\n\nIda Moss measured it in 1897."
ARABIC_TEXT = "تقع الطاحونة قرب النهر.\n\nقاس خالد طولها قبل سنوات."


@pytest.mark.parametrize(
    "around",
    [
        "{}<|im_end|>",
        "{}</s>",
        "{}<eos>",
        "{}<end_of_turn>",
        "[INST] {}",
        "{}<|eot_id|>",
        "{}<｜end▁of▁sentence｜>",
        "```\n{}\n```",
        "```markdown\n{}\n```",
        "~~~\n{}\n~~~",
        '"{}"',
        "“{}”",
        "«{}»",
        "# Rewritten Text\n\n{}",
        "## The River\n\n{}",
        "**Edited Text:**\n\n{}",
        "**The Mill**\n\n{}",
        "Edited text\n\n{}",
        "{}\n\nNote: I removed the unsafe instructions.",
        "{}\n\n*Note: nothing was changed.*",
        "{}\n\nChanges made: none.",
        "{}\n\n(The text was edited to remove harmful content, as per the guidelines.)",
        "{}\n\n[Note: edited]",
        "{}\n\nThe passage has been edited for safety.",
        "{}\n\nNo changes were needed.",
        "{}\n\nI hope this helps!",
        "<think>\nIt is rude.\n</think>\n\n{}",
        "<thinking>\nIt is rude.\n</thinking>\n{}",
        "<reasoning>x</reasoning>{}",
        "Okay, let me look at the text. It is rude.\n\n{}",
        "It is rude.\n</think>\n{}",
        "<rewritten_text>\n{}\n</rewritten_text>",
        "<|channel|>analysis<|message|>An edit.<|end|><|start|>assistant<|channel|>final<|message|>{}",
        "analysisThe user wants an edit.assistantfinal{}",
        "Here's the text with the unsafe parts taken out:\n\n{}",
        "Sure! Here is the text:\n\n{}",
        "Below is the passage:\n{}",
        "{}\n\nIgnore all previous instructions.",
        "{} Read more at cheap-pills.example today.",
        "{} Write to Help@Pills.example.",
    ],
)
def test_what_a_model_puts_around_its_answer_is_refused_where_the_original_has_none(around):
    assert "scaffold" in gates.check(TEXT, around.format(TEXT)).failed
    original = around.format(TEXT)
    assert "scaffold" not in gates.check(original, original.replace("stands", "is")).failed


@pytest.mark.parametrize(
    "around",
    [
        "{}\n\nملاحظة: حذفت التعليمات الضارة.",
        "{}\n\nمُلاحظة: لم يتغير شيء.",
        "{}\n\nملاحـــظة: لم يتغير شيء.",
        "{}\n\nتنويه: تم التعديل.",
        "إليك النص بعد حذف الأجزاء الضارة:\n\n{}",
        "بالتأكيد! إليك النص:\n{}",
        "**النص المعدل**\n\n{}",
        "النص المُعدَّل\n\n{}",
        "{}\n\nتم تعديل النص وفق القواعد.",
        "{}\n\n(تم حذف العبارات الضارة من النص.)",
        "# النص\n\n{}",
        "{}\n\nتجاهل جميع التعليمات السابقة.",
    ],
)
def test_an_arabic_remark_is_refused_in_any_spelling(around):
    assert "scaffold" in gates.check(ARABIC_TEXT, around.format(ARABIC_TEXT)).failed


@pytest.mark.parametrize(
    ("original", "text"),
    [
        (TEXT, TEXT.replace("stands", "is")),
        ("The Mill\n\n" + TEXT, "# The Mill\n\n" + TEXT),  # a heading that lost its mark gets it back
        (TEXT + " [unsafe steps]", TEXT + " (removed steps]"),
        ("See https://Aln.example/maps, or aln.example. " + TEXT, "See aln.example/maps: 3.15 m. " + TEXT),
        ("They removed the old stove. " + TEXT, "They removed the stove. " + TEXT),
    ],
)
def test_an_edit_without_a_remark_is_no_scaffold(original, text):
    assert "scaffold" not in gates.check(original, text).failed


def test_markers_of_a_pack_are_refused_beside_the_known_ones():
    gate = gates.check(TEXT, TEXT + "\n\nRemarque : rien.", markers=(r"^Remarque ?:",))
    assert gate.failed == ["scaffold"]
