import itertools
import pickle
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.models import pretrained, tensors
from alignment.train import sharding
from tests.models.nets import NARROW, make

LAYOUTS = [(name, layout) for name in NARROW for layout in ("torchvision", "timm")]
LAYOUTS = [case for case in LAYOUTS if case not in {("alexnet", "timm"), ("cnn", "timm")}]


def read(file):
    """A file's tensors by name."""
    return {name: np.asarray(tensors.view(name, stored)) for name, stored in tensors.header(file).items()}


def write(file, arrays):
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    dtype = next(iter(arrays.values())).dtype
    tensors.write(file, {name: array.shape for name, array in arrays.items()}, dtype, arrays.values())
    return file


def zeros(variables):
    return jax.tree.map(jnp.zeros_like, variables)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_what_is_saved_is_loaded_bit_for_bit_in_every_layout(name, layout, tmp_path):
    _, variables = make(name)
    file = tmp_path / "model.safetensors"
    pretrained.save(file, variables, network=name, layout=layout)
    loaded, report = pretrained.load(file, zeros(variables), network=name)
    assert_same(loaded, variables)
    assert not report.skipped + report.missing + report.unexpected
    assert len(report.loaded) == len(read(file))
    assert_same(
        pretrained.load(tmp_path, zeros(variables), network=name)[0], variables
    )  # the folder, as timm's hub has


def test_shapes_and_order_are_torchs(tmp_path):
    _, variables = make("vgg11")
    pretrained.save(tmp_path / "v.safetensors", variables, network="vgg11")
    theirs, ours = read(tmp_path / "v.safetensors"), variables["params"]
    assert set(theirs) == {
        f"{layer}.{part}"
        for layer in ("features.0", "features.3", "features.5", "classifier.0", "classifier.3", "classifier.6")
        for part in ("weight", "bias")
    }
    conv = theirs["features.3.weight"]  # [out, in, rows, columns]
    assert conv.shape == (6, 4, 3, 3)
    for o, i, y, x in itertools.product(range(6), range(4), range(3), range(3)):
        assert conv[o, i, y, x] == ours["features_3"]["kernel"][y, x, i, o]
    first = theirs["classifier.0.weight"]  # reads 6 channels of 7 x 7 bins, channels first
    assert first.shape == (8, 6 * 49)
    rng = np.random.default_rng(0)
    for o, c, y, x in zip(*(rng.integers(0, n, 50) for n in (8, 6, 7, 7)), strict=True):
        assert first[o, c * 49 + y * 7 + x] == ours["classifier_0"]["kernel"][(y * 7 + x) * 6 + c, o]
    np.testing.assert_array_equal(theirs["classifier.6.weight"], ours["head"]["kernel"].T)

    pretrained.save(tmp_path / "t.safetensors", variables, network="vgg11", layout="timm")
    timm = read(tmp_path / "t.safetensors")
    assert timm["pre_logits.fc1.weight"].shape == (8, 6, 7, 7)
    np.testing.assert_array_equal(timm["pre_logits.fc1.weight"].reshape(8, -1), first)


def test_query_key_and_value_are_stacked_in_this_order(tmp_path):
    _, variables = make("vit_s16")
    pretrained.save(tmp_path / "v.safetensors", variables, network="vit_s16", layout="timm")
    stacked, block = read(tmp_path / "v.safetensors"), variables["params"]["block1"]
    for i, part in enumerate(("query", "key", "value")):
        rows = slice(12 * i, 12 * (i + 1))
        np.testing.assert_array_equal(
            stacked["blocks.1.attn.qkv.weight"][rows], block[part]["kernel"].reshape(12, 12).T
        )
        np.testing.assert_array_equal(stacked["blocks.1.attn.qkv.bias"][rows], block[part]["bias"].reshape(12))


def test_a_head_for_other_classes_is_skipped_and_listed_and_the_backbone_is_bit_equal(tmp_path):
    _, source = make("resnet18", num_classes=3)
    pretrained.save(tmp_path / "m.safetensors", source, network="resnet18")
    model, variables = make("resnet18")
    loaded, report = pretrained.load(tmp_path / "m.safetensors", variables, network=model)
    assert_same(loaded["params"]["head"], variables["params"]["head"])
    assert_same(loaded["batch_stats"], source["batch_stats"])
    backbone = {name: leaf for name, leaf in loaded["params"].items() if name != "head"}
    assert_same(backbone, {name: leaf for name, leaf in source["params"].items() if name != "head"})
    assert report.skipped == (
        "fc.bias (3,) (the network has (5,))",
        "fc.weight (3, 8) (the network has (5, 8))",
    )
    assert "skipped: fc.bias (3,) (the network has (5,)), fc.weight" in str(report)
    assert not report.missing + report.unexpected


def test_what_a_file_lacks_is_refused_or_listed_and_what_it_has_too_much_is_listed(tmp_path):
    _, variables = make("resnet18")
    pretrained.save(tmp_path / "m.safetensors", variables, network="resnet18")
    arrays = read(tmp_path / "m.safetensors")
    headless = {name: array for name, array in arrays.items() if not name.startswith("fc.")}
    counted = headless | {"extra.weight": np.ones(2, np.float32), "bn1.num_batches_tracked": np.ones(1, np.float32)}
    loaded, report = pretrained.load(write(tmp_path / "h.safetensors", counted), variables, network="resnet18")
    assert (report.missing, report.unexpected) == (("fc.bias", "fc.weight"), ("extra.weight",))
    assert_same(loaded, variables)

    del counted["layer2.0.conv1.weight"]
    file = write(tmp_path / "h.safetensors", counted)
    with pytest.raises(InputError, match=r"lacks layer2.0.conv1.weight;.*allow_missing=True leaves them"):
        pretrained.load(file, variables, network="resnet18")
    _, report = pretrained.load(file, variables, network="resnet18", allow_missing=True)
    assert "layer2.0.conv1.weight" in report.missing


def test_another_networks_file_is_refused(tmp_path):
    pretrained.save(tmp_path / "m.safetensors", make("vgg11")[1], network="vgg11")
    with pytest.raises(InputError, match="has no tensor of resnet18 in a layout of torchvision or timm: it has class"):
        pretrained.load(tmp_path / "m.safetensors", make("resnet18")[1], network="resnet18")
    pretrained.save(tmp_path / "m.safetensors", make("resnet18", width=6)[1], network="resnet18")
    with pytest.raises(
        InputError, match=r"does not fit the network: bn1.running_mean \(6,\) \(the network has \(4,\)\)"
    ):
        pretrained.load(tmp_path / "m.safetensors", make("resnet18")[1], network="resnet18")
    pretrained.save(tmp_path / "m.safetensors", make("resnet18", stage_sizes=(1, 2))[1], network="resnet18")
    with pytest.raises(InputError, match=r"has layer2.1.bn1.*no place in the network; is it a deeper one's"):
        pretrained.load(tmp_path / "m.safetensors", make("resnet18")[1], network="resnet18")


class Trap:
    """Unpickling this is a failure of the test."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_a_pickled_file_is_refused_with_the_command_that_converts_it_and_is_not_executed(tmp_path):
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Trap()))
    with zipfile.ZipFile(tmp_path / "new.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap()))
    (tmp_path / "renamed.safetensors").write_bytes((tmp_path / "new.ckpt").read_bytes())
    for name in ("old.pth", "new.ckpt", "renamed.safetensors"):
        with pytest.raises(InputError, match=r"is pickled.*python -c .*weights_only=True.*save_file") as error:
            pretrained.load(tmp_path / name, make("cnn")[1], network="cnn")
        assert str(tmp_path / name) in str(error.value)


def test_names_of_older_checkpoints_and_of_wrappers_are_understood(tmp_path):
    for name, old in (
        ("densenet121", lambda key: key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2.")),
        ("vit_s16", lambda key: key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2.")),
        ("resnet18", lambda key: f"module.{key}"),
        ("alexnet", lambda key: f"model.module.{key}"),
    ):
        _, variables = make(name)
        pretrained.save(tmp_path / "m.safetensors", variables, network=name)
        arrays = read(tmp_path / "m.safetensors")
        renamed = {old(key): array for key, array in arrays.items()}
        assert set(renamed) != set(arrays)
        file = write(tmp_path / "o.safetensors", renamed)
        assert_same(pretrained.load(file, zeros(variables), network=name)[0], variables)


def test_arrays_keep_the_dtype_and_the_place_of_those_they_replace(tmp_path):
    model, variables = make("resnet18", width=8)
    pretrained.save(tmp_path / "m.safetensors", variables, network="resnet18")
    arrays = read(tmp_path / "m.safetensors")
    half = write(tmp_path / "h.safetensors", {key: x.astype(ml_dtypes.bfloat16) for key, x in arrays.items()})
    mesh = sharding.make_mesh(data=2, fsdp=4)
    places = sharding.of(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))), mesh)
    placed = jax.device_put(zeros(variables), places)
    loaded, _ = pretrained.load(half, placed, network="resnet18")
    assert all(jax.tree.leaves(jax.tree.map(lambda x, p: x.sharding.is_equivalent_to(p, x.ndim), loaded, places)))
    rounded = jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32), variables)
    assert_same(loaded, rounded)


def test_a_file_that_cannot_be_read_or_written_is_refused(tmp_path):
    _, variables = make("cnn")
    with pytest.raises(InputError, match=r"nothing.safetensors does not exist; give a .safetensors file"):
        pretrained.load(tmp_path / "nothing.safetensors", variables, network="cnn")
    with pytest.raises(InputError, match=r"must end in .safetensors; .*model.safetensors would do"):
        pretrained.save(tmp_path / "model.pth", variables, network="cnn")
    with pytest.raises(InputError, match=r"layout='timm' is not one of: torchvision.*cnn has"):
        pretrained.save(tmp_path / "model.safetensors", variables, network="cnn", layout="timm")
    pretrained.save(tmp_path / "model.safetensors", variables, network="cnn")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-4])
    with pytest.raises(InputError, match="is truncated"):
        pretrained.load(tmp_path / "cut.safetensors", variables, network="cnn")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cut.safetensors", "model.safetensors"]
