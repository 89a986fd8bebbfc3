"""Small random decoders, and slow ways to write with them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alignment.models import decoder

VOCAB = 17
LENGTH = 48  # one shape for all full passes


def random_lm(seed=4, **settings):
    """A decoder whose logits spread (deviation 4), so that the best token is safe and answers vary."""
    sizes = {"vocab_size": VOCAB, "num_layers": 2, "model_dim": 16, "num_heads": 4, "num_kv_heads": 2}
    settings = {"tie_embeddings": False, **sizes, **settings}
    model = decoder.DecoderLM(**settings)
    return model, jax.device_put(_random_params(model, seed))  # arrays of its own, which an engine may delete


@functools.cache
def _random_params(model, seed):
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 4), jnp.int32))["params"])
    scaled = {"embedding": params["embedding"] * 5.0}
    scaled |= {} if model.tie_embeddings else {"head": params["head"] * 4.0}
    return jax.device_get({**params, **scaled})


@functools.cache
def _forward_fn(model):
    return jax.jit(lambda params, tokens_BT: decoder.logits(model, params, model.apply({"params": params}, tokens_BT)))


def all_logits(lm, tokens):
    """Logits [T,V] behind every token, by one pass over the whole sequence, in float64."""
    model, params = lm
    filled = np.array([[*tokens, *[0] * (LENGTH - len(tokens))]])  # no token sees what comes after it
    return np.asarray(_forward_fn(model)(params, filled)[0, : len(tokens)], np.float64)


def all_logprobs(lm, tokens):
    """Log-probabilities [T,V] behind every token."""
    logits = all_logits(lm, tokens)
    top = logits.max(axis=-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


def slow_greedy(lm, prompt, num_tokens, stop_ids=()):
    """The likeliest token, again and again, each from a pass over everything before it."""
    answer = []
    while len(answer) < num_tokens and not (answer and answer[-1] in stop_ids):
        answer.append(int(all_logits(lm, [*prompt, *answer])[-1].argmax()))
    return answer
