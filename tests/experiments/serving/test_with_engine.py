"""The service over the real engine, with a small model of random weights."""

import asyncio
import json
import math

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from alignment.decoding.engine import Engine
from alignment.decoding.requests import Request
from alignment.models import decoder, lora
from experiments.decoding.guides import Guide, Guides
from tests.experiments.serving.conftest import PIECES, TOK, opened
from tests.models.test_lora import moved


@pytest.fixture(scope="module")
def weights():
    model = decoder.DecoderLM(vocab_size=264, num_layers=1, model_dim=32, num_heads=2, num_kv_heads=1, ffn_dim=64)
    return model, nn.meta.unbox(jax.jit(model.init)(jax.random.PRNGKey(0), jnp.zeros((1, 4), jnp.int32))["params"])


def new_engine(weights, **options):
    sizes = {"num_slots": 4, "max_len": 128, "chunk": 16, "block": 16, "num_steps": 4, "chunks_per_turn": 2}
    engine = Engine(*weights, pieces=PIECES, stop_ids=TOK.stop_ids, **(sizes | options))
    engine.num_slots = sizes["num_slots"]
    return engine


MIXED = [
    {"prompt": "Hello there, museum!", "max_tokens": 20, "temperature": 0, "logprobs": 2},
    {"prompt": "Hello there, museum, again and again and again", "max_tokens": 9, "seed": 4, "logprobs": 0},
    {"prompt": [104, 105], "max_tokens": 30, "seed": 1, "top_k": 5, "top_p": 0.9, "logprobs": 1},
    {
        "prompt": "x" * 60,
        "max_tokens": 12,
        "seed": 2,
        "repetition_penalty": 1.5,
        "logit_bias": {"97": 5},
        "logprobs": 3,
    },
    {"prompt": "n of one", "max_tokens": 7, "seed": 3, "n": 3, "logprobs": 1, "min_p": 0.01},
    {"prompt": "scored", "max_tokens": 3, "seed": 0, "echo": True, "logprobs": 2, "stop": ["q", "\n"]},
]


def test_an_answer_is_the_same_bits_alone_among_others_and_streamed(weights, run):
    async def work():
        async with opened(new_engine(weights)) as door:
            alone = [(await door.post("/v1/completions", body)).json for body in MIXED]
            crowd = [*MIXED, *reversed(MIXED), *({"prompt": f"noise {i}", "max_tokens": 40} for i in range(6))]
            replies = await asyncio.gather(*(door.post("/v1/completions", body) for body in crowd))
            together = [reply.json["choices"] for reply in replies[: 2 * len(MIXED)]]
            assert together == [body["choices"] for body in [*alone, *reversed(alone)]]
            for body, whole in zip(MIXED, alone):
                chunks = (await door.post("/v1/completions", {**body, "stream": True})).chunks
                for choice in whole["choices"]:
                    own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
                    assert "".join(c["text"] for c in own) == choice["text"]
                    logprobs = [x for c in own for x in c["logprobs"]["token_logprobs"]]
                    assert logprobs == choice["logprobs"]["token_logprobs"]
            assert await door.settled()

    run(work())


def test_samples_of_one_seed_differ_and_come_again_with_it(weights, run):
    async def work():
        async with opened(new_engine(weights)) as door:
            options = {"max_tokens": 16, "seed": 11, "n": 4}
            first = (await door.complete("abc", **options)).json["choices"]
            assert len({choice["text"] for choice in first}) == 4
            assert (await door.complete("abc", **options)).json["choices"] == first
            assert (await door.complete("abc", **options | {"seed": 12})).json["choices"] != first
            assert (await door.complete("abc", **options | {"n": 1})).json["choices"] == first[:1]

    run(work())


def test_echo_scores_what_stepwise_answers_score(weights, run):
    async def work():
        async with opened(new_engine(weights)) as door:
            ids = list(b"some text to be scored, longer than a chunk")
            wrote = (await door.complete(ids, max_tokens=8, temperature=0, logprobs=1, logit_bias={"258": -100})).json
            (logprobs,) = (choice["logprobs"] for choice in wrote["choices"])
            assert len(logprobs["tokens"]) == 8
            # the answer's own ids as a prompt: their scores are those with which they were written
            greedy = new_engine(weights).answers([Request(ids, max_new_tokens=8, logit_bias={258: -100})])[0].ids
            echoed = (await door.complete([*ids, *greedy], max_tokens=0, echo=True, logprobs=1)).json
            (scored,) = (choice["logprobs"] for choice in echoed["choices"])
            assert len(scored["tokens"]) == len(ids) + 8 and scored["token_logprobs"][0] is None
            for one, other in zip(scored["token_logprobs"][-8:], logprobs["token_logprobs"]):
                assert math.isclose(one, other, abs_tol=1e-4)

    run(work())


def test_a_client_that_goes_in_its_prefill_or_its_answer_frees_its_slot(weights, run):
    async def work():
        async with opened(new_engine(weights)) as door:
            body = {"prompt": "y" * 100, "max_tokens": 25, "stream": True, "temperature": 0, "n": 4}
            before = (await door.complete("abc", max_tokens=20, seed=5, logprobs=0)).json["choices"]
            gone = asyncio.Event()
            gone.set()
            tasks = [door.post("/v1/completions", body, leaves=leaves) for leaves in (gone, 1, 2, 3)]
            other = door.complete("abc", max_tokens=20, seed=5, logprobs=0)
            *left, kept = await asyncio.gather(*tasks, other)
            assert kept.json["choices"] == before and not any(reply.is_complete for reply in left)
            assert await door.settled() and door.service.driver.engine.num_busy == 0

    run(work())


def test_logits_that_are_no_numbers_fail_their_request_alone(weights, run):
    model, params = weights
    embedding_VD = params["embedding"]
    damaged = {**params, "embedding": embedding_VD.at[ord("#")].set(jnp.nan), "head": embedding_VD.T}  # of one token
    model = model.clone(tie_embeddings=False)

    async def work():
        async with opened(new_engine((model, damaged))) as door:
            asked = {"max_tokens": 5, "temperature": 0, "logit_bias": {str(ord("#")): -100}}
            bad = [door.complete("# a", **asked), door.complete("a #", stream=True, **asked)]
            good = [door.complete(f"good {i}", **asked) for i in range(6)]
            failed, streamed, *others = await asyncio.gather(*bad, *good)
            assert failed.status == 500 and "not numbers" in failed.error["message"]
            assert json.loads(streamed.events[-1])["error"]["code"] == failed.error["code"] == "not_a_number"
            assert [reply.status for reply in others] == [200] * 6 and await door.settled()
            assert (await door.get("/healthz")).json["status"] == "ok"
            text = (await door.get("/metrics")).body.decode()
            assert 'plumbline_requests_total{outcome="failed",path="/v1/completions"} 2.0' in text

    run(work())


def test_a_prompt_that_was_read_before_is_counted_as_cached(weights, run):
    async def work():
        async with opened(new_engine(weights)) as door:
            prompt = "a prompt of more than two chunks of sixteen"
            for cached in (0, 32):
                usage = (await door.complete(prompt, max_tokens=1)).json["usage"]
                assert usage["prompt_tokens_details"] == {"cached_tokens": cached}
            text = (await door.get("/metrics")).body.decode()
            assert "plumbline_prefix_cache_hits_total 1.0" in text
            assert "plumbline_cached_prompt_tokens_total 32.0" in text

    run(work())


def test_a_request_names_its_guides_and_gets_each_models_trace(weights, run):
    model, _ = weights
    adapter = lora.lay_out(lora.Settings(rank=2, alpha=100.0), model)
    all_guides = Guides(tuple(Guide(name, f"peft:{name}", 0.0) for name in ("loud", "quiet")), (None, None))
    stack = new_engine(weights, guides=[(adapter, moved(adapter, seed)) for seed in (0, 1)])

    async def work():
        async with opened(stack, service_options=dict(guides=all_guides)) as door:
            plain = (await door.complete("abc", max_tokens=8, temperature=0)).json["choices"][0]
            assert "guidance" not in plain
            steered = {}
            for name, wanted in {"off": {}, "loud": {"loud": 3}, "alone": {"base": 0, "quiet": 1}}.items():
                for stream in (False, True):
                    reply = await door.complete("abc", max_tokens=8, temperature=0, guidance=wanted, stream=stream)
                    chunks = reply.chunks if stream else [reply.json]
                    own = [choice for chunk in chunks for choice in chunk["choices"]]
                    text = "".join(choice["text"] for choice in own)
                    trace = {m: [x for c in own for x in c["guidance"][m]] for m in ("base", "loud", "quiet")}
                    assert steered.setdefault(name, (text, trace)) == (text, trace)
            assert steered["off"][0] == plain["text"] and steered["loud"][0] != plain["text"]
            assert all(len(logprobs) == 8 for _, trace in steered.values() for logprobs in trace.values())
            assert max(steered["loud"][1]["loud"]) <= 0
            unknown = await door.complete("abc", guidance={"lout": 1})
            assert unknown.status == 400 and unknown.error["param"] == "guidance" and "loud" in unknown.error["message"]
            assert (await door.complete("abc", guidance={"loud": 1e9})).status == 400
            assert (await door.get("/v1/models")).json["data"][0]["guides"] == {"loud": 0.0, "quiet": 0.0}
        async with opened() as door:
            refused = await door.complete("abc", guidance={"loud": 1.0})
            assert refused.status == 400 and "this server has no guides" in refused.error["message"]

    run(work())
