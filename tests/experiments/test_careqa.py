import contextlib
import csv
import json
import math
import shutil
import types

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.evaluation import prompting, relaxed_perplexity
from alignment.models import bert, decoder
from data.texts import exams
from data.texts.exam_shapes import Item
from experiments import careqa
from experiments.evaluation import asking, stored, subjects, voting
from experiments.evaluation import rows as rows_of
from experiments.pages import careqa as page
from tests.decoding.test_backends import server
from tests.experiments.conftest import launch
from tests.models import test_bert


def numbers(workdir):
    return json.loads((workdir / "summary.json").read_text())


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_summary_has_the_keys_of_every_model_which_are_numbered_where_names_clash(tiny):
    got = numbers(tiny("careqa").workdir)
    for model in ("random", "random-2"):
        wanted = {f"accuracy/{model}", f"accuracy/{model}/remedies/texts", f"accuracy/{model}/remedies/letters"}
        wanted |= {f"relaxed_perplexity/{model}", f"perplexity/{model}", f"consistency/{model}", f"rephrasing/{model}"}
        assert wanted <= got.keys()
        assert got[f"accuracy/{model}"] == got[f"accuracy/{model}/remedies/texts"]
    assert got["perplexity/random"] == got["perplexity/random-2"] and got["baseline"] >= 0.25


def test_scores_stand_beside_their_baselines_and_curves_begin_with_the_ordinary_perplexity(tiny):
    workdir = tiny("careqa").workdir
    accuracy = rows(workdir / "tables/accuracy.jsonl")
    assert {row["protocol"] for row in accuracy} == {"texts", "letters"} and all(row["n"] == 4 for row in accuracy)
    assert all(row["low"] <= row["value"] <= row["high"] and row["baseline"] >= row["guessing"] for row in accuracy)
    assert {row["group"] for row in rows(workdir / "tables/groups.jsonl")} == {"category", "year"}
    sets = rows(workdir / "tables/sets.jsonl")
    assert [row["set"] for row in sets] == ["remedies", "remedies_open"] and sets[0]["ids"] == sets[1]["ids"]
    assert rows(workdir / "tables/models.jsonl")[1] == {"model": "random-2", "source": "random"}
    with np.load(workdir / "rp_curves.npz") as curves:
        logps = curves["random/remedies_open/logps"]
        assert logps.shape == (2, 2, 2) and (logps[:, 0, 0] == logps[:, 0, 1]).all()
    with open(workdir / "scores.csv", newline="") as f:
        metrics = {row["metric"] for row in csv.DictReader(f)}
    assert {"bleu", "rouge1", "rougeL", "word_perplexity_conditional", "bits_per_byte_unconditional"} <= metrics
    assert "bertscore" not in metrics and "perplexity" not in metrics and "token_perplexity" in metrics
    said = (workdir / "findings.txt").read_text()
    assert "2 models are too few" in said and "BERTScore and MoverScore are left out" in said


def test_a_run_that_was_killed_asks_nothing_again(tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny("careqa").workdir, tmp_path / "run")
    before = numbers(tmp_path / "run")
    for name in ("closed", "written", "likelihoods", "relaxed", "rephrased_answers", "drawn_answers"):
        monkeypatch.setattr(asking, name, lambda *args: 1 / 0)
    monkeypatch.setattr(subjects.models, "with_weights", lambda model, c: model)
    monkeypatch.setattr(subjects, "Local", lambda *args, **kw: Stored(*args))
    digest = next(json.loads(p.read_text()) for p in (tmp_path / "run/answers").iterdir())
    Stored.digest = json.loads(digest["key"])["weights"]
    assert careqa.run(careqa.get_config("tiny"), str(tmp_path / "run")) == before


class Stored:
    """A model of which only its name and its digest are asked."""

    has_logprobs, num_cut, digest = True, 0, ""

    def __init__(self, name, *unused):
        self.name = name

    def fitting(self, asked, answers, more):
        return list(range(len(asked)))


def test_models_have_short_names():
    specs = ("hf:models/smollm2", "run:runs/a", "endpoint:org/name", "hf:other/smollm2/", "toy:60", "gguf:x/y.gguf")
    assert subjects.names(specs) == ["smollm2", "a", "name", "smollm2-2", "toy-60", "y.gguf"]


def test_the_correlation_turns_perplexities_round_and_needs_four_models(tmp_path):
    scores = []
    for model, accuracy, rp in (("a", 0.2, 9.0), ("b", 0.4, 8.0), ("c", 0.5, 4.0), ("d", 0.9, 2.0)):
        key = {"model": model, "low": 0.0, "high": 1.0, "baseline": 0.3}
        scores.append(key | {"set": "s", "metric": "accuracy", "protocol": "letters", "value": accuracy})
        scores.append(key | {"set": "o", "metric": "relaxed_perplexity", "protocol": "", "value": rp})
        scores.append(key | {"set": "o", "metric": "bleu", "protocol": "", "value": 0.1})
    found = page.correlations(tmp_path, scores, resamples=10, seed=0)
    assert "4 models" in found and json.loads((tmp_path / "clusters.json").read_text())["clusters"]
    with open(tmp_path / "corr_spearman.csv", newline="") as f:
        cells = {row[""]: row for row in csv.DictReader(f)}
    assert set(cells["o bleu"].values()) == {"o bleu", ""}  # a constant column has no coefficient
    assert float(cells["s accuracy letters"]["o relaxed_perplexity"]) == pytest.approx(1)
    assert not any("NaN" in path.read_text() for path in tmp_path.rglob("*.json*"))
    more = {"consistency": [], "resilience": []}
    got = page.summary(scores, more, ("s", "letters"))
    assert got["spearman/accuracy_vs_rp"] == pytest.approx(1) and got["accuracy/d"] == 0.9
    assert "spearman/accuracy_vs_rp" not in page.summary(scores[:9], more, ("s", "letters"))
    assert "agree with Spearman's 1.00" in page.headline(got)


def test_averages_say_both_kinds(tmp_path):
    key = {"model": "m", "protocol": "letters"}
    closed = [key | {"set": "a", "value": 1.0, "n": 10}, key | {"set": "b", "value": 0.0, "n": 30}]
    page.averages(tmp_path, closed)
    (row,) = rows(tmp_path / "tables/averages.jsonl")
    assert (row["by_size"], row["plain"]) == (0.25, 0.5)


def test_an_encoder_gives_bert_score_and_mover_score_which_are_one_for_the_reference_itself(tmp_path):
    encoder = bert.load(test_bert.write(tmp_path / "encoder"))
    items = [Item("1", "q", answers=("give iron",)), Item("2", "q", answers=("give irons orally",))]
    got = asking.text_scores(["give iron", ""], items, encoder, compatible=False)
    assert got["bertscore"][0] == pytest.approx(1, abs=1e-5) and got["moverscore"][0] == pytest.approx(1, abs=1e-3)
    assert np.isnan(got["bertscore"][1]) and np.isnan(got["moverscore"][1]) and np.isnan(got["bleu"][1])
    assert page.corpus_row(got["rougeL"]) == {"value": 1, "n": 1, "empty": 1, "reliable": False}


def test_annotated_answers_are_compared_with_annotated_references_and_others_are_not(tmp_path):
    path = tmp_path / "annotated.jsonl"
    entities = {"1": {"tokens": "iron", "label": "OBS-DP", "relations": []}}
    path.write_text("".join(json.dumps({"text": t, "entities": entities}) + "\n" for t in ("give iron", "iron, then")))
    annotations = asking.read_annotations(str(path))
    items = [Item("1", "q", answers=("give iron",)), Item("2", "q", answers=("iron, then",))]
    got = asking.text_scores(["iron, then ", "nothing"], items, None, None, annotations, compatible=False)
    assert got["radgraph_partial"][0] == 1 and np.isnan(got["radgraph_simple"][1])
    path.write_text(json.dumps({"entities": entities}) + "\n")
    with pytest.raises(InputError, match=r"annotated\.jsonl:1: an annotation needs its text"):
        asking.read_annotations(str(path))


class Judge:
    """Says what it is made with, and keeps what it is asked."""

    def __init__(self, *said):
        self.said, self.prompts = said, []

    def prompt(self, text):
        return text

    def write(self, prompts, how):
        self.prompts = list(prompts)
        return [[text] for text in self.said]


def test_a_judge_grades_what_is_not_empty_and_its_first_number_counts():
    items = [Item(str(i), "Which metal?", answers=("iron",)) for i in range(5)]
    judge = Judge("4", "The grade is 2 of 5.", "none", "10")
    assert asking.graded(judge, ["it is iron", "zinc", "tin", "", "lead"], items) == [4, 2, None, None, None]
    assert len(judge.prompts) == 4 and all("Which metal?" in p and "Reference: iron" in p for p in judge.prompts)


def test_a_paraphrase_that_gives_the_answer_away_is_dropped_and_counted():
    paraphrases = ("Is it iron?", "What is the metal?")
    exam = exams.Exam("e", (Item("1", "Which metal?", ("zinc", "iron"), 1, paraphrases=paraphrases),), "x", "choices")
    fair, num = asking.with_fair_paraphrases(exam)
    assert num == 1 and fair.items[0].paraphrases == ("What is the metal?",)


def test_metrics_are_correlated_over_the_questions_of_one_model_with_perplexities_turned_round():
    values = {"rougeL": [0.1, 0.2, 0.3, 0.4, math.nan], "token_perplexity": [9.0, 7.0, 5.0, 3.0, 1.0]}
    (row,) = page.item_rows("m", "s", values | {"bleu": [0.0] * 5})
    assert (row["first"], row["second"], row["questions"]) == ("rougeL", "token_perplexity", 4)
    assert row["spearman"] == pytest.approx(1)


def test_draws_of_an_option_follow_the_model_and_leave_out_the_tail():
    drawn = asking.drawn_choices([[0.0, -100.0], np.log([0.46, 0.45, 0.09]).tolist()], 50, 0)
    assert set(drawn[0]) == {0} and set(drawn[1]) == {0, 1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": ()}, "must be a tuple"),
        ({"models": ("toy:7",)}, "toy:20"),
        ({"models": ("endpoint:x",)}, "needs endpoint.url"),
        ({"models": ("hf:nowhere/at/all",)}, "neither a folder here nor a hub id"),
        ({"endpoint.url": "http://127.0.0.1:1/v1"}, "no model is endpoint:<name>"),
        ({"protocols": ("medprompt",)}, r"needs voted\.examples"),
        ({"voted.examples": "nowhere.jsonl"}, "sc_cot and medprompt alone"),
        ({"protocols": ("sc_cot",), "voted.examples": "nowhere.jsonl"}, r"nowhere\.jsonl"),
        ({"protocols": ("sc_cot",), "voted.temperature": 0.0}, "the same reply each time"),
        ({"models": ("endpoint:x",), "endpoint.url": "http://127.0.0.1:1/v1"}, "gives no log-probabilities"),
        ({"voted.draws": 9}, r"voted\.draws=9 is not read, as protocols has none of"),
        ({"rp.limit": 0, "rp.samples": 9}, r"rp\.samples=9 is not read, as rp\.limit=0"),
        ({"endpoint.retries": 9}, r"endpoint\.retries=9 is not read, as no model is endpoint"),
        ({"protocols": ("letter",)}, "the nearest is 'letters'"),
        ({"data.path": "nowhere.jsonl"}, r"nowhere\.jsonl"),
        ({"data.opened": "x.jsonl"}, "which data.path has not"),
        ({"rp.samples": 0}, r"rp\.samples=0"),
        ({"rp.stride": 0}, r"rp\.stride=0"),
        ({"rp.n_max": -1}, r"rp\.n_max=-1"),
        ({"rp.temperature": 0.0}, "must be above 0"),
        ({"rp.aggregate": "max"}, "not one of: mean, sum, best"),
        ({"rephrasing.wordings": 1}, "must be 0, or 2 to 6"),
        ({"consistency.samples": 1}, "nothing to agree with"),
        ({"encoder": "nowhere"}, r"no config\.json"),
        ({"bleurt": "nowhere"}, r"no config\.json"),
        ({"radgraph": "nowhere.jsonl"}, r"nowhere\.jsonl"),
        ({"judge": "hf:nowhere/at/all"}, "neither a folder here nor a hub id"),
        ({"data.overrides": "nowhere.json"}, "nowhere.json cannot be read"),
        ({"max_new_tokens": 320}, "leaves no room"),
        ({"data.limit": 0}, r"data\.limit=0"),
    ],
)
def test_what_cannot_be_asked_is_refused_first(changes, words):
    c = careqa.get_config("tiny")
    c.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=words):
        careqa.check(c)


def test_files_of_ones_own_are_scored_with_every_protocol_and_opened(tmp_path):
    options = dict(A="zinc", B="iron", C="lead")
    asked = [{"question": f"Which is number {i}?", "options": options, "correct_answer": "B"} for i in range(3)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*asked, asked[0]]))
    flags = (f"--config.data.path={tmp_path / 'mine.jsonl'}", f"--config.data.opened={tmp_path / 'mine.jsonl'}")
    flags += ("--config.models=('random',)", "--config.protocols=('letters','texts','chars','bytes','generated')")
    flags += ("--config.rp.limit=0", "--config.rephrasing.wordings=0")
    ended = launch("careqa.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 0, ended.err
    got = numbers(ended.workdir)
    protocols = {name.rsplit("/", 1)[1] for name in got if name.startswith("accuracy/random/mine/")}
    assert protocols == {"letters", "texts", "chars", "bytes", "generated"}
    assert got["baseline"] == 1.0 and "perplexity/random" in got and "relaxed_perplexity/random" not in got
    assert "1 questions occur again" in ended.out
    accuracy = rows(ended.workdir / "tables/accuracy.jsonl")
    assert all("without_repeated" in row for row in accuracy) and accuracy[0]["baseline_option"] == 1


def test_at_offset_zero_relaxed_perplexity_is_the_ordinary_one_whatever_k(tmp_path):
    subject = subjects.Local("r", "random", careqa.get_config("tiny"), tmp_path, is_chat=False)
    items = [Item("1", "Which metal?", answers=("iron",)), Item("2", "And why?", answers=("it is cheap",))]
    got = asking.likelihoods(subject, items)
    for num in (1, 3):
        rp = dict(careqa.get_config("tiny").rp, samples=num, n_max=2, stride=1, variants=False)
        curves = asking.curves_of(asking.relaxed(subject, items, rp, 0))
        np.testing.assert_allclose([c.relaxed_N[0] for c in curves], rows_of.token_perplexities(got), rtol=1e-6)
    network, params = subject.model.network, subject.model.params
    (before,), (answer,) = subject.ids([exams.open_prompt(items[0])]), [subject.tok.encode_batch([" iron"])[0][0]]
    hidden_1TD = network.apply({"params": params}, np.array([[*before, *answer]]))
    logits_TV = np.asarray(decoder.logits(network, params, hidden_1TD), np.float64)[0, len(before) - 1 : -1]
    logps_TV = logits_TV - np.logaddexp.reduce(logits_TV, axis=1, keepdims=True)
    total = logps_TV[np.arange(len(answer)), answer].sum()  # by the network's own logits, written anew
    assert got["conditional"][0] == pytest.approx(total, abs=1e-4)


class Teller:
    """Writes one answer to all, and has made-up curves and log-probabilities."""

    name, has_logprobs, delimiter = "m", True, " "

    def __init__(self, said="", curves=(), fits=()):
        self.said, self.made, self.fits = said, curves, fits

    def prompt(self, text):
        return text

    def fitting(self, questions, answers, more):
        return self.fits

    def curves(self, questions, answers, **how):
        return self.made

    def write(self, prompts, how):
        return [[self.said] * how.num for _ in prompts]

    def nats(self, pairs):
        return types.SimpleNamespace(total_N=np.full(len(pairs), -2.0), length_N=np.full(len(pairs), 4))

    def rolling(self, texts):
        return np.full(len(texts), -3.0)


def test_what_is_too_long_or_never_said_is_counted_apart_and_a_copy_of_the_question_is_flagged(capsys):
    asked = (("Is iron a metal?", "iron"), ("Why?", "as it is"), ("What else?", "x" * 999))
    items = tuple(Item(question, question, answers=(answer,)) for question, answer in asked)
    made = [relaxed_perplexity.Curve((0,), np.array([[logp]]), 1) for logp in (-math.log(4), -math.inf)]
    c = careqa.get_config("tiny")
    c.rp.limit = 3
    exam = exams.Exam("e", items, "open", "open")
    more = {"curves": {}}
    (row,), each = rows_of.relaxed_rows(c, Teller("", made, [0, 1]), exam, lambda name, fn, **key: fn(), more, {})
    assert (row["value"], row["n"], row["infinite"]) == (pytest.approx(4), 1, 1)
    assert (row["left_out"], row["in_prompt"]) == (1, 1) and math.isinf(each[1]) and math.isnan(each[2])
    assert "1 questions are too long" in capsys.readouterr().out
    stored_curves = asking.relaxed(Teller("", made), items[:2], dict(c.rp), 0)
    assert stored_curves["logps"][1] == [[None]]  # as JSON has no infinity
    assert math.isinf(asking.curves_of(stored_curves)[1].relaxed())


def test_perplexities_of_a_set_are_over_all_its_words_and_by_tokens_a_geometric_mean():
    items = [Item("1", "q", answers=("give oral iron for three months",)), Item("2", "q", answers=("two words",))]
    got = {"conditional": [-20.0, -9.0], "unconditional": [-20.0, -9.0], "tokens": [8, 3]}
    out = {row["metric"]: row["value"] for row in rows_of.perplexities(got, careqa.get_config("tiny"), items)}
    assert out["word_perplexity_conditional"] == pytest.approx(37.524723, abs=1e-6)
    assert out["token_perplexity"] == pytest.approx(math.exp((20 / 8 + 9 / 3) / 2))
    # what a public task calls perplexity: of whole texts' log-likelihoods, not of their tokens
    assert math.exp((20 + 9) / 2) == pytest.approx(1_982_759.26) and not any(v > 1e6 for v in out.values())


def test_the_compatible_rouge_says_that_it_drops_foreign_letters_and_empty_answers_make_it_unreliable(capsys):
    c = careqa.get_config("tiny")
    c.rp.limit = c.rephrasing.wordings = c.consistency.samples = 0
    exam = exams.Exam("e", (Item("1", "q", answers=("\u062d\u062f\u064a\u062f iron",)),), "open", "open")
    for is_compatible in (False, True):
        c.compatible, more = is_compatible, {"said": {}, "items": {}, "resilience": [], "consistency": []}
        out = rows_of.opened(c, Teller(" \n"), exam, lambda name, fn, **key: fn(), more, rows_of.Graders())
        assert ("WARNING: 50 % of the letters are outside a to z" in capsys.readouterr().out) == is_compatible
    (row,) = (row for row in out if row["metric"] == "rougeL")
    assert (row["value"], row["empty"], row["reliable"]) == (None, 1, False)


def test_reports_of_mimic_are_left_out_without_a_copy_and_the_page_says_how_to_get_one(tmp_path, capsys):
    (tmp_path / "own.jsonl").write_text(json.dumps({"question": "Q", "answer": "A"}) + "\n")
    c = careqa.get_config("tiny")
    for absent in ("mimic_repsum.jsonl", "hub:someone/mimiciii-notes"):
        c.data.path = f"{absent},{tmp_path / 'own.jsonl'}"
        careqa.check(c)
        assert [exam.name for exam in careqa.read(c, tmp_path)] == ["own"]
        assert f"{absent} is left out: MIMIC's reports are given by PhysioNet" in capsys.readouterr().out
        about = dict.fromkeys(("without_encoder", "without_bleurt", "without_radgraph"), False)
        about |= {"absent": careqa.absent_reports(c), "temperature": 1}
        assert any("physionet.org/content/mimiciii" in line for line in page.findings([], about, "."))
    c.data.path = "mimic_repsum.jsonl"
    with pytest.raises(InputError, match="signed the data use agreement"):
        careqa.check(c)
    (tmp_path / "mimic.jsonl").write_text(json.dumps({"findings": "F", "impression": "I"}) + "\n")
    c.data.path = str(tmp_path / "mimic.jsonl")
    careqa.check(c)
    assert careqa.absent_reports(c) == [] and careqa.read(c, tmp_path)[0].shape == "mimic"


class Responder:
    """Solves all but question 0 of the examples, and keeps every conversation."""

    name, has_logprobs = "r", True

    def __init__(self):
        self.requests = []

    def fits(self, messages, max_new_tokens):
        return True

    def respond(self, requests):
        self.requests += requests
        out = []
        for request in requests:
            lines = request.messages[-1]["content"].splitlines()
            letter = next((line[0] for line in lines if line[1:] == ". iron"), "A")
            out.append(prompting.Reply("no" if "number 0?" in lines[0] else f"So.\nAnswer: [{letter}]"))
        return out


def test_medprompt_shows_the_nearest_questions_that_the_model_has_solved_and_votes(tmp_path):
    def exam(name, numbers):
        items = [Item(str(i), f"Which is number {i}?", ("zinc", "iron", "lead"), 1) for i in numbers]
        return exams.Exam(name, tuple(items), "lettered", "choices")

    c = careqa.get_config("tiny")
    c.protocols = ("medprompt", "sc_cot")
    c.voted.update(examples="given.jsonl", num_examples=2, retries=0)
    subject, ask = Responder(), stored.answers(tmp_path, {}, "r")
    voter = voting.Voter(subject, c, exam("given", range(5)), None, ask)
    got = voter.closed(exam("asked", (3, 7)), "medprompt", ask)
    assert got["chosen"] == [1, 1] and got["summary"]["draws"] == 10
    assert (got["summary"]["unsolved"], got["summary"]["excluded"]) == (1, 1)  # number 0, and 3, which is asked
    shown = subject.requests[-1].messages
    assert len(shown) == 5 and shown[1]["content"].startswith("So.")
    assert not any("number 3?" in turn["content"] or "number 0?" in turn["content"] for turn in shown[:-1])
    before = len(subject.requests)
    assert voter.closed(exam("asked", (3, 7)), "medprompt", ask) == got and len(subject.requests) == before
    assert voter.closed(exam("other", (8,)), "sc_cot", ask)["chosen"] == [1]
    assert len(subject.requests) == before + 5  # examples are solved once


def test_a_vote_is_asked_of_a_checkpoint_and_stands_under_its_protocol(tmp_path):
    asked = [{"question": f"Number {i}?", "options": {"A": "a", "B": "b"}, "correct_answer": "B"} for i in range(4)]
    for name, some in (("mine", asked[:2]), ("others", asked[2:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    flags = (f"--config.data.path={tmp_path / 'mine.jsonl'}", f"--config.voted.examples={tmp_path / 'others.jsonl'}")
    flags += ("--config.models=('random',)", "--config.protocols=('medprompt','sc_cot')", "--config.voted.draws=2")
    flags += ("--config.voted.retries=0", "--config.rephrasing.wordings=0", "--config.engine.max_len=512")
    ended = launch("careqa.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 0, ended.err
    got = numbers(ended.workdir)
    assert got["accuracy/random/mine/medprompt"] == got["accuracy/random"] == got["accuracy/random/mine/sc_cot"] == 0
    voted = rows(ended.workdir / "tables/voted.jsonl")
    assert [row["protocol"] for row in voted] == ["medprompt", "sc_cot"] and voted[0]["unparsed"] == 4


def test_a_set_of_words_is_asked_by_letter_where_a_model_writes():
    item = Item("1", "Does it?", ("yes", "no"), 0, context="It does.")
    exam = exams.Exam("p", (item,), "pubmedqa", "abstract")
    said = exams.written_prompt(exam, item)
    assert said == "Abstract: It does.\nQuestion: Does it?\nChoices:\nA. yes\nB. no\n"
    many = Item("1", "T", tuple(f"class {i}" for i in range(12)), 0)
    exam = exams.Exam("p", (many,), "classes", "text")
    assert "class 11?" in exams.written_prompt(exam, many) and not voting.can_be_asked(exam, "medprompt")


def test_a_set_without_letters_is_asked_for_its_words():
    exam = exams.Exam("p", (), "pubmedqa", "abstract")
    assert asking.protocol_of(exam, "letters") == "texts" and asking.protocol_of(exam, "cot") == "cot"


@contextlib.contextmanager
def service():
    """An endpoint that answers B until it has answered twice, and is gone for one request then."""
    state = {"asked": 0, "down": True}

    def answer(text, number):
        state["asked"] += 1
        if state["down"] and state["asked"] > 2:
            return None
        body = {"choices": [{"message": {"content": "It is B.\n\nAnswer: B"}, "finish_reason": "stop"}]}
        return 200, {}, json.dumps(body).encode()

    with server(answer) as (url, _):
        yield url, state


def test_a_service_is_asked_to_write_and_what_it_said_is_kept_when_it_goes_down(tmp_path):
    with service() as (url, state):
        flags = (
            "--config.models=('endpoint:some/model',)",
            f"--config.endpoint.url={url}",
            "--config.endpoint.retries=0",
        )
        flags += ("--config.protocols=('generated',)", "--config.endpoint.concurrency=1", "--config.data.limit=3")
        flags += ("--config.rephrasing.wordings=0", "--config.endpoint.api_key_env=", "--config.consistency.samples=0")
        first = launch("careqa.py:tiny", tmp_path / "run", *flags)
        assert first.code == 75 and "the service is down" in first.err + first.out
        state["down"] = False
        before = state["asked"]
        again = launch("careqa.py:tiny", tmp_path / "run", *flags)
        assert again.code == 0, again.err
        assert state["asked"] - before == 1 + 3  # the last closed question, and the open ones
    got = numbers(again.workdir)
    assert "accuracy/model/remedies/generated" in got and "relaxed_perplexity/model" not in got
    said = next(row for row in rows_of_answers(again.workdir) if "status" in row)
    assert said["status"] == ["ok"] * 3 and said["chosen"] == [1] * 3


def rows_of_answers(workdir):
    return [json.loads(path.read_text())["value"] for path in (workdir / "answers").iterdir()]


def test_translations_of_unequal_length_are_refused(tmp_path):
    row = {"question": "Q", "op1": "a", "op2": "b", "op3": "c", "op4": "d", "cop": 1}
    for name, num in (("care_en", 2), ("care_es", 1)):
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * num)
    c = careqa.get_config("tiny")
    c.data.update(path=f"{tmp_path}/care_en.jsonl,{tmp_path}/care_es.jsonl", limit=None)
    with pytest.raises(InputError, match="care_en has 2 questions and care_es 1"):
        careqa.read(c, tmp_path)
