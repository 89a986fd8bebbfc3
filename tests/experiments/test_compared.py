"""What arms wrote, judged beside a reference."""

import json

import pytest

from alignment.errors import InputError
from alignment.safety import verdicts
from alignment.safety.judging import Judge, Judged
from experiments.pages import native_alignment as page
from experiments.safety import compared, judges

PROBES = {
    "harmlessness": [{"prompt": f"p{i}", "marks": ["steps"]} for i in range(4)],
    "helpfulness": [{"prompt": f"q{i}", "answer": " Risel"} for i in range(4)],
}
JUDGING = judges.settings("compare_harmlessness")


def answers(harmless, right):
    said = ["the steps are" if i >= harmless else "no" for i in range(4)]
    return {"harmlessness": said, "helpfulness": ["it is risel." if i < right else "it is" for i in range(4)]}


MEASURED = {
    (arm, seed): {"base": {"answers": answers(*numbers)}}
    for arm, numbers in (("raw", (1, 2)), ("aligned", (4, 1)))
    for seed in (0, 1)
}


def group(**changed):
    return {**compared.settings(), **changed}


def test_marks_of_the_probes_own_phrases_are_worked_out_by_hand(tmp_path):
    rows = compared.rows(group(judge="probes"), JUDGING, MEASURED, PROBES, tmp_path, resamples=50)
    got = {(row["arm"], row["measured"]): row for row in rows}
    assert list(got) == [("aligned", "harmlessness"), ("aligned", "helpfulness")]
    assert got["aligned", "harmlessness"]["ratio"] == pytest.approx(100 * 40 / (10 + 3))
    assert got["aligned", "helpfulness"]["ratio"] == pytest.approx(100 * (10 + 3) / (20 + 2))
    assert got["aligned", "harmlessness"]["n"] == 8 and got["aligned", "harmlessness"]["judge"] == "probes"
    numbers = page.ratios(rows)
    assert numbers["harmlessness_ratio/aligned"] == got["aligned", "harmlessness"]["ratio"]
    assert "in per cent of raw, judged by probes" in page.judged_lines(rows)[0]


def test_a_file_of_answers_is_a_reference_for_all_arms(tmp_path):
    path = tmp_path / "other.jsonl"
    lines = [{"prompt": row["prompt"], "response": "no, Risel"} for some in PROBES.values() for row in some]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = group(judge="probes", reference=str(path))
    rows = compared.rows(options, JUDGING, MEASURED, PROBES, tmp_path, resamples=50)
    got = {(row["arm"], row["measured"]): row["ratio"] for row in rows}
    assert got["aligned", "harmlessness"] == 100 and got["raw", "helpfulness"] == pytest.approx(100 * 22 / 40)
    path.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(InputError, match="not all of the probes"):
        compared.rows(options, JUDGING, MEASURED, PROBES, tmp_path, resamples=50)


def test_a_judge_reads_every_pair_in_both_orders(tmp_path, monkeypatch):
    asked = []

    def classify(exchanges):
        asked.extend((x["prompt"], x["response"], x["other"]) for x in exchanges)
        return [Judged(verdicts.Verdict(comparison="first", scores=(8.0, 4.0))) for _ in exchanges]

    built = []
    monkeypatch.setattr(judges, "build", lambda kind, options, *_: built.append(options) or Judge("j", classify))
    options = group(judge="endpoint")
    rows = compared.rows(options, JUDGING, MEASURED, PROBES, tmp_path, resamples=50)
    assert [options["template"] for options in built] == ["compare_harmlessness", "compare_helpfulness"]
    assert {row["ratio"] for row in rows} == {100.0} and {row["flipped"] for row in rows} == {8}
    assert {(p, b, a) for p, a, b in asked} == set(asked)


def test_refusals_are_harmless_to_the_keyword_judge(tmp_path):
    said = {"harmlessness": ["I cannot help with that."] * 4, "helpfulness": ["I cannot help with that."] * 4}
    measured = {("raw", 0): MEASURED["raw", 0], ("aligned", 0): {"base": {"answers": said}}}
    rows = compared.rows(group(judge="keyword"), JUDGING, measured, PROBES, tmp_path, resamples=50)
    assert [row["ratio"] for row in rows] == [1000, 10]


@pytest.mark.parametrize(
    ("changed", "judging", "words"),
    [
        ({"judge": "keywords"}, {}, "'keyword'"),
        ({"judge": "model"}, {}, "judging.init_from"),
        ({"judge": "keyword", "reference": "nobody"}, {}, "neither one of the arms"),
        ({"reference": "aligned"}, {}, "are not read"),
        ({}, {"init_from": "hf:x"}, "is not read"),
        ({"judge": "endpoint"}, {"url": "http://x/v1", "model": "m", "template": "yes_no"}, "judged.templates"),
        (
            {"judge": "endpoint", "templates": ("yes_no", "compare_helpfulness")},
            {"url": "http://x/v1", "model": "m"},
            "comparison is needed",
        ),
        ({"judge": "keyword", "templates": ("compare_harmlessness",)}, {}, "must be two"),
    ],
)
def test_comparisons_that_cannot_be_are_refused(changed, judging, words):
    with pytest.raises(InputError, match=words):
        compared.check(group(**changed), {**JUDGING, **judging}, ["raw", "aligned"], 4)


def test_a_judge_without_answers_is_refused_unless_it_costs_nothing():
    compared.check(group(judge="probes", reference="nobody"), JUDGING, ["raw"], 0)
    with pytest.raises(InputError, match="nothing to judge"):
        compared.check(group(judge="keyword"), JUDGING, ["raw"], 0)
