import types

import pytest

from experiments.guidance import methods
from experiments.guidance.methods import Method
from experiments.guidance.writing import SAMPLE, Prompt, Writer


def writer(kinds, num_guides):
    """A writer that makes requests and has no models."""
    c = types.SimpleNamespace(
        seed=2, contrastive=0.25, decoding=types.SimpleNamespace(max_new_tokens=9), best_of_n=2, args=None
    )
    made = Writer.__new__(Writer)
    made.c, made.names, made.prompts = c, ["a", "b"], [Prompt("p", (1, 2), (5, 1, 2))]
    made.written = [Method(kind) for kind in kinds]
    made.models = types.SimpleNamespace(guides=["a", "b"], plain_guide="plain")
    assert len(made._guides()) == num_guides
    return made


def test_guided_requests_have_the_methods_weights_and_the_reward_models_own_prompt():
    request = writer([methods.GENARM], 2).request(Method(methods.GENARM, (0.3, 0.7), 0.9), 0)
    assert (request.guide_weights, request.base_weight, request.temperature) == ((0.3, 0.7), 1.0, 0.9)
    assert request.prompt == (1, 2) and list(request.guide_prompts) == [(5, 1, 2)] * 2


@pytest.mark.parametrize(
    ("method", "weights", "base"),
    [
        (Method(methods.GENARM, (0.3, 0.7)), (0.3, 0.7, 0.0), 1.0),
        (Method(methods.PROXY, (0.0, 1.0)), (0.0, 1.0, -1.0), 1.0),
        (Method(methods.CONTRASTIVE), (0.0, 0.0, -0.25), 1.25),
    ],
)
def test_proxy_tuning_and_contrastive_decoding_take_off_what_the_small_model_said_before(method, weights, base):
    request = writer([methods.GENARM, methods.PROXY], 3).request(method, 0)
    assert (request.guide_weights, request.base_weight) == (weights, base)


def test_all_methods_share_their_draws_and_samples_have_draws_of_their_own():
    made = writer([methods.GENARM], 2)
    base, dpo, *samples = (
        made.request(method, 0)
        for method in (Method(methods.BASE), Method(methods.DPO), Method(SAMPLE, (0.0,)), Method(SAMPLE, (1.0,)))
    )
    assert (base.seed, base.sample) == (dpo.seed, dpo.sample) and base.guide_weights == ()
    assert [s.sample for s in samples] == [1, 2] and {s.seed for s in samples} == {base.seed}
