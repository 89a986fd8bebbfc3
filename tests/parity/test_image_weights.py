"""Published decoders, LPIPS and Inception on random weights, beside torch modules with the same layers' names."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.linalg

from alignment.errors import InputError
from alignment.watermark import clip, decoders, inception, lpips

torch = pytest.importorskip("torch")
nn = torch.nn


def arrays_of(module, seed=0):
    """Random weights of a module, running statistics included, as numpy arrays; the module has them afterwards."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        fan = max(1, int(np.prod(tensor.shape[1:])))
        value = rng.normal(0, fan**-0.5, tensor.shape) * 1.4
        value = np.abs(value) + 0.5 if name.endswith(("running_var", ".bn.weight")) else value
        out[name] = value.astype(np.float32)
    module.load_state_dict({name: torch.tensor(value) for name, value in out.items()}, strict=False)
    return out


def stored(tmp_path, arrays, prefix=""):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.numpy.save({prefix + name: array for name, array in arrays.items()}))
    return path


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(1).integers(256, size=(2, 64, 64, 3), dtype=np.uint8)


def first(images):
    return torch.tensor(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)


class Block(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after, eps=1e-3), nn.GELU())

    def forward(self, x):
        return self.layers(x)


class Signature(nn.Module):
    def __init__(self, num_bits=12, width=8):
        super().__init__()
        blocks = [Block(3, width), Block(width, width), Block(width, num_bits)]
        self.layers = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1))
        self.linear = nn.Linear(num_bits, num_bits)

    def forward(self, x):
        return self.linear(self.layers(x)[:, :, 0, 0])


def test_stable_signatures_decoder_is_torchs(tmp_path, pictures):
    module = Signature().eval()
    path = stored(tmp_path, arrays_of(module), prefix="module.decoder.")
    mean, deviation = (torch.tensor(x)[None, :, None, None] for x in (decoders.MEAN, decoders.DEVIATION))
    with torch.no_grad():
        expected = module((first(pictures) - mean) / deviation).numpy()
    logits = decoders.signature_logits(decoders.load_signature(path), jnp.asarray(pictures))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    own = expected[0] > 0
    mark = decoders.mark("stable_signature", path, own)
    assert (mark.key_fn(0) == own).all() and mark.distance_fn(pictures, own)[0] == 0
    with pytest.raises(InputError, match="a message of 5 bits; these weights of stable_signature read 12"):
        decoders.mark("stable_signature", path, own[:5])
    with pytest.raises(InputError, match="marks no given picture"):
        mark.embed_fn(pictures, own)


class Conv2D(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, stride, 1)

    def forward(self, x):
        return torch.relu(self.conv(x))


class Dense(nn.Module):
    def __init__(self, before, after, *, is_last=False):
        super().__init__()
        self.linear, self.is_last = nn.Linear(before, after), is_last

    def forward(self, x):
        return self.linear(x) if self.is_last else torch.relu(self.linear(x))


def convs(widths, strides):
    return [Conv2D(a, b, s) for a, b, s in zip((3, *widths), widths, strides)]


class Transformer(nn.Module):
    def __init__(self, side):
        super().__init__()
        layers = [*convs(decoders.FOUND_WIDTHS, decoders.FOUND_STRIDES), nn.Flatten()]
        self.localization = nn.Sequential(*layers, Dense(128 * (side // 8) ** 2, 128), nn.Linear(128, 6))

    def forward(self, x):
        grid = nn.functional.affine_grid(self.localization(x).view(-1, 2, 3), x.size(), align_corners=False)
        return nn.functional.grid_sample(x, grid, align_corners=False)


class Stamp(nn.Module):
    def __init__(self, side, *, has_transformer):
        super().__init__()
        if has_transformer:
            self.stn = Transformer(side)
        layers = [*convs(decoders.WIDTHS, decoders.STRIDES), nn.Flatten(), Dense(128 * (side // 32) ** 2, 512)]
        self.decoder = nn.Sequential(*layers, Dense(512, 20, is_last=True))

    def forward(self, x):
        x = x - 0.5
        return self.decoder(self.stn(x) if hasattr(self, "stn") else x)


@pytest.mark.parametrize("has_transformer", [False, True])
def test_stegastamps_decoder_is_torchs(has_transformer, tmp_path, pictures):
    module = Stamp(64, has_transformer=has_transformer).eval()
    path = stored(tmp_path, arrays_of(module))
    with torch.no_grad():
        expected = module(first(pictures)).numpy()
    params = decoders.load_stamp(path, side=64)
    logits = decoders.stamp_logits(params, jnp.asarray(pictures), side=64)
    np.testing.assert_allclose(logits, expected, rtol=2e-3, atol=2e-3)
    with pytest.raises(InputError, match=r"decoder\.8\.linear\.weight is \(512, 512\) there; \(512, 21632\) is needed"):
        decoders.load_stamp(path)


class Slices(nn.Module):
    """AlexNet cut as the lpips package cuts it."""

    def __init__(self):
        super().__init__()
        last, before = 0, 3
        places = {
            name.rpartition(".")[0].removeprefix("net."): int(name.rpartition(".")[2]) for name, *_ in lpips.LAYERS
        }
        for (part, place), (_, width, side, stride, padding, is_pooled) in zip(places.items(), lpips.LAYERS):
            layers = nn.Sequential()
            if is_pooled:
                layers.add_module(str(last), nn.MaxPool2d(3, 2))
            layers.add_module(str(place), nn.Conv2d(before, width, side, stride, padding))
            layers.add_module(str(place + 1), nn.ReLU())
            self.add_module(part, layers)
            last, before = place + 2, width

    def forward(self, x):
        out = []
        for layers in self.children():
            x = layers(x)
            out.append(x)
        return out


class Lpips(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Slices()
        for i, (_, width, *_) in enumerate(lpips.LAYERS):
            self.add_module(f"lin{i}", nn.Module())
            getattr(self, f"lin{i}").model = nn.Sequential(nn.Dropout(), nn.Conv2d(width, 1, 1, bias=False))

    def forward(self, x, y):
        shift, scale = (torch.tensor(v)[None, :, None, None] for v in (lpips.SHIFT, lpips.SCALE))
        total = 0
        for i, (a, b) in enumerate(zip(self.net((x - shift) / scale), self.net((y - shift) / scale))):
            a, b = (v / (torch.sqrt(torch.sum(v**2, dim=1, keepdim=True)) + 1e-10) for v in (a, b))
            total = total + getattr(self, f"lin{i}").model((a - b) ** 2).mean(dim=(1, 2, 3))
        return total


def test_lpips_is_torchs_and_equal_pictures_have_none(tmp_path, pictures):
    module = Lpips().eval()
    path = stored(tmp_path, arrays_of(module))
    other = 255 - pictures
    with torch.no_grad():
        expected = module(2 * first(pictures) - 1, 2 * first(other) - 1).numpy()
    metric = lpips.opened(str(path))
    np.testing.assert_allclose(metric(pictures, other), expected, rtol=1e-4)
    assert metric(pictures, pictures).tolist() == [0, 0]
    with pytest.raises(InputError, match="LPIPS needs 32 x 32"):
        metric(pictures[:, :16], pictures[:, :16])
    wrong = stored(tmp_path, {"net.slice1.0.weight": np.zeros((64, 3, 7, 7), np.float32)})
    with pytest.raises(InputError, match=r"than LPIPS over AlexNet: net\.slice1\.0\.weight is \(64, 3, 7, 7\) there"):
        lpips.load(wrong)


class Layer(nn.Module):
    def __init__(self, before, after, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=1e-3)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Blocks as torchvision writes them, a branch a line, with pytorch-fid's pools."""

    def __init__(self, kind, before, more, *, takes_most=False):
        super().__init__()
        self.kind, self.takes_most = kind, takes_most
        wide, tall = dict(kernel=(1, 7), padding=(0, 3)), dict(kernel=(7, 1), padding=(3, 0))

        def add(name, *sizes, **options):
            self.add_module(name, Layer(*sizes, **options))

        if kind == "a":
            add("branch1x1", before, 64, 1)
            add("branch5x5_1", before, 48, 1)
            add("branch5x5_2", 48, 64, 5, padding=2)
        if kind in "ab":
            add("branch3x3dbl_1", before, 64, 1)
            add("branch3x3dbl_2", 64, 96, 3, padding=1)
            add("branch3x3dbl_3", 96, 96, 3, stride=1 + (kind == "b"), padding=int(kind == "a"))
        if kind == "a":
            add("branch_pool", before, more, 1)
        if kind == "b":
            add("branch3x3", before, 384, 3, stride=2)
        if kind == "c":
            add("branch1x1", before, 192, 1)
            add("branch7x7_1", before, more, 1)
            add("branch7x7_2", more, more, **wide)
            add("branch7x7_3", more, 192, **tall)
            add("branch7x7dbl_1", before, more, 1)
            add("branch7x7dbl_2", more, more, **tall)
            add("branch7x7dbl_3", more, more, **wide)
            add("branch7x7dbl_4", more, more, **tall)
            add("branch7x7dbl_5", more, 192, **wide)
            add("branch_pool", before, 192, 1)
        if kind == "d":
            add("branch3x3_1", before, 192, 1)
            add("branch3x3_2", 192, 320, 3, stride=2)
            add("branch7x7x3_1", before, 192, 1)
            add("branch7x7x3_2", 192, 192, **wide)
            add("branch7x7x3_3", 192, 192, **tall)
            add("branch7x7x3_4", 192, 192, 3, stride=2)
        if kind == "e":
            add("branch1x1", before, 320, 1)
            add("branch3x3_1", before, 384, 1)
            add("branch3x3_2a", 384, 384, (1, 3), padding=(0, 1))
            add("branch3x3_2b", 384, 384, (3, 1), padding=(1, 0))
            add("branch3x3dbl_1", before, 448, 1)
            add("branch3x3dbl_2", 448, 384, 3, padding=1)
            add("branch3x3dbl_3a", 384, 384, (1, 3), padding=(0, 1))
            add("branch3x3dbl_3b", 384, 384, (3, 1), padding=(1, 0))
            add("branch_pool", before, 192, 1)

    def run(self, x, *names):
        for name in names:
            x = getattr(self, name)(x)
        return x

    def pool(self, x):
        if self.takes_most:
            return self.branch_pool(nn.functional.max_pool2d(x, 3, 1, 1))
        return self.branch_pool(nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False))

    def forward(self, x):
        double = ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        if self.kind == "a":
            out = [self.branch1x1(x), self.run(x, "branch5x5_1", "branch5x5_2"), self.run(x, *double), self.pool(x)]
        elif self.kind == "b":
            out = [self.branch3x3(x), self.run(x, *double), nn.functional.max_pool2d(x, 3, 2)]
        elif self.kind == "c":
            seven, twice = ([f"branch7x7{s}_{i}" for i in range(1, n)] for s, n in (("", 4), ("dbl", 6)))
            out = [self.branch1x1(x), self.run(x, *seven), self.run(x, *twice), self.pool(x)]
        elif self.kind == "d":
            seven = [f"branch7x7x3_{i}" for i in range(1, 5)]
            out = [self.run(x, "branch3x3_1", "branch3x3_2"), self.run(x, *seven), nn.functional.max_pool2d(x, 3, 2)]
        else:
            three, more = self.branch3x3_1(x), self.run(x, *double[:2])
            out = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
            out += [self.branch3x3dbl_3a(more), self.branch3x3dbl_3b(more), self.pool(x)]
        return torch.cat(out, 1)


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Layer(3, 32, 3, stride=2), Layer(32, 32, 3)
        self.Conv2d_2b_3x3 = Layer(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Layer(64, 80, 1), Layer(80, 192, 3)
        for name, (kind, before, more) in inception.BLOCKS.items():
            self.add_module(name, Mixed(kind, before, more, takes_most=name == "Mixed_7c"))

    def forward(self, x):
        x = 2 * nn.functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = nn.functional.max_pool2d(x, 3, 2)
        x = nn.functional.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        for name in inception.BLOCKS:
            x = getattr(self, name)(x)
        return x.mean(dim=(2, 3))


def test_one_block_of_each_kind_is_torchs():
    rng = np.random.default_rng(0)
    for name in ("Mixed_5b", "Mixed_6a", "Mixed_6b", "Mixed_7a", "Mixed_7b", "Mixed_7c"):
        kind, before, more = inception.BLOCKS[name]
        module = Mixed(kind, before, more, takes_most=name == "Mixed_7c").eval()
        params = {f"{name}.{key}": array for key, array in arrays_of(module).items()}
        assert {key: array.shape for key, array in params.items()} == {
            key: shape for key, shape in inception.shapes().items() if key.startswith(f"{name}.")
        }
        x = rng.normal(size=(1, before, 5, 5)).astype(np.float32)
        with torch.no_grad():
            expected = module(torch.tensor(x)).numpy()
        ours = np.asarray(inception._block(jnp.asarray(x), params, name, kind, more))
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3, err_msg=name)


def test_networks_have_as_many_weights_as_the_published_ones():
    def number(shapes):
        return sum(int(np.prod(shape)) for name, shape in shapes.items() if "running" not in name)

    classes, auxiliary = 2_048 * 1_000 + 1_000, 768 * 128 + 256 + 128 * 768 * 25 + 1_536 + 768 * 1_000 + 1_000
    assert number(inception.shapes()) == 27_161_264 - classes - auxiliary  # of torchvision's inception_v3
    assert number(clip.shapes(clip.BASE_32, is_projected=True)) == 87_849_216  # of CLIP ViT-B/32's pictures
    assert number(clip.shapes(clip.HUGE_14, is_projected=True)) == 632_076_800  # of open_clip's ViT-H/14


@pytest.mark.slow  # the test above has every kind of block
def test_inception_is_torchs(tmp_path, pictures):
    module = Inception().eval()
    path = stored(tmp_path, arrays_of(module))
    with torch.no_grad():
        expected = module(first(pictures)).numpy()
    features = np.asarray(inception.features(inception.load(path), jnp.asarray(pictures)))
    assert features.shape == (2, inception.FEATURES)
    np.testing.assert_allclose(features, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_frechets_distance_is_the_papers_equation():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 5)), rng.normal(0.3, 1.5, size=(30, 5))
    root = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    gap = np.sum((a.mean(0) - b.mean(0)) ** 2)
    expected = gap + np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root)
    assert inception.frechet(a, b) == pytest.approx(expected)
    assert inception.frechet(a, a) == pytest.approx(0, abs=1e-9)
    few = rng.normal(size=(3, 50))  # singular covariances
    assert inception.frechet(few, few + 1) == pytest.approx(50)
    with pytest.raises(InputError, match="two at least"):
        inception.frechet(a[:1], b)


SMALL = dict(patch=8, width=32, layers=2, heads=4, hidden=48, features=16, side=32)


@pytest.mark.parametrize("is_quick", [True, False])
def test_clips_pictures_are_those_of_transformers(is_quick, tmp_path, pictures):
    transformers = pytest.importorskip("transformers")
    sizes = clip.Sizes(**SMALL, is_quick=is_quick)
    config = transformers.CLIPVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.hidden,
        projection_dim=sizes.features,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        image_size=sizes.side,
        patch_size=sizes.patch,
        hidden_act="quick_gelu" if is_quick else "gelu",
    )
    module = transformers.CLIPVisionModelWithProjection(config).eval()
    arrays = {name: array for name, array in arrays_of(module).items() if not name.endswith("position_ids")}
    path = stored(tmp_path, arrays)
    small = clip.cut(pictures, sizes.side)
    mean, deviation = (torch.tensor(x)[None, :, None, None] for x in (clip.MEAN, clip.DEVIATION))
    with torch.no_grad():
        out = module((first(small) - mean) / deviation)
        whole = module.vision_model((first(small) - mean) / deviation).pooler_output
    params = clip.load(path, sizes, is_projected=True)
    np.testing.assert_allclose(clip.features(params, small, sizes), out.image_embeds, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(clip.pooled(params, small, sizes), whole, rtol=2e-4, atol=2e-4)
    metric = clip.opened(str(path), sizes)
    assert metric(pictures, pictures) == pytest.approx(0, abs=1e-6) and metric(pictures, 255 - pictures) > 0
    with pytest.raises(InputError, match="another network than CLIP of 12 layers and width 768"):
        clip.load(path, clip.BASE_32, is_projected=True)


def test_pictures_are_cut_for_clip_as_transformers_does(pictures):
    transformers = pytest.importorskip("transformers")
    wide = np.concatenate([pictures, pictures[:, :, :21]], axis=2)
    processor = transformers.CLIPImageProcessorPil if hasattr(transformers, "CLIPImageProcessorPil") else None
    processor = (processor or transformers.CLIPImageProcessor)(size={"shortest_edge": 48}, crop_size=48)
    theirs = processor(list(wide), return_tensors="np")["pixel_values"]
    mean, deviation = (np.array(x)[None, :, None, None] for x in (clip.MEAN, clip.DEVIATION))
    ours = (clip.cut(wide, 48).transpose(0, 3, 1, 2) / 255 - mean) / deviation
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_score_is_that_of_five_linear_layers_over_a_unit_vector(tmp_path, monkeypatch):
    monkeypatch.setattr(clip, "HEAD_WIDTH", 8)
    widths = [6, 8, 8, 8, 8, 1]
    linear = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    drop = nn.Dropout(0.0)
    module = nn.Module()
    module.layers = nn.Sequential(linear[0], drop, linear[1], drop, linear[2], drop, linear[3], linear[4])
    path = stored(tmp_path, arrays_of(module))
    x = np.random.default_rng(3).normal(size=(4, 6)).astype(np.float32)
    with torch.no_grad():
        expected = module.layers(nn.functional.normalize(torch.tensor(x), dim=-1)).numpy()[:, 0]
    np.testing.assert_allclose(clip.score(clip.load_head(path, 6), jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="another network than a score over 7 features"):
        clip.load_head(path, 7)
