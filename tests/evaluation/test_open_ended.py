import math

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.evaluation import open_ended, similarity

REFERENCE = "give oral iron for three months"
CANDIDATE = "give iron orally for three months"


def test_bleu_and_rouge_are_those_worked_by_hand():
    assert open_ended.bleu(CANDIDATE, REFERENCE) == 0
    assert open_ended.bleu(CANDIDATE, REFERENCE, compatible=True) == 1e-5
    assert open_ended.bleu(CANDIDATE, REFERENCE, order=2) == pytest.approx(0.577350, abs=1e-6)
    wanted = {"rouge1": 0.833333, "rouge2": 0.4, "rougeL": 0.833333}
    assert open_ended.rouge(CANDIDATE, REFERENCE) == pytest.approx(wanted, abs=1e-6)
    precisions = [open_ended.bleu(CANDIDATE, REFERENCE, order=n) for n in (1, 2, 3)]
    wanted = [5 / 6, (5 / 6 * 2 / 5) ** (1 / 2), (5 / 6 * 2 / 5 * 1 / 4) ** (1 / 3)]
    assert precisions == pytest.approx(wanted)
    assert open_ended.bleu("give oral iron for", REFERENCE) == pytest.approx(0.606531, abs=1e-6)  # the brevity penalty


def test_case_and_punctuation_count_in_the_compatible_bleu_alone():
    capital = "Give iron orally for three months."
    assert open_ended.bleu(capital, REFERENCE, order=2) == pytest.approx(0.577350, abs=1e-6)
    assert open_ended.bleu(capital, REFERENCE, order=2, compatible=True) == pytest.approx(0.436436, abs=1e-6)
    wanted = [4 / 7, (4 / 7 * 2 / 6) ** (1 / 2), (4 / 7 * 2 / 6 * 1 / 5) ** (1 / 3)]
    assert [open_ended.bleu(capital, REFERENCE, order=n, compatible=True) for n in (1, 2, 3)] == pytest.approx(wanted)
    assert open_ended.bleu(capital, REFERENCE, compatible=True) == 1e-5
    same = "Give oral iron for three months."
    assert open_ended.bleu(same, REFERENCE) == pytest.approx(1)
    assert open_ended.bleu(same, REFERENCE, compatible=True) == pytest.approx(0.614788, abs=1e-6)


def test_equal_texts_have_one_and_of_three_words_a_bleu_of_zero():
    assert open_ended.ngram_scores(REFERENCE, REFERENCE) == pytest.approx(dict.fromkeys(open_ended.NGRAM, 1.0))
    short = open_ended.ngram_scores("give oral iron", "give oral iron")
    assert short["bleu"] == 0 and short["rougeL"] == 1
    assert open_ended.bleu("give oral iron", "give oral iron", compatible=True) == 1e-5


def test_the_compatible_rouge_knows_letters_from_a_to_z_alone():
    pair = ("riñón dañado", "riñón sano")
    assert open_ended.rouge(*pair, compatible=True)["rouge1"] == pytest.approx(0.571429, abs=1e-6)
    assert open_ended.rouge(*pair)["rouge1"] == pytest.approx(0.5)
    arabic = "الحَديد عن طريق الفم"
    assert open_ended.rouge(arabic, arabic, compatible=True)["rouge1"] == 0
    assert open_ended.rouge(arabic, arabic)["rouge1"] == 1 and len(open_ended.words(arabic)) == 4
    assert open_ended.foreign_share(arabic) == 1 and open_ended.foreign_share("riñón") == pytest.approx(0.4)


def test_empty_texts_are_undefined_and_many_of_them_make_a_metric_unreliable():
    scores = open_ended.ngram_scores("", REFERENCE)
    assert all(math.isnan(value) for value in scores.values())
    assert all(math.isnan(v) for v in open_ended.ngram_scores("abc", REFERENCE, least=5).values())
    assert open_ended.corpus([math.nan, 0.5]) == {"mean": 0.5, "n": 1, "empty": 1, "reliable": False}
    assert open_ended.corpus([])["mean"] is None


def test_perplexities_by_words_and_bytes_are_those_worked_by_hand():
    one = open_ended.perplexities([-20], [REFERENCE])
    wanted = {"word_perplexity": 28.031625, "byte_perplexity": 1.906294, "bits_per_byte": 0.930771}
    assert one == pytest.approx(wanted, abs=1e-6)
    both = open_ended.perplexities([-20, -9], [REFERENCE, "two words"])["word_perplexity"]
    assert both == pytest.approx(37.524723, abs=1e-6)
    each = [
        open_ended.perplexities([nats], [text])["word_perplexity"] for nats, text in ((-20, REFERENCE), (-9, "a b"))
    ]
    assert np.mean(each) == pytest.approx(59.024378, abs=1e-6)  # the mean that is not taken


def test_blanks_at_the_ends_count_as_words_in_the_compatible_mode():
    wanted = {"word_perplexity": 12.182494, "byte_perplexity": 1.833195, "bits_per_byte": 0.874361}
    assert open_ended.perplexities([-20], [f" {REFERENCE} "], compatible=True) == pytest.approx(wanted, abs=1e-6)
    ended = open_ended.perplexities([-20], [REFERENCE + "\n"], compatible=True)["word_perplexity"]
    assert ended == pytest.approx(17.411708, abs=1e-6)
    assert open_ended.units("", compatible=True) == (1, 0) and open_ended.units("") == (0, 0)
    assert open_ended.units(f" {REFERENCE} ", compatible=True) == (8, 33) and open_ended.units(REFERENCE) == (6, 31)
    with pytest.raises(InputError, match="0 bytes"):
        open_ended.perplexities([-1], [""], compatible=True)
    assert open_ended.perplexities([-1e6], ["a"])["word_perplexity"] == math.inf


def test_bert_score_is_that_worked_by_hand():
    got = similarity.bert_score(np.array([[1, 0], [0, 1]]), np.array([[1, 0], [0.6, 0.8], [0, 1]]))
    assert got == pytest.approx({"precision": 1, "recall": 0.933333, "f1": 0.965517}, abs=1e-6)
    assert math.isnan(similarity.bert_score(np.zeros((0, 2)), np.ones((1, 2)))["f1"])


def test_mover_score_moves_weight_over_the_cheapest_ways():
    x = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert similarity.mover_score(x, x[::-1]) == pytest.approx(1)
    assert similarity.mover_score(x[:1], x[1:]) == pytest.approx(1 - 2**0.5)
    assert similarity.mover_score(x, x[:1]) == pytest.approx(1 - 0.5 * 2**0.5)
    assert similarity.mover_score(x, x[:1], [3, 1]) == pytest.approx(1 - 0.25 * 2**0.5)  # idf weighs the tokens
    weights = similarity.inverse_frequencies([[1, 1, 2], [2]])
    assert weights == pytest.approx({1: math.log(3 / 2), 2: 0.0})
