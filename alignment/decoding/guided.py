"""One distribution from several models over one vocabulary: a linear combination of their log-probabilities.

The names that the field has for settings of the weights (base first, then guides):

- GenARM (Xu et al. 2024, arXiv:2410.08193, Eq. 9): 1 and alpha_i, with autoregressive reward models as guides;
- proxy tuning (Liu et al. 2024, arXiv:2401.08565): 1, 1 for the tuned small model and -1 for the untuned one;
- contrastive decoding (Li et al. 2022, arXiv:2210.15097): 1 + a and -a for the amateur, without its filter;
- classifier-free guidance (Sanchez et al. 2023, arXiv:2306.17806): g, and 1 - g for the model without the condition.

Dimensions: B slots, U positions of a row, V vocabulary, W models.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


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
