import json
import pathlib
import random

import pytest

from experiments.report import __main__ as command
from experiments.report import comparison, groups, overlay
from tests.experiments.report.test_report import Checker

META = {"objective.beta": 0.1, "seed": 0, "steps": 3, "optimizer": {"total_steps": 3}, "data": {"path": "a.jsonl"}}


def finished(folder, settings, summary, experiment="dpo"):
    """A finished run of a toy config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(META | settings))
    (folder / "environment.json").write_text(json.dumps({"experiment": experiment, "starts": []}))
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = [{"step": step, "loss": 1 / step, "heldout/loss": 2 / step} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def sweep(folder, points, unfinished=()):
    """A sweep's folder of {settings: summary} points."""
    index = []
    for i, (settings, summary) in enumerate(points):
        name = ",".join(f"{key}={value}" for key, value in settings.items())
        index.append({"index": i, "id": name, "overrides": settings})
        if i not in unfinished:
            finished(folder / name, settings, summary)
    (folder / "sweep.json").write_text(json.dumps({"experiment": "dpo", "points": index}))
    return folder


def text_of(path):
    """A page's text, checked to be well-formed, without the places where a long name may break."""
    text = pathlib.Path(path).read_text()
    Checker(text)
    return text.replace("<wbr>", "")


@pytest.fixture
def betas(tmp_path):
    """Accuracies 0.5, 0.9, 0.7 for three betas, with a loss that falls as beta grows."""
    values = zip((0.1, 0.2, 0.3), (0.5, 0.9, 0.7))
    points = [
        (
            {"objective.beta": b},
            {"heldout/rewards/accuracies": a, "heldout/loss": 1 - b, "pairs_per_second": 9 + b, "steps": 3},
        )
        for b, a in values
    ]
    return sweep(tmp_path, points)


def test_the_best_point_comes_first_and_is_marked_only_where_the_sweep_does_not_set_the_scale(betas):
    text = text_of(comparison.compare_sweep(betas))
    order = [text.index(f'<td class="number">{beta}</td>') for beta in (0.2, 0.3, 0.1)]
    assert order == sorted(order)
    assert '"number best">0.9<' in text and '"number best">9.3<' in text and text.count('class="number best"') == 2
    assert "No best is marked for heldout/loss" in text and "highest with beta=0.2: 0.9; next is beta=0.3" in text


def test_a_loss_is_marked_and_leads_where_all_runs_have_one_objective(tmp_path):
    points = [({"optimizer.lr": lr}, {"heldout/loss": loss}) for lr, loss in ((0.1, 0.5), (0.2, 0.25), (0.3, 0.75))]
    text = text_of(comparison.compare_sweep(sweep(tmp_path, points)))
    assert "heldout/loss is lowest with lr=0.2: 0.25" in text and '"number best">0.25<' in text


def test_seeds_are_one_row_with_mean_and_deviation_and_links_to_each(tmp_path):
    values = {0.1: (0.5, 0.6, 0.7), 0.2: (0.9, 0.9, 0.9)}
    points = [
        ({"objective.beta": b, "seed": s}, {"heldout/rewards/accuracies": a})
        for b, row in values.items()
        for s, a in enumerate(row)
    ]
    text = text_of(comparison.compare_sweep(sweep(tmp_path, points, unfinished=(5,))))
    assert text.count("<tr>") == 3 and "0.6<small>± 0.1</small>" in text and "2 (not finished)" in text
    assert '<a href="objective.beta=0.1,seed=2/report.html"' in text and "5 of 6 points finished" in text
    mean, low, high = overlay.over_seeds([[(1, 1.0), (2, 2.0)], [(1, 3.0)]])
    assert (mean, low, high) == ([(1, 2.0), (2, 2.0)], [(1, 1.0), (2, 2.0)], [(1, 3.0), (2, 2.0)])


def test_a_difference_within_the_spread_over_seeds_is_called_so(tmp_path):
    values = {0.1: (0.5, 0.7), 0.2: (0.55, 0.7)}
    points = [({"beta": b, "seed": s}, {"accuracy": a}) for b, row in values.items() for s, a in enumerate(row)]
    assert "a difference within the spread over seeds" in text_of(comparison.compare_sweep(sweep(tmp_path, points)))


def test_what_is_the_same_in_all_is_folded_away(betas):
    text = text_of(comparison.compare_sweep(betas))
    assert "<dt>steps</dt><dd>3</dd>" in text.split("The same in all")[1] and ">steps</th>" not in text


def test_a_page_of_a_hundred_points_has_a_legend_in_every_picture_and_a_table_that_scrolls(tmp_path):
    rng = random.Random(0)
    points = [
        ({"objective.beta": beta, "optimizer.lr": lr}, {"heldout/rewards/accuracies": rng.random() / (1 + 9 * lr)})
        for beta in range(1, 11)
        for lr in (i / 10 for i in range(10))
    ]
    text = text_of(comparison.compare_sweep(sweep(tmp_path, points)))
    assert '<div class="card wide tall">' in text and text.count("<tr>") == 101
    _, *cards = text.split("<h2>Curves</h2>")[1].split('<div class="card curve">')
    assert len(cards) == 2 and all("legend_1" in card and "lr=0.0" in card and "lr=0.9" in card for card in cards)
    assert "coloured by optimizer.lr, which tells most about heldout/rewards/accuracies" in text


def test_any_runs_are_compared_by_the_keys_in_which_they_differ(tmp_path, capsys):
    for name, steps in (("a", 3), ("b", 6)):
        settings = {"steps": steps, "optimizer": {"total_steps": steps}}
        finished(tmp_path / name, settings, {"accuracy": steps / 10})
    assert command.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    path = tmp_path / "comparison.html"
    assert capsys.readouterr().out.strip() == str(path)
    text = text_of(path)
    assert "2 runs compared: a, b" in text and ">steps</th>" in text and '<a href="a/report.html"' in text
    assert "total_" not in text  # it follows steps
    assert path.with_suffix(".csv").read_text().splitlines() == ["index,run,steps,accuracy", "0,a,3,0.3", "1,b,6,0.6"]


def test_runs_on_other_data_or_of_other_experiments_have_no_best(tmp_path):
    runs = [
        finished(tmp_path / "a", {}, {"accuracy": 0.3}),
        finished(tmp_path / "b", {"data": {"path": "b.jsonl"}}, {"accuracy": 0.6}),
    ]
    text = text_of(comparison.compare_runs(runs, tmp_path / "page.html"))
    assert "no number in common that compares" in text and "number best" not in text


def test_points_of_a_sweep_and_runs_beside_it_share_a_page(betas, tmp_path):
    beside = finished(tmp_path / "beside" / "run", {"objective.beta": 0.9}, {"heldout/rewards/accuracies": 0.8})
    runs = groups.of_folders([betas, beside])
    assert len(runs) == 4 and {run.settings["objective.beta"] for run in runs} == {0.1, 0.2, 0.3, 0.9}


def test_a_folder_without_a_run_is_bad_input(tmp_path, capsys):
    finished(tmp_path / "a", {}, {})
    (tmp_path / "empty").mkdir()
    assert command.main([str(tmp_path / "a"), str(tmp_path / "empty")]) == 2
    assert "neither a run (config.json) nor a sweep" in capsys.readouterr().err
    assert command.main([str(tmp_path / "nowhere")]) == 2 and "there is no folder" in capsys.readouterr().err


def test_a_sweep_with_nothing_finished_still_has_a_page(tmp_path):
    points = [({"seed": s}, {}) for s in range(2)]
    assert "No run is finished yet." in text_of(comparison.compare_sweep(sweep(tmp_path, points, unfinished=(0, 1))))


def test_numbers_that_are_missing_leave_gaps_and_no_error(tmp_path):
    points = [({"beta": 0.1}, {"accuracy": None, "loss": 1.0}), ({"beta": 0.2}, {"accuracy": 0.5}), ({"beta": 0.3}, {})]
    text = text_of(comparison.compare_sweep(sweep(tmp_path, points)))
    assert "–" in text and '"number best">' not in text
