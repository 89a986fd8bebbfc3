import base64
import html.parser
import json
import math
import pathlib
import subprocess
import sys

import pytest

from experiments.report import charts, markup, meanings, page

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
VOID = {"meta", "img", "br", "wbr", "link"}


class Checker(html.parser.HTMLParser):
    """Balanced tags; remembers every tag and every address the page would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.loads = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [v for k, v in attributes if k in ("src", "srcset", "data") or (k == "href" and tag == "link")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    evil = "<script>alert('x')</script>"
    metrics = [{"step": s, "loss": 1 / s, "rewards/chosen": s, "rewards/rejected": -s, evil: s} for s in range(1, 9)]
    metrics[3] |= {
        "heldout/loss": 0.4,
        "heldout/rewards/chosen": 2.0,
        "heldout/rewards/rejected": 1.0,
        "$\\frac{$": 1.0,
    }
    metrics[4] |= {"loss": None, "$\\frac{$": 2.0, "logged once": 7.0}
    write_rows(tmp_path / "metrics.jsonl", metrics)
    write_rows(tmp_path / "language_model" / "metrics.jsonl", [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}])
    write_rows(tmp_path / "tables" / "samples.jsonl", [{"prompt": evil, "answer": "a\nb", "n": 3}, {"prompt": "ü"}])
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "map.png").write_bytes(PIXEL)
    (tmp_path / "figures" / "map.txt").write_text(f"where it looks {evil}")
    (tmp_path / "summary.json").write_text(json.dumps({"heldout/loss": 0.4, "steps": 8, evil: None}))
    (tmp_path / "config.json").write_text(json.dumps({"note": evil}))
    (tmp_path / "environment.json").write_text(json.dumps({"experiment": evil, "starts": [{"outcome": "done"}]}))
    return tmp_path


def test_the_page_is_self_contained_well_formed_and_escapes_every_text(folder):
    text = pathlib.Path(page.build(folder)).read_text()
    checked = Checker(text)
    assert "script" not in checked.tags and "link" not in checked.tags
    assert checked.loads and all(address.startswith("data:image/png;base64,") for address in checked.loads)
    assert "<script" not in text and "&lt;script&gt;" in text and "url(http" not in text


def test_the_page_shows_curves_phases_tables_figures_config_and_environment(folder):
    text = pathlib.Path(page.build(folder)).read_text()
    for part in ("Phase: language_model", 'id="table-samples"', "where it looks", "Config", "Environment"):
        assert part in text
    pictures = ["loss", "rewards", "$\\frac{$", "&lt;script"]
    assert text.count("<svg") == len(pictures) + 1  # and the phase's own loss
    assert text.count(">heldout chosen<") == 1 and "logged once over steps" not in text


def test_the_page_opens_with_the_experiments_sentence_and_without_one_with_the_leading_number(folder):
    text = pathlib.Path(page.build(folder)).read_text()
    assert '<p class="headline">heldout/loss is 0.4 (what training makes small' in text
    about = {"headline": "It learnt <nothing>.", "metrics": {"logged once": ["a number of its own", "higher"]}}
    (folder / "about.json").write_text(json.dumps(about))
    (folder / "summary.json").write_text(json.dumps({"logged once": 7.0}))
    text = pathlib.Path(page.build(folder)).read_text()
    Checker(text)
    assert (
        '<p class="headline">It learnt &lt;nothing&gt;.</p>' in text and "a number of its own; higher is better" in text
    )


def test_the_page_links_to_samples_checkpoints_and_exports_that_are_there(folder):
    (folder / "tables/gates.jsonl").touch()
    text = pathlib.Path(page.build(folder)).read_text()
    assert 'href="#table-samples"' in text and 'href="checkpoints"' not in text and "gates" not in text
    for place in ("checkpoints/20", "checkpoints/100", "export/hf"):
        (folder / place).mkdir(parents=True)
    text = pathlib.Path(page.build(folder)).read_text()
    assert '<a href="checkpoints">checkpoints (step 20, 100)</a>' in text and '<a href="export/hf">' in text


def test_every_curve_and_number_says_what_it_means_where_it_stands(folder):
    text = pathlib.Path(page.build(folder)).read_text()
    meaning = "what training makes small"
    card = next(card for card in text.split('<div class="card curve">') if card.startswith("<h3>loss</h3>"))
    assert meaning in card and f"<dt>heldout/<wbr>loss<small>{meaning}" in text


def test_numbers_of_a_training_within_stand_behind_the_runs_own():
    text = page.summary({"train/heldout/loss": 0.5, "asr/after": 0.1, "heldout/loss": 0.2}, {})
    names = [part.split("<", 1)[0] for part in text.replace("<wbr>", "").split("<dt>")[1:]]
    assert names == ["heldout/loss", "asr/after", "train/heldout/loss"]


def test_findings_stand_between_the_numbers_and_the_curves(folder):
    assert "Findings" not in pathlib.Path(page.build(folder)).read_text()
    (folder / "findings.txt").write_text("The model reads <b>charts</b>.\n\n  Twice as often as chance.\n")
    text = pathlib.Path(page.build(folder)).read_text()
    Checker(text)
    assert "<li>The model reads &lt;b&gt;charts&lt;/b&gt;.</li><li>Twice as often as chance.</li>" in text
    assert text.index("heldout") < text.index("<h2>Findings") < text.index("<h2>Curves")
    (folder / "findings.txt").write_text("\n")
    assert "<h2>Findings" not in pathlib.Path(page.build(folder)).read_text()


def test_empty_parts_are_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    text = pathlib.Path(page.build(tmp_path)).read_text()
    Checker(text)
    for part in ("<h2>", "<details", "<svg", "<table"):
        assert part not in text


def test_a_torn_line_and_a_broken_summary_do_not_stop_the_page(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    (tmp_path / "summary.json").write_text("{")
    assert pathlib.Path(page.build(tmp_path)).read_text().count("<svg") == 1


def test_a_row_without_a_step_has_no_place_on_a_curve():
    rows = [{"step": 1, "loss": 2.0}, {"loss": 9.0}, {"step": None, "loss": 9.0}, {"step": 2, "loss": 1.0}]
    assert charts.series(rows) == {"loss": [(1, 2.0), (2, 1.0)]}


def test_the_same_folder_gives_the_same_page(folder):
    assert pathlib.Path(page.build(folder)).read_bytes() == pathlib.Path(page.build(folder)).read_bytes()


def test_the_page_needs_no_jax(folder):
    code = "import sys; from experiments.report import page; page.build(sys.argv[1]); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=pathlib.Path(__file__).parents[3])


def test_long_tables_are_cut_and_say_so():
    text = markup.table("t", [{"n": i} for i in range(markup.MAX_ROWS + 5)])
    assert text.count("<tr>") == markup.MAX_ROWS + 1 and f"{markup.MAX_ROWS} of {markup.MAX_ROWS + 5} rows" in text


def test_downsampling_keeps_ends_and_extremes():
    curve = [(s, math.sin(s / 50)) for s in range(100_000)]
    curve[70_001], curve[33_333] = (70_001, 9.0), (33_333, -9.0)
    kept = charts.downsample(curve, most=400)
    assert len(kept) <= 400 and kept[0] == curve[0] and kept[-1] == curve[-1]
    assert {(70_001, 9.0), (33_333, -9.0)} <= set(kept)
    assert [s for s, _ in kept] == sorted(s for s, _ in kept)
    assert charts.downsample(curve[:400], most=400) == curve[:400]


def test_train_and_held_out_values_of_one_quantity_share_a_picture():
    names = ["a/b", "heldout/displacement/chosen", "displacement/chosen", "rewards/accuracies"]
    names += ["heldout/rewards/chosen", "heldout/rewards/rejected", "rewards/chosen", "rewards/rejected"]
    names += ["heldout/loss", "loss", "odd/loss"]
    pictures = charts.group({name: [(1, 1.0)] for name in names})
    assert {name: set(labels) for name, labels in pictures.items()} == {
        "loss": {"train", "heldout", "odd"},
        "rewards/accuracies": {"train"},
        "rewards": {"chosen", "heldout chosen", "rejected", "heldout rejected"},
        "displacement/chosen": {"train", "heldout"},
        "a/b": {"train"},
    }
    assert list(pictures) == ["loss", "rewards/accuracies", "rewards", "displacement/chosen", "a/b"]
    assert list(pictures["rewards"]) == ["chosen", "rejected", "heldout chosen", "heldout rejected"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (3, "3"), (3.0, "3"), (12_345, "12,345"), (0.93125, "0.9313"), (1.5e-7, "1.500e-07"), (0.0, "0")],
)
def test_numbers_are_written_for_reading(value, text):
    assert markup.number(value) == text


@pytest.mark.parametrize(
    ("name", "sign"),
    [("heldout/loss", -1), ("heldout/rewards/accuracies", 1), ("steps", 0), ("my/auc", 1), ("my/x", 0)],
)
def test_the_direction_of_a_metric_is_that_of_its_meaning_and_else_read_off_its_name(name, sign):
    assert meanings.direction(name) == sign


def test_an_experiments_own_meaning_comes_before_the_common_one():
    own = {"loss": meanings.Meaning("mine"), "share/*": meanings.Meaning("a share", "lower")}
    assert meanings.clause("heldout/loss", own) == "mine" and meanings.direction("loss", own) == 0
    assert meanings.clause("share/of/it", own) == "a share; lower is better" and meanings.clause("share/of/it") == ""
