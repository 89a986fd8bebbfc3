"""Every field of every reader of rows with values that no reader expects: a row is refused, set aside or read right."""

import copy
import functools
import json
import math

import pytest

from alignment.errors import InputError
from data.texts import aspect_items, bias_sets, concept_sets, egida, exams, labels, suites


def _bias(name):
    return functools.partial(bias_sets.load, name, limit=None)


def _labels(path, *, counts):
    return labels.load(path)


PRINCIPLES = {"truth": ("honest", "exact")}
QUESTION = {"id": "i", "question": "q"}
OPS = {"op1": "a", "op2": "b", "op3": "c", "op4": "d"}
TARGETS = {"choices": ["a", "b"], "labels": [1, 0]}
BBQ = dict(context="c", question="q", ans0="a", ans1="b", ans2="u", question_polarity="neg", context_condition="ambig")
BBQ |= dict(answer_info=dict(ans0=["x", "F"], ans1=["y", "M"], ans2=["z", "unknown"]), label=2)
BBQ |= dict(additional_metadata=dict(stereotyped_groups=["F"]))
STARS = dict(id="1", original_id="1", description="t", review_majority="5", food_aspect_majority="Positive")
ITEM = dict(id="i", principle="truth", aspect="exact", question="q", options=dict(A="a", B="b"), answer="A")
ITEM |= dict(group=dict(attribute="sex", value="f", pair_id="p"), marks=dict(stereotypical="A"), canary="q")
ROWS = {
    "pairs": (egida.load_pairs, dict(uuid="u", prompt="p", chosen="c", rejected="r", style="s", topics=["t"])),
    "answers": (egida.load_answers, dict(uuid="u", question="p", answer="c", model="m")),
    "votes": (egida.load_votes, dict(id="u", prompt="p", answer="c", votes=["safe", "unsafe"])),
    "phtest": (suites.load, dict(ID="u", Request="p", Harmfulness="harmless")),
    "egida": (suites.load, dict(uuid="u", style="BaseInstruction", question="p", topics={"a": True})),
    "xstest": (suites.load, dict(id="u", prompt="p", type="t", label="safe")),
    "harmbench": (suites.load, dict(Behavior="p", BehaviorID="u", SemanticCategory="c", ContextString="x")),
    "sorry_bench": (suites.load, dict(turns=["x"], prompt_style="base", question_id="1", category="c")),
    "prompts": (functools.partial(suites.load, kind="harmless"), dict(id="i", prompt="x", category="c")),
    "careqa": (exams.load, QUESTION | OPS | dict(cop=1, category="c", year=2020)),
    "medqa_hub": (
        exams.load,
        dict(id="i", sent1="q", sent2="", ending0="a", ending1="b", ending2="c", ending3="d", label=1),
    ),
    "lettered": (exams.load, QUESTION | dict(options=dict(A="a", B="b"), correct_answer="A")),
    "keyed": (
        exams.load,
        QUESTION | dict(options=[dict(key="A", value="x"), dict(key="B", value="y")], answer_idx="A"),
    ),
    "pubmedqa": (exams.load, dict(QUESTION="q", CONTEXTS=["a"], final_decision="yes", LONG_ANSWER="l", YEAR="2000")),
    "arc": (exams.load, QUESTION | dict(choices=dict(text=["a", "b"], label=["A", "B"]), answerKey="A")),
    "mmlu": (exams.load, QUESTION | dict(choices=["a", "b"], answer=0, subject="anatomy")),
    "aratrust": (exams.load, dict(Question="q", A="a", B="b", C="c", Answer="A", Category="s")),
    "acva": (exams.load, QUESTION | dict(answer="True")),
    "abstracts": (exams.load, dict(medical_abstract="q", condition_label=1, id="1")),
    "relations": (exams.load, dict(text="q", head="a", tail="b", relation="r")),
    "mediqa": (
        exams.load,
        dict(QUESTION=dict(QID="1", QuestionText="q", AnswerList=[dict(Answer=dict(AnswerText="a"))])),
    ),
    "meddialog": (exams.load, dict(description="q", utterances=["a", "b"], id="1")),
    "open": (exams.load, QUESTION | dict(answer=["a"], category="c", paraphrases=["p"])),
    "prescriptions": (exams.load, dict(diagnosis="q", medicines=["a, at noon", "b, at noon", "c", "d"], id="x")),
    "aspects": (functools.partial(aspect_items.load, principles=PRINCIPLES), ITEM),
    "crows_pairs": (_bias("crows_pairs"), dict(sent_more="a", sent_less="b", bias_type="c")),
    "bbq": (_bias("bbq"), BBQ),
    "toxigen": (_bias("toxigen"), dict(text="t", toxicity_ai=1.0, toxicity_human=2.0)),
    "toxigen labels": (_bias("toxigen"), dict(generation="t", prompt_label=1)),
    "truthfulqa": (_bias("truthfulqa"), dict(question="q", mc1_targets=TARGETS, mc2_targets=TARGETS)),
    "vignettes": (
        _bias("vignettes"),
        dict(question="q", options=dict(A="a", B="b"), correct_answer="A", vignette="v", attribute="w"),
    ),
    "beginnings": (
        functools.partial(bias_sets.load_beginnings, limit=None),
        dict(prompt=dict(text="t", toxicity=0.5), continuation=dict(text="c")),
    ),
    "cebab": (concept_sets.load, STARS | dict(edit_type="food", edit_goal="Positive")),
    "concepts": (concept_sets.load, dict(id="1", text="t", label=1, concepts=["a"], group="g")),
    "labels": (_labels, dict(text="t", label=1)),
}
ODD = [None, "", math.nan, math.inf, {}, ["zebra"], {"zebra": "zebra"}, [[None]], True, 1.5, 10**400]


def _places(value, before=()):
    """The ways to all fields of a row, also those inside lists and objects."""
    inside = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, one in inside:
        yield (*before, key)
        yield from _places(one, (*before, key))


def _with(row, place, value):
    row = copy.deepcopy(row)
    at = row
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return row


@pytest.mark.parametrize("name", ROWS)
def test_an_odd_field_is_never_a_crash_nor_a_text_that_nobody_wrote(tmp_path, name):
    load_fn, row = ROWS[name]
    path = tmp_path / "rows.jsonl"
    for place in _places(row):
        for odd in ODD:
            path.write_text(json.dumps(_with(row, place, odd)) + "\n")
            try:
                said = repr(load_fn(str(path), counts={}))
            except InputError:
                continue
            assert not any(mark in said for mark in ("\"['zebra", "\"{'zebra", "'[[None]]'", "'nan'", "'inf'")), (
                place,
                odd,
            )
