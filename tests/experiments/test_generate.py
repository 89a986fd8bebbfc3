"""Answers to files of prompts, by the small random model."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from alignment.decoding.engine import Engine
from alignment.decoding.requests import Token
from data.tokens import tokenizer
from experiments import generate, run
from experiments.decoding import guides, models
from experiments.pages import generate as page
from experiments.report import markup
from tests.experiments.conftest import ROOT, launch

NUM = 13
PLAIN = ("--config.chat=False", "--config.limit=None")


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return f"--config.prompts={path}"


def answered(folder, rows, *flags):
    folder.mkdir(exist_ok=True)
    return launch("generate.py:tiny", folder / "run", write(folder / "prompts.jsonl", rows), *PLAIN, *flags)


def rows_of(ended):
    return [json.loads(line) for line in (ended.workdir / "generations.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("is_guided", "size"), [(False, 264), (True, 259)])
def test_ids_that_a_guide_may_lack_are_set_aside(is_guided, size, tmp_path, monkeypatch):
    seen = {}

    def load(*_, **options):
        seen.update(options)
        raise StopIteration

    led_by = guides.Guides((guides.Guide("kind", "run:kind", 1.0),), (None,)) if is_guided else guides.Guides()
    monkeypatch.setattr(generate.guides, "open_guides", lambda *_: led_by)
    monkeypatch.setattr(generate.prompts, "load", load)
    model = models.open_model(generate.get_config("tiny"), tmp_path)
    shorter = dataclasses.replace(model, tok=dataclasses.replace(model.tok, vocab_size=259))
    monkeypatch.setattr(generate.models, "open_model", lambda *_: shorter)
    with pytest.raises(StopIteration):
        generate.run(generate.get_config("tiny"), str(tmp_path))
    assert seen["vocab_size"] == size


def mixed(num=NUM):
    """Prompts of several lengths, each with options of its own."""
    draws = random.Random(0)
    return [
        {
            "id": f"q{i}",
            "prompt": "abc " * draws.randint(1, 12),
            "temperature": draws.choice((0, 0.8)),
            "max_new_tokens": draws.randint(1, 9),
            "n": 1 + (i % 5 == 0),
        }
        for i in range(num)
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of mixed prompts that was never interrupted."""
    ended = answered(tmp_path_factory.mktemp("whole"), mixed())
    assert ended.code == 0, ended.err
    return ended


def test_rows_have_the_fields_of_generations_in_the_order_of_the_prompts(whole):
    rows, asked = rows_of(whole), mixed()
    assert [row["id"] for row in rows] == [q["id"] for q in asked for _ in range(q["n"])]
    fields = ["id", "prompt", "response", "model", "sampling", "seed", "finish_reason"]
    assert all(list(row)[:7] == fields and row["model"] == "random" for row in rows)
    first, second = rows[:2]
    assert (first["sample"], second["sample"]) == (0, 1) and "sample" not in rows[2]
    assert first["sampling"]["max_new_tokens"] == asked[0]["max_new_tokens"] and first["prompt"] == asked[0]["prompt"]
    assert {row["finish_reason"] for row in rows} <= {"length", "stop"}


def test_the_summary_counts_what_the_rows_hold(whole):
    rows, summary = rows_of(whole), json.loads((whole.workdir / "summary.json").read_text())
    assert summary["prompts"] == NUM and summary["answers"] == len(rows) and summary["bad_records"] == 0
    assert summary["generated_tokens"] == sum(row["num_tokens"] for row in rows)
    assert summary["truncated"] == sum(row["finish_reason"] == "length" for row in rows)
    assert summary["tokens_per_second"] > 0


def test_the_page_shows_samples_coloured_by_log_probability(whole):
    text = (whole.workdir / "report.html").read_text()
    assert 'style="background:rgba(214,110,40,' in text and "prompts have 16 answers of" in text
    assert (whole.workdir / "figures/lengths.png").exists() and "finish_<wbr>reason" in text


class Killed(BaseException):
    """Stands for a kill: nothing in the run handles it."""


def dies(*args):
    raise Killed


@pytest.mark.parametrize("at", [1, 3])
def test_a_run_killed_and_started_again_ends_with_the_same_bytes(tmp_path, whole, monkeypatch, at):
    num_calls, advance = 0, Engine.advance

    def dies_later(self):
        nonlocal num_calls
        num_calls += 1
        if num_calls > at + 1:  # the first call compiles the programs
            raise Killed
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "advance", dies_later)
        with pytest.raises(Killed):
            answered(tmp_path, mixed())
    journal = tmp_path / "run/unsorted.jsonl"
    assert not (tmp_path / "run/generations.jsonl").exists()
    journal.write_bytes(journal.read_bytes() + b'[[5, 0], 1.5, {"id"')  # the row that was being written
    ended = answered(tmp_path, mixed())
    assert ended.code == 0, ended.err
    assert (ended.workdir / "generations.jsonl").read_bytes() == (whole.workdir / "generations.jsonl").read_bytes()
    assert not journal.exists()


def test_a_kill_after_the_answers_costs_no_answer(tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(page, "write", dies)
        with pytest.raises(Killed):
            answered(tmp_path, mixed())
    monkeypatch.setattr(Engine, "advance", lambda self: 1 / 0)
    ended = answered(tmp_path, mixed())
    assert ended.code == 0 and rows_of(ended) == rows_of(whole)
    assert (ended.workdir / "tables/samples.jsonl").exists()


def test_answers_do_not_depend_on_the_order_of_the_prompts(tmp_path, whole):
    ended = answered(tmp_path, mixed()[::-1])
    by_id = {(row["id"], row.get("sample")): row for row in rows_of(whole)}
    assert {(row["id"], row.get("sample")): row for row in rows_of(ended)} == by_id


def test_other_prompts_in_a_folder_with_answers_are_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(page, "write", dies)
        with pytest.raises(Killed):
            answered(tmp_path, mixed(3))
    ended = answered(tmp_path, mixed(4))
    assert ended.code == run.BAD_INPUT and "made from other prompts" in ended.err


def test_faults_of_records_are_set_aside_with_their_lines_and_end_with_3(tmp_path):
    rows = [{"prompt": "good"}, {"prompt": ""}, {"prompt": "x" * 130}, {"prompt": "a", "top_p": 0}, {"prompt": [999]}]
    ended = answered(tmp_path, [*rows, "{"])
    assert ended.code == generate.TOO_MANY_BAD and "bad_records.jsonl names file" in ended.out
    bad = [json.loads(line) for line in (ended.workdir / "bad_records.jsonl").read_text().splitlines()]
    assert [row["line"] for row in bad] == [2, 3, 4, 5, 6]
    assert {row["file"] for row in bad} == {str(tmp_path / "prompts.jsonl")}
    said = ("prompt is empty", "max_new_tokens=12; together they must be at most 128", "top_p=0", "999", "not JSON")
    assert all(part in row["reason"] for part, row in zip(said, bad))
    assert json.loads((ended.workdir / "summary.json").read_text())["bad_records"] == 5
    assert [row["prompt"] for row in rows_of(ended)] == ["good"]


def test_one_bad_record_in_a_hundred_and_one_ends_well(tmp_path):
    ended = answered(tmp_path, [{"prompt": "a", "max_new_tokens": 1}] * 100 + [{"prompt": ""}])
    assert ended.code == 0 and len(rows_of(ended)) == 100 and "set aside: " in ended.out


def test_a_file_of_nothing_but_bad_records_leaves_an_empty_file_and_ends_with_3(tmp_path):
    ended = answered(tmp_path, [{"prompt": ""}])
    assert ended.code == generate.TOO_MANY_BAD and rows_of(ended) == []


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.temperature=-1.0", "temperature=-1.0"),
        ("--config.top_p=0.0", "top_p=0.0"),
        ("--config.stop=('',)", "stop=['']"),
        ("--config.stop_ids=(264,)", "stop_ids has 264, which is not a token id from 0 to 263"),
        ("--config.max_new_tokens=128", "leaves no room for a prompt in engine.max_len=128"),
        ("--config.limit=0", "limit=0 must be at least 1"),
        ("--config.prompts=none.jsonl", "no such file"),
        ("--config.init_from=hf:./none", "neither a folder here nor a hub id"),
        ("--config.columns.prompt=Request", "columns.prompt='Request': no record has it"),
    ],
)
def test_an_option_of_the_run_out_of_range_ends_with_2_before_weights_are_read(tmp_path, monkeypatch, flag, said):
    monkeypatch.setattr(generate.models, "with_weights", lambda *args: 1 / 0)
    ended = launch("generate.py:tiny", tmp_path / "run", flag)
    assert ended.code == run.BAD_INPUT and said in ended.err, ended.err


def test_an_answer_whose_logits_are_no_numbers_is_a_row_that_says_so(tmp_path, monkeypatch):
    with_weights = generate.models.with_weights

    def damaged(*args):
        model = with_weights(*args)
        embedding_VD = model.params["embedding"]
        params = {**model.params, "embedding": embedding_VD.at[ord("#")].set(np.nan), "head": embedding_VD.T}
        return dataclasses.replace(model, params=params, network=model.network.clone(tie_embeddings=False))

    monkeypatch.setattr(generate.models, "with_weights", damaged)
    bias = {str(ord("#")): -1e4}
    rows = [{"prompt": text, "logit_bias": bias, "logprobs": 1, "echo": True} for text in ("good", "a # b", "better")]
    ended = answered(tmp_path, rows)
    assert ended.code == generate.TOO_MANY_BAD and "1 of 3 answers failed" in ended.out
    assert [row["finish_reason"] for row in rows_of(ended)] == ["length", "error", "length"]
    assert json.loads((ended.workdir / "summary.json").read_text())["failed"] == 1


def test_log_probabilities_and_an_echoed_prompt_come_with_the_row(tmp_path):
    asked = [{"prompt": "abc", "max_new_tokens": 3}]
    (plain,) = rows_of(answered(tmp_path / "1", asked, "--config.logprobs=2"))
    assert len(plain["tokens"]) == len(plain["logprobs"]) == len(plain["top_logprobs"]) == 3
    assert all(
        logprob <= best[0][1] and len(best) == 2 for logprob, best in zip(plain["logprobs"], plain["top_logprobs"])
    )
    (echoed,) = rows_of(answered(tmp_path / "2", asked, "--config.logprobs=0", "--config.echo=True"))
    tok = tokenizer.load("bytes")
    assert echoed["response"] == "abc" + plain["response"]
    assert echoed["tokens"] == tok.encode("abc", add_bos=True) + plain["tokens"] and "top_logprobs" not in echoed
    assert (
        echoed["logprobs"][0] is None and echoed["logprobs"][4:] == plain["logprobs"] and len(echoed["logprobs"]) == 7
    )


def test_a_stop_text_is_not_part_of_the_answer(tmp_path):
    (free,) = rows_of(answered(tmp_path / "1", [{"prompt": "abcd", "logprobs": 0}]))
    letters = [chr(i) for i in free["tokens"] if 32 < i < 127]
    assert letters, "the random model wrote no plain letter; take another prompt"
    (stopped,) = rows_of(answered(tmp_path / "2", [{"prompt": "abcd", "stop": letters[0]}]))
    assert stopped["finish_reason"] == "stop" and stopped["response"] == free["response"].partition(letters[0])[0]


def test_letters_spelt_by_several_tokens_are_one_coloured_part():
    pieces = [bytes([i]) for i in range(256)]
    tokens = [Token(i, -0.5) for i in "aé€".encode()] + [Token(0xFF, -1.0), Token(0xC3, -2.0)]
    assert page.spans(tokens, pieces) == [("a", -0.5), ("é", -1.0), ("€", -1.5), ("\ufffd", -1.0), ("\ufffd", -2.0)]
    assert markup.coloured([("<b>", -9.0)]).count("&lt;b&gt;") == 1


@pytest.mark.slow
def test_a_process_killed_at_random_instants_ends_with_the_same_bytes(tmp_path, whole):
    flag = write(tmp_path / "prompts.jsonl", mixed())
    command = [sys.executable, "-m", "experiments.run", "--config", "experiments/generate.py:tiny", *PLAIN, flag]
    command += ["--workdir", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    draws, done = random.Random(1), False
    for _ in range(30):
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        journal, wanted = tmp_path / "run/unsorted.jsonl", draws.randint(1, 1_500)
        before = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > before + wanted):
            time.sleep(0.001)
        if process.poll() is not None:
            done = process.returncode == 0
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert done
    assert (tmp_path / "run/generations.jsonl").read_bytes() == (whole.workdir / "generations.jsonl").read_bytes()
