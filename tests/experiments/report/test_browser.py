"""The pages in a real browser: no error, nothing wider than the window, every curve labelled.

Chromium itself is driven, by its own command line: a page of ours holds the report in frames of the widths to try and
writes what it measures into its document, which --dump-dom prints. That needs no package and no driver that has to fit
the browser's version.
"""

import html
import json
import pathlib
import re
import shutil
import subprocess

import pytest

from experiments.report import comparison, markup, page
from tests.experiments.report.test_comparison import finished, sweep

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --allow-file-access-from-files --enable-logging=stderr --dump-dom"
)
WIDTHS = (1400, 400)
MEASURE = """
const measured = [];
function measure(frame) {
  const page = frame.contentDocument, window_ = frame.contentWindow;
  for (const fold of page.querySelectorAll("details")) fold.open = true;
  const curves = [];
  for (const svg of page.querySelectorAll("svg")) {
    const words = [...svg.querySelectorAll("text")].map(text => text.textContent);
    const lines = [...svg.querySelectorAll("g[id^='curve:'], g[id^='scale:']")].map(line => line.id);
    const card = svg.closest(".card");
    curves.push({
      lines, words, alt: svg.getAttribute("aria-label"), title: card.querySelector("h3")?.textContent ?? "",
    });
  }
  const broken = [...page.querySelectorAll("td:not(.long) div")].filter(cell => /^\\w+$/.test(cell.textContent)
    && cell.scrollHeight > 1.5 * parseFloat(window_.getComputedStyle(cell).lineHeight)).map(cell => cell.textContent);
  measured.push({width: window_.innerWidth, scroll: page.documentElement.scrollWidth, broken, curves});
}
window.onload = () => {
  document.querySelectorAll("iframe").forEach(measure);
  const out = document.createElement("pre");
  out.id = "measured";
  out.textContent = JSON.stringify(measured);
  document.body.replaceChildren(out);
};
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")


def looked_at(path, folder):
    """What the browser measures of a page at each width, and what it wrote to its console."""
    frames = "".join(f'<iframe src="{pathlib.Path(path).as_uri()}" width="{w}" height="900"></iframe>' for w in WIDTHS)
    (folder / "frames.html").write_text(f"<!doctype html><body>{frames}<script>{MEASURE}</script></body>")
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", (folder / "frames.html").as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=180)
    found = re.search(r'<pre id="measured">(.*?)</pre>', ended.stdout, re.DOTALL)
    assert found, ended.stderr[-2000:]
    return json.loads(html.unescape(found[1])), [line for line in ended.stderr.splitlines() if "CONSOLE" in line]


def assert_readable(path, tmp_path):
    browser = tmp_path / "browser"
    browser.mkdir()
    measured, console = looked_at(path, browser)
    assert console == [] and [at["width"] for at in measured] == list(WIDTHS)
    for at in measured:
        assert at["scroll"] <= at["width"], f"{path} is {at['scroll']} pixels wide in a window of {at['width']}"
        assert at["broken"] == [], "words of a table that stand on several lines"
    for curve in measured[0]["curves"]:
        assert curve["alt"] and curve["title"] and curve["lines"]
        named = {line.removeprefix("curve:") for line in curve["lines"] if line.startswith("curve:")}
        assert named, "a scale whose colours no legend explains"
        if len(curve["lines"]) > 1:
            assert named <= set(curve["words"]), f"{curve['title']}: {named - set(curve['words'])} have no label"


def test_a_runs_page_is_readable_at_both_widths(tiny, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny("dpo").workdir, folder, ignore=shutil.ignore_patterns("checkpoints", "export"))
    assert_readable(page.build(folder), tmp_path)


def test_a_page_of_a_hundred_points_is_readable_at_both_widths(tmp_path):
    points = [
        (
            {"objective.beta": beta, "data.a_key_with_a_very_long_name": f"{'path/' * 9}{i}", "seed": seed},
            {"heldout/rewards/accuracies": 0.5 + beta / (2 + i + seed), "heldout/loss": beta, "a/b/c": i / 7},
        )
        for beta in (0.05, 0.1, 0.5)
        for i in range(11)
        for seed in range(3)
    ]
    (tmp_path / "sweep").mkdir()
    assert_readable(comparison.compare_sweep(sweep(tmp_path / "sweep", points)), tmp_path)


def test_a_table_wider_than_the_page_breaks_no_word(tmp_path):
    rows = [{"name": "unseen_topic_unseen_style", "of": "cell", **{f"number_{i}": i / 7 for i in range(14)}}]
    (tmp_path / "page.html").write_text(markup.page("wide", "", [markup.table("rows", rows)]))
    assert_readable(tmp_path / "page.html", tmp_path)


def test_the_check_itself_sees_overflow_a_console_error_and_an_unlabelled_curve(tmp_path):
    """A page with each fault, so that the tests above cannot pass by measuring nothing."""
    bad = (
        '<div style="width:2000px">wide</div>'
        '<div class="card"><svg><g id="curve:a"></g><g id="curve:b"></g></svg></div>'
        "<script>console.error('a fault')</script>"
    )
    (tmp_path / "bad.html").write_text(f"<!doctype html><body>{bad}</body>")
    measured, console = looked_at(tmp_path / "bad.html", tmp_path)
    assert all(at["scroll"] > at["width"] for at in measured) and any("a fault" in line for line in console)
    assert measured[0]["curves"][0]["lines"] == ["curve:a", "curve:b"] and measured[0]["curves"][0]["words"] == []


def test_runs_side_by_side_are_readable_at_both_widths(tmp_path):
    runs = [
        finished(tmp_path / f"run-{'with-a-long-name-' * 4}{i}", {"steps": i}, {"accuracy": i / 9}) for i in range(3)
    ]
    assert_readable(comparison.compare_runs(runs, tmp_path / "page.html"), tmp_path)
