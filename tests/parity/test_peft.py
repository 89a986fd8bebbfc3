"""Adapters beside those of peft: folders that go both ways, and ten DPO steps beside TRL's DPOTrainer with peft."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.models import decoder, lora, peft_adapters
from alignment.preference import pairs as preference_pairs
from alignment.train import adapters, optimizer, sharding, step
from tests.parity import test_trl_training as full

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

TOKENS = np.array([[5, 17, 3, 99, 2], [8, 8, 120, 4, 60]])
CONFIGS = {
    "all-linear": dict(r=4, lora_alpha=8, target_modules="all-linear"),
    "list": dict(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], use_rslora=True),
    "regex": dict(r=4, lora_alpha=8, target_modules=r".*layers\.1\.(self_attn\.[ko]_proj|mlp\.up_proj)"),
    "patterns": dict(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "o_proj", "gate_proj"],
        rank_pattern={r"layers\.1\.self_attn\.q_proj": 7, "gate_proj": 2},
        alpha_pattern={"o_proj": 3},
    ),
    "layers": dict(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], layers_to_transform=[1]),
    "head": dict(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"]),
}


def moved(model):
    """B is random too, as after training."""
    torch.manual_seed(1)
    for name, tensor in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(tensor, std=0.2)
    return model


def torch_logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(TOKENS)).logits.numpy()


def our_logits(model, params):
    hidden = model.apply(decoder.variables(params), jnp.asarray(TOKENS))
    return decoder.logits(model, params, hidden)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_of_peft_computes_the_same_here(name, tmp_path):
    base = full.tiny_llama()
    model, params = full.ours(full.arrays(base))
    theirs = moved(peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **CONFIGS[name])))
    theirs.save_pretrained(tmp_path)
    adapter, tree = peft_adapters.load(tmp_path, model)
    attached = adapter.attach(params, tree)
    np.testing.assert_allclose(our_logits(model, attached), torch_logits(theirs), rtol=0, atol=1e-4)
    folded = our_logits(lora.folded_model(model, attached), lora.fold(attached))
    np.testing.assert_allclose(folded, torch_logits(theirs), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_of_ours_loads_in_peft_and_computes_the_same(name, tmp_path):
    base = full.tiny_llama()
    model, params = full.ours(full.arrays(base))
    config = CONFIGS[name] | {"peft_type": "LORA"}
    adapter = lora.lay_out(peft_adapters.of_config(config, "config"), model)
    keys = iter(jax.random.split(jax.random.PRNGKey(0), 100))
    tree = jax.tree.map(lambda leaf: 0.2 * jax.random.normal(next(keys), leaf.shape), adapter.form())
    peft_adapters.save(tmp_path / "adapter", adapter, tree)
    _, tree = peft_adapters.load(tmp_path / "adapter", model)  # without what lies beyond a layer's rank
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    np.testing.assert_allclose(our_logits(model, adapter.attach(params, tree)), torch_logits(theirs), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def trl_run(tmp_path_factory):
    base, folder = full.tiny_llama(), tmp_path_factory.mktemp("peft")
    weights = full.arrays(base)
    torch.manual_seed(2)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **CONFIGS["patterns"]))
    model.save_pretrained(folder)
    return full.train(tmp_path_factory.mktemp("trl"), model, weights), folder


@pytest.mark.parametrize("reference", ["stored", "adapter off"])
def test_ten_steps_follow_trl_with_peft_loss_by_loss(trl_run, reference):
    run, folder = trl_run
    model, params = full.ours(run.weights)
    mesh = full.one_device()
    found = full.batches(run, "separate")
    tx = optimizer.adamw(full.RATE, schedule="constant", weight_decay=0.0, clip_norm=0.0)
    adapter, tree = peft_adapters.load(folder, model)
    if reference == "stored":
        num_answer = found[0]["mask"].shape[-1]
        num_pairs = full.NUM_STEPS * full.BATCH
        stored_NPA = preference_pairs.score(model, params, found, num_pairs, num_answer, mesh)
        found = [batch | {"reference": stored_NPA[batch["index"]]} for batch in found]
    base = jax.tree.map(jnp.asarray, params)
    state = adapters.create(adapter, tx, base, seed=0, mesh=mesh, params=jax.tree.map(jnp.asarray, tree))
    loss_fn = lora.loss_fn(preference_pairs.loss_fn(model, "dpo", mesh=mesh, beta=full.BETA), adapter)
    update = step.compile_update(step.build(loss_fn, tx), state)
    losses = []
    for batch in found:
        state, metrics = update(state, sharding.to_devices(batch, mesh))
        losses.append(float(step.value(metrics["loss"])))
    assert len(run.losses) == full.NUM_STEPS and np.ptp(run.losses) > 0.005  # else agreement would say little
    np.testing.assert_allclose(losses, run.losses, rtol=0, atol=1e-4)
