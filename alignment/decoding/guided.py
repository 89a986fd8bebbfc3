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


def combine(logits: Sequence[jax.Array], weights_WB: jax.Array) -> jax.Array:
    """`sum_w weight_w log softmax(logits_w)` [B,U,V], not normalised: a softmax or an argmax comes next.

    The choice is made token by token. Its distribution over whole answers is not that of the product of the models'
    distributions over answers, which no decoder of one token at a time can draw from.

    Args:
        logits: [B,U,V] of each model, up to a constant for each position.
        weights_WB: one weight for each model and row. A model of weight 0 has no influence.
    """
    logps = [jax.nn.log_softmax(logits_BUV) for logits_BUV in logits]
    return sum(weight_B[:, None, None] * logps_BUV for weight_B, logps_BUV in zip(weights_WB, logps))  # type: ignore
