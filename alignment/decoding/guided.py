"""One distribution from several models over one vocabulary: a linear combination of their log-probabilities.

The names that the field has for settings of the weights (base first, then guides):

- GenARM (Xu et al. 2024, arXiv:2410.08193, Eq. 9): 1 and alpha_i, with autoregressive reward models as guides;
- proxy tuning (Liu et al. 2024, arXiv:2401.08565): 1, 1 for the tuned small model and -1 for the untuned one;
- contrastive decoding (Li et al. 2022, arXiv:2210.15097): 1 + a and -a for the amateur, without its filter;
- classifier-free guidance (Sanchez et al. 2023, arXiv:2306.17806): g, and 1 - g for the model without the condition.

A guide of `engine.Engine` is a model of its own over the same vocabulary, or an adapter of the base's own weights; all
adapters share the base's weights and its pass over them (see `stacks`):

    adapter, tree = peft_adapters.load("runs/brief/export/peft", model)  # or adapters.load of a run's workdir
    server = engine.Engine(model, params, guides=[(adapter, tree), (other_model, other_params)])
    request = Request(prompt, 64, guide_weights=(1.0, 0.5))  # and guide_prompts, where guides read prompts of their own

Each token of the answer has its log-probability under the base and under each guide (`Token.by_model`): the trace of an
autoregressive reward model. Where all guides of a request weigh 0, it writes, bit for bit, what an engine of the base
alone writes that has as many rows: num_slots * (1 + number of adapters) slots. An adapter of weight 1 beside
`base_weight=0` writes what it writes alone, so requests of one engine may be served by different adapters.

Dimensions: B slots, U positions of a row, V vocabulary, W models.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from alignment.decoding import stacks
from alignment.errors import InputError
from alignment.models import decoder, lora


class Place(NamedTuple):
    """Whose forward pass computes a model, base or guide.

    Attributes:
        model: number of the network, 0 for the base.
        part: which of its adapters, from 1 on; 0: the network itself.
    """

    model: int
    part: int


def lay_out(
    base: decoder.DecoderLM, guides: Sequence[tuple[decoder.DecoderLM | lora.Adapter, Any]], num_ids: int | None = None
) -> tuple[list[tuple[decoder.DecoderLM, Any]], list[tuple[lora.Adapter, Any]], tuple[Place, ...]]:
    """Guides as models of their own, adapters of the base, and the place of each guide in their order.

    Args:
        num_ids: tokens that the tokenizer has; behind them each model may fill its vocabulary up to a size of its own.

    Raises:
        InputError: an adapter of another network, or another vocabulary.
    """
    models: list[Any] = []
    adapters: list[Any] = []
    places = []
    for number, (guide, params) in enumerate(guides):
        if isinstance(guide, lora.Adapter):
            stacks.check(base, guide, f"guides[{number}]")
            adapters.append((guide, params))
            places.append(Place(0, len(adapters)))
        else:
            models.append((guide, params))
            places.append(Place(len(models), 0))
    sizes = [base.vocab_size, *(model.vocab_size for model, _ in models)]
    if len(set(sizes)) > 1 and (num_ids is None or num_ids > min(sizes)):
        raise InputError(
            f"the models' vocabularies have {sizes} tokens; models that decode together need one vocabulary"
        )
    return models, adapters, tuple(places)


def logprobs(logits: Sequence[jax.Array], num_ids: int | None = None) -> list[jax.Array]:
    """Log-probabilities [B,U,V] of each model, V being the size of the first one's vocabulary.

    Args:
        logits: [B,U,V] of each model, up to a constant for each position. Vocabularies may differ in what lies beyond
            `num_ids`, as those of checkpoints do that were filled up to different round numbers.
        num_ids: tokens from this id on are cut off before each model is normalised; None: all count.
    """
    V = logits[0].shape[-1]
    num_ids = V if num_ids is None else num_ids

    def cut(logits_BUX):
        if num_ids == V == logits_BUX.shape[-1]:
            return logits_BUX
        rest = ((0, 0), (0, 0), (0, V - num_ids))
        return jnp.pad(logits_BUX[..., :num_ids], rest, constant_values=-jnp.inf)

    return [jax.nn.log_softmax(cut(logits_BUX)) for logits_BUX in logits]


def combine(logps: Sequence[jax.Array], weights_WB: jax.Array, logits_BUV: jax.Array) -> jax.Array:
    """`sum_w weight_w logp_w` [B,U,V], not normalised: a softmax or an argmax comes next.

    The choice is made token by token. Its distribution over whole answers is not that of the product of the models'
    distributions over answers, which no decoder of one token at a time can draw from.

    A token that a model of any weight but 0 rules out (-inf) is ruled out, whatever the others say. A row whose base
    has the weight 1 and whose guides have 0 gets the base's logits as they are, so that its answer is the base's own to
    the last bit.

    Args:
        logps: [B,U,V] of each model, the base first; see `logprobs`.
        weights_WB: one weight for each model and row. A model of weight 0 has no influence.
        logits_BUV: of the base.
    """
    total_BUV: jax.Array | float = 0.0
    for weight_B, logp_BUV in zip(weights_WB, logps):
        weight_B11 = weight_B[:, None, None]
        # 0 times -inf is not a number, and -1 times -inf would make a token that cannot be the likeliest of all
        term_BUV = jnp.where(logp_BUV == -jnp.inf, -jnp.inf, weight_B11 * logp_BUV)
        total_BUV += jnp.where(weight_B11 == 0, 0.0, term_BUV)
    is_base_B = (weights_WB[0] == 1) & jnp.all(weights_WB[1:] == 0, axis=0)
    return jnp.where(is_base_B[:, None, None], logits_BUV, total_BUV)
