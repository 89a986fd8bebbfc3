"""Ten AdamW steps of DPO beside TRL's DPOTrainer: same weights, same pairs, same order.

TRL's side is TRL's own: its tokenising, collator, reference scoring, loss, optimiser and loop, on objects made in
memory.
"""

import copy
import dataclasses

import jax
import numpy as np
import pytest

from alignment.models import decoder
from alignment.preference import pairs as preference_pairs
from alignment.train import optimizer, sharding, step, train_state
from data.texts import preferences

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

BETA, RATE = 0.1, 2e-4
NUM_STEPS, BATCH, VOCAB, EOS = 10, 4, 131, 2


@dataclasses.dataclass(frozen=True)
class TrlRun:
    weights: dict[str, np.ndarray]  # before the first step
    prompts: list[list[int]]
    answers: list[tuple[list[int], list[int]]]  # (chosen, rejected)
    losses: list[float]
    reference_NP: np.ndarray  # sums over answer tokens, nats


def token_ids():
    """Two batches of pairs, five times over: all lengths, an answer of one token, answers that open alike."""
    rng = np.random.default_rng(0)

    def draw(low, high):
        return rng.integers(3, VOCAB, size=rng.integers(low, high)).tolist()

    prompts = [draw(3, 14) for _ in range(2 * BATCH)]
    answers = [(draw(0, 10) + [EOS], draw(0, 10) + [EOS]) for _ in prompts]
    opening = draw(3, 4)
    answers[1] = (opening + answers[1][0], opening + answers[1][1])
    answers[2] = ([EOS], answers[2][1])
    return prompts * (NUM_STEPS // 2), answers * (NUM_STEPS // 2)


def words(ids):
    return " ".join(f"<{i}>" for i in ids)


def word_tokenizer():
    """Word `<17>` is token 17."""
    vocab = {f"<{i}>": i for i in range(VOCAB)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<1>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=f"<{EOS}>", pad_token="<0>")


def tiny_llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        initializer_range=0.1,  # large enough that log-probabilities differ between tokens
        attention_dropout=0.0,
    )
    return transformers.LlamaForCausalLM(config).float()


def arrays(model):
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def train(folder, model, weights, **options) -> TrlRun:
    """Ten steps of TRL's trainer.

    Args:
        weights: of the network before the first step.
        options: of `DPOTrainer`.
    """
    prompts, answers = token_ids()
    losses = []

    class Recorder(trl.DPOTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.item())
            return loss

    settings = trl.DPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        beta=BETA,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        max_length=None,
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    columns = {
        "prompt": [words(ids) + " " for ids in prompts],
        "chosen": [words(ids) for ids, _ in answers],
        "rejected": [words(ids) for _, ids in answers],
    }
    trainer = Recorder(
        model=model,
        args=settings,
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=word_tokenizer(),
        **options,
    )
    rows = list(trainer.train_dataset)
    assert [row["prompt_ids"] for row in rows] == prompts
    assert [(row["chosen_ids"], row["rejected_ids"]) for row in rows] == answers
    sums_NP = np.zeros((0, 2))
    if trainer.ref_model is not None:
        sums = trainer.compute_ref_log_probs(trainer.ref_model, trainer.data_collator(rows))
        sums_NP = torch.stack(sums, dim=1).numpy()
    trainer.train()
    return TrlRun(weights, prompts, answers, losses, sums_NP)


@pytest.fixture(scope="module")
def trl_run(tmp_path_factory) -> TrlRun:
    model = tiny_llama()
    return train(tmp_path_factory.mktemp("trl"), model, arrays(model), ref_model=copy.deepcopy(model))


def ours(weights: dict[str, np.ndarray]):
    """The same network and its parameters in our layout."""
    D, H, G, K = 64, 4, 2, 16
    model = decoder.DecoderLM(
        vocab_size=VOCAB, num_layers=2, model_dim=D, num_heads=H, num_kv_heads=G, head_dim=K, ffn_dim=112, norm_eps=1e-5
    )

    def stacked(name, *shape):
        each = [weights[f"model.layers.{i}.{name}.weight"] for i in range(2)]
        return np.stack([x.T.reshape(shape) if shape else x.T for x in each])

    layers = {
        "query": stacked("self_attn.q_proj", D, H, K),
        "key": stacked("self_attn.k_proj", D, G, K),
        "value": stacked("self_attn.v_proj", D, G, K),
        "out": stacked("self_attn.o_proj", H, K, D),
        "gate": stacked("mlp.gate_proj"),
        "up": stacked("mlp.up_proj"),
        "down": stacked("mlp.down_proj"),
        "attention_norm": stacked("input_layernorm"),
        "mlp_norm": stacked("post_attention_layernorm"),
    }
    ends = {"embedding": weights["model.embed_tokens.weight"], "final_norm": weights["model.norm.weight"]}
    return model, {"layers": layers, **ends}


def tokenised(run: TrlRun) -> preferences.Pairs:
    sides = [(prompt + chosen, prompt + rejected) for prompt, (chosen, rejected) in zip(run.prompts, run.answers)]
    flat = [ids for pair in sides for ids in pair]
    prompt_len_N = np.array([len(prompt) for prompt in run.prompts])
    return preferences.Pairs(
        tokens=np.concatenate(flat).astype(np.int32),
        starts=np.cumsum([0, *map(len, flat)]),
        prompt_len_NP=np.stack([prompt_len_N, prompt_len_N], axis=1),
        trunk_len_N=prompt_len_N,
        label_N=None,
        items=(None,) * len(sides),
        limits={
            "sequence": max(map(len, flat)),
            "row": max(len(a) + len(b) - n for (a, b), n in zip(sides, prompt_len_N)),
            "answer": max(len(ids) for pair in run.answers for ids in pair),
        },
        pad_id=0,
    )


def one_device() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)


def batches(run: TrlRun, layout: str, extra: dict[str, np.ndarray] | None = None) -> list[dict[str, np.ndarray]]:
    """TRL's batches, in TRL's order."""
    pairs = tokenised(run)
    if layout == "tree":
        return list(preferences.batches(pairs, batch_size=BATCH, layout="tree", endless=False, extra=extra))
    num_time, num_answer = preferences.shape(pairs, layout=layout)
    indices = np.arange(NUM_STEPS * BATCH).reshape(NUM_STEPS, BATCH)
    shape = dict(layout=layout, num_time=num_time, num_answer=num_answer)
    more = extra or {}
    return [preferences.assemble(pairs, i, **shape) | {name: value[i] for name, value in more.items()} for i in indices]


def test_trl_itself_learns_in_these_ten_steps(trl_run):
    assert len(trl_run.losses) == NUM_STEPS
    assert trl_run.losses[0] == pytest.approx(np.log(2), abs=1e-6)
    assert np.ptp(trl_run.losses) > 0.05  # else agreement would say little
    assert np.ptp(trl_run.reference_NP) > 5


@pytest.mark.parametrize("layout", preferences.PADDED)
def test_sequence_log_probabilities_are_those_of_trl(trl_run, layout):
    model, params = ours(trl_run.weights)
    found = batches(trl_run, layout)
    num_answer = found[0]["mask"].shape[-1]
    stored_NPA = preference_pairs.score(model, params, found, NUM_STEPS * BATCH, num_answer, one_device())
    np.testing.assert_allclose(stored_NPA.sum(axis=-1), trl_run.reference_NP, rtol=0, atol=1e-4)


@pytest.mark.parametrize("reference", ["stored", "frozen"])
@pytest.mark.parametrize("layout", preferences.LAYOUTS)
def test_ten_steps_follow_trl_loss_by_loss(trl_run, layout, reference):
    model, params = ours(trl_run.weights)
    mesh = one_device()
    found = batches(trl_run, layout)
    tx = optimizer.adamw(RATE, schedule="constant", weight_decay=0.0, clip_norm=0.0)
    state = train_state.create(model, tx, found[0]["tokens"], seed=0, mesh=mesh, params=params)
    if reference == "stored":
        apart = batches(trl_run, "separate")
        num_answer = apart[0]["mask"].shape[-1]
        stored_NPA = preference_pairs.score(model, params, apart, NUM_STEPS * BATCH, num_answer, mesh)
        found = batches(trl_run, layout, {"reference": stored_NPA})
    else:
        state = train_state.with_reference(state)
    loss_fn = preference_pairs.loss_fn(model, "dpo", mesh=mesh, beta=BETA)
    update = step.compile_update(step.build(loss_fn, tx), state)
    losses = []
    for batch in found:
        state, metrics = update(state, sharding.to_devices(batch, mesh))
        losses.append(float(step.value(metrics["loss"])))
    np.testing.assert_allclose(losses, trl_run.losses, rtol=0, atol=1e-4)
