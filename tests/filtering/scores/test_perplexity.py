import math

import jax
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.filtering.scores import perplexity, scorers
from alignment.models import decoder
from tests.train import helpers

TEXTS = ["", "a", "hello", "x" * 20 + "yz" * 60, "abcabc" * 8, "b" * 33]


def encode(texts):
    return [[ord(character) % helpers.VOCAB for character in text] for text in texts]


def scorer(mesh_shape=(1, 1, 1), **options):
    settings = dict(max_len=32, overlap=8, batch_size=4, bos_id=1)
    model, mesh = helpers.model(), helpers.make_mesh(mesh_shape)
    return perplexity.build(model, helpers.start_params(), encode, mesh=mesh, **{**settings, **options})


def slow(text, max_len=32, overlap=8, bos_id=1):
    """Each token by itself: the softmax after what its window holds before it."""
    ids = [bos_id] * (bos_id is not None) + encode([text])[0]
    total, count = 0.0, 0
    for k in range(1, len(ids)):
        start = 0
        while k > start + max_len:
            start += max_len - overlap
        context = np.zeros((1, 32), np.int32)  # what follows a token changes nothing
        context[0, : k - start] = ids[start:k]
        logps_TV = jax.nn.log_softmax(logits_of(helpers.start_params(), context)[0])
        total, count = total + float(logps_TV[k - start - 1, ids[k]]), count + 1
    return total, count


@jax.jit
def logits_of(params, tokens):
    return decoder.logits(helpers.model(), params, helpers.model().apply({"params": params}, tokens))


def test_perplexity_is_that_of_one_token_at_a_time():
    score, texts = scorer(), TEXTS[:5]
    sums, counts = score.sums(texts)
    for text, total, count in zip(texts, sums, counts):
        wanted, number = slow(text)
        assert count == number == len(text)
        assert total == pytest.approx(wanted, abs=2e-3)
    rows = score([{"text": text} for text in texts])
    assert rows[0] == {"perplexity.tokens": 0.0}
    assert rows[2]["perplexity.score"] == pytest.approx(math.exp(-sums[2] / 5))
    assert rows[2]["perplexity.nats_per_byte"] == pytest.approx(-sums[2] / 5)
    found = score.perplexities(texts)
    assert math.isnan(found[0]) and found[2] == rows[2]["perplexity.score"]


def test_a_text_has_the_same_perplexity_in_any_company_and_on_any_mesh():
    score, spread = scorer(), scorer((2, 2, 2))
    together = score.perplexities(TEXTS)
    assert score.perplexities(TEXTS[::-1])[::-1][1:] == pytest.approx(together[1:], rel=1e-6)
    for text, value in zip(TEXTS[1:], together[1:]):
        assert score.perplexities([text])[0] == pytest.approx(value, rel=1e-6)
    assert spread.perplexities(TEXTS)[1:] == pytest.approx(together[1:], rel=1e-4)


@pytest.mark.parametrize("overlap", [0, 5, 31])
def test_windows_predict_every_token_once(overlap):
    for length in (0, 1, 2, 33, 34, 64, 100):
        ids, seen = np.arange(length), []
        for window, first in perplexity.windows(ids, 32, overlap):
            assert 2 <= len(window) <= 33 and first < len(window) - 1
            np.testing.assert_array_equal(window, np.arange(window[0], window[0] + len(window)))
            assert first >= overlap or window[0] == 0
            seen += window[1 + first :].tolist()
        assert seen == list(range(1, length))


def test_rows_come_in_few_lengths():
    assert [perplexity._length(n) for n in (1, 32, 33, 64, 65, 500)] == [32, 32, 64, 64, 128, 512]


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(InputError, match="needs encode_fn"):
        scorers.load("perplexity", tmp_path)
    with pytest.raises(InputError, match="max_len=48"):
        scorer(max_len=48)
    with pytest.raises(InputError, match="does not split over"):
        scorer((2, 1, 1), batch_size=3)
    with pytest.raises(InputError, match="the model has 40"):
        perplexity.build(
            helpers.model(), None, lambda texts: [[1, 99]], max_len=32, batch_size=1, mesh=helpers.make_mesh()
        ).perplexities(["a"])
