"""Our image networks against torch, from safetensors files in torchvision's and timm's layouts, in fp32."""

import re
import shlex
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from alignment.errors import InputError  # noqa: E402
from alignment.models import convolution, pretrained, vision  # noqa: E402
from tests.parity import torch_nets  # noqa: E402

CLASSES = 11
# Full depth and width, but for VGG's and AlexNet's dense layers (half a gigabyte), ViT's image size and ViT-B's depth.
CASES = {
    "resnet18": ((61, 67), {}),
    "resnet34": ((64, 64), {}),
    "resnet50": ((64, 64), {}),
    "vgg11": ((32, 290), {"dense_width": 64}),  # 1 row and 9 columns for 7 x 7 bins
    "vgg11_bn": ((64, 64), {"dense_width": 64}),
    "vgg16": ((64, 64), {"dense_width": 64}),
    "vgg16_bn": ((64, 64), {"dense_width": 64}),
    "alexnet": ((63, 260), {"dense_width": 64}),  # 1 row and 7 columns for 6 x 6 bins
    "densenet121": ((45, 64), {}),
    "efficientnet_b0": ((45, 64), {}),
    "efficientnet_b3": ((64, 64), {}),
    "vit_s16": ((48, 48), {"img_size": 48}),
    "vit_b16": ((48, 48), {"img_size": 48, "num_layers": 4}),
}


def pixels(size, batch=2):
    return np.random.default_rng(0).normal(size=(batch, *size, 3)).astype(np.float32)


def peer(name):
    """A torch network, its images, and the logits it gives them."""
    size, fields = CASES[name]
    model, x = torch_nets.build(name, CLASSES, **fields), torch.from_numpy(pixels(size)).permute(0, 3, 1, 2)
    torch_nets.randomise(model, torch.from_numpy(pixels(size, batch=8)).permute(0, 3, 1, 2))
    with torch.no_grad():
        return model, x, model(x).numpy()


def ours(name):
    size, fields = CASES[name]
    model, x = vision.network(name, num_classes=CLASSES, **fields), pixels(size)
    return model, x, nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), x))


@pytest.mark.parametrize("name", CASES)
def test_logits_agree_with_torch_within_1e_4(name, tmp_path):
    file = tmp_path / "model.safetensors"
    peer_model, _, expected = peer(name)
    safetensors_torch.save_file(peer_model.state_dict(), file)
    model, x, shapes = ours(name)
    variables, report = pretrained.load(file, shapes, network=name)
    assert not report.skipped + report.missing + report.unexpected
    logits, _ = jax.jit(model.apply)(variables, x)
    assert expected.std() > 0.1  # something came through
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


TIMM = {  # torchvision's names to timm's, in order; those of ResNet and DenseNet are the same
    "vgg11": [("classifier.0", "pre_logits.fc1"), ("classifier.3", "pre_logits.fc2"), ("classifier.6", "head.fc")],
    "vit_s16": [
        (r"^class_token", "cls_token"),
        (r"^encoder\.pos_embedding", "pos_embed"),
        (r"^conv_proj", "patch_embed.proj"),
        (r"^encoder\.layers\.encoder_layer_", "blocks."),
        (r"^encoder\.ln", "norm"),
        (r"^heads\.head", "head"),
        (r"ln_", "norm"),
        (r"self_attention\.in_proj_", "attn.qkv."),
        (r"self_attention\.out_proj", "attn.proj"),
        (r"mlp\.0", "mlp.fc1"),
        (r"mlp\.3", "mlp.fc2"),
    ],
    "efficientnet_b0": [
        (r"^features\.0\.0", "conv_stem"),
        (r"^features\.0\.1", "bn1"),
        (r"^features\.8\.0", "conv_head"),
        (r"^features\.8\.1", "bn2"),
        (r"^classifier\.1", "classifier"),
        (r"fc1", "conv_reduce"),
        (r"fc2", "conv_expand"),
        (r"^features\.1\.(\d+)\.block\.0\.0", r"blocks.0.\1.conv_dw"),
        (r"^features\.1\.(\d+)\.block\.0\.1", r"blocks.0.\1.bn1"),
        (r"^features\.1\.(\d+)\.block\.1", r"blocks.0.\1.se"),
        (r"^features\.1\.(\d+)\.block\.2\.0", r"blocks.0.\1.conv_pw"),
        (r"^features\.1\.(\d+)\.block\.2\.1", r"blocks.0.\1.bn2"),
        (r"^features\.(\d)\.(\d+)\.block\.0\.0", lambda m: f"blocks.{int(m[1]) - 1}.{m[2]}.conv_pw"),
        (r"^features\.(\d)\.(\d+)\.block\.0\.1", lambda m: f"blocks.{int(m[1]) - 1}.{m[2]}.bn1"),
        (r"^features\.(\d)\.(\d+)\.block\.1\.0", lambda m: f"blocks.{int(m[1]) - 1}.{m[2]}.conv_dw"),
        (r"^features\.(\d)\.(\d+)\.block\.1\.1", lambda m: f"blocks.{int(m[1]) - 1}.{m[2]}.bn2"),
        (r"^features\.(\d)\.(\d+)\.block\.2", lambda m: f"blocks.{int(m[1]) - 1}.{m[2]}.se"),
        (r"^features\.(\d)\.(\d+)\.block\.3\.0", lambda m: f"blocks.{int(m[1]) - 1}.{m[2]}.conv_pwl"),
        (r"^features\.(\d)\.(\d+)\.block\.3\.1", lambda m: f"blocks.{int(m[1]) - 1}.{m[2]}.bn3"),
    ],
}


def as_timm(name, state):
    renamed = {}
    for key, tensor in state.items():
        for pattern, new in TIMM[name]:
            key = re.sub(pattern, new, key)
        if name == "vgg11" and key == "pre_logits.fc1.weight":
            tensor = tensor.reshape(len(tensor), -1, 7, 7)
        if name == "vgg11" and key == "pre_logits.fc2.weight":
            tensor = tensor[:, :, None, None]
        renamed[key] = tensor.contiguous()
    return renamed


@pytest.mark.parametrize("name", TIMM)
def test_timms_layout_gives_the_arrays_of_torchvisions_bit_for_bit(name, tmp_path):
    state = torch_nets.build(name, CLASSES, **CASES[name][1]).state_dict()
    safetensors_torch.save_file(state, tmp_path / "torchvision.safetensors")
    safetensors_torch.save_file(as_timm(name, state), tmp_path / "timm.safetensors")
    _, _, shapes = ours(name)
    expected, _ = pretrained.load(tmp_path / "torchvision.safetensors", shapes, network=name)
    loaded, report = pretrained.load(tmp_path / "timm.safetensors", shapes, network=name)
    assert report.layout == "timm"
    assert not report.skipped + report.missing + report.unexpected
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "alexnet", "densenet121", "efficientnet_b0", "vit_s16"])
def test_torch_loads_what_we_save_and_it_is_what_it_was(name, tmp_path):
    state = torch_nets.build(name, CLASSES, **CASES[name][1]).state_dict()
    safetensors_torch.save_file(state, tmp_path / "theirs.safetensors")
    variables, _ = pretrained.load(tmp_path / "theirs.safetensors", ours(name)[2], network=name)
    pretrained.save(tmp_path / "ours.safetensors", variables, network=name)
    again = safetensors_torch.load_file(tmp_path / "ours.safetensors")
    torch_nets.build(name, CLASSES, **CASES[name][1]).load_state_dict(again)  # strict
    assert all(torch.equal(again[key], value) for key, value in state.items() if "num_batches" not in key)


def test_the_command_that_a_refused_pickle_is_answered_with_converts_it(tmp_path):
    model = torch_nets.build("resnet18", CLASSES, width=4)
    tied = {**model.state_dict(), "extra.weight": model.fc.weight.T}  # not contiguous, and shares memory
    torch.save({"state_dict": tied, "epoch": 3}, tmp_path / "it's.ckpt")
    variables = jax.eval_shape(
        vision.network("resnet18", num_classes=CLASSES, width=4).init, jax.random.key(0), pixels((8, 8))
    )
    with pytest.raises(InputError) as error:
        pretrained.load(tmp_path / "it's.ckpt", variables, network="resnet18")
    command = str(error.value).partition("where torch is installed: ")[2]
    subprocess.run(command.replace("python", shlex.quote(sys.executable), 1), shell=True, check=True)
    loaded, report = pretrained.load(tmp_path / "it's.safetensors", variables, network="resnet18")
    assert report.unexpected == ("extra.weight",)
    np.testing.assert_array_equal(loaded["params"]["head"]["kernel"], model.fc.weight.detach().numpy().T)


@pytest.mark.parametrize("bins", [6, 7])
def test_adaptive_pooling_has_torchs_bins(bins):
    for Y in (2, 7, 12):
        x = np.random.default_rng(Y).normal(size=(2, Y, 16 - Y, 3)).astype(np.float32)
        theirs = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x).permute(0, 3, 1, 2), bins)
        found = jax.jit(convolution.adaptive_mean, static_argnums=2)(jnp.asarray(x), None, bins)
        np.testing.assert_allclose(found, theirs.permute(0, 2, 3, 1), rtol=0, atol=1e-6)
