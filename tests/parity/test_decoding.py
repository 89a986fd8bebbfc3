"""The engine's answers against transformers' `generate`, on small random checkpoints, in fp32."""

import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from alignment.decoding import engine  # noqa: E402
from alignment.decoding.requests import Request  # noqa: E402
from alignment.models import decoder, huggingface  # noqa: E402
from tests.parity.test_huggingface import CASES, SIZES, peer  # noqa: E402

NUM_NEW = 64
NEAR = 1e-4  # the two best logits are nearer than that: either token is right, and what follows is not compared
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, SIZES["vocab_size"], size=n).tolist() for n in (1, 7, 16, 33, 50)]
PROMPTS += [[5, 6, 7, 8] * 6]


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    @functools.cache
    def read(case):
        folder = tmp_path_factory.mktemp(case)
        peer(case).save_pretrained(folder)
        model = decoder.DecoderLM(**huggingface.config_of(folder))
        return model, huggingface.load(folder, model)

    return read


@functools.cache
def wanted(case):
    """For each prompt, the tokens of transformers' greedy decoding and how far apart the two best logits were."""
    out = []
    for prompt in PROMPTS:
        options = dict(max_new_tokens=NUM_NEW, do_sample=False, pad_token_id=0, eos_token_id=None)
        with torch.no_grad():
            result = peer(case).generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt)),  # else it takes the prompt's own 0s for padding
                return_dict_in_generate=True,
                output_logits=True,
                **options,
            )
        logits = torch.stack(result.logits)[:, 0]
        best = logits.topk(2).values
        out.append((result.sequences[0, len(prompt) :].tolist(), (best[:, 0] - best[:, 1]).tolist()))
    return out


@pytest.mark.parametrize("guesses", ["none", "lookup", "draft"])
@pytest.mark.parametrize("case", CASES)
def test_greedy_answers_are_those_of_transformers(ours, case, guesses):
    draft = ours("qwen3" if case != "qwen3" else "mistral") if guesses == "draft" else None
    server = engine.Engine(
        *ours(case),
        num_slots=4,
        max_len=128,
        chunk=16,
        block=16,
        draft=draft,
        num_draft={"none": 0, "lookup": 4, "draft": 2}[guesses],
    )
    for answer, (tokens, gaps) in zip(server.answers([Request(p, NUM_NEW) for p in PROMPTS]), wanted(case)):
        near = next((i for i, gap in enumerate(gaps) if gap < NEAR), NUM_NEW)
        assert answer.ids[:near] == tokens[:near]


def test_near_ties_cut_the_comparison_of_at_most_one_prompt_in_twenty():
    is_near = [min(gaps) < NEAR for case in CASES for _, gaps in wanted(case)]
    assert sum(is_near) <= len(is_near) / 20


@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_of_an_answer_are_those_of_transformers(ours, case):
    for answer in engine.Engine(*ours(case), num_slots=4, max_len=128, chunk=16, block=16).answers(
        [Request(p, 20, temperature=1.0, seed=1, prompt_logprobs=True) for p in PROMPTS]
    ):
        tokens = torch.tensor([[*answer.request.prompt, *answer.ids]])
        with torch.no_grad():
            logps = peer(case)(tokens).logits[0].log_softmax(-1)
        exact = logps[:-1].gather(1, tokens[0, 1:, None])[:, 0].numpy()
        got = [token.logprob for token in (*answer.prompt, *answer.tokens)]
        np.testing.assert_allclose(got, exact, atol=2e-4)
