"""generate.py on a real small model, against transformers' greedy answers to the same prompts."""

import json
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from alignment import files  # noqa: E402
from data import records  # noqa: E402
from tests.experiments.conftest import ROOT  # noqa: E402

NUM_NEW = 64
NEAR = 1e-4  # the two best logits are nearer than that: either token is right, and what follows is not compared
FOLDER = ROOT / "models/smollm2"


@pytest.fixture(scope="module")
def asked(shared_data):
    """Twenty prompts of XSTest and twenty of PHTest."""
    if not FOLDER.is_dir():
        pytest.skip("models/smollm2 is not there: make models")
    files = {"overrefusal_xstest/xstest_prompts.csv": "prompt", "overrefusal_phtest/phtest_v0.1_a.csv": "Request"}
    return [item.value[name] for file, name in files.items() for item in records.read(str(shared_data / file))[0][:20]]


def greedy(texts):
    """For each prompt, transformers' tokens and how far apart the two best logits were."""
    tok = transformers.AutoTokenizer.from_pretrained(FOLDER)
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    for text in texts:
        messages = [{"role": "user", "content": text}]
        ids = tok.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            out = model.generate(
                **ids, max_new_tokens=NUM_NEW, do_sample=False, return_dict_in_generate=True, output_logits=True
            )
        best = torch.stack(out.logits)[:, 0].topk(2).values
        yield out.sequences[0, ids["input_ids"].shape[1] :].tolist(), (best[:, 0] - best[:, 1]).tolist()


def answers(prompts, workdir):
    """The rows of a process of its own: programs of the tests are compiled without optimisation."""
    command = [sys.executable, "-m", "experiments.run", "--config", "experiments/generate.py:smol"]
    command += [f"--config.prompts={prompts}", f"--config.max_new_tokens={NUM_NEW}", "--config.logprobs=0"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    ended = subprocess.run([*command, "--workdir", workdir], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return files.read_rows(workdir / "generations.jsonl")


def test_greedy_answers_of_a_real_model_are_those_of_transformers(asked, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))
    rows = answers(tmp_path / "prompts.jsonl", tmp_path / "run")
    num_near = 0
    for row, (tokens, gaps) in zip(rows, greedy(asked), strict=True):
        near = next((i for i, gap in enumerate(gaps) if gap < NEAR), len(tokens))
        num_near += near < len(tokens)
        assert row["tokens"][:near] == tokens[:near], row["prompt"]
        assert near < len(tokens) or len(row["tokens"]) == len(tokens)
    assert num_near <= len(asked) / 20
