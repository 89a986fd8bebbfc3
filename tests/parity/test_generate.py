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


@pytest.fixture(scope="module")
def peer():
    tok = transformers.AutoTokenizer.from_pretrained(FOLDER)
    return tok, transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def greedy(peer, text, answer):
    """What transformers writes greedily where it has read the answer so far, and how near its second choice was.

    One pass over the prompt and the answer says so for all of its places. As long as these tokens are the answer's own,
    they are those of its `generate`.
    """
    tok, model = peer
    messages = [{"role": "user", "content": text}]
    prompt = tok.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    best = logits.topk(2)
    return best.indices[:, 0].tolist(), (best.values[:, 0] - best.values[:, 1]).tolist()


def answers(prompts, workdir):
    """The rows of a process of its own: programs of the tests are compiled without optimisation."""
    command = [sys.executable, "-m", "experiments.run", "--config", "experiments/generate.py:smol"]
    command += [f"--config.prompts={prompts}", f"--config.max_new_tokens={NUM_NEW}", "--config.logprobs=0"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    ended = subprocess.run([*command, "--workdir", workdir], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return files.read_rows(workdir / "generations.jsonl")


def test_greedy_answers_of_a_real_model_are_those_of_transformers(asked, peer, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))
    rows, num_near = answers(tmp_path / "prompts.jsonl", tmp_path / "run"), 0
    for row, text in zip(rows, asked, strict=True):
        tokens, gaps = greedy(peer, text, row["tokens"])
        near = next((i for i, gap in enumerate(gaps) if gap < NEAR), len(tokens))
        num_near += near < len(tokens)
        assert row["prompt"] == text and row["tokens"][:near] == tokens[:near]
        assert len(tokens) == NUM_NEW or tokens[-1] == peer[0].eos_token_id
    assert num_near <= len(asked) / 20
