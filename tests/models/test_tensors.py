import json
import struct

import ml_dtypes
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.models import tensors


def write(folder, arrays, file="model.safetensors"):
    shapes = {name: x.shape for name, x in arrays.items()}
    dtype = next(iter(arrays.values())).dtype
    tensors.write(folder / file, shapes, dtype, arrays.values())
    return folder / file


def some(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {"a": rng.normal(size=(3, 5)).astype(dtype), "b": rng.normal(size=7).astype(dtype)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_is_written_is_read_bit_for_bit(tmp_path, dtype):
    arrays = some(dtype)
    write(tmp_path, arrays)
    for name, stored in tensors.index(tmp_path).items():
        assert tensors.view(name, stored).tobytes() == arrays[name].tobytes()


def test_the_safetensors_library_reads_our_files_and_we_read_its(tmp_path):
    from safetensors import numpy as reference

    arrays = some()
    file = write(tmp_path, arrays)
    for name, array in reference.load_file(file).items():
        np.testing.assert_array_equal(array, arrays[name])
    reference.save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name, stored in tensors.index(tmp_path).items():
        np.testing.assert_array_equal(tensors.view(name, stored), arrays[name])


def test_shards_hold_every_tensor_once_within_the_limit(tmp_path):
    shapes = {"a": (10,), "b": (10,), "c": (100,), "d": (1,)}
    shards = tensors.plan(shapes, np.dtype(np.float32), max_shard_bytes=80)
    assert shards == {
        "model-00001-of-00003.safetensors": ["a", "b"],
        "model-00002-of-00003.safetensors": ["c"],
        "model-00003-of-00003.safetensors": ["d"],
    }
    assert tensors.plan(shapes, np.dtype(np.float32), 10_000) == {"model.safetensors": ["a", "b", "c", "d"]}


def test_a_file_cut_anywhere_is_refused_by_name(tmp_path):
    file = write(tmp_path, some())
    whole = file.read_bytes()
    for size in (0, 4, 30, len(whole) - 40, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"model\.safetensors is truncated"):
            tensors.index(tmp_path)
    with pytest.raises(InputError, match=f"b ends at byte {len(whole)}, the file at {len(whole) - 1}"):
        tensors.index(tmp_path)


def test_bytes_that_do_not_fit_the_shape_are_refused(tmp_path):
    text = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(InputError, match=r"a in .* has 8 bytes; F32 \(3,\) takes 12"):
        tensors.index(tmp_path)


def test_a_dtype_we_cannot_compute_with_is_refused_when_read(tmp_path):
    text = json.dumps({"a": {"dtype": "I8", "shape": [8], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(InputError, match="is I8, and only F64, F32, F16, BF16"):
        tensors.view("a", tensors.index(tmp_path)["a"])


def test_a_folder_without_its_files_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no \*.safetensors"):
        tensors.index(tmp_path)
    tensors.write_index(tmp_path, {"x.safetensors": ["a"], "y.safetensors": ["b"]}, 0)
    with pytest.raises(InputError, match=r"x.safetensors is missing; .* puts a there"):
        tensors.index(tmp_path)
    write(tmp_path, some(), "x.safetensors")
    write(tmp_path, {"c": np.zeros(2)}, "y.safetensors")
    (tmp_path / tensors.INDEX).write_text(json.dumps({"weight_map": {"a": "x.safetensors", "z": "y.safetensors"}}))
    with pytest.raises(InputError, match="lacks z"):
        tensors.index(tmp_path)


@pytest.mark.parametrize("other", ["adapter_model.safetensors", "consolidated.safetensors", "model.fp16.safetensors"])
def test_a_file_beside_the_weights_is_left_alone_and_that_is_said(tmp_path, capsys, other):
    file = write(tmp_path, some())
    write(tmp_path, {"c": np.zeros(2, np.float32)}, file=other)
    assert {stored.file for stored in tensors.index(tmp_path).values()} == {file}
    assert f"weights come from model.safetensors; {other} beside it: not read" in capsys.readouterr().out


def test_an_adapter_beside_shards_is_left_alone(tmp_path, capsys):
    write(tmp_path, some(), file="model-00001-of-00001.safetensors")
    write(tmp_path, {"c": np.zeros(2, np.float32)}, file="adapter_model.safetensors")
    places = {"weight_map": dict.fromkeys("ab", "model-00001-of-00001.safetensors")}
    (tmp_path / tensors.INDEX).write_text(json.dumps(places))
    assert set(tensors.index(tmp_path)) == {"a", "b"}
    assert "adapter_model.safetensors beside it: not read" in capsys.readouterr().out


def test_an_adapter_alone_is_refused_with_the_way_out(tmp_path):
    write(tmp_path, some(), file="adapter_model.safetensors")
    with pytest.raises(InputError, match="alone, which changes another model; merge it"):
        tensors.index(tmp_path)


def test_equal_values_of_two_types_are_the_same(tmp_path):
    exact = np.arange(6, dtype=np.float32)
    for name, array in {"x": exact, "y": exact.astype(ml_dtypes.bfloat16), "z": exact + 1}.items():
        write(tmp_path, {name: array}, file=f"{name}.safetensors")
    x, y, z = (tensors.header(tmp_path / f"{name}.safetensors")[name] for name in "xyz")
    assert tensors.same_values("x", x, y) and not tensors.same_values("x", x, z)
