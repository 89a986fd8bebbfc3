import csv
import dataclasses
import json
import shutil
import types

import numpy as np
import pytest

from alignment.errors import InputError
from data.texts import aspect_items
from data.toys import wards
from experiments import medguard
from experiments.evaluation import scripted, subjects, unaided
from experiments.pages import medguard as page
from tests.experiments.conftest import launch


def table(workdir, name):
    with open(workdir / f"{name}.csv", newline="") as f:
        return list(csv.DictReader(f))


def pairs(workdir, model, aspect):
    lines = table(workdir, "pairs")
    return {line["what"]: line["value"] for line in lines if (line["model"], line["aspect"]) == (model, aspect)}


@pytest.fixture(scope="module")
def items():
    return aspect_items.parse(wards.items(20), wards.PRINCIPLES)[0]


def indices(workdir):
    return {(line["model"], line["condition"]): line for line in table(workdir, "indices")}


def test_an_oracle_is_right_everywhere_and_one_that_refuses_nowhere(tiny):
    workdir = tiny("medguard").workdir
    got = json.loads((workdir / "summary.json").read_text())
    assert got["index"] == got["index_pooled"] == got["index_low"] == got["index_high"] == 1
    assert [got[f"principle/{name}"] for name in wards.PRINCIPLES] == [1] * 5
    assert (got["refused"], got["unparsed"], got["flagged"], got["partial"]) == (0, 0, 0, 0)
    refuser = indices(workdir)["refuser", "plain"]
    assert (float(refuser["index"]), float(refuser["refused"]), refuser["answered_only"]) == (0, 1, "")
    assert refuser["flagged"] == "True" and "Flagged" in (workdir / "findings.txt").read_text()


def test_pairs_tell_who_follows_a_tag_and_who_looks_at_the_wing(tiny):
    workdir = tiny("medguard").workdir
    for aspect in ("sycophancy", "harmful_requests", "manipulation"):
        assert float(pairs(workdir, "sycophant", aspect)["flip_rate"]) == 1
        assert float(pairs(workdir, "sycophant", aspect)["drop"]) == 1  # all right plainly, nothing under pressure
        assert float(pairs(workdir, "oracle", aspect)["resistance"]) == 1
        assert pairs(workdir, "refuser", aspect)["flip_rate"] == ""  # nothing was right plainly
    assert float(pairs(workdir, "biased", "equity")["gap"]) == 1
    assert float(pairs(workdir, "biased", "equity")["invariance"]) == 0
    assert float(pairs(workdir, "guesser", "equity")["invariance"]) < 1
    assert float(pairs(workdir, "oracle", "equity")["invariance"]) == 1


def test_another_order_of_options_changes_nothing_for_who_reads_them_and_a_letter_is_near_chance(tiny):
    got = indices(tiny("medguard").workdir)
    assert float(got["oracle", "shuffled"]["index"]) == 1
    assert got["sycophant", "shuffled"]["index"] == got["sycophant", "plain"]["index"]
    for condition in ("plain", "shuffled"):
        assert abs(float(got["always_a", condition]["index"]) - 0.25) < 0.1
        assert abs(float(got["always_a", condition]["index_corrected"])) < 0.13


def test_without_options_a_judge_agrees_with_multiple_choice_where_the_responder_does(tiny):
    workdir = tiny("medguard").workdir
    got = json.loads((workdir / "summary.json").read_text())
    assert (got["open_index"], got["open_kappa"], got["open_unread"]) == (1, 1, 0)
    assert got["refuser.plain/open_index"] == 0 and got["always_a.plain/open_index"] == got["always_a.plain/index"]
    lines = {(line["model"], line["aspect"]): line for line in table(workdir, "open_aspects")}
    assert len(lines) == 10 * len(scripted.RESPONDERS)
    assert float(lines["refuser", "equity"]["evasive"]) == 1 and float(lines["biased", "equity"]["unsafe"]) > 0.3
    assert float(lines["guesser", "leakage"]["disclosed"]) > 0 == float(lines["oracle", "leakage"]["disclosed"])
    assert "canary written" in pairs(workdir, "oracle", "leakage")
    assert {path.name for path in (workdir / "figures").glob("*.png")} >= {"radar.png", "heat.png", "conditions.png"}


def known_of(items, **more):
    return page.Known(items, wards.PRINCIPLES, ("plain",), (), {}, **more)


def rows_by(items, right_fn):
    return [
        {
            "id": i.id,
            "model": "m",
            "condition": "plain",
            "right": right_fn(i),
            "choice": ["A"],
            "status": "ok",
            "text": "",
        }
        for i in items
    ]


def test_chance_is_the_mean_over_items_of_one_over_their_options(items):
    own = [item for item in items if item.aspect == items[0].aspect][:4]
    mixed = [dataclasses.replace(item, options=item.options[:num]) for item, num in zip(own, (2, 2, 4, 4))]
    score = page.scores_of(rows_by(mixed, lambda item: item is not mixed[0]), mixed)[items[0].aspect]
    assert score.chance == pytest.approx(0.375) and score.corrected == pytest.approx((0.75 - 0.375) / 0.625)


def test_a_vignette_whose_pair_is_not_there_is_left_out_of_pairs_and_counted(items):
    own = [item for item in items if item.pair]
    left = [item for item in own if item.pair != own[0].pair or item is own[0]]
    lines = page.pair_lines(("m", "plain"), rows_by(left, lambda item: True), left)
    (line,) = (line for line in lines if "left out" in line["what"])
    (gap,) = (line for line in lines if line["what"] == "gap")
    assert line["n"] == 1 and gap["n"] == len(left) - 1


@pytest.mark.parametrize("is_partial", [False, True])
def test_models_are_ranked_by_index_but_never_by_a_partial_one(items, tmp_path, is_partial):
    some = [item for item in items if not is_partial or item.aspect != items[0].aspect]
    worse = rows_by(some, lambda item: item.aspect == some[0].aspect)
    better = [row | {"model": "n"} for row in rows_by(some, lambda item: True)]
    page.write(tmp_path, [*worse, *better], known_of(some), resamples=5, seed=0)
    assert [line["model"] for line in table(tmp_path, "indices")] == (["m", "n"] if is_partial else ["n", "m"])


class Judge:
    def __init__(self, *said):
        self.said, self.prompts = said, []

    def prompt(self, text):
        return text

    def write(self, prompts, how):
        self.prompts = list(prompts)
        return [[text] for text in self.said[: how.max_new_tokens]]


def test_a_judge_reads_right_answer_and_rationale_and_its_first_verdict_counts(items):
    item = aspect_items.parse([wards.items(20)[0] | {"rationale": "the list says it"}], wards.PRINCIPLES)[0][0]
    judge = Judge("Safe correct.", "It is unsafe, not evasive", "safe")
    assert unaided.verdicts(judge, ["a", "b", " ", "c"], [item] * 4) == ["safe-correct", "unsafe", "evasive", None]
    assert len(judge.prompts) == 3 and unaided.gold_of(item) in judge.prompts[0]
    assert "Why: the list says it" in judge.prompts[0]
    assert not any(option in unaided.prompt(items[0]) for option in items[0].options if option not in items[0].question)


def test_no_question_is_on_the_page_and_comparisons_are_corrected(tiny, items):
    workdir = tiny("medguard").workdir
    shown = (workdir / "report.html").read_text()
    assert wards.CANARY not in shown and items[0].question not in shown
    lines = table(workdir, "compare")
    assert len(lines) % 10 == 0 and all(float(line["p_holm"]) >= float(line["p"]) for line in lines)


def test_another_map_of_aspects_runs_without_a_change_of_code(tmp_path):
    flags = ("--config.principles=(('one',('equity','leakage')),('two',('stereotype',)),('three',('sycophancy',)))",)
    ended = launch("medguard.py:tiny", tmp_path / "run", *flags, "--config.models=('scripted:noisy',)")
    assert ended.code == 0, ended.err
    got = json.loads((ended.workdir / "summary.json").read_text())
    assert {name for name in got if name.startswith("principle/")} == {
        "principle/one",
        "principle/two",
        "principle/three",
    }


def test_an_aspect_without_items_makes_the_index_a_partial_one(tmp_path, items):
    rows = [row for row in wards.items(20) if row["aspect"] != "leakage"]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    right = [{"id": i.id, "rater": r, "choice": "A"} for i in items[:9] for r in "xy"] + [{"id": "?", "choice": "A"}]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in right))
    flags = (f"--config.data.path={tmp_path / 'mine.jsonl'}", f"--config.physicians={tmp_path / 'people.jsonl'}")
    ended = launch("medguard.py:tiny", tmp_path / "run", *flags, "--config.models=('scripted:oracle',)")
    assert ended.code == 0, ended.err
    assert json.loads((ended.workdir / "summary.json").read_text())["partial"] == 1
    said = (ended.workdir / "findings.txt").read_text()
    assert "PARTIAL index: no item of leakage" in said and "Physicians score" in said and "kappa" not in said
    assert "1 choices on items that are not asked" in ended.out
    assert "(partial)" in page.headline(json.loads((ended.workdir / "summary.json").read_text()))


def test_a_model_is_asked_under_every_condition_by_words_and_by_letters(tmp_path):
    flags = ("--config.models=('random',)", "--config.data.limit=4", "--config.max_new_tokens=4")
    flags += ("--config.principles=(('one',('stereotype','confidentiality')),)",)
    flags += ("--config.engine.max_len=1536", "--config.chat=False")
    conditions = "--config.conditions=('plain','cot','safety_system','few_shot','self_check')"
    words = launch("medguard.py:tiny", tmp_path / "words", *flags, conditions)
    assert words.code == 0, words.err
    got = indices(words.workdir)
    assert {condition for _, condition in got} == {*medguard.CONDITIONS, "shuffled"}
    assert len({line["n"] for line in got.values()}) == 1  # examples are scored under no condition
    letters = launch("medguard.py:tiny", tmp_path / "letters", *flags, "--config.score_mode=letters")
    assert letters.code == 0, letters.err
    assert indices(letters.workdir)["random", "plain"]["unparsed"] == "0.0"


class Letters:
    """Finds letters the likelier the later they stand in the alphabet, and keeps what it is asked."""

    delimiter = " "

    def prompt(self, text):
        return text

    def nats(self, pairs):
        self.pairs = pairs
        return types.SimpleNamespace(total_N=np.array([float(ord(letter)) for _, letter in pairs]))


def test_a_letter_that_no_option_has_is_not_asked_for(items):
    subject, two = Letters(), dataclasses.replace(items[0], options=("a", "b"), gold=(0,))
    assert medguard.by_letter(subject, [two, items[0]], ["x", "y"]) == [1, 3]
    assert [letter for _, letter in subject.pairs] == list("ABABCD")


def test_letters_are_as_likely_whatever_is_asked_beside_them(items, tmp_path):
    c = medguard.get_config("tiny")
    c.engine.max_len = 1_024
    subject = subjects.Local("r", "random", c, tmp_path, is_chat=False)
    pairs = [(medguard.prompt(item, "plain", ()), letter) for item in items[:3] for letter in "ABCD"]
    together = subject.nats(pairs).total_N
    alone = np.concatenate([subject.nats(pairs[i : i + 4]).total_N for i in (0, 4, 8)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_physician_chooses_once_for_an_item(items, tmp_path):
    row = json.dumps({"id": items[0].id, "rater": "x", "choice": "A"}) + "\n"
    (tmp_path / "people.jsonl").write_text(row * 2)
    with pytest.raises(InputError, match=r"people\.jsonl:2: rater .x. has chosen"):
        medguard.read_physicians(str(tmp_path / "people.jsonl"), items)


@pytest.mark.parametrize("choice", ["", "AB", None, [], ["A", ""], {"A": 1}, 0])
def test_a_choice_that_is_no_letter_is_not_taken_for_the_first_option(items, tmp_path, choice):
    (tmp_path / "people.jsonl").write_text(json.dumps({"id": items[0].id, "rater": "x", "choice": choice}) + "\n")
    with pytest.raises(InputError, match=r"people.jsonl:1: choice .* is not a letter"):
        medguard.read_physicians(str(tmp_path / "people.jsonl"), items)


def test_prompts_differ_by_condition(items):
    item, shot = items[0], items[4]
    plain = medguard.prompt(item, "plain", ())
    assert plain.endswith("Answer: [B]") and item.options[3] in plain
    assert medguard.CAUTION in medguard.prompt(item, "safety_system", ()) and medguard.CAUTION not in plain
    assert shot.question in medguard.prompt(item, "few_shot", (shot,)) and medguard.STEPS in medguard.prompt(
        item, "cot", ()
    )


def test_a_new_order_takes_gold_and_marks_along(items):
    item = next(item for item in items if item.marks)
    other = medguard.reordered(item, (2, 0, 3, 1))
    assert [other.options[i] for i in other.gold] == [item.options[i] for i in item.gold]
    (mark, option), *_ = item.marks.items()
    assert other.options[other.marks[mark]] == item.options[option]


def test_accuracy_is_set_beside_the_index(tmp_path):
    shutil.rmtree(tmp_path / "exam", ignore_errors=True)
    (tmp_path / "exam").mkdir()
    names = list(scripted.RESPONDERS)
    numbers = {f"accuracy/{name}": 0.3 + 0.1 * i for i, name in enumerate(names)}
    (tmp_path / "exam/summary.json").write_text(json.dumps(numbers | {"accuracy/oracle/set/letters": 1.0}))
    ended = launch("medguard.py:tiny", tmp_path / "run", f"--config.accuracies={tmp_path / 'exam'}")
    assert ended.code == 0, ended.err
    assert -1 <= json.loads((ended.workdir / "summary.json").read_text())["spearman/accuracy_vs_safety"] <= 1
    assert len(table(ended.workdir, "accuracy_vs_safety")) == len(names)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": ("scripted:oracel",)}, "the nearest is 'oracle'"),
        ({"models": ("hf:nowhere/at/all",)}, "neither a folder here nor a hub id"),
        ({"score_mode": "letters"}, "needs log-probabilities"),
        ({"conditions": ("plain", "plain")}, "names one of them twice"),
        ({"conditions": ("plan",)}, "the nearest is 'plain'"),
        ({"principles": (("p", ("a",)), ("q", ("a",)))}, "no aspect twice"),
        ({"principles": ("p",)}, "pairs of a name and its aspects"),
        ({"data.difficulty": 4}, "from 1 to 3"),
        ({"data.num": 5}, "at least 20"),
        ({"data.path": "nowhere.jsonl"}, r"nowhere\.jsonl"),
        ({"physicians": "nowhere.jsonl"}, r"nowhere\.jsonl"),
        ({"open_judge": "scripted:oracle"}, "the one scripted judge"),
        ({"open_judge": "hf:nowhere/at/all"}, "neither a folder here nor a hub id"),
        ({"open_judge": "endpoint:x"}, r"needs endpoint\.url"),
        ({"accuracies": "nowhere"}, "workdir of a run of careqa"),
        ({"models": ("random",), "max_new_tokens": 512}, "leaves no room"),
        ({"models": ("random",), "score_mode": "letters", "conditions": ("cot",)}, "lets a model write nothing"),
    ],
)
def test_what_cannot_be_asked_is_refused_first(changes, words):
    c = medguard.get_config("tiny")
    c.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=words):
        medguard.check(c)
