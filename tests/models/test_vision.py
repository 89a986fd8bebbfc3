import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.models import convolution, vision
from alignment.train import sharding
from tests.models.nets import CLASSES, NARROW, make, pixels, run

CONVOLUTIONAL = [name for name in NARROW if not name.startswith("vit")]
NUM_PARAMS = {  # of the published networks, with 1000 classes
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "alexnet": 61_100_840,
    "densenet121": 7_978_856,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b3": 12_233_232,
    "vit_s16": 22_050_664,
    "vit_b16": 86_567_656,
}
LAST_MAPS = {  # rows of the last feature map; mame.md 6.11 and, for 448, the Focus paper's GradCAM layers
    **{(name, 224): 7 for name in NUM_PARAMS if not name.startswith(("vit", "alexnet"))},
    **{(name, 525): 16 for name in ("vgg11", "vgg16", "densenet121")},
    **{(name, 525): 17 for name in ("resnet18", "resnet50")},
    **{("vgg16", 448): 14, ("resnet18", 448): 14, ("alexnet", 448): 13, ("alexnet", 224): 6, ("vit_b16", 224): 14},
}


LAST = {"resnet": "layer4", "vgg": "block5", "alexn": "block3", "dense": "norm5", "effic": "head", "vit": "patches"}


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_every_network_has_its_published_size_and_feature_maps(name):
    model = vision.network(name, num_classes=1000)
    last = next(layer for family, layer in LAST.items() if name.startswith(family))
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    (logits, at_224), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert logits.shape == (1, 1000)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == NUM_PARAMS[name]
    for size in (size for case, size in LAST_MAPS if case == name):
        x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        activations = at_224 if size == 224 else jax.eval_shape(model.apply, variables, x)[1]
        assert activations[last].shape[1:3] == (LAST_MAPS[name, size],) * 2


def spatial_layers(model, variables, x):
    """Names of the activations [N,Y,X,C], read while tracing: dicts that come out of jit are sorted by name."""
    names = []

    def record(variables, x):
        names.extend(
            name for name, a in model.apply(variables, x)[1].items() if a.ndim == 4 and "attention" not in name
        )

    jax.eval_shape(record, variables, x)
    return names


def test_activations_are_named_in_order_of_computation():
    expected = {
        "resnet18": ["stem", "layer1", "layer2"],
        "vgg11": ["block1", "block2"],
        "alexnet": ["block1", "block2", "block3"],
        "densenet121": ["stem", "denseblock1", "denseblock2", "norm5"],
        "efficientnet_b0": ["stem", "stage1", "stage2", "head"],
        "vit_s16": ["patches"],
    }
    for name, layers in expected.items():
        model, variables = make(name)
        size = getattr(model, "img_size", 64)
        assert spatial_layers(model, variables, jnp.zeros((1, size, size, 3))) == layers


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_with_a_mask_padding_changes_no_logit_and_without_it_does(name):
    model, variables = make(name)
    stride, Y, X = model.total_stride, 69, 75
    x_YXC = pixels(Y, X, 3)
    expected, _ = run(model, variables, x_YXC[None])

    shape = (Y + 2 * stride + 5, X + stride + 9)
    offsets = [(0, 0), (stride, 0), (0, stride), (2 * stride, stride)]  # rows and columns of padding before
    images, mask = np.zeros((4, *shape, 3), np.float32), np.zeros((4, *shape), np.uint8)
    for i, (top, left) in enumerate(offsets):
        images[i, top : top + Y, left : left + X] = x_YXC
        mask[i, top : top + Y, left : left + X] = 1
    rubbish = np.where(mask[..., None] == 1, images, np.float32(7))
    masked, activations = run(model, variables, rubbish, mask)
    np.testing.assert_allclose(masked, np.broadcast_to(expected, masked.shape), rtol=0, atol=1e-5)
    for x in jax.tree.leaves(activations):
        assert np.abs(x[0]).sum() == pytest.approx(np.abs(x[3]).sum(), rel=1e-5)  # nothing outside the mask

    released, _ = run(model, variables, images)
    assert np.abs(released - expected).max(axis=1).min() > 1e-3


def test_a_mask_of_ones_means_no_mask():
    for name in ("vgg11_bn", "densenet121"):
        model, variables = make(name)
        x = pixels(2, 64, 64, 3)
        plain, masked = run(model, variables, x), run(model, variables, x, np.ones((2, 64, 64), bool))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), plain, masked)


def test_in_training_batch_norm_counts_real_positions_only():
    model, variables = make("resnet_small")
    x = pixels(2, 10, 12, 3)
    padded = np.full((3, 16, 16, 3), 7, np.float32)  # the third image fills the batch up and has no real pixel
    mask = np.zeros((3, 16, 16), np.uint8)
    padded[:2, :10, :12], mask[:2, :10, :12] = x, 1

    @jax.jit
    def statistics(x, mask):
        return model.apply(variables, x, train=True, mask_NYX=mask, mutable=["batch_stats"])

    (logits, _), new = statistics(x, None)
    (padded_logits, _), padded_new = statistics(padded, mask)
    np.testing.assert_allclose(padded_logits[:2], logits, rtol=0, atol=1e-5)
    assert np.isfinite(padded_logits[2]).all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), padded_new, new)
    stem = nn.Conv(4, (3, 3), use_bias=False).apply({"params": variables["params"]["conv1"]}, x)
    old = variables["batch_stats"]["bn1"]["mean"]
    expected = 0.9 * old + 0.1 * stem.mean((0, 1, 2))
    np.testing.assert_allclose(new["batch_stats"]["bn1"]["mean"], expected, rtol=0, atol=1e-6)


def slow_adaptive_mean(x_YXC, bins):
    """torch's rule, one bin at a time."""
    Y, X, C = x_YXC.shape
    out = np.zeros((bins, bins, C))
    for i, j in itertools.product(range(bins), range(bins)):
        rows = slice(i * Y // bins, -(-(i + 1) * Y // bins))
        columns = slice(j * X // bins, -(-(j + 1) * X // bins))
        out[i, j] = x_YXC[rows, columns].astype(np.float64).mean((0, 1))
    return out


def test_adaptive_pooling_averages_torchs_bins_of_each_images_own_box():
    pool = jax.jit(convolution.adaptive_mean, static_argnums=2)
    for Y, X in ((14, 7), (9, 3), (16, 1)):  # whole windows, overlapping bins, fewer columns than bins
        x = pixels(2, Y, X, 2)
        expected = np.stack([slow_adaptive_mean(image, 7) for image in x])
        np.testing.assert_allclose(pool(jnp.asarray(x), None, 7), expected, rtol=0, atol=1e-6)
    x, mask = pixels(3, 16, 11, 2), np.zeros((3, 16, 11), bool)
    boxes = [(0, 16, 0, 11), (3, 12, 2, 5), (15, 16, 1, 8)]
    for real, (top, bottom, left, right) in zip(mask, boxes):
        real[top:bottom, left:right] = True
    expected = np.stack([slow_adaptive_mean(image[t:b, u:v], 7) for image, (t, b, u, v) in zip(x, boxes)])
    np.testing.assert_allclose(pool(jnp.asarray(x), jnp.asarray(mask), 7), expected, rtol=0, atol=1e-6)


def test_a_strided_mask_marks_as_many_outputs_as_the_image_alone_would_have():
    windows = [(7, 2, 3), (3, 2, 1), (3, 2, 0), (2, 2, 0), (11, 4, 2), (5, 2, 2), (1, 2, 0), (3, 1, 1)]
    for (window, stride, padding), n, before in itertools.product(windows, (11, 12, 13, 19), (0, 1)):
        mask = np.zeros((1, 40, 1), bool)
        mask[:, before * stride : before * stride + n] = True
        found = convolution.strided(jnp.asarray(np.tile(mask, (1, 1, 40))), window, stride, padding)
        alone = (n + 2 * padding - window) // stride + 1
        real = np.flatnonzero(np.asarray(found).any(2)[0])
        assert found.shape[1] == (40 + 2 * padding - window) // stride + 1
        assert real.tolist() == list(range(before, before + alone))


def test_attention_is_a_distribution_over_tokens_and_leaves_out_patches_of_padding():
    model, variables = make("vit_s16")
    x, mask = pixels(1, 24, 24, 3), np.ones((1, 24, 24), bool)
    mask[:, 8:, 16:] = False  # two of nine patches
    other = np.where(mask[..., None], x, np.float32(5))
    logits, activations = run(model, variables, x, mask)
    weights = np.asarray(activations["attention1"])
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=0, atol=1e-6)
    assert weights.shape == (1, 3, 10, 10)
    assert weights[..., [6, 9]].max() == 0  # the class token, then patches row by row
    np.testing.assert_allclose(run(model, variables, other, mask)[0], logits, rtol=0, atol=1e-6)
    assert np.abs(run(model, variables, x)[0] - logits).max() > 1e-3


def test_dropout_and_dropped_paths_happen_in_training_only():
    for name, fields in (("vgg11", {}), ("efficientnet_b0", {"drop_path_rate": 0.9, "dropout_rate": 0.0})):
        model, variables = make(name, **fields)
        x = pixels(4, 64, 64, 3)

        @jax.jit
        def train(seed, model=model, variables=variables, x=x):
            rngs = {"dropout": jax.random.key(seed)}
            return model.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])[0][0]

        assert np.abs(train(0) - train(1)).max() > 1e-3
        np.testing.assert_array_equal(train(0), train(0))
        np.testing.assert_array_equal(run(model, variables, x)[0], run(model, variables, x)[0])


def test_networks_agree_between_one_device_and_a_mesh_that_splits_images_and_kernels():
    model, variables = make("resnet18", width=8)
    mesh = sharding.make_mesh(data=2, fsdp=4)
    x = pixels(8, 32, 32, 3)
    boxed = jax.eval_shape(model.init, jax.random.key(0), x)
    placed = jax.device_put(variables, sharding.of(boxed, mesh))
    split = {s.spec for s in (leaf.sharding for leaf in jax.tree.leaves(placed["params"]))}
    assert jax.sharding.PartitionSpec(None, None, None, "fsdp") in split
    with sharding.activations(mesh):
        logits, _ = jax.jit(model.apply)(placed, sharding.to_devices({"x": x}, mesh)["x"])
    np.testing.assert_allclose(logits, run(model, variables, x)[0], rtol=0, atol=1e-5)


def test_bfloat16_is_for_computing_only():
    model, variables = make("resnet_small")
    half = make("resnet_small", dtype="bfloat16")[0]
    x = pixels(2, 16, 16, 3)
    logits, activations = run(half, variables, x)
    assert logits.dtype == jnp.float32
    assert activations["layer2"].dtype == jnp.bfloat16
    np.testing.assert_allclose(logits, run(model, variables, x)[0], rtol=0, atol=0.05)  # 8 bits of mantissa
    fresh = jax.eval_shape(half.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from primitives(inner)


def test_the_forward_pass_has_no_loops_for_explanations_to_trip_over():
    for name in NARROW:
        model, variables = make(name)
        size = getattr(model, "img_size", 64)
        found = set(primitives(jax.make_jaxpr(model.apply)(variables, jnp.zeros((1, size, size, 3))).jaxpr))
        assert "dot_general" in found
        assert not found & {"scan", "while", "cond", "custom_vjp_call", "sharding_constraint"}


def test_what_a_network_cannot_take_is_refused_with_a_way_out():
    with pytest.raises(InputError, match=r"network='resnet81' is not one of: .*; the nearest is 'resnet18'"):
        vision.network("resnet81", num_classes=2)
    with pytest.raises(InputError, match="resnet18 has no field widht; it has num_classes, stage_sizes, width"):
        vision.network("resnet18", num_classes=2, widht=8)
    with pytest.raises(InputError, match="num_classes=0 must be at least 1"):
        vision.network("resnet18", num_classes=0)
    with pytest.raises(InputError, match=r"224 x 224 and these are 448 x 448.*Resize.*img_size=448"):
        vision.check_input("vit_b16", (448, 448))
    with pytest.raises(InputError, match="img_size=250 is not a multiple of patch_size=16; 240 would be"):
        vision.network("vit_s16", num_classes=2, img_size=250)
    with pytest.raises(InputError, match="at least 63 x 63, and these are 62 x 90"):
        vision.check_input("alexnet", (62, 90))
    vision.check_input("alexnet", (63, 90))
    vision.check_input("resnet18", (1, 90))

    model, variables = make("vgg11")
    with pytest.raises(InputError, match=r"VGG needs images of at least 4 x 4"):
        model.apply(variables, jnp.zeros((1, 3, 9, 3)))
    with pytest.raises(InputError, match=r"\(64, 64, 3\) must be \[N,Y,X,C\]; a single one is x\[None\]"):
        model.apply(variables, jnp.zeros((64, 64, 3)))
    with pytest.raises(InputError, match=r"mask_NYX of shape \(1, 64\) must be \(1, 64, 64\)"):
        model.apply(variables, jnp.zeros((1, 64, 64, 3)), mask_NYX=jnp.ones((1, 64)))


def test_the_smallest_size_of_each_network_is_one_that_it_takes():
    for name in CONVOLUTIONAL:
        model, variables = make(name)
        size = model.min_size
        x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        logits, activations = jax.eval_shape(model.apply, variables, x)
        assert logits.shape == (1, CLASSES)
        assert min(min(leaf.shape) for leaf in jax.tree.leaves(activations)) >= 1
