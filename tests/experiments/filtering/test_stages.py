"""Single stages of the filter: passages, batches, scores."""

import numpy as np
import orjson

from alignment.filtering.scores import heads, ngrams
from data.corpus import shards
from experiments.filtering import jobs
from experiments.filtering import stages as filter_stages
from tests.experiments.filtering.runs import numbers, rows, start


def marked_scorer(folder):
    """A linear scorer of pieces of 24 words: a text with "villain" is of level 2, the others of level 0."""
    features = dict(words=(1, 1), characters=(0, 0), buckets=1 << 12)
    kernel = np.zeros((1 << 12, 1), np.float32)
    found = ngrams.features(["villain"], ngrams.settings(features))
    kernel[found.ids_E, 0] = 100 * found.values_E
    told = heads.About("linear", "safety", "regression", ("0", "1", "2"), features, piece=24)
    heads.save(folder, told, {"kernel": kernel, "bias": np.zeros(1, np.float32)})


def test_attributes_and_the_report_show_which_passage_raised_the_score(tmp_path):
    calm = " ".join(["calm"] * 24) + " "
    texts = {"long": calm + "<b>the villain</b> " + "of the tale " * 40, "short": "a villain", "calm": calm * 3}
    (tmp_path / "toy").mkdir()
    lines = [orjson.dumps({"id": id, "text": text}) for id, text in texts.items()]
    (tmp_path / "toy/part-0.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    marked_scorer(tmp_path / "scorer")
    scorer = dict(scorers__safety__kind="linear", scorers__safety__path=tmp_path / "scorer", rewriter__backend="none")
    ended = start(tmp_path / "run", tmp_path / "toy", chain="('mojibake',)", packs="('en',)", **scorer)
    assert ended.code == 0, ended.err
    found = {row["id"]: row["attributes"] for row in rows(tmp_path / "run/clean/attributes/safety")}
    assert {id: len(of["safety.chunks"]) for id, of in found.items()} == {"long": 7, "short": 1, "calm": 3}
    for id, of in found.items():
        assert "".join(texts[id][start:end] for start, end, _ in of["safety.chunks"]) == texts[id]
        whole_span = [0, len(texts[id]), max(value for *_, value in of["safety.chunks"])]
        assert of["safety.score"] == [whole_span]
    levels = {row["id"]: row["evidence"]["safety.level"] for row in rows(tmp_path / "run/clean/decisions")}
    assert levels == {"long": 2, "short": 2, "calm": 0}
    samples = {row["id"]: row for row in shards.read(tmp_path / "run/tables/samples.jsonl")}
    assert samples["long"]["highest passage"] == " ".join(texts["long"].split()[24:48]) + " "
    assert "highest passage" not in samples["short"] and "highest passage" not in samples["calm"]
    page = (tmp_path / "run/report.html").read_text("utf-8")
    assert "<div>&lt;b&gt;the villain&lt;/b&gt;" in page and "<b>the villain" not in page


def test_a_passage_is_the_highest_of_several_that_are_known():
    spans = [[0, 3, 1.0], [3, 6, None], [6, 900, 2.0], [900, 903, 2.0]]
    assert filter_stages.passage("abcdef" + "g" * 897, spans) == "g" * filter_stages.PASSAGE_SHOWN
    assert filter_stages.passage("abcdef", [[0, 3, 2.0], [3, 6, 1.0]]) == "abc"
    assert filter_stages.passage("abc", [[0, 3, 2.0]]) == filter_stages.passage("abc", []) == ""
    assert filter_stages.passage("abcdef", [[0, 3, None], [3, 6, None]]) == ""


def test_long_texts_go_through_in_smaller_batches():
    rows = [{"document": {"text": "x" * n}} for n in (10, 60, 10, 10, 10, 500)] + [{"text": "y" * 99}, object()]
    sizes = [len(batch) for batch in jobs.batches(rows, 3, 70)]
    assert sizes == [2, 3, 1, 1, 1] and sum(sizes) == len(rows)
    assert [row for batch in jobs.batches(rows, 3, 70) for row in batch] == rows


def test_without_a_scorer_all_that_the_rules_pass_is_kept_and_the_page_says_so(raw, tmp_path):
    ended = start(tmp_path / "run", raw[0], skip="('safety',)")
    assert ended.code == 0, ended.err
    assert "not scored" in (tmp_path / "run/findings.txt").read_text()
    decisions = rows(tmp_path / "run/clean/decisions")
    passed = [row for row in decisions if row["rule"] == "router"]
    assert passed and all((row["action"], row["reason"]) == ("keep", "not_scored") for row in passed)
    assert numbers(tmp_path / "run")["docs_rewritten"] == 0


def test_a_rule_that_takes_most_of_a_source_is_named_at_the_top(raw, tmp_path):
    ended = start(tmp_path / "run", raw[0], rules__gopher_quality__min_words=5000, skip="('safety',)")
    assert ended.code == 0, ended.err
    first = (tmp_path / "run/findings.txt").read_text().splitlines()[0]
    assert first.startswith("Warning: gopher_quality takes")
