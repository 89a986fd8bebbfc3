"""What a sweep over models shows of false refusals, on the published trade-off of twenty models."""

import csv

from alignment import files
from experiments import phtest
from tests.safety.test_rates import POINTS


def test_the_sweeps_page_has_the_published_trade_off_of_twenty_models(tmp_path):
    points = []
    for name, (usability, safety) in POINTS.items():
        summary = {"frr/harmless": 1 - usability, "full/harmful": safety, "n": 9}
        files.write_json(tmp_path / name / "summary.json", summary)
        points.append({"id": name, "overrides": {"init_from": f"hf:{name}"}})
    files.write_json(tmp_path / "sweep.json", {"experiment": "phtest", "points": points})
    phtest.compare(str(tmp_path))
    with open(tmp_path / "tradeoff.csv") as f:
        best = {line["model"].rpartition("hf:")[2] for line in csv.DictReader(f) if line["pareto"] == "True"}
    assert best == {"Claude-2.1", "Claude-3.5-sonnet", "Claude-3-opus", "Llama-2-70b", "Gemini-1.0-pro"} | {
        "GPT-4", "GPT-4o-mini", "GPT-4o"}  # fmt: skip
    assert "safety and usability: -0.741" in (tmp_path / "findings.txt").read_text()
    assert (tmp_path / "figures/tradeoff.png").is_file()
