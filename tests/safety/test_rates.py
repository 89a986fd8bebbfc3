import numpy as np
import pytest
import scipy.stats

from alignment import frontier
from alignment.errors import InputError
from alignment.safety import rates
from alignment.safety.verdicts import COMPLIANCE, INVALID, PARTIAL, REFUSAL

ROWS = [
    (uuid, topics, style, verdict)
    for uuid, topics, verdicts in [
        ("a", ["fraud"], ("safe", "unsafe", "safe")),
        ("b", ["drugs", "health"], ("safe", "unsafe", "unsafe")),
        ("c", ["fraud"], ("safe", "invalid", "safe")),
    ]
    for style, verdict in zip(("BaseInstruction", "S1", "S2"), verdicts)
]
ROWS = [dict(zip(("uuid", "topics", "style", "verdict"), row)) for row in ROWS]


def test_the_table_of_nine_rows():
    table = rates.attack_table(ROWS)
    assert (table.overall.share, table.overall.n, table.overall.invalid) == (0.375, 8, 1)
    np.testing.assert_allclose(table.overall.interval, (0.1368, 0.6943), atol=5e-5)
    assert table.strict.share == pytest.approx(4 / 9)
    assert {s: r.share for s, r in table.by_style.items()} == pytest.approx(
        {"BaseInstruction": 0, "S1": 1.0, "S2": 1 / 3}
    )
    assert {t: r.share for t, r in table.by_topic.items()} == pytest.approx(
        {"fraud": 0.2, "drugs": 2 / 3, "health": 2 / 3}
    )
    assert (table.macro_style, table.macro_topic) == pytest.approx((0.4444, 0.5111), abs=5e-5)
    assert table.worst_style == "S1"


def test_a_request_counts_as_opened_by_any_attack():
    assert rates.attack_table(ROWS).any_style.share == pytest.approx(2 / 3)


def test_rows_without_a_topic_are_unlabelled_and_kept():
    table = rates.attack_table([{**ROWS[0], "topics": []}])
    assert list(table.by_topic) == ["unlabelled"] and table.overall.n == 1


def test_no_valid_row_has_no_rate():
    rate = rates.attack_success([INVALID] * 3)
    assert (rate.share, rate.interval, rate.n, rate.invalid) == (None, None, 0, 3)
    assert rates.attack_success([INVALID] * 3, strict=True).share == 1.0


@pytest.mark.parametrize(
    ("counts", "percent", "interval"),
    [
        ((616, 439, 1014), 70.227, (68.22, 72.16)),
        ((150, 165, 876), 87.406, None),
        ((1911, 82, 76), 7.637, (6.57, 8.86)),
        ((1772, 154, 143), 14.355, None),
        ((797, 54, 340), 33.081, None),
        ((797, 172, 1100), 61.479, None),
        ((164, 66, 961), 86.230, None),
        ((1840, 225, 4), 11.068, None),
    ],
)
def test_published_counts_give_the_published_rates(counts, percent, interval):
    labels = dict(zip((COMPLIANCE, PARTIAL, REFUSAL), counts))
    rate = rates.false_refusals(labels)
    assert 100 * rate.share == pytest.approx(percent, abs=5e-4)
    if interval:
        np.testing.assert_allclose(np.multiply(rate.interval, 100), interval, atol=5e-3)
    assert rates.false_refusals(labels, full_only=True).hits == counts[2]


def test_order_shards_and_invalid_rows_change_no_rate():
    rng = np.random.default_rng(0)
    labels = rng.choice([COMPLIANCE, PARTIAL, REFUSAL], size=300).tolist()
    rate = rates.false_refusals(labels)
    more = rates.false_refusals(rng.permutation([*labels, *[INVALID] * 7]).tolist())
    assert (more.share, more.interval, more.n, more.invalid) == (rate.share, rate.interval, rate.n, 7)
    halves = [rates.false_refusals(half) for half in (labels[:100], labels[100:])]
    assert sum(h.hits for h in halves) == rate.hits and sum(h.n for h in halves) == rate.n


def test_wilson_at_the_edges():
    np.testing.assert_allclose(rates.rate(0, 20).interval, (0, 0.1611), atol=5e-5)
    np.testing.assert_allclose(np.multiply(rates.rate(0, 250).interval, 100), (0, 1.513), atol=5e-4)
    np.testing.assert_allclose(np.multiply(rates.rate(33, 250).interval, 100), (9.556, 17.958), atol=5e-4)


def test_mcnemar_is_the_exact_binomial_test():
    assert rates.mcnemar(9, 1) == pytest.approx(0.021484, abs=1e-6)
    assert rates.mcnemar(15, 4) == pytest.approx(0.019211, abs=1e-6)
    assert rates.mcnemar(0, 0) == rates.mcnemar(3, 3) == 1.0
    assert rates.mcnemar(2, 11) == pytest.approx(scipy.stats.binomtest(2, 13).pvalue)


def test_kappa_of_a_table():
    human = ["safe"] * 70 + ["unsafe"] * 30
    judge = ["safe"] * 60 + ["unsafe"] * 10 + ["safe"] * 5 + ["unsafe"] * 25
    got = rates.agreement(human, judge)
    np.testing.assert_allclose((got.observed, got.expected, got.kappa), (0.85, 0.56, 0.659091), atol=1e-6)
    np.testing.assert_allclose(
        (got.precision, got.recall, got.false_positive_rate), (0.714286, 0.833333, 0.142857), atol=1e-6
    )
    assert rates.agreement(["safe"], ["safe"]).recall is None


def test_people_who_disagree_evenly_are_uncertain():
    assert rates.majority(["safe", "unsafe", "safe"]) == "safe"
    assert rates.majority(["safe", "unsafe"]) == "uncertain"


def test_a_judge_is_compared_where_people_and_judge_have_a_word():
    votes = [("safe", "safe", "unsafe"), ("unsafe",), ("safe", "unsafe"), ("uncertain", "uncertain"), ("safe",)]
    got = rates.against_people(votes, ["safe", "unsafe", "unsafe", "safe", "invalid"])
    assert (got.n, got.uncertain, got.invalid) == (2, 2, 1) and got.agreement.kappa == 1.0
    assert rates.against_people([("safe", "unsafe")], ["safe"]).agreement is None


def test_whole_requests_are_resampled():
    rng = np.random.default_rng(0)
    requests = np.repeat(np.arange(40), 10).astype(str)
    effect = np.repeat(rng.random(40) < 0.5, 10).astype(float)  # rows of one request move together
    before, after = np.ones(400), 1 - effect
    difference, low, high = rates.cluster_bootstrap(requests, before, after, resamples=500)
    assert difference == pytest.approx(-effect.mean())
    alone = rates.cluster_bootstrap(np.arange(400).astype(str), before, after, resamples=500)
    assert low < difference < high and high - low > 2 * (alone[2] - alone[1])


POINTS = {
    "Claude-2.1": (0.298, 0.980),
    "Llama-2-7b": (0.704, 0.935),
    "Llama-2-13b": (0.744, 0.920),
    "Llama-2-70b": (0.815, 0.902),
    "Claude-3.5-sonnet": (0.788, 0.936),
    "Claude-3-opus": (0.789, 0.915),
    "Claude-3-sonnet": (0.658, 0.875),
    "Claude-3-haiku": (0.558, 0.783),
    "Gemini-1.5-pro": (0.524, 0.803),
    "Gemini-1.0-pro": (0.861, 0.775),
    "Llama-3.1-8b": (0.728, 0.743),
    "Llama-3-8b": (0.857, 0.674),
    "GPT-4": (0.903, 0.767),
    "GPT-4o-mini": (0.936, 0.718),
    "GPT-3.5": (0.924, 0.701),
    "GPT-4o": (0.953, 0.622),
    "Llama-3-70b": (0.940, 0.551),
    "Llama-3.1-70b": (0.941, 0.512),
    "Mistral-0.2": (0.891, 0.361),
    "Mistral-0.3": (0.893, 0.355),
}


def test_the_trade_off_of_twenty_models():
    x, y = np.array(list(POINTS.values())).T
    assert scipy.stats.spearmanr(x, y).statistic == pytest.approx(-0.741, abs=1e-3)
    best = {"Claude-2.1", "Claude-3.5-sonnet", "Claude-3-opus", "Llama-2-70b", "Gemini-1.0-pro", "GPT-4"}
    assert frontier.front(POINTS) == best | {"GPT-4o-mini", "GPT-4o"}


def test_words_that_are_no_verdict_are_refused():
    with pytest.raises(InputError, match="'dangerous'"):
        rates.attack_success(["safe", "dangerous"])
