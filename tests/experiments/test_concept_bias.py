"""Shortcuts by concept as a run: its table, resuming, annotation, exemplars, bad input."""

import dataclasses
import json
from types import SimpleNamespace

import ml_collections
import numpy as np
import pytest

from alignment.decoding import engine
from alignment.errors import InputError
from data.texts import concept_sets
from data.toys import concept_reviews
from experiments import concept_bias
from experiments.concepts import asking, cells, decoders, in_context, sets
from experiments.concepts.cells import Cell
from experiments.decoding import models
from experiments.pages import concept_bias as page
from tests.decoding.models import LENGTH, VOCAB, random_lm, slow_greedy
from tests.experiments.conftest import launch
from tests.models import test_bert as tiny_bert


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def config(**changes):
    c = concept_bias.get_config("tiny")
    c.data.update(changes)
    return c


@pytest.fixture(scope="module")
def task():
    c = config()
    return sets.divide(c, sets.read(c, {}, ""), {})


def test_a_run_leaves_the_table_the_sheet_and_the_summary_of_both_classifiers(tiny):
    workdir = tiny("concept_bias").workdir
    lines = rows(workdir / "tables/bias.jsonl")
    c = concept_bias.get_config("tiny")
    assert len(lines) == len(c.models) * len(c.data.concepts) * len(c.methods)
    summary = json.loads((workdir / "summary.json").read_text())
    for head in ("", "encoder/"):
        names = ("bias/original/music", "acc_c/mask", "acc_no_c/leace", "mean_abs_bias/upsample")
        assert {f"{head}{name}" for name in names} <= set(summary)
    audit = (workdir / "audit.csv").read_text().splitlines()
    assert len(audit) == 51 and audit[0].startswith("id,concept,label,source,text")
    assert "moves Bias@C by" in (workdir / "findings.txt").read_text()
    assert (workdir / "figures/words.png").stat().st_size


def test_a_second_start_measures_only_the_cells_that_are_missing(task, tmp_path):
    c = config()

    class Counted:
        digest, num = "", 0

        def measure(self, cell, task, c):
            self.num += 1
            return {"seed": cell.seed, "right": "1", "seconds": 0.0}

    plan = cells.plan({"bag": ("original", "biased")}, 2, 0, ["music"])
    measurer, kept = Counted(), cells.cache.Cache(tmp_path / "cells.jsonl")
    cells.through(plan[:3], task, {"bag": measurer}, c, kept, lambda number, row: None)
    again = cells.through(plan, task, {"bag": measurer}, c, kept, lambda number, row: None)
    assert measurer.num == 4 and [row["seed"] for row in again] == [0, 0, 1, 1]
    c.jtt.factor = 9
    cells.through(plan[:1], task, {"bag": measurer}, c, kept, lambda number, row: None)
    assert measurer.num == 5


def test_sets_of_a_concept_share_test_texts_and_leak_nothing(task):
    c = config()
    train = {task.all_texts.rows[i].group for i in task.train}
    test = {row.text for row in task.rows(task.test)}
    original = sets.training_set(c, task, "music", sets.ORIGINAL, 0)
    for method in sets.SETS:
        one = sets.training_set(c, task, "music", method, 0)
        assert {name.split("+")[0] for name in one.ids} <= train
        assert sets.training_set(c, task, "music", method, 0).digest == one.digest
    up = sets.training_set(c, task, "music", sets.UP, 0)
    assert not sum(up.notes["missing"]) and len(up.texts) == len(original.texts) + sum(up.notes["needed"])
    counts = np.bincount(up.labels_N[up.has_N])
    assert counts[0] == counts[1]
    assert len(test & set(original.texts)) < 5  # made-up texts are short, and a few are equal


def test_masking_takes_the_words_of_training_texts_and_leaves_the_groups(task):
    c = config()
    original, masked = (sets.training_set(c, task, "music", name, 0) for name in (sets.ORIGINAL, sets.MASK))
    assert set(concept_reviews.CONCEPTS["music"]) & set(masked.masked)
    assert np.array_equal(original.has_N, masked.has_N) and original.ids == masked.ids
    assert original.texts != masked.texts
    left = {sets.masking.normal(word) for text in (*masked.texts, *masked.heldout[0]) for word in text.split()}
    assert not left & set(masked.masked)
    assert sets.test_texts(c, task, masked.masked) == [row.text for row in task.rows(task.test)]


def test_edits_that_write_a_concept_in_are_no_training_texts_of_it_until_upsampling():
    def row(number, label, concepts=(), injects=""):
        group = f"g{number}"
        return concept_sets.Row(
            f"r{number}{injects}", f"t{number} {injects}", label, frozenset(concepts), group, injects, injects and group
        )

    every = [row(i, i % 2, ["food"] if i % 3 else []) for i in range(12)] + [row(0, 0, ["food"], "food")]
    places = np.arange(13)
    own = sets.Task(
        concept_sets.ConceptSet(tuple(every), (), 2),
        ("food",),
        {"food": frozenset({1})},
        places[2:],
        places[:0],
        places[:0],
    )
    c = config(concepts=("food",), negative=())
    assert "r0food" not in sets.training_set(c, own, "food", sets.ORIGINAL, 0).ids
    assert [one.id for one in own.pool("food")] == ["r0food"]
    with pytest.raises(InputError, match="sources of counterfactuals are held out, such as 'g0'"):
        dataclasses.replace(own, test=places[:2]).pool("food")


def test_counterfactuals_that_no_training_may_use_are_counted():
    c, counts = config(), {}
    found = sets.read(c, {}, "")
    own = sets.divide(c, found, counts)
    used = sum(len(own.pool(concept)) for concept in own.concepts)
    left = [num for what, num in counts.items() if what.startswith("counterfactuals")]
    assert len(left) == 2 and used and used + sum(left) == len(found.counterfactuals)


def test_the_sheet_for_a_person_shows_the_source_of_each_text(tmp_path):
    rows = [concept_sets.Row(f"r{i}", f"text {i}", i % 2, frozenset(), "g") for i in range(3)]
    written = concept_sets.counterfactual(rows[1], "food", "soup 1")
    places = np.arange(3)
    texts = concept_sets.ConceptSet(tuple(rows), (written,), 2)
    page._audit(tmp_path / "audit.csv", sets.Task(texts, ("food",), {}, places, places[:0], places[:0]))
    assert ",food,1,text 1,soup 1,," in (tmp_path / "audit.csv").read_text()


def test_texts_that_an_encoder_cuts_are_counted(task, tmp_path):
    c, counts = config(), {}
    c.models, c.max_len = ("bag", "encoder"), 6
    concept_bias.build(c, task, tmp_path, counts)
    every = len(task.all_texts.rows) + len(task.all_texts.counterfactuals)
    assert 0 < counts.pop("texts that encoder reads only 6 tokens of (max_len)") <= every and not counts


def test_validation_may_come_from_the_altered_set():
    fixed, altered = config(limit=3_000), config(limit=3_000, val_from="altered")
    task = sets.divide(fixed, sets.read(fixed, {}, ""), {})
    kept = [sets.training_set(c, task, "music", sets.BIASED, 0) for c in (fixed, altered)]
    labels = [one.heldout[1][one.heldout_has_N] for one in kept]
    assert set(labels[0].tolist()) == {0, 1} and set(labels[1].tolist()) == {1}


def test_exemplars_are_biased_or_balanced_and_prompts_end_before_the_label(task):
    train = task.rows(task.train)
    options = dict(num_labels=2, kept={1}, seed=0)
    biased = in_context.exemplars(train, "music", in_context.BIASED, 8, **options)
    assert sorted((row.label, "music" in row.concepts) for row in biased) == [(0, False)] * 4 + [(1, True)] * 4
    even = in_context.exemplars(train, "music", in_context.BALANCED, 8, **options)
    assert sorted((row.label, "music" in row.concepts) for row in even) == [
        (label, has) for label in (0, 1) for has in (False, True) for _ in range(2)
    ]
    text = in_context.prompt("Label it.", biased[:1], "so  so", ("negative", "positive"))
    assert (
        text.endswith("\n\nText: so so\nLabel:") and f"\nLabel: {('negative', 'positive')[biased[0].label]}\n" in text
    )
    with pytest.raises(InputError, match="too few with music"):
        in_context.exemplars(train[:6], "music", in_context.BIASED, 8, **options)


def test_an_answer_without_a_label_is_requested_again_and_then_wrong(task):
    c = config()
    c.in_context.limit = 20
    asked = []

    def write(prompts, max_new_tokens):
        asked.append(len(prompts))
        return [" positive." if "(one of" in text else "well" for text in prompts[:-1]] + ["hm"]

    row = in_context.InContext(write, "", c).measure(Cell("in_context", 0, "music", "balanced"), task, c)
    assert asked == [20, 20] and row["notes"] == {"answers without a label": 1, "asked": 20}
    assert row["right"].count(in_context.UNASKED) == len(task.test) - 20
    lines = cells.results([row], task, c)
    assert lines[0]["measured"].total_GK.sum() == 20
    both = [row, row | {"seed": 1, "notes": {"answers without a label": 3, "asked": 20}}]
    assert cells.results(both, task, c)[0]["notes"] == {"answers without a label": 4, "asked": 40}
    places = in_context.drawn(np.array([0] * 50 + [1] * 3 + [2] * 50), 15, seed=0)
    assert [sum(places < 50), sum((places >= 50) & (places < 53)), sum(places >= 53)] == [6, 3, 6]
    assert in_context.drawn(np.zeros(4), None, seed=0).tolist() == [0, 1, 2, 3]


def test_the_engine_answers_prompts_with_its_likeliest_tokens_and_too_long_ones_are_refused():
    lm = random_lm()
    pieces = [bytes([97 + i]) for i in range(VOCAB)]  # a, b, c, ...
    server = engine.Engine(*lm, num_slots=2, max_len=LENGTH, chunk=8, block=4, pieces=pieces)
    write = in_context.of_engine(server, lambda text: [ord(letter) - 97 for letter in text], LENGTH)
    expected = ["".join(chr(97 + i) for i in slow_greedy(lm, prompt, 4)) for prompt in ([0, 1, 2], [0, 1, 3])]
    assert write(["abc", "abd"], 4) == expected
    with pytest.raises(InputError, match=r"a prompt has 46 tokens and decoder\.engine\.max_len=48"):
        write(["a" * 46], 4)


def test_a_bert_from_disk_is_trained_and_measured(tmp_path):
    c = config(limit=80)
    c.models, c.bert_from, c.methods, c.max_len = ("bert",), str(tiny_bert.write(tmp_path / "bert")), ("original",), 6
    concept_bias.check(c)
    task, counts = sets.divide(c, sets.read(c, {}, ""), {}), {}
    measurers = concept_bias.build(c, task, tmp_path, counts)
    row = measurers["bert"].measure(Cell("bert", 0, "music", "original"), task, c)
    assert len(row["right"]) == len(task.test) and set(row["right"]) == {"0", "1"}
    assert list(counts) == ["texts that bert reads only 6 tokens of (max_len)"]


def test_figures_of_others_stand_beside_ours_for_the_concepts_of_cebab_alone(task):
    cebab = SimpleNamespace(num_labels=5, concepts=("food", "ambiance"))
    assert page.published(task) == []
    food, ambiance = page.published(cebab)
    assert "DistilBERT is published with Bias@C -0.71 original and 14.94 biased" in food
    assert "a bag of words on the authors' file has 0.54 and 9.81" in ambiance


def test_labels_may_have_names_of_their_own_as_many_as_there_are(task):
    c = config()
    c.in_context.limit, c.in_context.labels = 8, ("bad", "very good")
    asked = []

    def write(prompts, max_new_tokens):
        asked.append((prompts[0], max_new_tokens))
        return [" Very good!"] * len(prompts)

    row = in_context.InContext(write, "", c).measure(Cell("in_context", 0, "music", "balanced"), task, c)
    assert "The labels are bad, very good." in asked[0][0] and asked[0][1] == 8 and len(asked) == 1
    assert row["right"].count("1") == 4  # test texts are drawn evenly
    with pytest.raises(InputError, match="names 2 labels, and the texts have 3"):
        in_context.names(3, c.in_context.labels)


def test_a_decoder_s_prompt_ends_before_the_label_and_its_settings_are_checked():
    c = config()
    assert decoders.prompt("Is it fine?", "so\n so", ("no", "yes")) == "so so\nIs it fine? One of no, yes:"
    decoders.check(c)
    c.decoder.init_from = models.RANDOM
    with pytest.raises(InputError, match="no weights on disk"):
        decoders.check(c)
    c.tuning.rank = 0
    with pytest.raises(InputError, match=r"tuning\.rank=0 must be at least 1"):
        decoders.check(c)


@pytest.mark.slow
def test_a_decoder_with_an_adapter_is_tuned_and_answers_by_its_first_token(tiny, task, tmp_path):
    c = config()
    c.decoder = ml_collections.ConfigDict(models.settings("tiny"))
    c.decoder.init_from = f"hf:{tiny('sft').workdir}/export/hf"
    c.decoder.engine.max_len = 256
    c.tuning.update(dict(rank=2, alpha=4.0, epochs=1, batch_size=8, max_len=256, peak_lr=1e-3))
    model = models.load(c.decoder, tmp_path)
    learner = decoders.DecoderLearner(c, model, 2, tmp_path / "trainings")
    whole = sets.training_set(c, task, "music", sets.ORIGINAL, 0)
    short = dataclasses.replace(
        whole, texts=whole.texts[:8], labels_N=whole.labels_N[:8], heldout=(whole.texts[8:10], whole.labels_N[8:10])
    )
    predicted_N = learner.fit(short, seed=0).predict(whole.texts[:3])
    assert predicted_N.shape == (3,) and set(predicted_N.tolist()) <= {-1, 0, 1}
    (folder,) = (tmp_path / "trainings").iterdir()
    rows_of = rows(folder / "train.jsonl")
    assert rows_of[0]["completion"] == f" {('negative', 'positive')[short.labels_N[0]]}"
    assert rows_of[0]["prompt"].endswith("One of negative, positive:")
    with pytest.raises(InputError, match="group_dro is not offered"):
        learner.fit(short, seed=0, groups_N=short.labels_N)


def test_the_order_of_a_clustering_puts_alike_words_together():
    vectors_ND = np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1]])
    order, distance_CC = page.clustered(vectors_ND)
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}
    assert distance_CC[0, 1] < 0.01 < distance_CC[0, 2]
    order, distance_CC = page.clustered(np.array([[1, 0], [0, 0], [2, 0]]))
    assert order[1] != 1 and sorted(distance_CC[order.index(1)].tolist()) == [0, 1, 1]  # to a vector of length 0


def test_texts_without_concepts_are_annotated_twice_and_those_in_doubt_dropped(tmp_path, monkeypatch):
    texts = [{"text": f"{'soup ' if i % 2 else ''}number {i}", "label": i % 2} for i in range(8)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    c = config(path=str(path), concepts=("food",), negative=(), limit=None)
    found = sets.read(c, {}, "")
    with pytest.raises(InputError, match="8 texts have no concepts"):
        asking.annotated(c, found, asking.Writer(c, tmp_path), tmp_path, {})
    c.annotation.backend = "endpoint"
    c.endpoint.update(dict(url="http://127.0.0.1:1/v1", model="scripted"))

    def complete(chats, max_new):
        out = []
        for chat in chats:
            lines = chat[-1]["content"].splitlines()
            is_second = "number 0" not in lines[0] and "number 5" not in lines[0]
            said = ["food" if "soup" in line and not ("number 1" in line and is_second) else "none" for line in lines]
            out.append("\n".join(f"{i}. {one}" for i, one in enumerate(said, 1)))
        return out

    monkeypatch.setattr(asking.backends, "openai", lambda *_, **__: complete)
    counts = {}
    out = asking.annotated(c, found, asking.Writer(c, tmp_path), tmp_path, counts)
    assert counts["texts on whose concepts two passes differ, dropped"] == 1 and len(out.rows) == 7
    assert {row.text for row in out.rows if "food" in row.concepts} == {f"soup number {i}" for i in (3, 5, 7)}
    c.annotation.update(dict(backend="cache", cache=str(tmp_path / "annotations.jsonl")))
    c.endpoint.url = ""
    asking.check(c)
    again = asking.annotated(c, found, asking.Writer(c, tmp_path), tmp_path, {})
    assert again == out
    c.endpoint.model = "other"
    with pytest.raises(InputError, match=r"the cache lacks .* endpoint\.model of the run that wrote them"):
        asking.annotated(c, found, asking.Writer(c, tmp_path), tmp_path, {})
    c.endpoint.model = ""
    with pytest.raises(InputError, match=r"annotation\.backend=cache needs endpoint\.model"):
        asking.check(c)


def test_the_model_in_this_process_answers_with_the_engine_of_its_config(tmp_path, monkeypatch):
    c = concept_bias.get_config("tiny")
    c.decoder = ml_collections.ConfigDict(models.settings("tiny"))
    c.decoder.engine.num_draft = 2
    seen = {}

    def made(*_, **options):
        seen.update(options)
        raise StopIteration

    monkeypatch.setattr(models.engines, "Engine", made)
    complete, _ = asking.Writer(c, tmp_path)._model()
    with pytest.raises(StopIteration):
        complete([[{"role": "user", "content": "soup"}]], [4])
    wanted = {name: c.decoder.engine[name] for name in c.decoder.engine if name != "max_len"}
    assert wanted.items() <= seen.items() and seen["num_ids"] == 264 and seen["max_len"] == 64 + 2


def test_answers_of_the_model_in_this_process_are_read_from_a_cache_under_its_name(tmp_path, monkeypatch, capsys):
    c = config()
    writer = asking.Writer(c, tmp_path)
    monkeypatch.setattr(writer, "_model", lambda: (lambda chats, max_new: ["1. food"] * len(chats), "abc0"))
    options = dict(about="reviews", concepts=("food",))
    kept = asking.cache.Cache()
    c.annotation.backend = "model"
    asking.annotate.annotate(writer.asker("annotation", kept, c.annotation.temperature), ["soup"], **options)
    assert "annotation: answers are stored under the name abc0" in capsys.readouterr().out
    c.annotation.update(dict(backend="cache", temperature=0.0))
    c.endpoint.model = "abc0"
    asker = writer.asker("annotation", kept, c.annotation.temperature)
    assert asking.annotate.annotate(asker, ["soup"], **options) == [{"food"}]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.models=('bagg',)"], "the nearest is 'bag'"),
        (["--config.methods=()"], "methods=()"),
        (
            ["--config.data.concepts=('music','wine')", "--config.data.negative=()"],
            "wine is not in the made-up reviews",
        ),
        (["--config.data.negative=('food',)"], "which data.concepts does not"),
        (["--config.data.test=1.5"], "data.test=1.5 must be a share"),
        (["--config.data.test=0.6", "--config.data.validation=0.5"], "leave nothing to train on"),
        (["--config.data.validation=0.0"], "raise data.validation"),
        (["--config.data.val_from=before"], "fixed, altered"),
        (["--config.data.limit=None"], "needs data.limit"),
        (["--config.data.num_labels=3"], "is not read with"),
        (["--config.data.path=missing.jsonl"], "missing.jsonl"),
        (["--config.models=('bag',)", "--config.training.epochs=9"], "training.epochs=9 is not read"),
        (["--config.methods=('original',)", "--config.jtt.factor=9"], "methods=('original',) has no jtt"),
        (["--config.bert_from=other"], "bert_from='other' is not read"),
        (["--config.models=('bert',)", "--config.bert_from=other"], "has no config.json"),
        (["--config.training.pooling=last"], "first, mean"),
        (["--config.encoder.num_heads=3"], "does not split into 3 heads"),
        (["--config.mask.top=0"], "mask.top=0"),
        (["--config.methods=('group_dro',)", "--config.group_dro.rate=0.0"], "group_dro.rate=0.0 must be above 0"),
        (["--config.annotation.backend=cache"], "is not a file"),
        (["--config.annotation.backend=endpoint"], "needs endpoint.url"),
        (["--config.endpoint.model=m"], "alone"),
        (["--config.decoder.engine.num_slots=2"], "decoder.engine.num_slots=2 is not read"),
        (["--config.models=('decoder',)"], "does not offer"),
        (["--config.models=('in_context',)", "--config.in_context.exemplars=3"], "must be even"),
        (["--config.models=('in_context',)", "--config.in_context.labels=('a','A')"], "a name of its own"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = launch("concept_bias.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 2 and message in ended.err and "Traceback" not in ended.err


def test_a_concept_that_no_text_mentions_is_refused_with_those_that_are_there(tmp_path):
    texts = [{"text": f"number {i}", "label": i % 2, "concepts": ["food"] if i % 3 else []} for i in range(30)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    c = config(path=str(path), concepts=("wine",), negative=(), limit=None)
    with pytest.raises(InputError, match=r"no text mentions wine; there are food \(20\)"):
        sets.divide(c, sets.read(c, {}, ""), {})


def test_cebab_shows_the_shortcut_of_the_biased_set(shared_data):
    folder = shared_data / "textcls_cebab"
    if not folder.is_dir():
        pytest.skip("no textcls_cebab among the real data")
    c = concept_bias.get_config("")
    c.models, c.seeds, c.data.path, c.data.concepts = ("bag",), 1, str(folder), ("food",)
    own = sets.divide(c, sets.read(c, {}, ""), {})
    measurers = concept_bias.build(c, own, folder, {})
    plan = cells.plan({"bag": ("original", "biased", "downsample")}, 1, 0, own.concepts)
    found = cells.through(plan, own, measurers, c, cells.cache.Cache(), lambda number, row: None)
    original, biased, down = (100 * line["measured"].bias for line in cells.results(found, own, c))
    assert biased > original + 3 and abs(down) < abs(biased) / 2
