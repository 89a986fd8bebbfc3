import math

import numpy as np
import pytest
import scipy.stats

from alignment.errors import InputError
from alignment.watermark import detect, green, hashing, tournament
from alignment.watermark.text_marks import Mark

IDS = [5, 8, 10, 18, 5, 8, 5, 8, 3, 1, 12, 7]
KGW = Mark("kgw", 15_485_863, 20, gamma=0.25, parity="kgw")


def test_the_worked_text():
    assert green.flags(KGW, IDS).tolist() == [True, True, False, True, True, False, True, False, True, False, False]
    out = detect.detect(KGW, IDS, counts="all")
    assert (out.score, out.num_scored, round(out.z, 5)) == (6, 11, 2.26301)
    assert out.p_value == pytest.approx(sum(math.comb(11, k) * 0.25**k * 0.75 ** (11 - k) for k in range(6, 12)))
    assert out.has_low_power
    once = detect.detect(KGW, IDS)
    assert (once.score, once.num_scored, round(once.z, 5)) == (4, 9, 1.34715)


def test_z_worked_by_hand():
    assert detect.z_score(140, 200, 0.5) == pytest.approx(5.656854, abs=1e-6)
    assert detect.z_score(50, 100, 0.5) == 0


# the sheet's table: the exact tail, and transformers 4.57's, which leaves out a square root
TAILS = {1: (0.1587, 0.2645), 2: (0.0228, 0.0392), 3: (1.35e-3, 1.62e-3), 4: (3.17e-5, 1.88e-5)}
TAILS |= {5: (2.87e-7, 6.1e-8), 6: (9.87e-10, 5.6e-11)}


def test_normal_tails_are_exact_where_transformers_are_up_to_eighteen_times_too_small():
    theirs = {z: 0.5 * math.exp(-2 * z**2 / math.pi) for z in range(1, 9)}
    for z, (exact, wrong) in TAILS.items():
        assert detect.normal_p(z) == pytest.approx(exact, rel=4e-3) and theirs[z] == pytest.approx(wrong, rel=0.01)
    assert detect.normal_p(6) / theirs[6] == pytest.approx(17.6, abs=0.3)
    assert detect.normal_p(8) == pytest.approx(scipy.stats.norm.sf(8), rel=1e-10) and theirs[8] < 1e-17
    assert detect.normal_p(2.26301) == pytest.approx(0.0118176, rel=1e-4)
    assert detect.normal_p(5.656854) == pytest.approx(7.7086e-9, rel=1e-4)
    assert detect.normal_p(-1) == pytest.approx(1 - detect.normal_p(1))


@pytest.mark.parametrize("z", [1, 2, 3, 4, 6, 8])
def test_p_values_of_counts_are_sums_of_the_binomial(z):
    num = 400
    score = num // 2 + z * 10  # z standard deviations above half
    exact = sum(math.comb(num, k) for k in range(score, num + 1)) / 2**num
    assert detect.binomial_p(score, num, 0.5) == pytest.approx(exact, rel=1e-9)


def test_a_first_bos_token_is_dropped():
    assert detect.detect(KGW, [2, *IDS], bos_id=2) == detect.detect(KGW, IDS)


def test_another_record_a_random_mark_and_short_text_are_refused():
    with pytest.raises(InputError, match="marked with key=7"):
        detect.detect(KGW, IDS, written_with=Mark("kgw", 7, 20, gamma=0.25, parity="kgw"))
    with pytest.raises(InputError, match="nobody can detect"):
        detect.detect(Mark("random", 7, 20), IDS)
    with pytest.raises(InputError, match="give more text"):
        detect.detect(Mark("exp", 7, 20), [1, 2, 3, 4])


SCHEMES = {
    "kgw": dict(gamma=0.25, width=2),
    "kgw-min": dict(scheme="kgw", width=3, seeding="min"),
    "kgw-self": dict(scheme="kgw", gamma=0.25, width=2, seeding="self"),
    "unigram": {},
    "synthid": dict(key=tuple(range(100, 108))),
    "exp": {},
}


@pytest.mark.parametrize("name", SCHEMES)
def test_p_values_are_uniform_on_text_without_the_mark(name):
    rng = np.random.default_rng(0)
    p = []
    for i in range(300):
        key = tuple(int(k) for k in rng.integers(0, 1 << 60, 8)) if name == "synthid" else 1_000 + i
        mark = Mark(**dict(scheme=name, key=key, vocab_size=500) | SCHEMES[name] | dict(key=key))
        zipf = np.minimum(rng.zipf(1.3, 120), 500) - 1  # tokens that repeat as words do
        p.append(detect.randomised_p(detect.detect(mark, zipf), rng.random()))
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.001


@pytest.mark.parametrize("name", SCHEMES)
def test_marked_text_is_detected(name):
    """Tokens drawn from a flat law under the mark, one after the other, on the host."""
    mark = Mark(**dict(scheme=name, key=11, vocab_size=64) | SCHEMES[name])
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 64, 4).tolist()
    for _ in range(150):
        logits = rng.normal(0, 1, 64)
        window = np.array([ids[len(ids) - mark.num_context :]]) if mark.num_context else np.zeros((1, 0), int)
        if name == "exp":
            key_12 = hashing.split_key(mark.key)[None]
            u = hashing.uniform(hashing.values("left", key_12, window, np.arange(64, dtype=np.uint32)[None]))[0]
            ids.append(int(np.argmax(logits - np.log(-np.log(u)))))
            continue
        probs = np.exp(logits) / np.exp(logits).sum()
        if name == "synthid":
            h = tournament.accumulate(tournament.context_hash(window)[:, None], np.arange(64, dtype=np.uint32)[None])
            for g in tournament.layers(tournament.bits(mark)[h[0] % 65_536], len(mark.key)).T:
                probs = probs * (1 + g - (g * probs).sum())
        else:
            probs = probs * np.exp(mark.delta * green.masks(mark, window)[0])
        ids.append(int(rng.choice(64, p=probs / probs.sum())))
    assert detect.detect(mark, ids).p_value < 1e-5
    other = Mark(**mark.to_dict() | {"key": [k + 1_000 for k in mark.key] if name == "synthid" else 12})
    assert detect.detect(other, ids).p_value > 1e-3


# Windows


def test_a_window_is_where_the_marked_part_lies():
    rng = np.random.default_rng(3)
    flags = rng.random(400) < 0.5
    flags[150:220] = rng.random(70) < 0.9
    window = detect.win_max(flags, 0.5)
    assert window.p_value == 0.001 and abs(window.start - 150) < 25 and abs(window.stop - 220) < 40
    assert window.z > detect.z_score(int(flags.sum()), 400, 0.5)


def test_p_values_of_windows_are_uniform_without_a_mark():
    rng = np.random.default_rng(4)
    p = [detect.win_max(rng.random(80) < 0.25, 0.25, resamples=499).p_value for _ in range(400)]
    for level in (0.05, 0.2, 0.5):
        below = sum(x <= level for x in p)
        assert scipy.stats.binomtest(below, 400, level).pvalue > 0.001
    naive = [scipy.stats.norm.sf(detect.win_max(rng.random(80) < 0.25, 0.25).z) for _ in range(100)]
    assert np.mean(np.array(naive) < 0.05) > 0.2  # the tail of the best window alone would call them marked


@pytest.mark.parametrize(("scheme", "gamma"), [("kgw", 0.25), ("unigram", 0.5)])
def test_p_values_of_windows_are_uniform_on_unmarked_text_read_with_keys(scheme, gamma):
    """Zipf's tokens repeat as words do; flags come from lists of keys, repeats counted once."""
    rng = np.random.default_rng(6)
    p = []
    for key in range(300):
        ids = np.minimum(rng.zipf(1.3, 100), 2_000) - 1
        mark = Mark(scheme, 5_000 + key, 2_000, gamma=gamma)
        p.append(detect.find_window(mark, ids, resamples=199).p_value)
    for level in (0.05, 0.2, 0.5):
        below = sum(x <= level for x in p)
        assert scipy.stats.binomtest(below, 300, level).pvalue > 0.001, (level, below)


def test_slow_twin_of_the_best_window():
    flags = np.random.default_rng(5).random(40) < 0.5
    lengths = (5, 12, 40)
    slow = max(
        (detect.z_score(int(flags[s : s + n].sum()), n, 0.5), s, s + n) for n in lengths for s in range(40 - n + 1)
    )
    window = detect.win_max(flags, 0.5, lengths=lengths, resamples=9)
    assert window.z == pytest.approx(slow[0]) and detect.z_score(
        int(flags[window.start : window.stop].sum()), window.stop - window.start, 0.5
    ) == pytest.approx(slow[0])


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="lengths"):
        detect.win_max(np.ones(10, bool), 0.5, lengths=(11,))
    assert detect.find_window(KGW, IDS, resamples=9).stop <= 9


def test_min_hash_counts_a_token_once_for_each_list_that_it_was_looked_up_in():
    mark = Mark("kgw", 7, 20, width=2, seeding="min")
    ids = np.random.default_rng(0).integers(0, 6, 40)
    flags, labels = green.read(mark, ids)
    drawn = detect.detect(mark, ids)
    assert drawn.num_scored == len(set(labels.tolist())) < detect.detect(mark, ids, counts="ngrams").num_scored
    assert detect.detect(mark, ids, counts="all").num_scored == len(flags) == 38
    with pytest.raises(InputError, match="counts='twice'"):
        detect.detect(mark, IDS, counts="twice")
