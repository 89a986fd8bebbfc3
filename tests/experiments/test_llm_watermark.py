"""Marks on a small memorised corpus: tables, records beside answers, bad input."""

import json
import types

import jax
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.models import decoder
from alignment.watermark import green as green_lists
from alignment.watermark import membership, text_marks
from alignment.watermark.verbatim import Scored
from data.tokens import tokenizer
from data.toys import chronicle
from experiments import llm_watermark
from experiments.decoding import models
from experiments.text_watermarks import approximate, measuring, memorising, paraphrasing, speed, texts, writing
from tests.experiments.conftest import ROOT, launch


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_tables_and_the_record_beside_every_answer(tiny):
    workdir = tiny("llm_watermark").workdir
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["delta_of_mean"] > 0 and 0 <= summary["auc/min_k/clean"] <= 1
    lines = rows(workdir / "tables/verbatim.jsonl")
    of = {(line["scheme"], line["delta"]): line["mean_of_delta"] for line in lines}
    assert of["kgw", 10.0] > of["kgw", 2.0] and {scheme for scheme, _ in of} == {"kgw", "unigram", "random"}
    answers = rows(workdir / "generations.jsonl")
    records = {answer["point"]: answer["watermark"] for answer in answers}
    assert records["unmarked"] is None
    assert text_marks.from_dict(records["kgw 4"]).key == 11
    assert text_marks.from_dict(records["synthid"]).scheme == "synthid"
    attacks = {(line["point"], line["attack"]): line for line in rows(workdir / "tables/robustness.jsonl")}
    assert {"cut", "mix", "paste", "swap"} == {attack for _, attack in attacks}
    assert 0 <= attacks["kgw 4", "paste"]["window_tpr_at_1_fpr"] <= 1
    assert "window_tpr_at_1_fpr" not in attacks["synthid", "paste"]
    names = ("watermark_verbatim", "mia_auc", "adaptive_auc", "detection", "speed", "theory", "approximate")
    for name in names:
        assert (workdir / f"{name}.csv").stat().st_size
    for name in ("cost", "detection", "mixes", "quality", "swaps"):
        assert (workdir / f"figures/{name}.png").stat().st_size


def test_a_run_says_what_each_mark_costs_and_undoes_it_exactly(tiny):
    workdir = tiny("llm_watermark").workdir
    summary = json.loads((workdir / "summary.json").read_text())
    speeds = {line["scheme"]: line for line in rows(workdir / "tables/speed.jsonl")}
    assert list(speeds) == ["unmarked", "kgw", "synthid"] and speeds["unmarked"]["cost"] == 1
    assert summary["cost/kgw"] == speeds["kgw"]["cost"] > 0 and speeds["kgw"]["tokens_per_second"] > 0
    lines = {
        (line["attack"], line["scheme"], line["delta"]): line for line in rows(workdir / "tables/membership.jsonl")
    }
    assert {line["blind"] for line in lines.values()} == {summary["blind_auc"]}
    for (attack, _, _), line in lines.items():
        if attack.startswith("exact_"):
            assert line["watermarked"] == pytest.approx(line["clean"])
    assert summary["auc/min_k/exact"] == pytest.approx(summary["auc/min_k/clean"])
    assert lines["min_k_0.05", "kgw", 2.0]["short_texts"] >= 0 == lines["loss", "kgw", 2.0]["short_texts"]
    for line in rows(workdir / "tables/detection.jsonl"):
        assert line["negatives"] < 1_000 and line["tpr_at_0.1_fpr"] is None


def test_a_run_leaves_the_theory_and_near_copies_beside_the_measurement(tiny):
    workdir = tiny("llm_watermark").workdir
    theory = [line for line in rows(workdir / "tables/theory.jsonl") if line["scheme"] == "kgw"]
    assert [line["delta"] for line in theory] == [2.0, 10.0]
    assert all(0 <= line["likeliest_tokens"] <= 1 and line["hard_bound"] < 0 for line in theory)
    assert theory[0]["clean"] == theory[1]["clean"] > theory[1]["marked"]
    near = rows(workdir / "tables/approximate.jsonl")
    assert [line["delta"] for line in near] == [0.0, 2.0, 10.0] and all(0 <= line["bleu_words"] <= 1 for line in near)
    assert len(rows(workdir / "continued/generations.jsonl")) == 2 * 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.mark.gamma=1.5"], "gamma=1.5 must be between 0 and 1"),
        (["--config.mark.deltas=(-1.0,)"], "delta=-1.0 must be at least 0"),
        (["--config.mark.schemes=('kgv',)"], "the nearest is 'kgw'"),
        (["--config.seed=-1"], "seed=-1 must be at least 0"),
        (["--config.mark.keyring=()"], "mark.keyring is empty"),
        (["--config.memorise.steps=0"], "knows no text"),
        (["--config.memorise.steps=0", "--config.init_from=hf:models"], "memorise.batch_size=20 is not read"),
        (["--config.paraphrase.num=3"], "paraphrase.num=3 is not read"),
        (["--config.paraphrase.by=endpoint:model"], "needs endpoint.url"),
        (["--config.paraphrase.by=hf:models"], "models"),
        (["--config.paraphrase.by=toy"], "cannot say a text in other words"),
        (["--config.endpoint.url=http://127.0.0.1:1/v1"], "is not read, as paraphrase.by"),
        (["--config.mark.prompt_lens=(40,)"], "the shortest text has no"),
        (["--config.write.schemes=('kgw',)", "--config.write.num_others=3"], "write.num_others=3 is not read"),
        (["--config.write.num_negatives=9"], "write.num_negatives=9 is not read, as write.negatives is empty"),
        (["--config.write.negatives=missing.txt"], "missing.txt"),
        (["--config.write.temperature=0"], "marks of draws need draws"),
        (["--config.write.max_new_tokens=500"], "raise it"),
        (["--config.approximate.num_keys=3"], "mark.keyring has 2 keys"),
        (["--config.speed.max_new_tokens=500"], "speed.max_new_tokens=500 are more than engine.max_len=128"),
        (["--config.speed.rounds=0"], "speed.rounds=0"),
        (["--config.data.chapters=True"], "must be a training and a file of a book"),
        (["--config.data.max_len=200"], "is more than engine.max_len=128"),
        (["--config.data.path=missing.jsonl"], "missing.jsonl"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(flags, message, tmp_path):
    ended = launch("llm_watermark.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 2 and message in ended.err and "Traceback" not in ended.err


def read(tmp_path, lines, *, learns=False, **changes):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    c = llm_watermark.get_config("tiny")
    c.data.update(dict(path=str(path), limit=None, min_len=2) | changes)
    counts = {}
    return texts.read(c, tokenizer.load("bytes"), tmp_path, learns=learns, counts=counts), counts


def test_files_shaped_like_wikimia_and_bookmia_are_read(tmp_path):
    out, _ = read(tmp_path, [{"input": "one two", "label": 1}, {"snippet": "three", "label": 0}])
    assert [(text.text, text.is_member) for text in out] == [("one two", True), ("three", False)]


def test_texts_without_labels_are_split_where_the_run_learns_them(tmp_path):
    lines = [{"text": f"text number {i}"} for i in range(10)]
    out, _ = read(tmp_path, lines, learns=True)
    assert sum(text.is_member for text in out) == 5
    with pytest.raises(InputError, match="label=None must be 1 for texts that the model has read"):
        read(tmp_path, lines)


def test_long_records_become_pieces_and_short_ones_are_counted(tmp_path):
    lines = [{"text": "a" * 10 + "c" * 10 + " " * 10 + "a" * 5}, {"text": "b" * 3}]
    out, counts = read(tmp_path, lines, learns=True, piece_chars=10, min_len=4)
    assert [text.text for text in out] == ["a" * 10, "c" * 10, "a" * 5]
    assert counts["texts of fewer than data.min_len tokens"] == 1


BOOK = "a preface\nCHAPTER I\nhe went\nand came\nChapter II.\nshe sang\n\nCHAPTER 3\nthey ate\n\nmore of it\n"
BOOK += "CHAPTER IV\nthe last one\nEnd of Project Gutenberg's book\nits licence\n"


def test_whole_chapters_are_learned_or_held_out_and_the_rest_of_a_book_is_counted(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(BOOK)
    c = llm_watermark.get_config("tiny")
    c.data.update(path=str(path), limit=None, min_len=2, piece_chars=7, chapters=True)
    counts = {}
    out = texts.read(c, tokenizer.load("bytes"), tmp_path, learns=True, counts=counts)
    assert counts["chapters"] == 4 and counts["chapters learned"] == 2 and counts["parts outside chapters"] == 2
    sides = {}
    for text in out:
        sides.setdefault(text.id.split(": ")[1].split(":")[0], set()).add(text.is_member)
    assert set(sides) == {"CHAPTER I", "Chapter II.", "CHAPTER 3", "CHAPTER IV"}
    assert all(len(side) == 1 for side in sides.values())
    whole = "".join(text.text for text in out)
    assert "preface" not in whole and "licence" not in whole and "more of" in whole and "CHAPTER" not in whole
    path.write_text("CHAPTER I\nthe only one\n")
    with pytest.raises(InputError, match="1 chapters begin"):
        texts.read(c, tokenizer.load("bytes"), tmp_path, learns=True, counts={})


def test_a_scheme_is_timed_in_turns_with_unmarked_writing_and_once(tmp_path, monkeypatch):
    c = llm_watermark.get_config("tiny")
    c.speed = dict(num=2, max_new_tokens=24, rounds=3)
    seconds = {
        "unmarked": iter((2.0, 4.0, 2.0, 1.0, 1.0, 1.0)),
        "kgw 4": iter((3.0, 5.0, 2.0)),
        "exp": iter((2.0,) * 3),
    }
    monkeypatch.setattr(speed, "_writing", lambda c, model, point, prompts: (point.name if point else "unmarked",))
    monkeypatch.setattr(speed, "_seconds", lambda name: next(seconds[name]))
    marks = [writing.mark_of(scheme, 3, 300, 0.5, 4.0, "") for scheme in ("kgw", "kgw", "exp")]
    points = [writing.Point("unmarked", "unmarked", None, 1)]
    points += [writing.Point(n, n.split()[0], m, 1) for n, m in zip(("kgw 4", "kgw 8", "exp"), marks)]
    model = types.SimpleNamespace(digest="d")
    base, kgw, exp = lines = speed.lines(c, model, points, [[1, 2]], tmp_path)
    assert (kgw["cost"], exp["cost"]) == (1.25, 2.0) and kgw["tokens_per_second"] == 2 * 24 / 3.0
    assert base["scheme"] == "unmarked" and base["tokens_per_second"] == 2 * 24 / 1.5
    assert speed.lines(c, model, points, [[1, 2]], tmp_path) == lines  # read, as no time is left in the iterators
    with pytest.raises(StopIteration):
        speed.lines(c, types.SimpleNamespace(digest="other"), points, [[1, 2]], tmp_path)


def test_bounds_stand_beside_what_was_measured():
    logps = np.log([0.5, 0.8])
    green, mass = np.array([True, False]), np.array([0.6, 0.4])
    first = Scored(logps, green, mass, rivals_T2=np.log([[0.2, 0.5], [0.1, 0.2]]))
    second = Scored(np.log([0.1, 0.9]), green, mass, rivals_T2=np.log([[0.1, 3.0], [0.1, 0.1]]))
    low, high = measuring.theory_lines([[first], [second]], "kgw", (0.1, 5.0), 0.5)
    assert low["hard_bound"] == pytest.approx(np.log10(2 * 0.5**2)) and low["likeliest_tokens"] == 0.75
    assert low["soft_texts"] == 1 and low["soft_epsilon"] == pytest.approx(0.999 * 0.5 / 6)
    assert low["clean"] == pytest.approx(np.log10(0.4 + 0.09))
    assert high["marked"] == pytest.approx(np.log10(sum(np.exp(x.marked(5.0).sum()) for x in (first, second))))
    assert low["soft_bound"] is None and high["soft_bound"] == pytest.approx(
        np.log10(measuring.verbatim.soft_bound(1, 2, low["soft_epsilon"]))
    )
    (none,) = measuring.theory_lines([[second]], "kgw", (5.0,), 0.5)
    assert none["soft_texts"] == 0 and none["soft_bound"] is None


def test_rates_of_one_in_a_thousand_need_a_thousand_negatives():
    rng = np.random.default_rng(0)
    mark = writing.mark_of("unigram", 3, 2_000, 0.5, 2.0, "")
    green = np.flatnonzero(green_lists.unigram_mask(mark))
    marked = [rng.choice(green, 40).tolist(), rng.choice(green, 12).tolist()]
    few = measuring.detection_line(mark, marked, rng.integers(0, 2_000, (999, 20)).tolist())
    many = measuring.detection_line(mark, marked, rng.integers(0, 2_000, (1_000, 20)).tolist())
    assert few["tpr_at_0.1_fpr"] is None and 0 <= many["tpr_at_0.1_fpr"] <= 1 and many["negatives"] == 1_000
    assert few["low_power"] == 1 and few["p_below_0.001"] == 1 and few["false_alarms_at_0.001"] < 0.01


def test_windows_of_other_files_are_negatives_beside_the_unmarked_answers(tmp_path):
    (tmp_path / "other.txt").write_text("no mark is in these words\n" * 40)
    c = llm_watermark.get_config("tiny")
    c.write.update(negatives=str(tmp_path / "other.txt"), num_negatives=9, max_new_tokens=20)
    tok, counts = tokenizer.load("bytes"), {}
    model = types.SimpleNamespace(tok=tok, network=tok)  # both have a vocab_size
    negatives = llm_watermark.negatives_of(c, model, tmp_path, counts)
    assert len(negatives) == 9 and {len(ids) for ids in negatives} == {20} and counts["negatives: windows"] == 9
    mark = writing.mark_of("kgw", 3, tok.vocab_size, 0.5, 2.0, "")
    points = [writing.Point("unmarked", "unmarked", None, 1), writing.Point("kgw 2", "kgw", mark, 1)]
    answers = [{"point": point.name, "ids": tok.encode("an answer of some words"), "nats": -9.0} for point in points]
    results = writing.measured(
        c, model, [tok.encode("a text that nobody learned")], negatives, points, answers, tmp_path
    )
    assert [line["negatives"] for line in results["detection"]] == [11]
    c.write.num_negatives = 90
    with pytest.raises(InputError, match="windows of 20 tokens, and 90 are wanted"):
        llm_watermark.negatives_of(c, model, tmp_path, counts)


def test_likeness_reads_tokens_and_words():
    tok = tokenizer.load("bytes")
    gold = tok.encode("the old mill by the river")
    assert approximate.likeness(gold, gold, tok.decode) == pytest.approx([1, 1, 1, 1])
    near = approximate.likeness(tok.encode("the new mill by the river"), gold, tok.decode)
    assert near[1] == pytest.approx(5 / 6) and near[0] == pytest.approx(22 / 25) and 0 < near[3] < near[2] < 1


def test_words_are_swapped_at_every_share_and_the_rest_is_counted(tmp_path):
    c = llm_watermark.get_config("smol")
    tok = tokenizer.load("bytes")
    mark = writing.mark_of("unigram", 3, tok.vocab_size, 0.5, 2.0, "")
    point = writing.Point("unigram 2", "unigram", mark, 1)
    answers = [tok.encode("the big house was very quiet") for _ in range(20)]
    lines = writing.swapped(c, types.SimpleNamespace(tok=tok), point, answers, [tok.encode("nothing here")])
    assert [line["strength"] for line in lines] == [0.0, 0.25, 0.5, 1.0]
    words = [line["words"] for line in lines]
    assert words[0] == 0 and words[3] == pytest.approx(4 / 6) and 0 < words[1] < words[2] < words[3]


def test_the_text_is_the_first_column_that_has_one(tmp_path):
    lines = [{"input": 7, "text": "one", "label": 1}, {"input": " ", "snippet": "two", "label": 0}]
    for piece_chars in (None, 10):
        out, _ = read(tmp_path, lines, piece_chars=piece_chars)
        assert [text.text for text in out] == ["one", "two"]


def test_copies_of_a_text_are_dropped_and_may_not_stand_on_both_sides(tmp_path):
    lines = [{"text": f"text {i // 2}"} for i in range(8)]
    out, counts = read(tmp_path, lines, learns=True)
    assert len({text.text for text in out}) == len(out) == 4 and counts["copies of a text, dropped"] == 4
    with pytest.raises(InputError, match=r":2: label=0, and the same text has 1 at .*:1"):
        read(tmp_path, [{"text": "one", "label": 1}, {"text": "one", "label": 0}])


def test_empty_texts_and_one_class_are_refused(tmp_path):
    with pytest.raises(InputError, match="needs a text under one of"):
        read(tmp_path, [{"input": " ", "label": 1}])
    with pytest.raises(InputError, match="all of one class"):
        read(tmp_path, [{"input": "one", "label": 1}])


def test_scores_of_many_texts_are_those_of_each_ones_whole_distribution(tmp_path):
    c = llm_watermark.get_config("tiny")
    model = models.load(c, tmp_path)
    V, rng = model.network.vocab_size, np.random.default_rng(0)
    all_ids = [rng.integers(0, V, size).tolist() for size in (20, 48, 33)] * 3  # more than one call
    scorer = memorising.Scorer(model, 40)
    marks = [m for name in llm_watermark.SCORED for m in measuring.marks_of(c.mark, name, V, 10.0, model.name)]
    out = scorer.score(all_ids, marks)
    assert [[len(each.logps_T) for each in text] for text in out] == [[19] * 6, [39] * 6, [32] * 6] * 3
    for number in (0, 7):
        ids_S = np.array(all_ids[number][:40])
        hidden_1SD = model.network.apply(decoder.variables(model.params), ids_S[None])
        logp_TV = np.asarray(jax.nn.log_softmax(decoder.logits(model.network, model.params, hidden_1SD)[0, :-1]))
        places_T = np.arange(len(ids_S) - 1)
        for mark, scored in zip(marks[:4], out[number]):
            mask_TV = green_lists.masks(mark, ids_S[:-1, None])
            np.testing.assert_array_equal(scored.is_green_T, mask_TV[places_T, ids_S[1:]])
            np.testing.assert_allclose(scored.logps_T, logp_TV[places_T, ids_S[1:]], atol=1e-5)
            p_TV = np.where(mask_TV, np.exp(logp_TV), 0)
            np.testing.assert_allclose(scored.green_mass_T, p_TV.sum(1), atol=1e-5)
            np.testing.assert_allclose(scored.means_T2[:, 1], (p_TV * logp_TV).sum(1), atol=1e-4)
    random = [text[4].is_green_T for text in out[::3]]  # of one text in three places
    assert (random[0] != random[1]).any() and (random[1] != random[2]).any()
    np.testing.assert_allclose(scorer.logps(all_ids)[7], out[7][0].logps_T, atol=1e-6)


def test_an_answers_nats_are_those_of_the_unmarked_model_that_reads_it_again(tiny):
    workdir = tiny("llm_watermark").workdir
    c = llm_watermark.get_config("tiny")
    c.init_from = f"run:{workdir}/learned"
    model = models.load(c, workdir)
    all_texts = texts.read(c, model.tok, workdir, learns=True, counts={})
    prompts = writing.prompts_of(c, all_texts)
    answers = [row for row in rows(workdir / "generations.jsonl") if row["prompt"] == 0]
    assert {row["point"] for row in answers} == {"unmarked", "kgw 4", "synthid"}
    whole = [[*prompts[0], *row["ids"]] for row in answers]
    again = memorising.Scorer(model, c.write.prompt_len + c.write.max_new_tokens).logps(whole)
    for row, logps_T in zip(answers, again):
        assert row["nats"] == pytest.approx(logps_T[len(prompts[0]) - 1 :].sum(), abs=1e-3)
    assert writing.perplexity([{"ids": [1, 2], "nats": -3.0}, {"ids": [5], "nats": 0.0}]) == pytest.approx(np.e)
    lines = {line["point"]: line["perplexity"] for line in rows(workdir / "tables/detection.jsonl")}
    marked = [row for row in rows(workdir / "generations.jsonl") if row["point"] == "kgw 4"]
    assert lines["kgw 4"] == pytest.approx(writing.perplexity(marked))


def test_moments_under_a_mark_are_those_of_the_whole_distribution():
    rng = np.random.default_rng(0)
    logp = np.log(rng.dirichlet(np.ones(9)))
    green = rng.random(9) < 0.5
    p = np.exp(logp)
    sums = [[np.sum(np.where(side, p * x, 0)) for side in (~green, green)] for x in (logp, logp**2)]
    mass = np.array([p[green].sum()])
    scored = Scored(logp[:1], green[:1], mass, *(np.array([s]) for s in sums))
    marked = p * np.exp(3.0 * green) / (p * np.exp(3.0 * green)).sum()
    means, squares = memorising.marked_moments(scored, 3.0)
    assert means[0] == pytest.approx(np.sum(marked * np.log(marked)))
    assert squares[0] == pytest.approx(np.sum(marked * np.log(marked) ** 2))


def test_entries_of_the_chronicle_tell_nothing_of_their_membership():
    entries = chronicle.entries(60, seed=1)
    assert len(set(entries)) == 60 and chronicle.entries(60, seed=1) == entries
    labels = [i % 2 for i in range(60)]
    scores = membership.blind_scores(entries, labels)
    assert 0.25 < membership.auc(scores[1::2], scores[::2]) < 0.75


def test_false_alarms_stay_at_their_level_over_keys():
    windows = np.random.default_rng(0).integers(0, 5_000, (40, 100))
    marks = [writing.mark_of("kgw", k, 5_000, 0.5, 2.0, "") for k in range(10)]
    lines = measuring.null_lines(list(windows), marks)
    assert lines[0]["n"] == 400 and lines[0]["share"] < 0.08 and lines[1]["share"] < 0.03


def test_a_window_finds_marked_text_in_a_paste_that_the_whole_text_hides():
    rng = np.random.default_rng(0)
    mark = writing.mark_of("unigram", 3, 2_000, 0.5, 2.0, "")
    green = np.flatnonzero(green_lists.unigram_mask(mark))
    marked = [rng.choice(green, 60).tolist() for _ in range(20)]
    others = [rng.integers(0, 2_000, 200).tolist() for _ in range(40)]
    lines = measuring.robustness_lines(mark, marked, others, seed=0)
    whole = next(line for line in lines if line["attack"] == "paste" and line["strength"] == 1)
    assert whole["window_tpr_at_1_fpr"] == 1 and whole["window_p_below_0.01"] == 1
    assert whole["z_median"] < lines[0]["z_median"] - 3 and whole["window_false_alarms_at_0.01"] < 0.15


def test_paraphrases_are_stored_read_and_those_without_an_answer_counted(tmp_path, monkeypatch):
    class Writer:
        def prompt(self, text):
            return text

        def write(self, prompts, how):
            assert how.max_new_tokens == 40
            return [["quite different words"] if i % 2 else [""] for i, _ in enumerate(prompts)]

    monkeypatch.setattr(paraphrasing, "writer_of", lambda c, folder: Writer())
    c = llm_watermark.get_config("tiny")
    c.paraphrase.update(by="endpoint:m", num=3, max_new_tokens=40)
    tok = tokenizer.load("bytes")
    mark = writing.mark_of("kgw", 3, tok.vocab_size, 0.5, 2.0, "")
    answers = {"unmarked": (None, []), "kgw": (mark, [tok.encode(f"an answer of {i}") for i in range(4)])}
    model = types.SimpleNamespace(tok=tok)
    (line,) = paraphrasing.lines(c, model, answers, [tok.encode("nothing here is marked")], tmp_path)
    assert (line["attack"], line["n"], line["unchanged"]) == ("paraphrase", 3, 2)
    stored = rows(tmp_path / "paraphrases.jsonl")
    assert [row["after"] for row in stored] == ["an answer of 0", "quite different words", "an answer of 2"]
    c.paraphrase.by = ""
    assert paraphrasing.lines(c, model, answers, [], tmp_path) == []


def paraphrased(c, tok, texts, folder):
    """The line of a mark of these answers, and what became of them."""
    mark = writing.mark_of("kgw", 3, tok.vocab_size, 0.5, 2.0, "")
    answers = {"unmarked": (None, []), "kgw": (mark, [tok.encode(text) for text in texts])}
    negatives = [tok.encode("nothing here is marked")]
    (line,) = paraphrasing.lines(c, types.SimpleNamespace(tok=tok), answers, negatives, folder)
    return line, [row["after"] for row in rows(folder / "paraphrases.jsonl")]


def test_a_model_of_this_process_paraphrases_through_the_engine(tiny, tmp_path):
    c = llm_watermark.get_config("tiny")
    c.paraphrase.update(by=f"run:{tiny('llm_watermark').workdir}/learned", num=3, max_new_tokens=8)
    with pytest.raises(InputError, match=r"engine.max_len=128 is too short for a paraphrase: .* are 160; raise it"):
        llm_watermark.check(c)
    c.engine.max_len = 192
    llm_watermark.check(c)
    tok = tokenizer.load("bytes")
    texts = ["the river rose in spring", "a market was held", "the bridge fell"]
    line, after = paraphrased(c, tok, texts, tmp_path)
    assert (line["n"], line["cut"]) == (3, 0) and len(after) == 3
    assert all(0 < len(tok.encode(text)) <= 8 or text in texts for text in after)
    (tmp_path / "again").mkdir()
    assert paraphrased(c, tok, texts, tmp_path / "again") == (line, after)  # greedy: no draw is in it


@pytest.mark.slow  # a real model; the test above has the same way through the engine
def test_smollm2_says_an_answer_in_other_words(tmp_path, monkeypatch):
    if not (ROOT / "models/smollm2").is_dir():
        pytest.skip("needs models/smollm2, which make models leaves")
    monkeypatch.chdir(ROOT)
    c = llm_watermark.get_config("smol")
    c.paraphrase.update(by=models.SMOL, num=2, max_new_tokens=32)
    c.engine.update(num_slots=2, max_len=256)
    text = "The old schoolhouse by the river was sold to a merchant who turned it into a small hotel for travellers."
    line, after = paraphrased(c, tokenizer.load("models/smollm2"), [text, text], tmp_path)
    assert line["unchanged"] == 0 and after[0] == after[1] != text
    assert len({"schoolhouse", "river", "merchant", "hotel"} & set(after[0].lower().replace(",", " ").split())) >= 1
