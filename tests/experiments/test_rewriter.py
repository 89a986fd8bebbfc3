"""The worker of native alignment: what it learns from, and that another run finds it again."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment import logprobs
from alignment.decoding import cache
from alignment.errors import InputError
from alignment.filtering.rewriting import conduct, rewrite
from alignment.models import decoder
from alignment.train import next_token
from data.texts import rewrite_pairs, text
from data.texts.rewrite_pairs import Pair
from data.tokens import tokenizer, word_bytes
from experiments import rewriter
from experiments.filtering import worker

SIZES = dict(num_layers=2, model_dim=32, num_heads=2, num_kv_heads=2, ffn_dim=64)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Pairs, their tokenizer and a batch of them, packed."""
    folder = tmp_path_factory.mktemp("pairs")
    pairs = rewrite_pairs.with_identity(rewrite_pairs.synthetic(8, faulty=1.0), share=0.5, seed=0)
    tok = word_bytes.build([f" {p.origin} {p.rewritten}" for p in pairs], folder, num_words=200)
    rewrite_pairs.write(folder / "a.jsonl", pairs, worker.bare)
    options = dict(kind="answers", tokenizer=tok, max_len=128)
    found, *_ = text.load(path=str(folder / "a.jsonl"), heldout_path=str(folder / "a.jsonl"), **options)
    return pairs, tok, text.assemble(found, np.arange(len(found)))


def test_only_the_rewritten_tokens_count_in_the_rows(rows):
    pairs, tok, batch = rows
    counted = [tok.decode(t[m > 0], skip_special=False) for t, m in zip(batch["targets"], batch["mask"])]
    assert "".join(counted).count("<|eos|>") == len(pairs)
    written = sorted(part.strip() for row in counted for part in row.split("<|eos|>") if part)
    assert written == sorted(pair.rewritten for pair in pairs)


def test_the_gradient_at_the_logits_of_prompt_tokens_is_exactly_zero(rows):
    _, tok, batch = rows
    logits_NTV = jax.random.normal(jax.random.key(0), (*batch["mask"].shape, tok.vocab_size))
    eye_VV = jnp.eye(tok.vocab_size)  # hidden states that are the logits

    def loss(logits_NTV):
        mask_NT = batch["mask"]
        logps_NT = logprobs.selected(logits_NTV, eye_VV, None, batch["targets"], mask_NM=mask_NT, chunk=64)
        return -jnp.sum(logps_NT * mask_NT) / mask_NT.sum()

    slope_NT = np.abs(jax.jit(jax.grad(loss))(logits_NTV)).sum(axis=-1)
    assert (slope_NT[batch["mask"] == 0] == 0).all() and (slope_NT[batch["mask"] == 1] > 0).all()
    assert 0.2 < batch["mask"].mean() < 0.8


def test_the_loss_of_identity_pairs_falls_on_a_toy_of_two_layers(rows):
    _, tok, batch = rows
    model = decoder.DecoderLM(vocab_size=tok.vocab_size, **SIZES)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    loss_fn, tx = next_token.loss_fn(model, chunk=64), optax.adam(3e-3)

    def mean(params):
        loss = loss_fn(params, batch, rng=None, frozen=None)[0]
        return loss.total / loss.count

    @jax.jit
    def turn(carry, _):
        params, state = carry
        loss, slope = jax.value_and_grad(mean)(params)
        updates, state = tx.update(slope, state)
        return (optax.apply_updates(params, updates), state), loss

    _, losses = jax.lax.scan(turn, (params, tx.init(params)), None, length=30)
    assert losses[0] == pytest.approx(np.log(tok.vocab_size), rel=0.1) and losses[-1] < 0.6 * losses[0]


def test_the_default_is_the_sheet():
    c = rewriter.get_config()
    assert (c.optimizer.peak_lr, c.optimizer.schedule, c.warmup) == (1e-5, "cosine", 0.03)
    assert (c.epochs, c.batch_size, c.compute.dtype) == (2, 128, "bfloat16")
    assert (c.rows.max_len, c.max_origin, c.identity_share, c.data.heldout_fraction) == (4096, 1900, 0.3, 0.02)


def test_a_run_reports_how_much_is_left_alone_and_what_the_gates_say(tiny):
    folder = tiny("rewriter").workdir
    summary = json.loads((folder / "summary.json").read_text())
    assert {"heldout/identity_rate", "heldout/unanswered", "heldout/edited/exact"} <= set(summary)
    rows = [json.loads(line) for line in (folder / "tables/rewritten.jsonl").read_text().splitlines()]
    assert {"origin", "written", "wanted", "exact", "similarity", "accepted", "failed"} <= set(rows[0])
    assert (folder / "figures/similarity.png").is_file()


def test_the_worker_a_run_leaves_answers_as_a_backend(tiny):
    folder = tiny("rewriter").workdir
    found = worker.load(str(folder / "export/hf"), batch_size=4, dtype="float32")
    code = conduct.load("en-neutral")
    assert found.conduct_sha256 == code.sha256 and found.name.startswith("hf:")
    rows = [json.loads(line) for line in (folder / "tables/rewritten.jsonl").read_text().splitlines()]
    texts = [{"text": row["origin"]} for row in rows]
    options = dict(count_tokens=found.count_tokens, model=found.name)
    answers = rewrite.rewrite(texts, found.complete, code, cache.Cache(), **options)
    assert [answer or "" for answer in answers] == [row["written"] for row in rows] and len(rows) == 4


def test_pairs_of_a_file_are_asked_under_the_whole_code_of_conduct(tmp_path):
    c = rewriter.get_config()
    pairs = [Pair(f"text {i}", f"answer {i}") for i in range(7)] + [
        Pair("x" * 2_000, "y"),
        Pair("z" * 1_800, "z" * 900),
    ]
    lines = [json.dumps({"origin": p.origin, "rewritten": p.rewritten}) for p in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    c.data.path = str(tmp_path / "pairs.jsonl")
    tok, code, counts = tokenizer.load("bytes"), conduct.load(c.conduct), {}
    read = rewriter.fitting(rewriter.read(c, tmp_path, counts), tok, c.max_origin, counts)
    assert read == [p for p in pairs if p.rewritten != "y"] and counts["originals of more than 1900 tokens"] == 1
    c.rows.max_len = 4_000  # bytes; the longest pair does not fit, and is left out, not cut
    train, heldout = rewriter.conversations(c, code, tok, read, read[:1], counts)
    assert (train.num_texts, heldout.num_texts, counts["longer than a row, dropped"]) == (7, 1, 1)
    asked, answer = (tok.decode(ids) for ids in heldout.first_answer(0))
    assert code.notice in asked and conduct.wrap("text 0") in asked and answer.strip() == "answer 0"


def test_answers_are_judged_by_kind_and_by_check(tmp_path):
    pairs = [Pair("I was at the old mill and it was fine.", "I was at the old mill.")] * 2 + [
        Pair("It is so.", "It is so.")
    ]
    answers = ["I was at the old mill.", "Analysis: it was at the mill and it was fine.", None]
    found = rewriter.judge(tmp_path, pairs, answers, {"language": lambda texts: [("en", 1.0)] * len(texts)})
    assert found["heldout/identity_rate"] == 0 and found["heldout/unanswered"] == pytest.approx(1 / 3)
    assert found["heldout/edited/exact"] == found["heldout/edited/accepted"] == 0.5
    rows = [json.loads(line) for line in (tmp_path / "tables/gates.jsonl").read_text().splitlines()]
    failed = {row["check"]: (row["failed"], row["not measured"]) for row in rows}
    assert failed == {"no_answer": (1, 0), "perplexity": (0, 2), "safety": (0, 2), "scaffold": (1, 0)}


def test_a_prompt_of_another_kind_is_refused():
    with pytest.raises(InputError, match="not one of: full, bare"):
        worker.check_prompt("short")


def test_pairs_with_a_remark_of_the_model_are_left_out_and_counted():
    code, counts = conduct.load("en-neutral"), {}
    pairs = [
        Pair("It is rude.", "It is.<|im_end|>"),
        Pair("It is rude.", "Note: edited.\n\nIt is."),
        Pair("Rude.", "Mild."),
    ]
    assert rewriter.without_remarks(pairs, code, counts) == pairs[2:] and list(counts.values()) == [2]
    with pytest.raises(InputError, match="strip them"):
        rewriter.without_remarks(pairs[:2], code, {})
