"""`--doctor` passes what is right in every layout, and names the check that something wrong fails."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from alignment import programs
from alignment.preference import pairs
from alignment.train import next_token, sharding
from experiments import dpo, run, sft
from experiments.launch import doctor, planning

MESH = (1, 2, 1)


def mesh(sizes=MESH):
    num = int(np.prod(sizes))
    return Mesh(np.array(jax.devices()[:num]).reshape(sizes), sharding.AXES)


def outcomes(training, sizes=MESH):
    return {line.name: line.outcome for line in doctor.examine(training, mesh(sizes))}


def of_dpo(**changes):
    c = dpo.get_config("tiny")
    c.update(changes.pop("top", {}))
    c.batch.update(changes)
    return dpo.plan(c, planning.Wanted())[0]


@pytest.mark.parametrize("layout", ["shared", "tree"])
def test_a_right_step_on_pairs_passes_every_check(layout):
    assert set(outcomes(of_dpo(layout=layout)).values()) == {doctor.OK}


def test_a_loss_on_the_whole_batch_is_examined_in_parts_too():
    assert outcomes(of_dpo(layout="separate", top={"loss": "kto"}), (1, 1, 1))["accumulation"] == doctor.OK


def test_the_first_step_of_a_loss_with_an_anchor_is_right_as_a_run_finds_it():
    training = doctor.small(of_dpo(layout="shared", top={"sft_weight": 0.1}))
    assert "both rewards 0" in doctor._Patient(training, mesh((1, 1, 1))).first_step()


def test_a_right_step_on_rows_passes_and_has_no_first_loss():
    (training,) = sft.plan(sft.get_config("tiny"), planning.Wanted())
    found = outcomes(training)
    assert found.pop("first step") == doctor.LEFT_OUT and set(found.values()) == {doctor.OK}


def _reads_padding(params, batch, *, loss_fn, rng, frozen):
    everywhere = {**batch, "mask": jnp.ones_like(batch["mask"])}
    return loss_fn(params, everywhere, rng=rng, frozen=frozen)


def test_a_loss_that_counts_padding_fails_padding_and_packing():
    (training,) = sft.plan(sft.get_config("tiny"), planning.Wanted())

    def loss_of(model, mesh):
        return programs.Computation(_reads_padding, numbers=dict(loss_fn=next_token.loss_fn(model, mesh)))

    found = outcomes(dataclasses.replace(training, loss_of=loss_of), (1, 1, 1))
    assert found["padding"] == found["packing"] == doctor.FAILED
    assert found["accumulation"] == doctor.OK and found["mesh"] == doctor.LEFT_OUT


def test_a_reference_that_is_not_the_policy_fails_the_first_step():
    training = of_dpo(layout="separate")

    def loss_of(model, mesh):
        return programs.Computation(_shifted, numbers=dict(loss_fn=pairs.loss_fn(model, "dpo", mesh=mesh, beta=0.1)))

    found = outcomes(dataclasses.replace(training, loss_of=loss_of), (1, 1, 1))
    assert found["first step"] == doctor.FAILED and found["padding"] == doctor.OK


def _shifted(params, batch, *, loss_fn, rng, frozen):
    shifted = {**batch, "reference": batch["reference"] + 0.1 * batch["mask"]}
    return loss_fn(params, shifted, rng=rng, frozen=frozen)


def test_the_launcher_prints_a_table_and_fails_where_a_check_does(capsys, monkeypatch):
    lines = [doctor.Line("padding", doctor.FAILED, "gradient off"), doctor.Line("mesh", doctor.OK, "")]
    monkeypatch.setattr(doctor, "examine", lambda training, mesh: iter(lines))
    assert run.main(["--config", "dpo:tiny", "--doctor"]) == run.BAD_INPUT
    printed = capsys.readouterr()
    assert "padding        FAILED" in printed.out and "DPO: padding: gradient off" in printed.err
    monkeypatch.setattr(doctor, "examine", lambda training, mesh: iter(lines[1:]))
    assert run.main(["--config", "dpo:tiny", "--doctor"]) == run.OK


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "focus:tiny", "--doctor"], "focus trains no decoder; these have: aloe, dpo"),
        (["--config", "dpo:tiny", "--doctor", "--sweep"], "leave --sweep"),
    ],
)
def test_what_has_nothing_to_check_is_refused(arguments, words, capsys):
    assert run.main(arguments) == run.BAD_INPUT
    assert words in capsys.readouterr().err
