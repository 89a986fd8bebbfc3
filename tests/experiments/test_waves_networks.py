"""Attacks on image marks by networks: a user's own encoder and decoder or diffusion model, and surrogates."""

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.watermark import learned, marks, regenerating
from data.toys import scenes
from experiments import waves
from experiments.image_watermarks import attacks, networks, prepare
from tests.experiments.test_waves import CALLS

OWN = """
import jax.numpy as jnp

def encode(images):
    return images.reshape(len(images), 32, 2, 32, 2, 3).mean(axis=(2, 4))

def decode(latents):
    return jnp.repeat(jnp.repeat(latents, 2, axis=1), 2, axis=2)
"""
WHOLE = """
seen = []

def regenerate(images, strength, times, seed):
    seen.append((strength, times, seed))
    return images / 2
"""


def own_of(folder, text):
    (folder / "own.py").write_text(text)
    networks.user_file.cache_clear()
    return {"network": {"calls": str(folder / "own.py")}}


def test_a_users_encoder_and_decoder_regenerate_rinse_and_are_attacked(tmp_path):
    pictures = scenes.pink(2, 64)
    more = dict(mark="ring", weights="", seed=0, options={"noise": 0.5, "steps": 2}, given=own_of(tmp_path, OWN))
    once, twice, far = (
        attacks.apply(name, pictures, 1.0, **more) for name in ("Regen-Own", "Rinse-2x-Own", "AdvEmb-Own")
    )
    assert once.shape == twice.shape == pictures.shape and (once != twice).any()
    assert (once[:, ::2, ::2] == once[:, 1::2, 1::2]).all()  # through the file's halves
    assert 0 < np.abs(far.astype(int) - pictures).max() <= 8
    again = regenerating.through(pictures, lambda x: x, lambda z: z, noise=0.0)
    assert (again == pictures).all()
    with pytest.raises(InputError, match=r"the regeneration returned \(2, 3\)"):
        regenerating.by_call(pictures, lambda x, seed: np.zeros((2, 3)))


def test_a_users_diffusion_model_is_one_function_that_hears_of_strength_and_passes(tmp_path):
    pictures = scenes.pink(2, 64)
    own = own_of(tmp_path, WHOLE)
    more = dict(mark="ring", weights="", seed=3, options={"noise": 1.0, "steps": 2}, given=own)
    four = attacks.apply("Rinse-4x-Own", pictures, 0.5, **more)
    assert four.mean() == pytest.approx(pictures.mean() / 16, abs=1)
    seen = networks.user_file(own["network"]["calls"], "given.network.calls").seen
    assert [call[:2] for call in seen] == [(0.5, 4)] * 4 and len({call[2] for call in seen}) == 4
    c = waves.get_config("tiny")
    c.attacks, c.noise = ("Regen-Own",), 0.5
    with pytest.raises(InputError, match=r"noise=0.5 is not read, as given.network.calls has a function regenerate"):
        waves.check_networks(c, own)
    c.attacks = ("AdvEmb-Own",)
    with pytest.raises(InputError, match=r"has no function 'encode'; AdvEmb-Own needs encode, of jax.numpy"):
        waves.check_networks(c, own)
    with pytest.raises(InputError, match="AdvEmb-Own differentiates its encoder, which JAX cannot trace"):
        waves.check_networks(c, own_of(tmp_path, CALLS.replace("images[..., :1]", "np.asarray(images)[..., :1]")))
    c.attacks = ("Regen-Own",)
    with pytest.raises(InputError, match="has no function 'decode'"):
        waves.check_networks(c, own_of(tmp_path, "encode = print"))


def test_surrogates_are_trained_beside_unmarked_real_and_a_second_users_pictures(tmp_path, monkeypatch):
    """tests/watermark/test_learned.py trains; here what a surrogate would be trained on is looked at."""
    learnt = []

    def fit(loss_fn, model, images, labels, *, steps, seed):
        learnt.append((images, labels))
        return {"w": np.zeros(1, np.float32)}, [1.0]

    monkeypatch.setattr(learned, "fit", fit)
    pictures, photographs = scenes.pink(2, 64), scenes.pink(3, 64, seed=9)
    mark_fn = marks.MARKS.__getitem__
    prepare.marked(pictures, ["ring"], user=0, folder=tmp_path, mark_fn=mark_fn, is_second_user=True)
    more = dict(seed=0, training={"steps": 1}, made_from=[], photographs=photographs)
    for _ in range(2):  # trained once
        prepare.networks(tuple(attacks.SURROGATES), ["ring"], folder=tmp_path, **more)
    ring = marks.MARKS["ring"]
    others = [pictures, photographs, ring.embed_fn(pictures, ring.key_fn(1))]
    assert len(learnt) == 3
    for bare, (images, labels) in zip(others, learnt):
        assert (images[: len(bare)] == bare).all() and labels.tolist() == [False] * len(bare) + [True] * 2
        assert (images[len(bare) :] == ring.embed_fn(pictures, ring.key_fn(0))).all()
    names = {attacks.surrogate_file("ring", attack) for attack in attacks.SURROGATES}
    assert len(names) == 3 and all((tmp_path / name).exists() for name in names)
    c = waves.get_config("tiny")
    c.attacks, c.marks = (attacks.CLASSIFY_USERS,), ("stegastamp",)
    with pytest.raises(InputError, match="a second user's pictures, and those of stegastamp are marked elsewhere"):
        waves.check_surrogates(c)
