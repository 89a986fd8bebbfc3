"""Settings of the filter that are refused, and those that rules take."""

import orjson
import pytest

from data.toys import toyweb
from tests.experiments.conftest import launch
from tests.experiments.filtering.runs import flags, numbers, start

REFUSED = {
    "no such input": (dict(inputs="nowhere/*.jsonl"), "nowhere"),
    "an unknown pack": (dict(packs="('en','xx')"), "xx"),
    "an unknown rule": (dict(chain="('gopher',)"), "gopher_quality"),
    "a wrong literal": (dict(rules__gopher_quality__min_words="many"), "min_words"),
    "a scorer without a path": (dict(scorers__safety__path=""), "skip"),
    "a toy scorer of a kind that the toy has not": (dict(scorers__safety__kind="embedding"), "linear or patterns"),
    "no workers": (dict(workers=0), "workers=0 must be at least 1"),
    "a Bloom filter of no lines": (dict(paragraphs__capacity=0), "paragraphs.capacity=0 must be at least 1"),
    "an old spelling of an unset knob": (dict(rules__c4__min_sentences="default"), "leave it out"),
    "an unknown rewriter of patterns": (dict(rewriter__model="nowhere.json"), "nowhere.json"),
    "an unknown scorer": (dict(scorers__safety__kind="oracle"), "oracle"),
    "an unknown backend": (dict(rewriter__backend="magic"), "magic"),
    "an unknown code of conduct": (dict(rewriter__conduct="nobody"), "nobody"),
    "levels that cross": (dict(router__keep_at=4, router__drop_at=2), "drop_at"),
    "an unknown stage to redo": (dict(redo="('scores',)"), "score.safety"),
    "a share out of range": (dict(shard_index=3, shard_count=3), "shard_index"),
    "an unknown compression": (dict(compression="rar"), "zst"),
    "an unknown executor": (dict(executor="slurm"), "process"),
    "a slice of no size": (dict(slice_mb=-1.0), "slice"),
    "a document of no size": (dict(read__max_document_mb=-1), "max_document_mb"),
    "workers below none": (dict(workers=-1, executor="process"), "workers"),
    "samples below none": (dict(samples=-1), "samples"),
    "a share of bad records that is none": (dict(max_bad=-0.5), "max_bad"),
    "bands of no hashes": (dict(dedup__num_buckets=0), "num_buckets"),
    "a probability that is none": (dict(router__tag_probability=2.0), "tag_probability"),
    "an unknown unit of text": (dict(read__text_unit="page"), "paragraphs"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_work_is_refused_before_any_work(raw, tmp_path, what):
    values, needed = REFUSED[what]
    ended = start(tmp_path / "run", values.get("inputs", raw[0]), **{k: v for k, v in values.items() if k != "inputs"})
    assert ended.code == 2 and needed in ended.err and "Traceback" not in ended.err, ended.err
    assert not (tmp_path / "run/clean/done").exists()


def test_an_argument_that_no_rule_has_is_refused(raw, tmp_path):
    ended = launch("filter.py:tiny", tmp_path / "run", *flags(raw[0]), "--config.rules.gopher_quality.min_wrods=3")
    assert ended.code == 2 and "min_words" in ended.err


@pytest.mark.parametrize("score", ["safety", "safety.score", "foo.level", ""])
def test_a_score_that_no_scorer_gives_is_refused(raw, tmp_path, score):
    ended = start(tmp_path / "run", raw[0], router__score=score)  # the toy's scorer gives levels alone
    assert ended.code == 2 and f"router.score={score!r} is not one of" in ended.err and "safety.level" in ended.err


def test_documents_without_an_address_pass_the_url_rule_and_are_counted(tmp_path):
    documents = toyweb.documents(20, seed=2)
    for document in documents[:7]:
        document["metadata"].pop("url", None)
    (tmp_path / "toy.jsonl").write_bytes(b"".join(orjson.dumps(d) + b"\n" for d in documents))
    (tmp_path / "domains.txt").write_text("bad.example\n")
    lists = f"--config.rules.url.domains={tmp_path}/domains.txt"
    ended = launch("filter.py:tiny", tmp_path / "refused", *flags(tmp_path / "toy.jsonl"), lists)
    assert ended.code == 2 and "rules.url.domains" in ended.err and "domains.txt',)" in ended.err
    lists = f"--config.rules.url.domains=('{tmp_path}/domains.txt',)"
    ended = launch("filter.py:tiny", tmp_path / "run", *flags(tmp_path / "toy.jsonl"), lists)
    assert ended.code == 0, ended.err
    counters = {k: v for k, v in numbers(tmp_path / "run").items() if k.startswith("counter/url")}
    assert 7 in counters.values(), counters
