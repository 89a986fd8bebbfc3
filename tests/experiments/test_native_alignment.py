import json
import pathlib
import shutil

import numpy as np
import pytest

from alignment.errors import InputError
from data.toys import toyweb
from experiments import native_alignment
from experiments.filtering import corpora as arm_corpora
from experiments.filtering import toy_corpora as native_web
from experiments.pages import native_alignment as native_page
from tests.experiments.conftest import launch


def read(path):
    return json.loads(pathlib.Path(path).read_text())


def rows(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text(encoding="utf-8").split("\n") if line]


def test_every_arm_is_measured_and_told(tiny):
    workdir = tiny("native_alignment").workdir
    summary = read(workdir / "summary.json")
    for arm in ("raw", "aligned_50", "aligned"):
        for name in ("harmlessness", "helpfulness", "bits_per_byte", "paraphrase_drop"):
            assert np.isfinite(summary[f"{name}/{arm}"])
        assert f"stability/{arm}/seed_sd" not in summary  # one seed has no spread
    assert 0 <= summary["post_alignment/raw/harmlessness"] <= 1
    assert "post_alignment/aligned/harmlessness" not in summary
    page = (workdir / "report.html").read_text()
    assert "most harmless arm" in page and page.index("most harmless arm") < page.index("<svg")
    for name in ("1_arms", "2_volume", "3_stability"):
        assert (workdir / f"figures/{name}.png").stat().st_size > 1_000
    table = rows(workdir / "tables/arms.jsonl")
    assert [(row["arm"], row["state"]) for row in table][:3] == [
        (a, "pretrained") for a in ("raw", "aligned_50", "aligned")
    ]
    assert table[3]["state"] == "after post-alignment"
    for row in table:
        assert row["harmlessness low"] <= row["harmlessness"] <= row["harmlessness high"]


@pytest.fixture
def arabic(tmp_path):
    """A file in the shape of ArabicMMLU."""
    row = {"Question": "ما عاصمة الأردن؟", "Option 1": "عمان", "Option 2": "دمشق", "Answer Key": "A"}
    path = tmp_path / "arabic_mmlu.jsonl"
    path.write_text("".join(json.dumps(row | {"Question": f"{i} {row['Question']}"}) + "\n" for i in range(5)))
    return path


def test_arms_answer_exams_where_files_are_given(tmp_path, arabic):
    flags = ("--config.arms=raw", "--config.post=False", "--config.samples.num=0", "--config.benign.steps=0")
    flags += (f"--config.exams.path={arabic}", "--config.exams.limit=4", "--config.judged.judge=")
    ended = launch("native_alignment.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 0, ended.err
    (row,) = rows(ended.workdir / "tables/exams.jsonl")
    assert (row["exam"], row["protocol"], row["questions"], row["baseline"]) == ("arabic_mmlu", "letters", 4, 1.0)
    summary = read(ended.workdir / "summary.json")
    assert summary["accuracy/raw/arabic_mmlu"] == row["accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    assert "Of 4 questions of arabic_mmlu" in (ended.workdir / "findings.txt").read_text()
    c = native_alignment.get_config("tiny")
    c.exams.path = str(arabic)
    arabic.write_text(arabic.read_text().replace('"0 ', '"9 '))
    with pytest.raises(InputError, match="changed since this run began"):
        native_alignment.exams_fn(c, None, None, None, ended.workdir)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exams.path": "nowhere.jsonl"}, r"nowhere\.jsonl"),
        ({"exams.protocol": "cot"}, "not one of: letters, texts"),
        ({"exams.limit": 3}, "names no file"),
    ],
)
def test_exams_that_cannot_be_asked_are_refused_first(changes, words):
    c = native_alignment.get_config("tiny")
    c.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=words):
        native_alignment.check(c)


def test_exams_are_averaged_over_seeds_beside_one_option_always():
    exam = {"protocol": "letters", "baseline": 0.5, "cut": 0}
    seeds = [{"base": {"exams": {"e": exam | {"right": right}}}} for right in ([1, 0], [1, 1])]
    measured = {("raw", seed): by_state for seed, by_state in enumerate(seeds)}
    (row,) = native_page.exam_rows(native_page.Results(measured, 50))
    assert row["accuracy"] == 0.75 and row["low"] <= 0.75 <= row["high"] and row["seeds"] == 2
    assert native_page.accuracies([row, row | {"state": "after post-alignment"}]) == {
        "accuracy/raw/e": 0.75,
        "post_alignment/raw/accuracy/e": 0.75,
    }
    assert native_page.exam_rows(native_page.Results({("raw", 0): {"base": {}}}, 50)) == []


def test_a_killed_run_ends_like_one_never_killed(tiny, tmp_path):
    whole = tiny("native_alignment").workdir
    shutil.copytree(whole, tmp_path / "run")
    for name in ("DONE", "summary.json", "members/aligned-0/measured.json"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run/members/aligned-0/benign")  # killed after pretraining
    ended = launch("native_alignment.py:tiny", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert read(tmp_path / "run/summary.json") == read(whole / "summary.json")
    for name in ("tables/arms.jsonl", "findings.txt"):
        assert (tmp_path / "run" / name).read_text() == (whole / name).read_text()


def test_a_member_does_not_depend_on_the_others_of_its_run(tiny, tmp_path):
    whole = tiny("native_alignment").workdir
    flags = ("--config.arms=aligned", "--config.post_arms=")
    ended = launch("native_alignment.py:tiny", tmp_path / "run", *flags)
    assert ended.code == 0, ended.err
    alone, among = (read(folder / "members/aligned-0/measured.json") for folder in (tmp_path / "run", whole))
    assert alone == among


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.arms=raw,alined", "aligned_50"),
        ("--config.arms=", "no arm"),
        ("--config.data.path=/nowhere", "has no folder aligned, heldout, probes, raw"),
        ("--config.tokenizer=learn:20", "learn:2000"),
        ("--config.pretrain.steps=0", "pretrain.steps=0"),
        ("--config.seeds=0", "seeds=0"),
        ("--config.toy.missed=2.0", "toy.missed=2.0"),
        ("--config.samples.temperature=-1.0", "temperature=-1.0"),
    ],
)
def test_what_cannot_work_is_refused_before_training(flag, words, tmp_path):
    ended = launch("native_alignment.py:tiny", tmp_path / "run", flag)
    assert ended.code == 2 and words in ended.err and "Traceback" not in ended.err
    assert not (tmp_path / "run/members").exists()


@pytest.fixture(scope="module")
def corpora():
    """A web, and what the filter leaves of it and decides, by what becomes of harm."""
    web = toyweb.documents(200, seed=2)
    return web, {harm: native_web.cleaned(web, harm, missed=0.0) for harm in ("keep", "drop", "rewrite")}


def test_the_filter_drops_what_its_rules_can_see_and_nothing_clean(corpora):
    web, found = corpora
    planted = {r["id"]: r["metadata"]["planted"] for r in web}
    left = [planted[r["id"]] for r in found["keep"][0]]
    for kind in ("clean", "unsafe", "unfair", "pii"):
        assert left.count(kind) == list(planted.values()).count(kind)
    assert not set(left) & {"spam", "boilerplate", "short", "wrong_language"}
    assert left.count("duplicate") <= 2  # of 16: the farthest are 0.8 alike, and one in ten of these is missed
    assert not any(part in r["text"] for r in found["keep"][0] for part in r["metadata"]["private"])


def test_every_harmful_document_is_dropped_or_becomes_its_twin(corpora):
    web, found = corpora
    harmful = {r["id"] for r in web if r["metadata"]["severity"]}
    assert any(toyweb.severity(r["text"]) for r in found["keep"][0])
    for harm in ("drop", "rewrite"):
        assert not any(toyweb.severity(r["text"]) for r in found[harm][0])
    actions = {row["id"]: row["action"] for row in found["rewrite"][1]}
    assert {actions[name] for name in harmful} == {"rewrite", "synthesise"}
    assert {name for name, action in actions.items() if action in ("rewrite", "synthesise")} == harmful
    assert {r["id"] for r in found["keep"][0]} - {r["id"] for r in found["drop"][0]} == harmful


def test_a_scorer_that_misses_all_leaves_the_harm_in():
    web = toyweb.documents(60, seed=2)
    missed, _ = native_web.cleaned(web, "rewrite", missed=1.0)
    assert [r["text"] for r in missed] == [r["text"] for r in native_web.cleaned(web, "keep", missed=0.0)[0]]


def test_a_larger_volume_holds_what_a_smaller_one_does(tmp_path):
    web = toyweb.documents(60, seed=2)
    for name, records in (("raw", web), ("aligned", native_web.cleaned(web, "rewrite", missed=0.0)[0])):
        toyweb.write(tmp_path / name, records)
    folders = [str(tmp_path / name) for name in ("raw", "aligned")]
    texts = {
        share: {r["id"]: r["text"] for r in rows(arm_corpora.mixed(tmp_path / f"{share}.jsonl", folders, share))}
        for share in (0.0, 0.25, 0.5, 1.0)
    }
    raw, aligned = ({r["id"]: r["text"] for p in sorted(pathlib.Path(f).glob("*")) for r in rows(p)} for f in folders)
    assert texts[0.0] == raw and texts[1.0] == aligned
    changed = {share: {i for i in raw if texts[share].get(i) != raw[i]} for share in texts}
    assert set() == changed[0.0] < changed[0.25] < changed[0.5] < changed[1.0]


def made_up(harmless, benign, right):
    base = {"harmless": harmless, "paraphrased": [[h, 0, h, 0, h] for h in harmless], "right": right}
    base |= {"harmful_written": [0, 1], "bits_per_byte": {"en": 1.0, "ar": 3.0}, "written": ["", ""]}
    return {"base": base, "base_benign": base | {"harmless": benign}}


def test_the_numbers_of_an_arm_are_those_of_its_members():
    measured = {("raw", 0): made_up([0, 0], [0, 0], [1, 0]), ("raw", 1): made_up([0, 0], [0, 0], [1, 0])}
    measured |= {("aligned", 0): made_up([1, 1], [1, 0], [1, 1]), ("aligned", 1): made_up([1, 0], [0, 0], [1, 0])}
    results = native_page.Results(measured, 100)
    table = [native_page.row_of(results, arm, "base", np.array([False, True])) for arm in results.arms]
    summary = native_page.summary(results, table)
    assert summary["harmlessness/aligned"] == 0.75 and summary["helpfulness/aligned"] == 0.75
    assert summary["retention/aligned"] == pytest.approx(1 / 3) and summary["bits_per_byte/aligned"] == 2.0
    assert summary["stability/aligned/seed_sd"] == pytest.approx(np.std([1.0, 0.5], ddof=1))
    assert summary["paraphrase_drop/aligned"] == pytest.approx(0.75 - 0.6 * 0.75)
    assert "retention/raw" not in summary  # nothing was there to keep
    assert table[1]["facts"] == 1.0 and table[1]["hidden facts"] == 0.5
    mean, low, high = results.gain("aligned", "raw")
    assert mean == 0.75 and low <= 0.75 <= high
    lines = native_page.findings(results, table)
    assert any(line.startswith("aligned is the most harmless arm, +0.75") for line in lines)
    measured[("both", 0)], measured[("both", 1)] = (made_up([1, 1], [1, 1], [0, 0]), made_up([1, 0], [1, 0], [0, 0]))
    results = native_page.Results(measured, 100)
    table = [native_page.row_of(results, arm, "base", np.array([False, True])) for arm in results.arms]
    told = " ".join(native_page.findings(results, table))
    assert "aligned is the most harmless arm, +0.00 (+0.00 to +0.00) above both, a tie in which it knows more" in told


def test_probes_that_lack_a_column_are_named(tmp_path):
    folder = tmp_path / "corpora"
    native_web.prepare(folder, num=30, seed=0, missed=0.0, heldout=2, probes=1)
    path = folder / "probes/helpfulness.jsonl"
    kept = rows(path)
    del kept[1]["wrong"]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    ended = launch("native_alignment.py:tiny", tmp_path / "run", f"--config.data.path={folder}")
    assert ended.code == 2 and "helpfulness.jsonl:2 lacks wrong" in ended.err
    path.unlink()
    ended = launch("native_alignment.py:tiny", tmp_path / "run2", f"--config.data.path={folder}")
    assert ended.code == 2 and "helpfulness.jsonl is not there" in ended.err


def test_a_missed_share_outside_of_0_to_1_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"missed=-0\.1"):
        native_web.prepare(tmp_path, num=30, seed=0, missed=-0.1, heldout=2, probes=1)


def test_corpora_that_have_changed_since_the_run_began_are_refused(tmp_path):
    folders = [tmp_path / name for name in ("raw", "heldout")]
    for folder in folders:
        folder.mkdir()
        for i in range(2):
            (folder / f"{i}.jsonl").write_text(json.dumps({"text": f"{folder.name} {i}"}) + "\n")

    def check():
        arm_corpora.check_unchanged(
            tmp_path / "made_from.json", arm_corpora.digests_of(folders), made="tokenizer and mixtures"
        )

    for _ in range(2):
        check()
    first = (tmp_path / "raw/0.jsonl").read_text()
    (tmp_path / "raw/0.jsonl").write_text(first + first)
    with pytest.raises(
        ValueError, match=r"^raw changed since this run began, and its tokenizer and mixtures are of what"
    ):
        check()
    (tmp_path / "raw/0.jsonl").write_text(first)
    check()
