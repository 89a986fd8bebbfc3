"""A small guided run from files to summary, its resuming, and what it refuses before anything is read."""

import csv
import json
import shutil

import numpy as np
import pytest

from alignment import frontier
from data.toys import manners
from experiments import genarm
from experiments.launch import groups
from tests.experiments.conftest import launch

WANTED = {
    "heldout/rewards/accuracies",
    "win_half_tie/genarm_vs_base",
    "win_half_tie/genarm_vs_dpo",
    "hypervolume/genarm",
    "hypervolume/soups",
    "seconds_per_token/base",
    "seconds_per_token/genarm",
}


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def ended(tiny):
    run = tiny("genarm")
    assert run.code == 0, run.err
    return run


def test_the_summary_has_what_others_read_and_every_method_has_an_answer_to_each_prompt(ended):
    summary = json.loads((ended.workdir / "summary.json").read_text())
    assert set(summary) >= WANTED and all(0 <= summary[name] <= 1 for name in WANTED if "second" not in name)
    rows = rows_of(ended.workdir / "generations.jsonl")
    kinds = {row["kind"] for row in rows}
    assert kinds == {"base", "base_greedy", "dpo", "soups", "args", "genarm", "sample"}
    asked = {kind: {row["uid"] for row in rows if row["kind"] == kind} for kind in kinds}
    assert all(uids == set(range(4)) for kind, uids in asked.items() if kind != "args") and asked["args"] == {0, 1}


def test_guided_answers_carry_the_log_probability_of_each_token_under_the_base_and_each_reward_model(ended):
    for row in rows_of(ended.workdir / "generations.jsonl"):
        if row["kind"] == "genarm":
            assert len(row["arm_logp"]) == 2 == len(row["arm_ids"])
            assert all(len(trace) == row["n_new_tokens"] for trace in [row["base_logp"], *row["arm_logp"]])
            assert all(x <= 0 for trace in row["arm_logp"] for x in trace)


def test_the_tables_name_the_reference_the_judge_and_the_decoding_of_each_point(ended):
    with (ended.workdir / "frontier.csv").open() as f:
        lines = list(csv.DictReader(f))
    (base,) = (line for line in lines if line["method"] == "base")
    assert base["brief"] == base["courteous"] == "0.5" and base["reference_id"].startswith("base of run:")
    assert {line["judge"] for line in lines} == {"rules"}
    assert {line["temperature"] for line in lines if line["method"] in ("base_greedy", "args")} == {"0.0"}
    with (ended.workdir / "latency.csv").open() as f:
        assert [line["method"] for line in csv.DictReader(f)] == ["base", "genarm", "best_of_n", "args"]
    assert (ended.workdir / "figures/frontier.png").stat().st_size > 1000
    for name in ("brief", "courteous"):
        assert json.loads((ended.workdir / f"rewards/{name}/beta.json").read_text())["beta"] == 0.05


@pytest.mark.slow  # tests/experiments/decoding/test_journal.py and tests/train/test_loop.py resume each part
def test_a_killed_run_goes_on_and_its_answers_stay_the_same(ended, tmp_path):
    shutil.copytree(ended.workdir, tmp_path / "run")
    before = rows_of(tmp_path / "run/generations.jsonl")
    for name in ("DONE", "summary.json", "generations.jsonl", "frontier.csv"):
        (tmp_path / "run" / name).unlink()
    again = launch("genarm.py:tiny", tmp_path / "run")
    assert again.code == 0, again.err
    assert rows_of(tmp_path / "run/generations.jsonl") == [
        row | {"base_id": new["base_id"], "arm_ids": new["arm_ids"]}
        for row, new in zip(before, rows_of(tmp_path / "run/generations.jsonl"))
    ]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--config.strength=nan"], "finite"),
        (["--config.alphas=((-1.0,1.0),)"], "allow_negative"),
        (["--config.strength=-1.0"], "allow_negative"),
        (["--config.reward.beta=0.0"], "beta"),
        (["--config.baselines=dpo,gemarm"], "baselines='gemarm'"),
        (["--config.decoding.temperature=-0.5"], "temperature"),
        (["--config.templates.reward=USER:"], "once"),
        (["--config.data.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["--config.judge=rulez"], "judge='rulez'"),
        (["--config.measuring_fraction=1.0"], "measuring_fraction=1.0 must be in (0, 1)"),
        (["--config.judge=model"], "judge=model needs judging.init_from"),
        (["--config.judge=endpoint", "--config.judging.template=yes_no"], "comparison is needed here"),
        (["--config.judging.max_new_tokens=9"], "judging.max_new_tokens=9 is not read"),
        (["--config.judge_templates=('compare_helpfulness',)"], "judge_templates"),
        (["--config.pretrain.steps=0"], "pretrain.steps=0"),
        (["--config.data.filter_unit=words"], "filter_unit"),
        (["--config.learned_tokens=20"], "learned_tokens"),
        (["--config.reward.init_from=run:nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(flags, word, tmp_path):
    refused = launch("genarm.py:tiny", tmp_path / "run", *flags)
    assert refused.code == 2 and word in refused.err and "Traceback" not in refused.err


def test_a_small_model_is_taken_off_only_where_the_reward_models_are_small(tmp_path):
    refused = launch("genarm.py:tiny", tmp_path / "run", "--config.baselines=proxy")
    assert refused.code == 2 and "baselines has 'proxy', which takes off what a small model says" in refused.err


def test_rules_judge_their_own_pairs_alone(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n")
    refused = launch(
        "genarm.py:tiny", tmp_path / "run", f"--config.data.path={tmp_path}/pairs.jsonl", "--config.judge=rules"
    )
    assert refused.code == 2 and "judge='rules' has rules for" in refused.err


def test_one_reward_beta_for_each_objective_or_one_for_all():
    c = genarm.get_config("tiny")
    assert genarm.betas_of(c, ["a", "b"]) == [0.05, 0.05]
    c.reward.betas = (0.5, 0.01)
    assert genarm.betas_of(c, ["a", "b"]) == [0.5, 0.01]
    with pytest.raises(Exception, match="one for each"):
        genarm.betas_of(c, ["a"])


@pytest.mark.slow  # a run of its own; tests/decoding/test_stacks.py and test_linear_reward.py have the parts
@pytest.mark.parametrize("start", [None, ""])
def test_adapters_guide_the_base_and_fitted_rewards_measure_where_there_are_no_rules(start, tmp_path):
    rows = [row | {"dimension": None} for row in manners.preference_pairs("brief", 40, seed=3)]
    (tmp_path / "kind.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = genarm.get_config("tiny")
    c.data.path = str(tmp_path / "kind.jsonl")
    c.templates.reward = "Q: {prompt}"
    c.reward.init_from = start
    c.reward.model.update(groups.TINY)
    c.reward.adapter.rank = c.dpo.adapter.rank = 2
    c.alphas = ((0.0,), (0.5,))
    c.export = "float32"
    summary = genarm.run(c, str(tmp_path / "run"))
    assert set(summary) >= WANTED and summary["heldout/measuring/kind"] is not None
    rows = rows_of(tmp_path / "run/generations.jsonl")
    by_method = {kind: [row["response"] for row in rows if row["method"] == kind] for kind in ("base", "genarm 0")}
    assert by_method["base"] == by_method["genarm 0"] and by_method["base"]
    small = {"proxy", "contrastive"} if start == "" else set()
    assert {row["kind"] for row in rows} == {"base", "base_greedy", "soups", "args", "genarm", "sample"} | small
    folder = "base" if start is None else "small"
    assert (tmp_path / "run/rewards/kind/export/peft/adapter_model.safetensors").is_file()
    assert (
        json.loads((tmp_path / "run/rewards/kind/adapter.json").read_text())["base"] == f"run:{tmp_path}/run/{folder}"
    )


@pytest.mark.slow  # the gate of the whole, several minutes
def test_on_the_laptop_guides_reach_the_soups_frontier_and_rules_judge_it(tmp_path):
    line = [(1 - i / 4, i / 4) for i in range(5)]
    ended = launch("genarm.py:laptop", tmp_path / "run", f"--config.alphas={(*line, (0.0, 0.0))}")
    assert ended.code == 0, ended.err
    summary = json.loads((ended.workdir / "summary.json").read_text())
    assert summary["heldout/rewards/accuracies"] >= 0.8
    rows: dict[str, dict[int, dict]] = {}
    for row in rows_of(ended.workdir / "generations.jsonl"):
        rows.setdefault(row["method"], {})[row["uid"]] = row
    assert len(rows["base"]) == 100
    assert all(rows["genarm 0,0"][n]["ids"] == row["ids"] for n, row in rows["base"].items())

    def wins(method, other, name):
        score = {m: [manners.RULES[name](r["prompt"], r["response"]) for _, r in sorted(rows[m].items())] for m in rows}
        return np.mean([(a > b) + (a == b) / 2 for a, b in zip(score[method], score[other])])

    names = ("brief", "courteous")
    corners = {"brief": "genarm 1,0", "courteous": "genarm 0,1"}
    assert summary["win_half_tie/genarm_vs_base"] == pytest.approx(
        np.mean([wins(corners[name], "base", name) for name in names])
    )
    volumes = {
        kind: frontier.hypervolume(
            [tuple(wins(f"{kind} {a:.3g},{b:.3g}", "base", name) for name in names) for a, b in line], (0.0, 0.0)
        )
        for kind in ("genarm", "soups")
    }
    assert volumes["soups"] == pytest.approx(summary["hypervolume/soups"])
    assert volumes["genarm"] >= 0.95 * volumes["soups"]
    with (ended.workdir / "h2h.csv").open() as f:
        assert {line["judge"] for line in csv.DictReader(f)} == {"rules"}
