"""Whole rows in place of blocks: the layout on a CPU, and the choice of a kernel that no CPU has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.decoding import engine, rows
from alignment.errors import InputError
from alignment.models import decoder
from tests.decoding.models import LENGTH, random_lm
from tests.decoding.test_engine import mixed_requests

SIZES = dict(num_slots=3, max_len=LENGTH, chunk=8, block=4, num_steps=4)
FITS = dict(num_draft=0, cache_dtype="", num_devices=1)
HALF = decoder.DecoderLM(vocab_size=9, num_layers=1, model_dim=32, num_heads=4, num_kv_heads=2, dtype=jnp.bfloat16)


def test_answers_over_whole_rows_are_those_over_blocks():
    lm, requests = random_lm(), mixed_requests(20)
    over_blocks, over_rows = engine.Engine(*lm, **SIZES), engine.Engine(*lm, **SIZES, attention="xla")
    for a, b in zip(over_blocks.answers(requests), over_rows.answers(requests)):
        assert a.ids == b.ids
        np.testing.assert_allclose([t.logprob for t in a.tokens], [t.logprob for t in b.tokens], atol=1e-5)
    assert over_rows.counts["cached_tokens"] == over_blocks.counts["cached_tokens"] > 0


def test_a_cpu_walks_blocks_and_a_gpu_takes_the_fused_kernel_where_it_is_right(monkeypatch, capsys):
    assert rows.choose("auto", [HALF], **FITS) == "blocks"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(rows, "self_test", lambda *args: None)
    assert rows.choose("auto", [HALF], **FITS) == "cudnn" and rows.choose("blocks", [HALF], **FITS) == "blocks"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (dict(dtype=jnp.float32), {}, "dtype="),
        (dict(sliding_window=8), {}, "sliding_window=8"),
        ({}, dict(num_draft=2), "num_draft=2"),
        ({}, dict(cache_dtype="int8"), "int8"),
        ({}, dict(num_devices=2), "one device, not 2"),
    ],
)
def test_what_the_fused_kernel_does_not_take_keeps_the_blocks_and_says_why(model, options, said, monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(rows, "self_test", lambda *args: None)
    assert rows.choose("auto", [HALF.clone(**model)], **(FITS | options)) == "blocks"
    assert said in capsys.readouterr().out
    with pytest.raises(InputError, match="use 'blocks'"):
        rows.choose("cudnn", [HALF.clone(**model)], **(FITS | options))


def test_a_kernel_that_is_missing_or_wrong_is_refused_by_its_self_test(monkeypatch, capsys):
    with pytest.raises(InputError, match="attention='cudnn' does not run here"):
        rows.choose("cudnn", [HALF], **FITS)  # no CPU has it
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert rows.choose("auto", [HALF], **FITS) == "blocks" and "as this run now does" in capsys.readouterr().out
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    right = rows.attend

    def wrong(q_RTHK, cache, positions_RT, first_row, kernel):
        """Ignores where each row ends, as kernels for another version of a library have done."""
        positions_RT = positions_RT if kernel == "xla" else jnp.full_like(positions_RT, 127)
        return right(q_RTHK, cache, positions_RT, first_row, "xla")

    monkeypatch.setattr(rows, "attend", wrong)
    with pytest.raises(InputError, match="is wrong here: it is off by"):
        rows.choose("cudnn", [HALF], **FITS)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(InputError, match="attention='splash'"):
        rows.choose("splash", [HALF], **FITS)
