import json
import shutil

import numpy as np
import pytest

from alignment.filtering.scores import calibration, heads, scorers
from data.texts import labels
from data.tokens import tokenizer
from experiments import scorer
from tests.experiments.conftest import launch


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_export_gives_the_numbers_of_the_summary(tiny):
    workdir = tiny("scorer").workdir
    config, summary = scorer.get_config("tiny"), read(workdir / "summary.json")
    found, _ = labels.load("synthetic", limit=config.data.limit)
    heldout = labels.split(found, fractions=(config.split.calibration, config.split.heldout), seed=0)[2]
    score = scorers.load("linear", workdir / "export/scorer")
    values = score([{"text": text} for text in heldout.texts])
    chances, levels = (np.array([row[f"safety.{what}"] for row in values]) for what in ("score", "level"))
    assert calibration.auc(chances, heldout.labels_N == 1) == pytest.approx(summary["heldout_auc"])
    assert summary["heldout_auc_low"] <= summary["heldout_auc"] <= summary["heldout_auc_high"]
    table = calibration.reliability(chances, heldout.labels_N == 1)
    assert calibration.expected_error(table) == pytest.approx(summary["heldout_ece"])
    assert rows(workdir / "tables/reliability.jsonl") == table
    assert np.mean(levels == heldout.labels_N) == pytest.approx(summary["accuracy"])


def test_the_report_says_what_was_found_and_shows_it(tiny):
    workdir = tiny("scorer").workdir
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert "is ranked above another with chance" in page and "before calibration" in page
    for name in ("reliability", "roc", "scores"):
        assert (workdir / f"figures/{name}.png").stat().st_size > 1_000
    mistakes = rows(workdir / "tables/mistakes.jsonl")
    assert mistakes and all((row["score"] > 0.5) != (row["level"] == "1") for row in mistakes)


@pytest.mark.parametrize("kind", ["text", "label", "order", "levels", "features"])
def test_the_position_of_a_run_belongs_to_its_texts_levels_and_features(kind):
    def content(texts=("a b", "c", ""), found=(0, 1, 1), levels=("mild", "harsh"), words=(1, 2)):
        about = heads.About("linear", "safety", "ordinal", levels, {"words": words})
        return scorer.content_of(about, labels.Labelled(list(texts), np.array(found), levels, [""] * 3))

    changed = {"text": {"texts": ("a", "b c", "")}, "label": {"found": (0, 1, 0)}, "features": {"words": (1, 3)}}
    changed |= {"order": {"texts": ("c", "a b", "")}, "levels": {"levels": ("mild", "worse")}}
    assert content() == content() != content(**changed[kind])


def test_a_run_whose_labels_have_changed_is_not_taken_up_again(tmp_path):
    path = tmp_path / "labels.jsonl"
    texts = [{"text": f"{'fine' if i % 2 else 'vile'} words {i}", "label": i % 2} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    flags = [f"--config.data.path={path}", "--config.data.limit=None"]
    ended = launch("scorer.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 0, ended.err
    (tmp_path / "run/DONE").unlink()
    path.write_text("".join(json.dumps(row | {"label": 1 - row["label"]}) + "\n" for row in texts))
    ended = launch("scorer.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 2 and "the data has changed since this run began" in ended.err


def test_a_killed_run_ends_with_the_same_scorer(tiny, tmp_path):
    whole = tiny("scorer").workdir
    shutil.copytree(whole, tmp_path / "run")
    for name in ("DONE", "summary.json", "export/scorer/scorer.json", "export/scorer/scorer.safetensors"):
        (tmp_path / "run" / name).unlink()
    newest = max(int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit())
    shutil.rmtree(tmp_path / "run/checkpoints" / str(newest))
    ended = launch("scorer.py:tiny", tmp_path / "run")
    assert ended.code == 0, ended.err
    for name in ("scorer.json", "scorer.safetensors"):
        assert (tmp_path / "run/export/scorer" / name).read_bytes() == (whole / "export/scorer" / name).read_bytes()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.kind=lineal"], "linear, embedding"),
        (["--config.calibration=beta"], "'beta'"),
        (["--config.data.path=/nowhere.csv"], "/nowhere.csv"),
        (["--config.features.buckets=1000"], "power of 2"),
        (["--config.unsafe.level=2"], "unsafe.level=2"),
        (["--config.unsafe.weight=0."], "unsafe.weight"),
        (["--config.split.heldout=0.9"], "leave something to train on"),
        (["--config.kind=embedding"], "has no model.safetensors"),
        (["--config.objective=probit"], "'probit'"),
        (["--config.objective=regression"], "calibration=none"),
        (["--config.data.levels=('0','7')"], "labelled 7"),
        (["--config.pool=min"], "'min'"),
    ],
)
def test_bad_settings_are_refused_before_training(flags, words, tmp_path):
    ended = launch("scorer.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 2 and words in ended.err and "Traceback" not in ended.err


def test_perplexity_of_a_run_is_that_of_its_export(tiny):
    workdir = tiny("sft").workdir
    tok = tokenizer.load(str(workdir / "tokenizer"))

    def encode(texts):
        return [ids for ids, _ in tok.encode_batch(texts)]

    texts = [{"text": "Which way to the river? " * n} for n in (1, 9)]
    options = dict(encode_fn=encode, max_len=32, bos_id=tok.bos_id, name="fluency")
    ours, theirs = (
        scorers.load("perplexity", path, **options)(texts) for path in (f"run:{workdir}", workdir / "export/hf")
    )
    for row, other in zip(ours, theirs):
        assert row == pytest.approx(other, rel=1e-4)
        assert 1 < row["fluency.score"] < 2 * tok.vocab_size and row["fluency.tokens"] > 20


DAVIDSON = dict(path="toxicity_en_davidson/labeled_data_a.csv", columns=dict(text="tweet", label="class"))


def real(shared_data, tmp_path, path, *flags):
    """The summary of a short run on real texts."""
    if not (shared_data / path).exists():
        pytest.skip(f"no {path} beside this checkout")
    shown = ["--config.sinks=()", "--config.loop.log_every=100", "--config.loop.eval_every=0", "--config.samples=0"]
    ended = launch("scorer.py:laptop", tmp_path / "run", f"--config.data.path={shared_data / path}", *shown, *flags)
    assert ended.code == 0, ended.err
    return read(ended.workdir / "summary.json")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_real_offensive_tweets_are_told_from_others(kind, shared_data, tmp_path):
    """At the full length of the setting AUC was seen at 0.96 for both kinds, ECE at 0.03 to 0.04."""
    flags = [f"--config.data.columns.{ours}={theirs}" for ours, theirs in DAVIDSON["columns"].items()]
    flags += ["--config.data.levels=('2','0,1')", "--config.steps=60", "--config.optimizer.peak_lr=0.05"]
    flags += [f"--config.kind={kind}", f"--config.embedding.model={shared_data / 'embedding_static_model2vec'}"]
    summary = real(shared_data, tmp_path, DAVIDSON["path"], *flags)
    assert summary["heldout_auc"] > 0.9 and summary["heldout_auc_low"] > 0.85
    assert summary["heldout_ece"] < 0.08 and summary["accuracy"] > summary["most_frequent_level"]


@pytest.mark.slow
def test_real_harmful_answers_are_harder_than_chance_but_little(shared_data, tmp_path):
    """At 400 steps AUC was seen at 0.61, with an interval of 0.57 to 0.66: the answer alone says little."""
    flags = ["--config.steps=60", "--config.features.buckets=16384"]
    summary = real(shared_data, tmp_path, "pref_hh_harmless", *flags)
    assert 0.52 < summary["heldout_auc"] < 0.75 and summary["heldout_auc_low"] > 0.5
    assert summary["heldout_ece"] < 0.12
