"""Everything a person can get wrong ends with exit code 2 and one message that names it, and without a traceback."""

import json
import pathlib
import resource
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import tokenizers

from alignment.train import checkpoint
from experiments import dpo, run
from experiments.launch.config import parse_flags
from tests.experiments.conftest import ROOT, launch

QUICK = ("--config.pretrain.steps=0", "--config.samples.num=0", "--config.export=", "--config.sinks=()")


def refused(ended, *said):
    assert ended.code == run.BAD_INPUT, ended.err or ended.out
    message = ended.err[ended.err.index("error: ") :]
    assert "Traceback" not in ended.err + ended.out
    for text in said:
        assert text in message, ended.err
    assert not (ended.workdir / "DONE").exists()


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return f"--config.data.path={path}"


def good_rows(num):
    return [{"prompt": f"Question {i}?", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(num)]


def read(*flags, setting="tiny"):
    """The experiment's config with these values, as the launcher makes it."""
    config = dpo.get_config(setting).lock()
    parse_flags(config, list(flags))
    return config


# ---- the config


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.objectve.beta=1"], ["objectve.beta", 'did you mean "objective.beta"?']),
        (["--config.batch.bath_size=8"], ['did you mean "batch.batch_size"?']),
        (["--config.steps=many"], ["config.steps=many"]),
        (["--config.loss=dpoo"], ["'dpoo' is not one of: dpo, robust", "the nearest is"]),
        (
            ["--config.loss=hinge", "--config.objective.label_smoothing=0.1"],
            ["does not read 'label_smoothing'"],
        ),
        (["--config.objective.beta=-1."], ["beta=-1.0 must be a number"]),
        (["--config.reference=kept"], ["reference='kept'", "is not one of: stored, online"]),
        (["--config.optimizer.schedule=step"], ["schedule='step'", "is not one of: constant, linear, cosine"]),
        (["--config.optimizer.warmup_steps=9"], ["warmup_steps=9", "total_steps=4"]),
        (["--config.batch.layout=sharde"], ["'sharde'", "separate, shared"]),
        (["--config.compute.attention=expanded"], ["takes rows of prefix trees, not layout 'separate'"]),
        (["--config.mesh.sequence=2"], ["set batch.layout=tree and compute.attention=blocked"]),
        (["--config.loss=plackett_luce"], ["set batch.layout=tree and batch.order=prompts"]),
        (["--config.batch.batch_size=6"], ["batch_size=6 does not split over 8 devices", "8 would"]),
        (["--config.batch.batch_size=6", "--config.mesh.tensor=2"], ["does not split over 4 devices", "4 would"]),
        (["--config.batch.batch_size=8", "--config.accumulate=3"], ["over 8 devices", "in 3 parts; 24 would"]),
        (["--config.mesh.data=3"], ["there are 8"]),
        (["--config.loop.log_every=0"], ["loop.log_every=0 must be at least 1"]),
        (["--config.loop.best=heldout/loss", "--config.data.heldout_fraction=0."], ["which is nothing here"]),
        (["--config.steps=-1"], ["steps=-1 must be at least 0"]),
        (["--config.sinks=('tensorbord',)"], ["tensorbord", "tensorboard"]),
        (["--config.data.path=nowhere.jsonl"], ["'nowhere.jsonl'", "no such file"]),
        (["--config.data.truncation=middle"], ["truncation='middle'", "keep_end, keep_start, drop, error"]),
        (["--config.data.format=trll"], ["'trll'", "trl, hh, sharegpt"]),
        (["--config.data.columns.prompt=question"], ["(config says 'question')", "Columns found: chosen, prompt"]),
        (["--config.data.heldout_fraction=1.5"], ["heldout_fraction=1.5"]),
        (["--config.tokenizer=nowhere"], ["'nowhere'", "no such file or folder"]),
        (["--config.init_from=qwen"], ["init_from='qwen'", "hf:<folder or hub id>, gguf:<file> or run:<workdir>"]),
        (["--config.init_from=run:/nowhere"], ["/nowhere"]),
        (["--config.init_from=hf:/nowhere"], ["/nowhere"]),
        (["--config.model.num_heads=5"], ["num_heads=5"]),
        (["--config.compute.dtype=float23"], ["float23"]),
        (["--config.compute.remat=some"], ["some"]),
        (["--config.compute.attention=flashy"], ["flashy"]),
        (["--config.export=float23"], ["float23"]),
    ],
    ids=lambda value: value[0].removeprefix("--config.") if value and str(value[0]).startswith("--") else "",
)
def test_a_config_that_cannot_be_run_is_refused(flags, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(launch("dpo.py:tiny", tmp_path / "run", *QUICK, *flags), *said)


# ---- the data


@pytest.mark.parametrize(
    ("rows", "flags", "said"),
    [
        (
            [{"question": "a", "good": "b", "bad": "c"}] * 9,
            [],
            ["pairs.jsonl:1", "Columns found: bad, good, question", "data.columns"],
        ),
        (
            [{"prompt": "a", "chosen": "b", "worse": "c"}] * 9,
            [],
            ["missing: rejected", "chosen, prompt, worse"],
        ),
        (
            [{"prompt": "a", "best": "b", "worst": "c"}] * 9,
            ["--config.data.columns.chosen=best", "--config.data.columns.rejected=wurst"],
            ["rejected (config says 'wurst')", "best, prompt, worst"],
        ),
        (good_rows(50) + ['{"prompt": "a", "cho'], [], ["1 of 51 lines (2.0 %)", "pairs.jsonl:51: not JSON"]),
        (["not json"] * 3, [], ["3 of 3 lines", "pairs.jsonl:1"]),
        ([], [], ["has no records"]),
        ([{"prompt": "a", "chosen": "same", "rejected": "same"}] * 9, [], ["no pair", "9", "identical answers"]),
        ([{"prompt": "a", "chosen": "", "rejected": "b"}] * 9, [], ["no pair", "9", "empty answer"]),
        (
            [*good_rows(20), {"prompt": "long " * 99, "chosen": "b", "rejected": "c"}],
            ["--config.data.truncation=error"],
            ["pairs.jsonl:21", "max_len=160", "Raise the limit, or set truncation to keep_end"],
        ),
        (good_rows(3), ["--config.data.truncation=drop", "--config.data.max_len=4"], ["no pair", "dropped"]),
    ],
    ids=[
        "columns of other names",
        "a column missing",
        "a column misnamed",
        "bad lines",
        "no JSON at all",
        "empty",
        "identical",
        "empty answers",
        "a long prompt",
        "all too long",
    ],
)
def test_data_that_cannot_be_used_is_refused_with_file_and_line(rows, flags, said, tmp_path):
    refused(launch("dpo.py:tiny", tmp_path / "run", *QUICK, write(tmp_path / "pairs.jsonl", rows), *flags), *said)


def test_bad_records_below_one_percent_are_set_aside_counted_and_trained_without(tmp_path):
    rows = good_rows(150)
    rows.insert(76, '{"prompt": "half a li')
    rows.append({"prompt": "p", "chosen": " same", "rejected": " same"})
    rows.append({"prompt": "p", "chosen": "", "rejected": " b"})
    rows.append({"prompt": "long " * 99, "chosen": " yes", "rejected": " no"})
    flag = write(tmp_path / "pairs.jsonl", rows)
    ended = launch("dpo.py:tiny", tmp_path / "run", *QUICK, flag, "--config.data.limit=None", "--config.steps=1")
    assert ended.code == 0, ended.err
    for count in ("154 records", "1 unreadable lines", "1 identical answers", "1 empty answer", "1 prompts cut"):
        assert count in ended.out
    (bad,) = (json.loads(line) for line in (ended.workdir / "bad_records.jsonl").read_text().splitlines())
    assert bad["file"] == str(tmp_path / "pairs.jsonl") and bad["line"] == 77 and "not JSON" in bad["reason"]
    table = [json.loads(line) for line in (ended.workdir / "tables/data.jsonl").read_text().splitlines()]
    assert {"count": 1, "what": "unreadable lines"} in table


@pytest.mark.parametrize(
    ("truncation", "count", "kept"),
    [
        ("keep_end", "prompts cut", "...ends here. yes"),
        ("keep_start", "prompts cut", "Begins here"),
        ("drop", "longer", ""),
    ],
)
def test_a_prompt_longer_than_the_limit_is_cut_or_dropped_as_asked_and_counted(truncation, count, kept, tmp_path):
    rows = [*good_rows(20), {"prompt": "Begins here" + "." * 300 + "ends here.", "chosen": " yes", "rejected": " no"}]
    flag = write(tmp_path / "pairs.jsonl", rows)
    c = read(flag, f"--config.data.truncation={truncation}")
    tok = dpo.tokenizer.load("bytes")
    train, heldout, counts = dpo.preferences.load(tokenizer=tok, **c.data)
    assert sum(number for what, number in counts.items() if count in what) == 1
    texts = [tok.decode(split.sequence(i, 0)) for split in (train, heldout) for i in range(len(split))]
    assert len(texts) == 20 + bool(kept)
    assert any(kept in text for text in texts)
    assert max(len(split.sequence(i, 0)) for split in (train, heldout) for i in range(len(split))) <= 160


# ---- the checkpoint


@pytest.fixture
def exported(tiny, tmp_path):
    """A Hugging Face folder of one's own to damage."""
    return pathlib.Path(shutil.copytree(tiny("dpo").workdir / "export/hf", tmp_path / "hf"))


def header_of(file):
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def rewrite(file, entries, data):
    header = json.dumps(entries).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)


def start_from(folder, workdir, *flags):
    return launch("dpo.py:tiny", workdir, *QUICK, f"--config.init_from=hf:{folder}", *flags)


def test_a_truncated_safetensors_file_is_refused_with_the_tensor(exported, tmp_path):
    (file,) = exported.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    ends = {name: entry["data_offsets"][1] for name, entry in header_of(file)[0].items() if name != "__metadata__"}
    last = max(ends, key=ends.get)
    refused(start_from(exported, tmp_path / "run"), str(file), "truncated", last)
    file.write_bytes(file.read_bytes()[:20])
    refused(start_from(exported, tmp_path / "run"), str(file), "truncated")


def test_a_tensor_of_another_shape_or_under_another_name_is_refused_by_name(exported, tmp_path):
    (file,) = exported.glob("*.safetensors")
    entries, data = header_of(file)
    name = "model.layers.0.mlp.down_proj.weight"
    rows, columns = entries[name]["shape"]
    rewrite(file, entries | {name: entries[name] | {"shape": [rows // 2, columns * 2]}}, data)
    refused(start_from(exported, tmp_path / "run"), name, f"({rows // 2}, {columns * 2})")
    renamed = {("model.layers.0.mlp.odd.weight" if key == name else key): entry for key, entry in entries.items()}
    rewrite(file, renamed, data)
    refused(start_from(exported, tmp_path / "run"), name, "lacks")


def test_an_unsupported_architecture_is_refused_with_the_supported_ones(exported, tmp_path):
    config = json.loads((exported / "config.json").read_text())
    config |= {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox"}
    (exported / "config.json").write_text(json.dumps(config))
    said = ("GPTNeoXForCausalLM", "supported architectures: LlamaForCausalLM, Qwen2ForCausalLM", "MistralForCausalLM")
    refused(start_from(exported, tmp_path / "run"), *said)


def test_a_tokenizer_with_more_ids_than_the_checkpoint_has_rows_is_refused(exported, tmp_path):
    words = {f"word{i}": i for i in range(300)} | {"<unk>": 300}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "tokenizer.json"))
    rows = json.loads((exported / "config.json").read_text())["vocab_size"]
    ended = start_from(exported, tmp_path / "run", f"--config.tokenizer={tmp_path / 'tokenizer.json'}")
    refused(ended, "token ids up to 300", f"{rows} rows", "tokenizer of that checkpoint")


def test_weights_that_are_no_numbers_are_refused_before_training(exported, tmp_path):
    (file,) = exported.glob("*.safetensors")
    entries, data = header_of(file)
    at, end = entries["model.norm.weight"]["data_offsets"]
    rewrite(file, entries, data[:at] + np.full((end - at) // 4, np.nan, np.float32).tobytes() + data[end:])
    refused(start_from(exported, tmp_path / "run"), "not finite before any training", "checkpoint")


def test_a_run_without_a_checkpoint_is_refused_as_a_start(tiny, tmp_path):
    shutil.copytree(tiny("dpo").workdir, tmp_path / "other", ignore=shutil.ignore_patterns("checkpoints"))
    ended = launch("dpo.py:tiny", tmp_path / "run", *QUICK, f"--config.init_from=run:{tmp_path / 'other'}")
    refused(ended, str(tmp_path / "other"), "holds no checkpoint")


# ---- the workdir of an earlier start


@pytest.fixture
def unfinished(tiny, tmp_path):
    """A copy of a finished run without its mark: started again, it goes on."""
    shutil.copytree(tiny("dpo").workdir, tmp_path / "run")
    (tmp_path / "run" / "DONE").unlink()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda scores: scores[1:], "has shape"),
        (lambda scores: scores[:, :, :-8], "has shape"),
        (lambda scores: np.where(np.arange(len(scores))[:, None, None] == 3, np.nan, scores), "not finite"),
    ],
    ids=["another number of pairs", "shorter answers", "not a number"],
)
def test_reference_log_probabilities_that_do_not_fit_are_refused(damage, said, unfinished):
    path = unfinished / "reference" / "train.npy"
    np.save(path, damage(np.load(path)))
    refused(launch("dpo.py:tiny", unfinished), str(path), said, "remove it")


def test_a_torn_reference_file_is_refused(unfinished):
    path = unfinished / "reference" / "heldout.npy"
    path.write_bytes(path.read_bytes()[:50])
    refused(launch("dpo.py:tiny", unfinished), str(path), "damaged", "remove it")


def test_reference_log_probabilities_that_were_removed_are_those_of_the_start_again(unfinished):
    """Not of the half-trained policy, and not of the random parameters before the language model was trained."""
    before = {name: np.load(unfinished / "reference" / f"{name}.npy") for name in ("train", "heldout")}
    shutil.rmtree(unfinished / "reference")
    assert launch("dpo.py:tiny", unfinished).code == 0
    for name, scores in before.items():
        np.testing.assert_array_equal(np.load(unfinished / "reference" / f"{name}.npy"), scores)


def test_a_damaged_checkpoint_of_the_run_itself_is_named(unfinished):
    for file in (unfinished / "checkpoints" / "4").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"")
    refused(launch("dpo.py:tiny", unfinished), str(unfinished / "checkpoints" / "4"), "cannot be read", "remove")


# ---- while training


@pytest.mark.slow  # tests/train/test_loop.py has it without the program around it
def test_a_loss_that_is_no_number_stops_with_step_and_records_and_the_last_good_checkpoint_stays(tmp_path):
    flags = ("--config.optimizer.peak_lr=1e30", "--config.optimizer.clip_norm=0.0", "--config.steps=6")
    ended = launch("dpo.py:tiny", tmp_path, *QUICK, *flags)
    refused(ended, "not a finite number at step 2, batch of records [", "the last good checkpoint is that of step 0")
    assert "Lower the learning rate" in ended.err
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        assert manager.all_steps() == [0]


FILL = """
import os, resource, sys
from alignment.train import checkpoint
from experiments import run

how, place, *argv = sys.argv[1:]
save = checkpoint.save

def fill_then_save(manager, state, position):
    if int(state.step) != 2 or "pretrain" in str(manager.directory):
        pass
    elif how == "limit":  # files past 8 KiB meet "File too large"
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
    else:
        with open(os.path.join(place, "filler"), "wb", buffering=0) as f:
            try:
                while True:
                    f.write(bytes(4096))
            except OSError:
                pass
    save(manager, state, position)

checkpoint.save = fill_then_save
sys.exit(run.main(argv))
"""


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, of eight megabytes; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill_the_disk(how, place):
    """A run whose disk is full at the checkpoint of step 2, in a process of its own."""
    argv = ["--config", str(ROOT / "experiments/dpo.py:tiny"), "--workdir", str(place / "run")]
    command = [sys.executable, "-c", FILL, how, str(place), *argv]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    check_full(ended.returncode, ended.stdout, ended.stderr, place / "run")


def check_full(code, out, err, workdir):
    """The run ended with one message, and left the checkpoint before."""
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == run.BAD_INPUT, err
    assert "Traceback" not in err + out
    assert len(said) == 1 and str(workdir) in said[0] and "ree some space" in said[0]
    assert not (workdir / "DONE").exists()
    with checkpoint.open_manager(workdir / "checkpoints", read_only=True) as manager:
        assert manager.latest_step() == 0


@pytest.fixture
def limit():
    """A function after which no file of this process grows past 8 KiB, until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_at_a_checkpoint_leaves_the_one_before_and_freed_the_run_goes_on(tmp_path, monkeypatch, limit):
    save, before = checkpoint.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_then_save(manager, state, position):
        if int(state.step) == 2:
            limit()
        save(manager, state, position)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", fill_then_save)
        ended = launch("dpo.py:tiny", tmp_path / "run", *QUICK)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    check_full(ended.code, ended.out, ended.err, tmp_path / "run")
    assert launch("dpo.py:tiny", tmp_path / "run", *QUICK).code == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("how", ["disk", "limit"])
def test_a_run_whose_full_disk_was_freed_ends_the_same(how, tiny, tmp_path, request):
    place = request.getfixturevalue("small_disk") if how == "disk" else tmp_path
    fill_the_disk(how, place)
    (place / "filler").unlink(missing_ok=True)
    assert launch("dpo.py:tiny", place / "run").code == 0
    assert checkpoint_arrays(place / "run") == checkpoint_arrays(tiny("dpo").workdir)


def checkpoint_arrays(workdir):
    """Name -> bytes of the exported weights, which are float32."""
    entries, data = header_of(next((workdir / "export/hf").glob("*.safetensors")))
    spans = {name: entry["data_offsets"] for name, entry in entries.items() if name != "__metadata__"}
    return {name: data[at:end] for name, (at, end) in spans.items()}
