"""Log-probabilities that runs share are found under what they were computed from, and under nothing else."""

import concurrent.futures
import types

import jax
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.preference import pairs, reference_store
from data.texts import trees
from experiments.launch import references
from tests.train import helpers

IDS = np.array([1, 2, 3, 4], np.int32)
MADE = {"weights": "a", "code": "b"}


def test_what_was_written_is_read_and_the_rest_is_missing(tmp_path):
    store = reference_store.Store(tmp_path, MADE)
    store.write(["k1", "k2"], [np.array([-1.0, -2.0]), np.array([-3.0])])
    store.write(["k3"], [np.array([-4.0])])
    found = reference_store.Store(tmp_path, MADE).read(["k3", "k0", "k1", "k2"])
    assert [None if one is None else one.tolist() for one in found] == [[-4.0], None, [-1.0, -2.0], [-3.0]]
    assert all(one.dtype == np.float32 for one in found if one is not None)


@pytest.mark.parametrize("changed", ["weights", "code"])
def test_other_weights_or_numerics_read_nothing(tmp_path, changed):
    reference_store.Store(tmp_path, MADE).write(["k"], [np.array([-1.0])])
    assert reference_store.Store(tmp_path, MADE | {changed: "c"}).read(["k"]) == [None]


def test_a_key_is_of_the_tokens_and_of_where_the_answer_begins():
    keys = {reference_store.key(IDS, 2), reference_store.key(IDS, 3), reference_store.key(IDS[:3], 2)}
    keys.add(reference_store.key(np.array([1, 2, 3, 5]), 2))
    assert len(keys) == 4 and reference_store.key(IDS.astype(np.int64), 2) == reference_store.key(IDS, 2)


def test_an_edited_weight_or_another_dtype_is_another_digest():
    params = helpers.start_params()
    first = reference_store.digest(params)
    assert reference_store.digest(jax.tree.map(np.array, params)) == first
    edited = jax.tree.map(np.array, params)
    edited["layers"]["down"][1, 3, 2] = np.nextafter(edited["layers"]["down"][1, 3, 2], 1)
    assert reference_store.digest(edited) != first
    assert reference_store.digest(jax.tree.map(lambda x: x.astype(np.float16), params)) != first


def test_numerics_are_those_of_network_mesh_precision_flags_and_code(monkeypatch):
    def numerics(mesh=(1, 1, 1), layout=(), **changes):
        return reference_store.numerics(helpers.model(**changes), helpers.make_mesh(mesh), layout)

    first = numerics()
    assert numerics(remat="full", unroll=2) == numerics((2, 2, 1)) == first  # the same numbers another way
    for changes in (dict(dtype="bfloat16"), dict(attention="dense"), dict(rope_theta=5.0), dict(mesh=(1, 1, 2))):
        assert numerics(**changes) != first
    assert numerics(layout=(trees,))["code"] != first["code"]
    with jax.default_matmul_precision("highest"):
        assert numerics() != first
    with monkeypatch.context() as patch:
        patch.setattr(reference_store, "ENGINE", reference_store.ENGINE[:-1])
        assert numerics()["code"] != first["code"]
    monkeypatch.setenv("XLA_FLAGS", "--xla_allow_excess_precision=false")
    assert numerics() != first


def modules(module, prefix):
    """The modules under a name that a module and its own imports import."""
    own = [
        one for one in vars(module).values() if isinstance(one, types.ModuleType) and one.__name__.startswith(prefix)
    ]
    return {module, *own, *(deep for one in own for deep in modules(one, prefix))}


def test_the_code_that_counts_is_all_that_networks_and_rows_are_made_of():
    assert modules(pairs, "alignment.models.") <= set(reference_store.ENGINE)
    assert modules(trees, "data.texts.") <= set(references.LAYOUT)


def test_many_writers_at_once_lose_nothing(tmp_path):
    def write(number):
        store = reference_store.Store(tmp_path, MADE)
        store.write([f"own {number}", "same"], [np.array([-float(number)]), np.array([-7.0])])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(16)))
    found = reference_store.Store(tmp_path, MADE).read([*(f"own {k}" for k in range(16)), "same"])
    assert [one.tolist() for one in found] == [*([-float(k)] for k in range(16)), [-7.0]]


def test_of_two_values_every_reader_takes_the_same(tmp_path):
    for value in (-1.0, -1.5):  # two runs computed it at the same time, in rows of other shapes
        reference_store.Store(tmp_path, MADE).write(["k"], [np.array([value])])
    assert len({reference_store.Store(tmp_path, MADE).read(["k"])[0].item() for _ in range(3)}) == 1


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    store = reference_store.Store(tmp_path, MADE)
    store.write(["k"], [np.arange(40, dtype=np.float32)])
    (path,) = store.folder.glob("*.npz")
    content = bytearray(path.read_bytes())
    content[content.find(np.arange(20, 24, dtype=np.float32).tobytes())] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:300])
    with pytest.raises(InputError, match=rf"{path.name} is damaged.*remove it"):
        store.read(["k"])
