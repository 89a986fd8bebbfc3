"""Marks on a small memorised corpus: tables, records beside answers, bad input."""

import json
import types

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.watermark import green as green_lists
from alignment.watermark import membership, text_marks
from alignment.watermark.verbatim import Scored
from data.tokens import tokenizer
from data.toys import chronicle
from experiments import llm_watermark
from experiments.decoding import models
from experiments.text_watermarks import measuring, memorising, paraphrasing, texts, writing
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
    for name in ("watermark_verbatim.csv", "mia_auc.csv", "adaptive_auc.csv", "detection.csv"):
        assert (workdir / name).stat().st_size


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.mark.gamma=1.5"], "gamma=1.5 must be between 0 and 1"),
        (["--config.mark.deltas=(-1.0,)"], "delta=-1.0 must be at least 0"),
        (["--config.mark.schemes=('kgv',)"], "the nearest is 'kgw'"),
        (["--config.seed=-1"], "seed=-1: it must be at least 0"),
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
        (["--config.write.temperature=0"], "marks of draws need draws"),
        (["--config.write.max_new_tokens=500"], "raise it"),
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
