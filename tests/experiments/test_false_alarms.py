"""False alarms on real text, and bad input."""

import json

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.watermark import detect, false_alarms
from data.tokens import tokenizer
from experiments import false_alarms as experiment
from experiments.text_watermarks import writing
from tests.experiments.conftest import launch

NUM = 2_000  # windows of real text, each with a key of its own


@pytest.fixture(scope="module")
def real_windows(shared_data, tmp_path_factory):
    paths = [shared_data / "text_en_wikitext2/wikitext2_valid.txt", shared_data / "text_en_web/c4_demo.jsonl"]
    vocabulary = shared_data / "tokenizers/gpt_neox_olmo_tokenizer.json"
    if not all(path.is_file() for path in (*paths, vocabulary)):
        pytest.skip("no real text there")
    c = experiment.get_config()
    c.data.update(path=",".join(map(str, paths)), num=NUM)
    tok = tokenizer.load(str(vocabulary))
    return experiment.windows(c, tok, tmp_path_factory.mktemp("windows")), tok.vocab_size


@pytest.mark.parametrize(("scheme", "num"), [("kgw", NUM), ("unigram", 600)])  # a list of Unigram takes milliseconds
def test_exact_p_values_are_uniform_on_real_text_over_keys(scheme, num, real_windows):
    """A key for each window: these p-values are independent, so the binomial's intervals hold."""
    windows, vocab_size = real_windows
    assert windows.shape == (NUM, 200)
    marks = [writing.mark_of(scheme, key, vocab_size, 0.5, 0.0, "") for key in range(1, num + 1)]
    found = [detect.detect(mark, ids) for mark, ids in zip(marks, windows)]
    p = np.array([x.p_value for x in found])
    for level in false_alarms.LEVELS:
        line = false_alarms.at_level(p[:, None], level, confidence=0.999)
        assert line["share"] <= line["binomial_high"]
    u = np.random.default_rng(0).random(num)
    distance = false_alarms.distance([detect.randomised_p(x, v) for x, v in zip(found, u)])
    assert distance < 1.95 / num**0.5  # which 0.1 % of uniform samples exceed


def test_one_fixed_key_spreads_wider_than_the_law_on_real_text(real_windows):
    windows, vocab_size = real_windows
    marks = [writing.mark_of("unigram", key, vocab_size, 0.5, 0.0, "") for key in range(1, 9)]
    results = experiment.read(marks, windows[:300], seed=0)
    line = false_alarms.at_level(results["p"], 0.05)
    assert line["dispersion"] > 3 and false_alarms.spread(results["z"]).max() > 1.3


def test_tiny_leaves_levels_and_what_one_key_does(tiny):
    workdir = tiny("false_alarms").workdir
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["windows"] == 20 and summary["keys"] == 3
    assert {"share_0.05/kgw", "distance/unigram", "dispersion/kgw", "threshold/unigram"} <= summary.keys()
    rows = [json.loads(line) for line in (workdir / "tables/levels.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and all(row["n"] == 60 for row in rows)


def test_windows_follow_one_another_and_what_is_left_out_is_counted(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "abcdefghijklmnop"}\n{"text": "qrstuvwxyzabcdefghij"}\n{"n": 1}\n')
    c = experiment.get_config("tiny")
    c.data.update(path=str(tmp_path / "texts.jsonl"), num=None, length=16)
    tok = tokenizer.load("bytes")
    out = experiment.windows(c, tok, tmp_path)
    assert [tok.decode(ids) for ids in out] == ["abcdefghijklmnop", "qrstuvwxyzabcdef"]
    counts = {row["what"]: row["count"] for row in map(json.loads, (tmp_path / "tables/data.jsonl").open())}
    assert counts["tokens at the ends of files"] == 4 and counts["records without text"] == 1
    c.data.num = 3
    with pytest.raises(InputError, match="has 2 windows of 16 tokens"):
        experiment.windows(c, tok, tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.schemes=('kgv',)"], "the nearest is 'kgw'"),
        (["--config.schemes=()"], "must be a tuple of names"),
        (["--config.gamma=1.0"], "gamma=1.0 must be between 0 and 1"),
        (["--config.data.num=None"], "needs data.num"),
        (["--config.seed=-1"], "seed=-1 must be at least 0"),
        (["--config.num_keys=1"], "num_keys=1 must be at least 2"),
        (["--config.data.path=missing.txt"], "missing.txt"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(flags, message, tmp_path):
    ended = launch("false_alarms.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 2 and message in ended.err and "Traceback" not in ended.err
