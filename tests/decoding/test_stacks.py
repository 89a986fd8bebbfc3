import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignment.decoding import engine, layout, network, stacks
from alignment.decoding.requests import Request
from alignment.errors import InputError
from alignment.models import lora
from tests.decoding.models import LENGTH, all_logprobs, random_lm
from tests.decoding.test_engine import PROMPTS, bits, mixed_requests

SIZES = dict(num_slots=2, max_len=LENGTH, chunk=8, block=4, num_steps=4)
KINDS = (
    lora.Settings(rank=2, alpha=16.0, targets=("q_proj", "v_proj", "down_proj", "lm_head")),
    lora.Settings(rank=3, alpha=24.0),
    lora.Settings(rank=4, alpha=16.0, targets=("o_proj", "up_proj"), rank_pattern=((r"layers\.1\..*", 1),)),
)


@pytest.fixture(scope="module")
def lm():
    # XLA writes out the products of narrower networks as loops, which sum in another order where a term is added
    return random_lm(model_dim=64, ffn_dim=96)


def adapter_of(lm, number):
    """An adapter that changes the base's answers."""
    model, _ = lm
    adapter = lora.lay_out(KINDS[number], model)
    tree = nn.meta.unbox(adapter.init(jax.random.key(number))["params"])
    keys = iter(jax.random.split(jax.random.key(10 + number), 32))
    pairs = [*tree.get("layers", {}).values(), *([tree["head"]] if "head" in tree else [])]
    for pair in pairs:
        pair["b"] = 0.3 * jax.random.normal(next(keys), pair["b"].shape) * (np.abs(pair["a"]).max() > 0)
    return adapter, tree


def folded(lm, adapter, tree):
    model, base = lm
    attached = adapter.attach(base, tree)
    return lora.folded_model(model, attached), lora.fold(attached)


@pytest.fixture(scope="module")
def adapters(lm):
    return [adapter_of(lm, number) for number in range(3)]


def make(lm, **options):
    return engine.Engine(*lm, **{**SIZES, **options})


@pytest.fixture(scope="module")
def stack(lm, adapters):
    return make(lm, guides=adapters)


def test_answers_guided_by_adapters_are_those_of_combined_passes(lm, adapters):
    other = random_lm(seed=7)
    server = make(lm, guides=[adapters[0], other, adapters[1]])
    alone = [folded(lm, *adapters[0]), other, folded(lm, *adapters[1])]
    requests = [
        Request(p, 8, guide_prompts=[[1, *p], p[::-1], p], guide_weights=w)
        for p, w in zip(PROMPTS, [(0.5, 1.5, 0.3), (2.0, 0.0, -1.0), (0.0, 0.7, 1.0)])
    ]
    for answer in server.answers([*requests, dataclasses.replace(requests[0], guide_prompts=())]):
        prompt, weights = answer.request.prompt, answer.request.guide_weights
        prompts, written = answer.request.guide_prompts or [prompt] * 3, []
        for token in answer.tokens:
            each = [all_logprobs(lm, [*prompt, *written])[-1]]
            each += [all_logprobs(guide, [*own, *written])[-1] for guide, own in zip(alone, prompts)]
            assert token.id == (each[0] + sum(w * x for w, x in zip(weights, each[1:]))).argmax()
            np.testing.assert_allclose(token.by_model, [x[token.id] for x in each], atol=1e-4)
            written.append(token.id)


def test_guides_of_weight_zero_leave_the_base_s_bits(lm, stack):
    requests = mixed_requests(12)
    plain = make(lm, num_slots=SIZES["num_slots"] * 4)
    wanted = [bits(a) for a in plain.answers(requests)]
    guided_requests = [dataclasses.replace(r, guide_weights=(0.0, 0.0, 0.0)) for r in requests]
    assert [bits(a) for a in stack.answers(guided_requests)] == wanted
    assert all(len(t.by_model) == 4 for a in stack.answers(guided_requests[:1]) for t in a.tokens)


def test_requests_served_by_different_adapters_write_what_each_writes_alone(lm, adapters, stack):
    requests = [
        Request(PROMPTS[0], 12, guide_weights=np.eye(3)[number].tolist(), base_weight=0.0) for number in range(3)
    ]
    for answer, adapter in zip(stack.answers(requests), adapters):
        alone = make(folded(lm, *adapter)).answers([Request(PROMPTS[0], 12)])[0]
        assert answer.ids == alone.ids
        np.testing.assert_allclose([t.logprob for t in answer.tokens], [t.logprob for t in alone.tokens], atol=1e-4)


def test_bits_of_a_guided_request_do_not_depend_on_its_neighbours(stack):
    rng = np.random.default_rng(3)
    weights = [(0.0, 0.0, 0.0), (1.0, 0.5, -0.5), (0.0, 2.0, 0.0)]
    requests = [dataclasses.replace(r, guide_weights=weights[i % 3]) for i, r in enumerate(mixed_requests(15))]
    alone = []
    for request in requests:
        stack.prefixes.forget()
        alone += map(bits, stack.answers([request]))
    order = rng.permutation(len(requests))
    numbers = {stack.submit(requests[i]): i for i in order}
    together = {}
    while stack.num_busy or stack.num_waiting:
        if rng.random() < 0.2:
            stack.preempt(int(rng.choice(list(numbers))))
        together |= {numbers[n.answer.number]: bits(n.answer) for n in stack.advance() if n.is_done}
    assert [together[i] for i in range(len(requests))] == alone


def test_a_stack_guesses_tokens_as_well(lm, adapters, stack):
    requests = [Request(p, 12, guide_weights=(0.5, 1.0, 0.2), temperature=t, seed=2) for p in PROMPTS for t in (0, 0.8)]
    fast = make(lm, guides=adapters, num_draft=2)
    assert [a.ids for a in fast.answers(requests)] == [a.ids for a in stack.answers(requests)]


def test_one_pass_multiplies_by_each_base_matrix_once(lm, adapters):
    model, params = lm
    weights = layout.prepare(model, params) | {"adapters": stacks.prepare(model, adapters)}
    cache = network.init_cache(model, 4, LENGTH, block=4, chunk=8)

    def step(weights):
        zeros_R1 = jnp.zeros((4, 1), jnp.int32)
        adapter_R = jnp.arange(4) + stacks.NONE
        hidden_R1D, _ = network.forward(model, weights, cache, zeros_R1, zeros_R1, adapter_R=adapter_R)
        return network.logits(weights, hidden_R1D[:, 0], adapter_R)

    text = str(jax.make_jaxpr(step)(weights))
    num_rest = 2 * 2  # scores and mixtures of both layers
    num_thin = (4 + 7) * 2 + 2  # an A for each input and a B for each matrix, and the head's
    assert text.count("dot_general[") == 7 * 2 + 1 + num_thin + num_rest


def test_an_adapter_of_another_network_is_refused(lm):
    with pytest.raises(InputError, match=r"guides\[1\] is an adapter of another network"):
        make(lm, guides=[adapter_of(lm, 0), adapter_of(random_lm(num_layers=1), 1)])


@pytest.mark.slow  # test_engine.py spreads a model over devices; this one has adapters beside it
def test_a_stack_on_several_devices_writes_the_same():
    model, params = random_lm(num_layers=1, num_heads=8, num_kv_heads=4, vocab_size=16, head_dim=4)
    adapters = [adapter_of((model, params), number) for number in (0, 1)]
    requests = [Request([t % 16 for t in p], 8, guide_weights=(0.5, 1.0)) for p in PROMPTS[:3]]
    wanted = make((model, params), guides=adapters).answers(requests)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(1, 1, 4), ("data", "fsdp", "tensor"))
    spread = model, jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    for answer, alone in zip(make(spread, guides=adapters).answers(requests), wanted):
        assert answer.ids == alone.ids
        np.testing.assert_allclose([t.by_model for t in answer.tokens], [t.by_model for t in alone.tokens], atol=1e-4)
