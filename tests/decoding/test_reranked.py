import numpy as np
import pytest

from alignment.decoding import reranked
from alignment.preference import linear_reward
from tests.decoding.models import all_logprobs, random_lm, slow_greedy


@pytest.fixture(scope="module")
def lm():
    return random_lm()


def slow_search(lm, weights_E, prompt, *, weight, k, num_tokens):
    """Every step scores each of the k likeliest tokens by a pass over the whole text with it."""
    answer = []
    for _ in range(num_tokens):
        logps = all_logprobs(lm, [*prompt, *answer])[-1]
        candidates = np.argsort(-logps, kind="stable")[:k]
        texts = [([*prompt, *answer, int(token)], len(prompt)) for token in candidates]
        rewards = linear_reward.features(*lm, texts) @ weights_E
        answer.append(int(candidates[np.argmax(logps[candidates] + weight * rewards)]))
    return answer


def test_candidates_in_one_cache_choose_as_passes_over_the_whole_text_do(lm):
    weights_E = np.random.default_rng(1).normal(size=32).astype(np.float32)
    prompts = [[5, 6, 7], [3]]
    options = dict(num_candidates=4, max_new_tokens=9, block=8)
    written = reranked.write(*lm, weights_E, prompts, weight=2.0, **options)
    assert written == [slow_search(lm, weights_E, p, weight=2.0, k=4, num_tokens=9) for p in prompts]
    assert written != reranked.write(*lm, weights_E, prompts, weight=0.0, **options)


def test_without_weight_it_is_greedy_and_ends_at_a_stop_token(lm):
    plain = slow_greedy(lm, [5, 6, 7], 8)
    options = dict(weight=0.0, num_candidates=4, max_new_tokens=8, block=8)
    assert reranked.write(*lm, np.zeros(32, np.float32), [[5, 6, 7]], **options) == [plain]
    (stopped,) = reranked.write(*lm, np.zeros(32, np.float32), [[5, 6, 7]], stop_ids=[plain[2]], **options)
    assert stopped == plain[: plain.index(plain[2]) + 1]
