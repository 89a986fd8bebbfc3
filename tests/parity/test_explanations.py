"""Our attributions beside Captum and pytorch-grad-cam, on one network with the same weights.

Where their conventions differ from ours the test says so and converts. pytorch-grad-cam imports torchvision for helpers
that no CAM needs; an empty module stands in for it, because a torchvision has to be built for the very torch beside it.
"""

import copy
import functools
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.explain import composites, explaining, gradcam, gradients, lrp, lrp_rules

torch = pytest.importorskip("torch")
attr = pytest.importorskip("captum.attr")
captum_rules = pytest.importorskip("captum.attr._utils.lrp_rules")
custom_modules = pytest.importorskip("captum.attr._utils.custom_modules")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients"),
    pytest.mark.filterwarnings("ignore:Setting backward hooks"),
]

N, SIZE, CLASSES, WIDTH = 3, 24, 5, 8
TARGETS = np.array([[0, 4], [2, 1], [3, 3]])
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # atol: of maps scaled by their largest magnitude


class TorchNet(torch.nn.Module):
    """Stem, max-pool, one residual block of two convolutions, mean, dense head; every ReLU and sum is a module."""

    def __init__(self):
        super().__init__()
        kernel = {"kernel_size": 3, "padding": 1, "bias": False}
        self.conv1, self.bn1 = torch.nn.Conv2d(3, WIDTH, **kernel), torch.nn.BatchNorm2d(WIDTH)
        self.conv2, self.bn2 = torch.nn.Conv2d(WIDTH, WIDTH, **kernel), torch.nn.BatchNorm2d(WIDTH)
        self.conv3, self.bn3 = torch.nn.Conv2d(WIDTH, WIDTH, **kernel), torch.nn.BatchNorm2d(WIDTH)
        self.relu1, self.relu2, self.relu3 = (torch.nn.ReLU() for _ in range(3))
        self.pool, self.mean = torch.nn.MaxPool2d(2), torch.nn.AdaptiveAvgPool2d(1)
        self.add, self.block = custom_modules.Addition_Module(), torch.nn.ReLU()
        self.fc = torch.nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = self.pool(self.relu1(self.bn1(self.conv1(x))))
        inner = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(x)))))
        x = self.block(self.add(inner, x))
        return self.fc(self.mean(x).flatten(1))


class LinenNet(nn.Module):
    """The same, with its two activations."""

    @nn.compact
    def __call__(self, x):
        def normed(x, i):
            x = nn.Conv(WIDTH, (3, 3), padding=1, use_bias=False, name=f"conv{i}")(x)
            return nn.BatchNorm(use_running_average=True, epsilon=1e-5, name=f"bn{i}")(x)

        x = nn.relu(normed(x, 1))
        stem = x = nn.max_pool(x, (2, 2), (2, 2))
        x = block = nn.relu(normed(nn.relu(normed(x, 2)), 3) + x)
        return nn.Dense(CLASSES, name="fc")(x.mean((1, 2))), {"stem": stem, "block": block}


def array(tensor):
    return tensor.detach().numpy()


def imported(net):
    """Flax variables of the torch network."""
    params = {"fc": {"kernel": array(net.fc.weight).T, "bias": array(net.fc.bias)}}
    statistics = {}
    for i in (1, 2, 3):
        conv, norm = getattr(net, f"conv{i}"), getattr(net, f"bn{i}")
        params[f"conv{i}"] = {"kernel": array(conv.weight).transpose(2, 3, 1, 0)}
        params[f"bn{i}"] = {"scale": array(norm.weight), "bias": array(norm.bias)}
        statistics[f"bn{i}"] = {"mean": array(norm.running_mean), "var": array(norm.running_var)}
    return jax.tree.map(jnp.asarray, {"params": params, "batch_stats": statistics})


@pytest.fixture(scope="module")
def both():
    """The torch network and its images, and ours: apply_fn, variables, images, targets."""
    torch.manual_seed(0)
    net = TorchNet().eval()
    with torch.no_grad():
        for norm in (net.bn1, net.bn2, net.bn3):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
        net.fc.weight.mul_(3)
    x = torch.rand(N, 3, SIZE, SIZE) * 2 - 1
    ours = LinenNet().apply, imported(net), jnp.asarray(array(x).transpose(0, 2, 3, 1)), jnp.asarray(TARGETS)
    np.testing.assert_allclose(gradients.logits(*ours[:3]), array(net(x)), rtol=1e-5, atol=1e-5)
    return net, x, ours


def theirs(attribute, x, **options):
    """[N, K, Y, X, C] from a Captum attribution or from a function of (x, targets), one target at a time."""
    columns = [attribute(x, target=torch.tensor(TARGETS[:, k]), **options) for k in range(TARGETS.shape[1])]
    return np.stack([array(c) for c in columns], axis=1).transpose(0, 1, 3, 4, 2)


def assert_same(got, expected):
    """Both scaled by the largest magnitude, so that a tolerance means a share of what is seen."""
    got, largest = np.asarray(got), np.abs(expected).max()
    assert got.shape == expected.shape and largest > 0
    np.testing.assert_allclose(got / largest, expected / largest, **TOLERANCE)


def test_gradients_are_captum_saliency_and_input_x_gradient(both):
    net, x, ours = both
    assert_same(gradients.gradient(*ours, channels="keep"), theirs(attr.Saliency(net).attribute, x, abs=False))
    assert_same(gradients.gradient(*ours), theirs(attr.Saliency(net).attribute, x).max(-1))
    assert_same(gradients.input_x_gradient(*ours, channels="keep"), theirs(attr.InputXGradient(net).attribute, x))


def test_guided_backprop_is_captums(both):
    net, x, ours = both
    assert_same(gradients.guided_backprop(*ours, channels="keep"), theirs(attr.GuidedBackprop(net).attribute, x))


@pytest.mark.parametrize("baseline", [0.0, -1.0])
def test_integrated_gradients_are_captums_with_gauss_legendre_points(both, baseline):
    net, x, ours = both
    options = {"n_steps": 30, "method": "gausslegendre", "baselines": baseline}
    expected = theirs(attr.IntegratedGradients(net).attribute, x, **options)
    maps, delta = gradients.integrated_gradients(*ours, baseline=baseline, return_delta=True, channels="keep")
    assert_same(maps, expected)
    _, captum_delta = attr.IntegratedGradients(net).attribute(
        x, target=torch.tensor(TARGETS[:, 0]), return_convergence_delta=True, **options
    )
    np.testing.assert_allclose(delta[:, 0], array(captum_delta), atol=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(8, 4), (7, 5)], ids=["whole windows", "cut at the edge"])
def test_occlusion_is_captums(both, window, stride):
    """Captum slides over channels too; a window that spans all of them gives each channel the same number."""
    net, x, ours = both
    shapes = {"sliding_window_shapes": (3, window, window), "strides": (3, stride, stride)}
    expected = theirs(attr.Occlusion(net).attribute, x, **shapes)[..., 0]
    maps = explaining.explain(*ours, method="occlusion", window=window, stride=stride, driver="flat")
    assert_same(maps, expected)


@pytest.mark.parametrize("layer", ["stem", "block"])
def test_gradcam_is_captums_layer_gradcam(both, layer):
    """Captum leaves the map at the layer's size; its own interpolation makes it the image's."""
    net, x, ours = both
    cam = attr.LayerGradCam(net, net.pool if layer == "stem" else net.block)

    def interpolated(x, target):
        return attr.LayerAttribution.interpolate(
            cam.attribute(x, target=target, relu_attributions=True), (SIZE, SIZE), "bilinear"
        )

    expected = theirs(interpolated, x)[..., 0]
    assert_same(gradcam.gradcam(*ours, layer=layer, scale=False), expected)


EPS = 1e-14  # for both: Captum's 1e-9 counts in every layer, pools too, and z comes near it
CONV_OR_DENSE = (composites.kind("conv", "dense"), functools.partial(lrp_rules.epsilon, eps=EPS))
SUMS = (composites.kind("sum", "avg_pool"), functools.partial(lrp_rules.proportional, eps=EPS))


def relevance_in_float64(ours, composite):
    """LRP-epsilon divides by sums that come close to zero, so conventions are compared in float64 on both sides."""
    with jax.enable_x64(True):
        apply_fn, variables, x, targets = ours
        variables, x = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (variables, x))
        return np.asarray(lrp.relevance(apply_fn, variables, x, targets, composite=composite))


def test_lrp_epsilon_is_captums_though_we_fold_batch_norm(both):
    """Captum passes relevance through batch norm as a layer of its own; under epsilon that comes to the same."""
    net, x, ours = both
    expected = theirs(lrp_of(copy.deepcopy(net).double()), x.double())
    assert_same(relevance_in_float64(ours, [CONV_OR_DENSE, SUMS]), expected)
    got = explaining.explain(*ours, method="lrp", composite="epsilon")
    scale = np.abs(expected.sum(-1)).max()
    np.testing.assert_allclose(got / scale, expected.sum(-1) / scale, atol=2e-3)  # float32, epsilon 1e-6


def lrp_of(net, **rules):
    """Captum's LRP; epsilon in every layer that is not named. It forgets its rules after each call."""
    layers = [layer for layer in net.children() if not isinstance(layer, torch.nn.ReLU | torch.nn.Dropout)]

    def attribute(x, target):
        for layer in layers:
            layer.rule = captum_rules.EpsilonRule()
        for name, rule in rules.items():
            getattr(net, name).rule = rule()
        for layer in layers:
            layer.rule.STABILITY_FACTOR = EPS
        return attr.LRP(net).attribute(x, target=target)

    return attribute


@pytest.fixture(scope="module")
def fused(both):
    """The torch network with batch norm fused into convolutions whose biases are made negative, and ours with the same
    biases; Captum's rules for positive parts know no batch norm.
    """
    net, x, ours = both
    net, x, variables = copy.deepcopy(net).double(), x.double(), jax.tree.map(np.asarray, ours[1])
    for i in (1, 2, 3):
        conv, norm = getattr(net, f"conv{i}"), getattr(net, f"bn{i}")
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        with torch.no_grad():
            norm.bias.copy_(norm.running_mean * scale - 0.1 * i)
        variables["params"][f"bn{i}"]["bias"] = array(norm.bias)
        setattr(net, f"conv{i}", torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm))
        setattr(net, f"bn{i}", torch.nn.Dropout(0).eval())  # does nothing, and Captum knows it
    ours = (ours[0], variables, *ours[2:])
    np.testing.assert_allclose(gradients.logits(*ours[:3]), array(net(x)), rtol=1e-5, atol=1e-5)
    return net, x, ours


@pytest.mark.parametrize("rule", ["alpha1_beta0", "gamma"])
def test_lrp_rules_for_positive_parts_are_captums_behind_a_relu(fused, rule):
    """Differences: Captum's alpha 1, beta 0 keeps a whole bias or none, ours its positive part or none; its gamma
    leaves the bias alone, ours adds to its positive part. It does not look at signs of inputs, so the first layer keeps
    epsilon.
    """
    net, x, ours = fused
    captum_rule, own_rule = {
        "alpha1_beta0": (
            functools.partial(captum_rules.Alpha1_Beta0_Rule, set_bias_to_zero=True),
            functools.partial(lrp_rules.z_plus, bias=False),
        ),
        "gamma": (functools.partial(captum_rules.GammaRule, 0.25), functools.partial(lrp_rules.gamma, eps=EPS)),
    }[rule]
    expected = theirs(lrp_of(net, conv2=captum_rule, conv3=captum_rule), x)
    got = relevance_in_float64(ours, [*((f"conv{i}", own_rule) for i in (2, 3)), CONV_OR_DENSE, SUMS])
    assert_same(got, expected)
    assert np.abs(expected - theirs(lrp_of(net), x)).max() > 0.01 * np.abs(expected).max()


@pytest.fixture(scope="module")
def pytorch_grad_cam():
    stand_in = types.ModuleType("torchvision")
    transforms, functional = types.ModuleType("torchvision.transforms"), types.ModuleType("functional")
    transforms.Compose = transforms.Normalize = transforms.ToTensor = functional.resize = None
    modules = {"": stand_in, ".transforms": transforms, ".transforms.functional": functional}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, f"torchvision{name}", module)
        yield pytest.importorskip("pytorch_grad_cam")


@pytest.mark.parametrize("layer", ["stem", "block"])
@pytest.mark.parametrize("name", ["GradCAM", "GradCAMPlusPlus"])
def test_gradcam_and_plus_plus_are_those_of_pytorch_grad_cam(both, pytorch_grad_cam, name, layer):
    """They rectify both, scale before and after resizing, and divide by the largest value plus 1e-7."""
    net, x, ours = both
    target_class = sys.modules["pytorch_grad_cam.utils.model_targets"].ClassifierOutputTarget
    method = {"GradCAM": gradcam.gradcam, "GradCAMPlusPlus": gradcam.gradcam_plus_plus}[name]
    got = gradients.min_max(method(*ours, layer=layer, relu=True))
    with getattr(pytorch_grad_cam, name)(net, [net.pool if layer == "stem" else net.block]) as cam:
        columns = [cam(x, targets=[target_class(int(t)) for t in TARGETS[:, k]]) for k in range(TARGETS.shape[1])]
    expected = np.stack(columns, axis=1)
    np.testing.assert_allclose(got, expected, atol=3e-5)  # of maps in [0, 1]; 1e-7 against sums of small gradients


def test_gradcam_plus_plus_without_a_rectifier_is_not_theirs(both, pytorch_grad_cam):
    """The order of the Focus paper: cells against the class become positive. Equal only where there are none."""
    _, _, ours = both
    raw = gradcam.gradcam_plus_plus(*ours, layer="block", scale=False, relu=False)
    paper, rectified = (gradcam.gradcam_plus_plus(*ours, layer="block", relu=relu) for relu in (False, True))
    has_negative = np.asarray(raw.min((2, 3)) < 0)
    same = np.abs(np.asarray(paper - rectified)).max((2, 3)) < 1e-6
    np.testing.assert_array_equal(same, ~has_negative)
