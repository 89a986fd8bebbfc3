"""`--plan`: presets are the published models, what cannot be planned is refused, and a plan that fits nothing fails."""

import functools

import jax
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.models import tree_attention
from alignment.train import adapters, hardware, optimizer, planning
from data.texts import preferences, text, trees
from experiments import dpo, run, sft
from experiments.launch import checks
from experiments.launch import config as configs
from experiments.launch import planning as launched
from experiments.safety import cost


@pytest.mark.parametrize("name", sorted(launched.ARCHITECTURES))
def test_presets_have_as_many_parameters_as_the_published_models(name):
    published = {key.lower(): num for key, num in cost.PUBLISHED.items()}
    model = launched.Wanted(launched.ARCHITECTURES[name]).decoder(launched.ARCHITECTURES[name], rows_are_plain=True)
    tx = optimizer.adamw(1e-6)
    assert launched.rows("x", model, tx=tx, batch_size=1, max_len=8, steps=1).num_params == published[name]


def shapes(batch):
    return {name: (value.shape, np.dtype(value.dtype)) for name, value in batch.items()}


@pytest.mark.parametrize("layout", ["separate", "shared"])
@pytest.mark.parametrize("loss", ["dpo", "kto_unpaired"])
def test_a_planned_batch_of_pairs_has_the_arrays_of_a_real_one(layout, loss):
    c = dpo.get_config("tiny")
    c.loss, c.batch.layout, c.objective.beta = loss, layout, 0.1
    training, before = dpo.plan(c, launched.Wanted())
    assert before.name == "pretraining" and not before.adapter.is_on()
    has_label = loss == "kto_unpaired"
    pairs = launched._one_pair(has_label)
    answer = preferences.round_up(80)
    real = preferences.assemble(
        pairs, np.zeros(8, int), layout=layout, num_time=160 if layout == "separate" else 240, num_answer=answer
    )
    real["reference"] = np.zeros((8, 2, answer), np.float32)
    assert shapes(training.batch_of(1, 1)) == shapes(real)


def test_a_planned_batch_of_trees_has_a_row_for_each_device_and_part():
    c = dpo.get_config("tiny")
    c.batch.layout = "tree"
    training = dpo.plan(c, launched.Wanted())[0]
    batch = training.batch_of(2, 2)
    assert batch["tokens"].shape == (4, trees.round_up(2 * 240)) == batch["reference"].shape
    assert batch["sides"].shape == (4, 8, 2)


def test_a_planned_batch_of_rows_has_the_arrays_of_a_real_one():
    (training,) = sft.plan(sft.get_config("tiny"), launched.Wanted())
    none = np.zeros(0, np.int32)
    texts = text.Texts(none, none, none, rows=((),) * 8, max_len=64, pad_id=0, samples=())
    assert shapes(training.batch_of(1, 1)) == shapes(text.assemble(texts, np.arange(8)))


def test_a_plan_prints_bytes_operations_hours_and_dollars(capsys):
    code = run.main(["--config", "dpo:tiny", "--plan=h200:8", "--plan_utilisation=0.5", "--plan_price=3"])
    printed = capsys.readouterr().out
    assert code == run.OK
    for words in ("analytic", "fastest that fits: --config.mesh.data=", "optimizer", "at 50% of the peak (assumed)"):
        assert words in printed
    assert "dollars at 3 a device and hour" in printed


def test_a_plan_that_does_not_fit_fails_and_says_by_how_much_and_what_would(capsys):
    code = run.main(["--config", "sft", "--plan=h200:1", "--plan_model=llama-3.1-70b"])
    words = capsys.readouterr().err
    assert code == run.BAD_INPUT
    assert "GiB too little" in words and "h200:16 would hold it" in words and "adapter" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "focus:tiny", "--plan=h200:1"], "focus has no training of a decoder to plan; these have: "),
        (["--config", "dpo:tiny", "--plan=v9:2x2"], "is not one of: v4"),
        (["--config", "dpo:tiny", "--plan=h200:1", "--plan_model=llama-3.1-9b"], "the nearest is 'llama-3.1-8b'"),
        (["--config", "dpo:tiny", "--plan_model=llama-3.1-8b"], "is read with --plan=TOPOLOGY only"),
        (["--config", "dpo:tiny", "--plan=h200:1", "--sweep"], "leave --sweep"),
        (["--config", "dpo:tiny", "--plan=h200:1", "--plan_utilisation=2"], "must be in (0, 1]"),
        (["--config", "dpo:tiny", "--plan=h200:1", "--config.batch.layout=pakced"], "batch.layout='pakced' is not one"),
        (["--config", "dpo:tiny", "--plan=h200:1", "--config.batch.batch_size=0"], "batch_size=0 must be at least 1"),
        (["--config", "dpo:tiny", "--plan=h200:1", "--config.data.max_len=None"], "data.max_len cannot be unset"),
        (["--config", "sft", "--plan=h200:1", "--config.data.truncation=cut"], "data.truncation='cut' is not one"),
        (["--config", "dpo:tiny", "--plan=h200:4", "--config.mesh.fsdp=3"], "does not split over the 4 devices"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments, words, capsys):
    assert run.main(arguments) == run.BAD_INPUT
    assert words in capsys.readouterr().err


def test_an_adapter_is_planned_as_one():
    c = dpo.get_config("tiny")
    whole, topology = dpo.plan(c, launched.Wanted())[0], hardware.topology("h200:1")
    c.adapter.rank = 2
    low, before = dpo.plan(c, launched.Wanted())
    assert low.adapter == adapters.Options(rank=2)
    assert before.name == "pretraining" and not before.adapter.is_on()  # of all weights, and the dearer one
    choice = planning.Choice((1, 1, 1), "none", 1)
    small, large = (planning.reckon(one, choice, topology).kinds for one in (low, whole))
    assert small["frozen weights"] == large["parameters"] and small["optimizer"] < large["optimizer"] / 2


def called(loss_fn, params, batch, frozen):
    return loss_fn(params, batch, frozen=frozen)


EXPECTED = {
    "dpo": ["DPO"],
    "sft": ["training"],
    "pretrain": ["training"],
    "egida": ["DPO"],
    "aloe": ["supervised tuning", "DPO, general", "DPO, safety"],
    "rewriter": ["training"],
    "genarm": ["reward", "dpo"],
    "native_alignment": ["pretrain", "sft", "dpo", "benign"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_stage_of_an_experiment_that_trains_a_decoder_can_be_planned(name):
    """With the real run's config; the batch of each stage is what its loss reads."""
    experiment = configs.load_experiment(name)
    wanted = launched.Wanted(dict(vocab_size=64, num_layers=1, model_dim=32, num_heads=2))
    config = experiment.config()
    if name == "aloe":
        config.general.path = config.safety.path = "pairs.jsonl"  # without pairs these stages are left out
    trainings = experiment.module.plan(config, wanted)
    assert [training.name for training in trainings] == EXPECTED[name]
    for key in filter(None, (training.accumulate_key for training in trainings)):
        assert checks.leaf(config, key) >= 1  # a flag of the run
    for training in trainings:
        state, batch, _, model = planning.shapes(training, planning.Choice((1, 1, 1), "none", 1), None)
        frozen = state.frozen if training.has_reference else {}
        loss_fn = functools.partial(training.loss_of(model, None), rng=None)
        mean, _ = jax.eval_shape(functools.partial(called, loss_fn), state.params, batch, frozen)
        assert mean.total.shape == ()


def test_weights_that_an_experiment_makes_itself_need_a_network_by_name():
    config = configs.load_experiment("egida:laptop")
    with pytest.raises(InputError, match="--plan_model=NAME"):
        config.module.plan(config.config(), launched.Wanted())


def test_parts_are_tried_only_where_a_run_has_a_setting_for_them():
    topology = hardware.topology("h200:1")
    dpo_stage, before = dpo.plan(dpo.get_config("tiny"), launched.Wanted())
    assert {one.accumulate for one in planning.choices(before, topology)} == {1}
    assert {one.accumulate for one in planning.choices(dpo_stage, topology)} == {1, 2, 4, 8}
    choice = planning.Choice((1, 1, 1), "none", 1)
    assert "accumulate" not in choice.flags(before.accumulate_key)
    assert choice.flags("sft.accumulate").endswith(" --config.sft.accumulate=1")


def test_a_loss_on_a_whole_batch_is_planned_in_parts_as_it_runs():
    c = dpo.get_config("tiny")
    c.loss = "kto"
    training = dpo.plan(c, launched.Wanted())[0]
    flops = [planning.num_flops(training, "none", parts) for parts in (1, 2)]
    assert flops[1] > 1.2 * flops[0]  # each part is scored before the gradient of any


def test_attention_in_packed_trees_is_counted_for_every_pair_of_blocks_that_see_each_other():
    counted = []
    for length in (1_024, 2_048):  # rows of 3 and 6 chunks of the head
        c = dpo.get_config("tiny")
        c.batch.layout, c.batch.batch_size, c.data.max_len = "tree", 1, length
        training = dpo.plan(c, launched.Wanted())[0]
        pairs_of_blocks = training.block_pairs(1)
        places = tree_attention.BLOCK**2 * pairs_of_blocks
        model = training.model
        head = model.head_dim or model.model_dim // model.num_heads
        # two products forward, five backward
        attention = 14 * places * model.num_heads * head * model.num_layers
        counted.append(planning.num_flops(training, "none") - attention)
    assert counted[1] == pytest.approx(2 * counted[0], rel=1e-3)  # what is left is of places and targets


def test_a_packed_row_is_reckoned_with_memory_linear_in_its_length_as_the_compiled_step_has():
    c = dpo.get_config("laptop")
    c.batch.layout, c.batch.batch_size, c.data.max_len, c.data.max_prompt_len = "tree", 4, 512, 384
    training = dpo.plan(c, launched.Wanted())[0]  # its pretraining comes after it
    choice, topology = planning.Choice((1, 1, 1), "full", 1), hardware.topology("cpu:1")
    reckoned, compiled = (fn(training, choice, topology).total for fn in (planning.reckon, planning.compile_step))
    assert reckoned == pytest.approx(compiled, rel=0.12)
