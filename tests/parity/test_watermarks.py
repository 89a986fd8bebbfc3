"""Our marks beside those of transformers 5: processors, detectors and their counts."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from alignment.watermark import detect, green, processors, text_marks, tournament

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")
logits_process = pytest.importorskip("transformers.generation.logits_process")

V = 64
SEEDINGS = [("lefthash", 1), ("lefthash", 3), ("selfhash", 2), ("selfhash", 4)]
SYNTHID = dict(ngram_len=4, keys=[654, 400, 836, 123], sampling_table_size=65536, sampling_table_seed=0)
SYNTHID |= dict(context_history_size=16)


def kgw(seeding, width):
    config = dict(greenlist_ratio=0.25, bias=2.0, hashing_key=15485863, seeding_scheme=seeding, context_width=width)
    return config, text_marks.from_transformers(config, vocab_size=V)


def texts(rows=3, length=40):
    return np.random.default_rng(0).integers(0, 12, (rows, length))


@pytest.mark.parametrize(("seeding", "width"), SEEDINGS)
def test_biased_logits_are_those_of_transformers(seeding, width):
    config, mark = kgw(seeding, width)
    theirs = logits_process.WatermarkLogitsProcessor(vocab_size=V, device="cpu", **config)
    fn, row = processors.build(mark)
    logits = np.random.default_rng(1).normal(size=(3, V)).astype(np.float32)
    ids = texts()[:, :9]
    ours, _ = fn(
        jnp.asarray(logits),
        jnp.asarray(ids, jnp.int32),
        jnp.full(3, 9),
        processors.stack(row, 3) | {"delta": jnp.full(3, 2.0)},
    )
    np.testing.assert_array_equal(ours, theirs(torch.tensor(ids), torch.tensor(logits)).numpy())


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize(("seeding", "width"), SEEDINGS)
def test_counts_and_z_are_those_of_transformers(seeding, width, once):
    config, mark = kgw(seeding, width)
    of_model = transformers.LlamaConfig(vocab_size=V, bos_token_id=60)
    theirs = transformers.WatermarkDetector(of_model, "cpu", config, ignore_repeated_ngrams=once)
    out = theirs(torch.tensor(texts()), return_dict=True)
    for i, ids in enumerate(texts()):
        ours = detect.detect(mark, ids, counts="ngrams" if once else "all", bos_id=60)
        assert (ours.num_scored, ours.score) == (out.num_tokens_scored[i], out.num_green_tokens[i])
        assert ours.z == pytest.approx(out.z_score[i])
        assert scipy.stats.norm.sf(ours.z) == pytest.approx(out.p_value[i])


def synthid():
    theirs = logits_process.SynthIDTextWatermarkLogitsProcessor(**SYNTHID, device="cpu")
    return theirs, text_marks.from_transformers(SYNTHID, vocab_size=V)


def test_bits_and_repeated_contexts_of_synthid_are_those_of_transformers():
    theirs, mark = synthid()
    ids = texts()
    g = theirs.compute_g_values(torch.tensor(ids)).numpy()
    repeated = theirs.compute_context_repetition_mask(torch.tensor(ids)).numpy().astype(bool)
    for i, row in enumerate(ids):
        np.testing.assert_array_equal(tournament.g_values(mark, row), g[i])
        np.testing.assert_array_equal(tournament.is_new_context(mark, row), repeated[i])


def test_a_synthid_answer_is_marked_step_by_step_as_in_transformers():
    theirs, mark = synthid()
    fn, row = processors.build(mark)
    state = processors.stack(row, 2) | {"is_on": jnp.ones(2, bool)}
    rng = np.random.default_rng(2)
    ids = rng.integers(0, V, (2, 5))  # the prompt
    answers = rng.integers(0, 2, (2, 30))  # two tokens only, so that contexts come again
    tokens = np.zeros((2, 48), np.int32)
    for step in range(30):
        tokens[:, : ids.shape[1]] = ids
        logits = rng.normal(size=(2, V)).astype(np.float32)
        ours, state = fn(jnp.asarray(logits), jnp.asarray(tokens), jnp.full(2, ids.shape[1], jnp.int32), state)
        expected = theirs(torch.tensor(ids), torch.tensor(logits)).numpy()
        np.testing.assert_allclose(np.asarray(ours), expected, rtol=1e-4, atol=1e-4)
        ids = np.concatenate([ids, answers[:, step : step + 1]], axis=1)


def test_lists_are_the_ids_that_transformers_draws():
    config, mark = kgw("lefthash", 1)
    theirs = logits_process.WatermarkLogitsProcessor(vocab_size=V, device="cpu", **config)
    for prev in (0, 5, 63):
        assert green.torch_list(mark, [prev]).tolist() == theirs._get_greenlist_ids(torch.tensor([prev])).tolist()
