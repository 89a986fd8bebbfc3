import importlib
import json
import math
import re

import ml_collections
import numpy as np
import pytest

from experiments.launch import config as configs
from experiments.launch import sweeps
from experiments.launch import workdir as workdirs
from experiments.report import charts, markup, meanings, page
from tests.experiments.conftest import ROOT, launch

FILES = [p for p in sorted((ROOT / "experiments").glob("*.py")) if "\ndef get_config" in p.read_text(encoding="utf-8")]
NAMES = [p.stem for p in FILES]
ENDING = [p.stem for p in FILES if "\nIS_SERVER" not in p.read_text(encoding="utf-8")]  # test_serve.py has the others
LN2 = math.log(2)


def read(path):
    return json.loads(path.read_text())


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_the_experiments_are_found():
    assert {"dpo", "pretrain", "sft"} <= set(NAMES)


@pytest.mark.parametrize("name", ENDING)
def test_tiny_ends_well_and_leaves_what_the_contract_names(name, tiny):
    ended = tiny(name)
    assert ended.code == 0, ended.err
    config = importlib.import_module(f"experiments.{name}").get_config("tiny")
    assert read(ended.workdir / "config.json") == workdirs.plain(config)
    (start,) = read(ended.workdir / "environment.json")["starts"]
    assert start["outcome"] == "done" and start["devices"] and start["seconds"] > 0
    assert start["versions"]["jax"] and start["command"][:3] == ["python", "-m", "experiments.run"]
    assert (ended.workdir / "DONE").is_file()
    if "loop" in config:  # it trains
        assert any((ended.workdir / "checkpoints").iterdir())
        assert list(ended.workdir.glob("events.*"))
    leftovers = [p for p in ended.workdir.rglob("*") if p.suffix in (".tmp", ".unfinished") or "-tmp-" in p.name]
    assert leftovers == [] and not (ended.workdir / "error.txt").exists()


@pytest.mark.parametrize("name", ENDING)
def test_metrics_rise_in_steps_and_the_summary_is_flat_numbers(name, tiny):
    workdir = tiny(name).workdir
    rows = metrics(workdir)
    steps = [row["step"] for row in rows]
    assert rows and steps == sorted(set(steps))
    values = [value for row in rows for value in row.values()]
    assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
    summary = read(workdir / "summary.json")
    assert summary and all(isinstance(value, (int, float)) for value in summary.values())


@pytest.mark.parametrize("name", ENDING)
def test_the_report_is_one_page_that_needs_no_network(name, tiny):
    text = (tiny(name).workdir / "report.html").read_text(encoding="utf-8")
    assert "<svg" in text
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text) and "@import" not in text
    assert not re.search(r"<script[^>]*\ssrc|<link|url\((?!#|data:)", text)


@pytest.mark.parametrize("name", ENDING)
def test_the_report_opens_with_what_the_run_shows_and_every_number_has_a_meaning(name, tiny):
    workdir = tiny(name).workdir
    sentence, own = page.about(workdir)
    assert sentence.endswith(".") and f'<p class="headline">{markup.escape(sentence)}</p>' in (
        workdir / "report.html"
    ).read_text(encoding="utf-8")
    numbers = set(read(workdir / "summary.json"))
    for path in workdir.rglob("metrics.jsonl"):
        logged = {key for row in metrics(path.parent) for key in row} - {"step"}
        numbers |= logged | {charts.quantity(key, logged)[0] for key in logged}
    explained = {key for key in numbers if meanings.of(key, own) or meanings.of(key.partition("/")[2], own)}
    assert numbers == explained


@pytest.mark.parametrize("name", ENDING)
def test_a_second_start_prints_the_summary_and_does_no_work(name, tiny, monkeypatch):
    workdir = tiny(name).workdir
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    monkeypatch.setattr(importlib.import_module(f"experiments.{name}"), "run", lambda c, workdir: 1 / 0)
    again = launch(f"{name}.py:tiny", workdir)
    assert again.code == 0 and "finished already" in again.out
    assert all(key in again.out for key in read(workdir / "summary.json"))
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ENDING)
def test_another_config_in_the_same_workdir_is_refused_with_what_differs(name, tiny):
    ended = launch(f"{name}.py:tiny", tiny(name).workdir, "--config.seed=7")
    assert ended.code == 2 and "seed: 0 there, 7 now" in ended.err and "Traceback" not in ended.err


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_knows_its_settings_and_refuses_others_by_naming_them(name, tmp_path):
    get_config = importlib.import_module(f"experiments.{name}").get_config
    for setting in ("", "laptop", "tiny"):
        config = get_config(setting)
        assert isinstance(config, ml_collections.ConfigDict) and isinstance(config.seed, int)
        json.dumps(workdirs.plain(config), allow_nan=False)
    ended = launch(f"{name}.py:tyni", tmp_path / "run")
    assert ended.code == 2 and "setting='tyni' is not one of: ''" in ended.err and "tiny" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", NAMES)
def test_every_point_of_the_sweep_sets_keys_that_the_config_has(name):
    module = importlib.import_module(f"experiments.{name}")
    if not hasattr(module, "sweep"):
        pytest.skip("it sweeps over nothing")
    for setting in ("", "laptop", "tiny"):
        config = module.get_config(setting).lock()
        experiment = configs.Experiment(module, name, setting)
        for point in experiment.points(config, []):
            sweeps.apply(config, point.overrides)


def test_dpo_reports_what_its_users_look_for(tiny):
    ended = tiny("dpo")
    summary = read(ended.workdir / "summary.json")
    wanted = ("heldout/rewards/accuracies", "heldout/rewards/margins", "heldout/loss", "steps", "pairs_per_second")
    assert all(math.isfinite(summary[name]) for name in wanted)
    assert summary["steps"] == 4 and summary["pairs_per_second"] > 0
    first, *rest = metrics(ended.workdir)
    np.testing.assert_allclose([first["heldout/loss"], rest[0]["loss"]], LN2, atol=1e-5)
    assert first["heldout/rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert summary["heldout/loss"] < LN2 and summary["heldout/loss"] == rest[-1]["heldout/loss"]
    rows = [json.loads(line) for line in (ended.workdir / "tables/samples.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and rows[0].keys() >= {"prompt", "before", "after", "chosen", "rejected"}
    assert metrics(ended.workdir / "pretrain")[-1]["step"] == 2


@pytest.mark.parametrize(
    "source",  # tests/train/test_language_model.py has the export's weights without the program around them
    [pytest.param("hf:{}/export/hf", marks=pytest.mark.slow), "run:{}"],
)
def test_a_run_goes_on_from_what_another_left_behind(source, tiny, tmp_path):
    earlier = tiny("dpo").workdir
    flags = ("--config.steps=1", "--config.samples.num=1", "--config.sinks=()")
    ended = launch("dpo.py:tiny", tmp_path, f"--config.init_from={source.format(earlier)}", *flags)
    assert ended.code == 0, ended.err
    assert "pretrain.steps=2 is left out" in ended.out and not (tmp_path / "pretrain").exists()
    first, second, *_ = metrics(tmp_path)
    np.testing.assert_allclose([first["heldout/loss"], second["loss"]], LN2, atol=1e-5)
    summary = read(earlier / "summary.json")  # the same held-out pairs, under the policy where that run ended
    for side in ("chosen", "rejected"):
        np.testing.assert_allclose(first[f"heldout/logps/{side}"], summary[f"heldout/logps/{side}"], rtol=1e-5)
