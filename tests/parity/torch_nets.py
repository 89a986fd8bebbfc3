"""The image networks in torch, with torchvision's module names, so that their state dicts are torchvision's.

Written from the papers and from the names; `build(name)` takes the fields that our modules have, under the same names.
Dropout and stochastic depth are left out: these networks are only evaluated.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from alignment.models import efficientnet, vgg


def build(name, num_classes=1000, **fields):
    """A network by the name it has in `alignment.models.vision`."""
    family, settled = NETS[name]
    return family(num_classes=num_classes, **{**settled, **fields}).eval()


@torch.no_grad()
def randomise(model, x_NCYX, seed=0):
    """Weights at which signals neither vanish nor grow; batch norms that have seen these images, off 1 and 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like, mean, deviation):
        like.copy_(torch.empty_like(like).normal_(mean, deviation, generator=generator))

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            normal(module.weight, 0, (2 / module.weight[0].numel()) ** 0.5)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            normal(module.weight, 1, 0.1)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
        if isinstance(module, nn.MultiheadAttention):
            normal(module.in_proj_weight, 0, module.embed_dim**-0.5)
            normal(module.in_proj_bias, 0, 0.1)
        if getattr(module, "bias", None) is not None:
            normal(module.bias, 0, 0.1)
    for module in model.modules():
        if isinstance(module, ResidualBlock):  # as in a trained net, branches are small beside their shortcuts
            getattr(module, f"bn{module.num_convs}").weight.mul_(0.3)
    for name, parameter in model.named_parameters():
        if name in ("class_token", "encoder.pos_embedding"):
            normal(parameter, 0, 0.2)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    last.weight.mul_(0.5)
    model.train()
    model(x_NCYX)
    return model.eval()


class ResNet(nn.Module):
    def __init__(self, stage_sizes, is_bottleneck=False, width=64, num_classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = width
        for stage, size in enumerate(stage_sizes):
            blocks = []
            for i in range(size):
                blocks.append(ResidualBlock(channels, width * 2**stage, 2 if stage and i == 0 else 1, is_bottleneck))
                channels = blocks[-1].channels
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stages = len(stage_sizes)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(self.avgpool(x).flatten(1))


class ResidualBlock(nn.Module):
    def __init__(self, channels, width, stride, is_bottleneck):
        super().__init__()
        self.channels = width * (4 if is_bottleneck else 1)
        if is_bottleneck:
            sizes = [(channels, width, 1, 1), (width, width, 3, stride), (width, self.channels, 1, 1)]
        else:
            sizes = [(channels, width, 3, stride), (width, width, 3, 1)]
        self.num_convs = len(sizes)
        for i, (before, after, window, step) in enumerate(sizes, 1):
            setattr(self, f"conv{i}", nn.Conv2d(before, after, window, step, window // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(after))
        self.relu = nn.ReLU()
        self.downsample = None
        if stride != 1 or channels != self.channels:
            conv = nn.Conv2d(channels, self.channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(self.channels))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.num_convs + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            x = self.relu(x if i < self.num_convs else x + shortcut)
        return x


class VGG(nn.Module):
    def __init__(self, stages, has_batch_norm=False, dense_width=4096, num_classes=1000):
        super().__init__()
        layers, channels = [], 3
        for widths in stages:
            for width in widths:
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width)] if has_batch_norm else []
                layers.append(nn.ReLU())
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        first, second = nn.Linear(49 * channels, dense_width), nn.Linear(dense_width, dense_width)
        head = nn.Linear(dense_width, num_classes)
        self.classifier = nn.Sequential(first, nn.ReLU(), nn.Dropout(0.0), second, nn.ReLU(), nn.Dropout(0.0), head)

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class AlexNet(nn.Module):
    def __init__(self, widths=(64, 192, 384, 256, 256), dense_width=4096, num_classes=1000):
        super().__init__()
        a, b, c, d, e = widths
        self.features = nn.Sequential(
            nn.Conv2d(3, a, 11, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(a, b, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(b, c, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(c, d, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(d, e, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        first, second = nn.Linear(36 * e, dense_width), nn.Linear(dense_width, dense_width)
        head = nn.Linear(dense_width, num_classes)
        self.classifier = nn.Sequential(nn.Dropout(0.0), first, nn.ReLU(), nn.Dropout(0.0), second, nn.ReLU(), head)

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class DenseNet(nn.Module):
    def __init__(self, block_sizes=(6, 12, 24, 16), growth=32, stem_width=64, num_classes=1000):
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, stem_width, 7, 2, 3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(stem_width))
        self.features.add_module("relu0", nn.ReLU())
        self.features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        channels = stem_width
        for block, size in enumerate(block_sizes, 1):
            layers = nn.Sequential()
            for i in range(1, size + 1):
                layers.add_module(f"denselayer{i}", DenseLayer(channels, growth))
                channels += growth
            self.features.add_module(f"denseblock{block}", layers)
            if block < len(block_sizes):
                transition = nn.Sequential()
                transition.add_module("norm", nn.BatchNorm2d(channels))
                transition.add_module("relu", nn.ReLU())
                transition.add_module("conv", nn.Conv2d(channels, channels // 2, 1, bias=False))
                transition.add_module("pool", nn.AvgPool2d(2, 2))
                self.features.add_module(f"transition{block}", transition)
                channels //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x):
        return self.classifier(F.relu(self.features(x)).mean((2, 3)))


class DenseLayer(nn.Module):
    def __init__(self, channels, growth):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        new = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(new)))], 1)


class EfficientNet(nn.Module):
    def __init__(self, width_factor=1.0, depth_factor=1.0, stages=efficientnet.STAGES, stem_width=32, num_classes=1000):
        super().__init__()
        channels = self.scaled(stem_width * width_factor)
        layers = [conv_norm(3, channels, 3, 2)]
        for expansion, window, stride, width, blocks in stages:
            width, stage = self.scaled(width * width_factor), []
            for i in range(math.ceil(blocks * depth_factor)):
                stage.append(MBConv(channels, expansion, window, 1 if i else stride, width))
                channels = width
            layers.append(nn.Sequential(*stage))
        layers.append(conv_norm(channels, 4 * channels, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(4 * channels, num_classes))

    @staticmethod
    def scaled(wanted):
        """The nearest multiple of 8, unless that loses more than a tenth."""
        nearest = max(8, math.floor(wanted / 8 + 0.5) * 8)
        return nearest if nearest >= 0.9 * wanted else nearest + 8

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class MBConv(nn.Module):
    def __init__(self, channels, expansion, window, stride, out):
        super().__init__()
        width = channels * expansion
        layers = [conv_norm(channels, width, 1)] if expansion != 1 else []
        layers.append(conv_norm(width, width, window, stride, groups=width))
        layers.append(SqueezeExcitation(width, channels // 4))
        layers.append(conv_norm(width, out, 1, is_active=False))
        self.block = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and channels == out

    def forward(self, x):
        return self.block(x) + x if self.has_shortcut else self.block(x)


class SqueezeExcitation(nn.Module):
    def __init__(self, width, squeezed):
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, width, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))))


def conv_norm(before, after, window, stride=1, groups=1, is_active=True):
    conv = nn.Conv2d(before, after, window, stride, window // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), *([nn.SiLU()] if is_active else []))


class ViT(nn.Module):
    def __init__(self, model_dim, num_heads, num_layers=12, img_size=224, patch_size=16, num_classes=1000):
        super().__init__()
        self.conv_proj = nn.Conv2d(3, model_dim, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, model_dim))
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.zeros(1, 1 + (img_size // patch_size) ** 2, model_dim))
        self.encoder.layers = nn.Sequential()
        for i in range(num_layers):
            self.encoder.layers.add_module(f"encoder_layer_{i}", EncoderBlock(model_dim, num_heads))
        self.encoder.ln = nn.LayerNorm(model_dim, eps=1e-6)
        self.heads = nn.Sequential()
        self.heads.add_module("head", nn.Linear(model_dim, num_classes))

    def forward(self, x):
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.encoder.pos_embedding
        return self.heads(self.encoder.ln(self.encoder.layers(x))[:, 0])


class EncoderBlock(nn.Module):
    def __init__(self, model_dim, num_heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(model_dim, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(model_dim, num_heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(model_dim, eps=1e-6)
        hidden = nn.Linear(model_dim, 4 * model_dim)
        self.mlp = nn.Sequential(hidden, nn.GELU(), nn.Dropout(0.0), nn.Linear(4 * model_dim, model_dim))

    def forward(self, x):
        normed = self.ln_1(x)
        x = x + self.self_attention(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


NETS = {
    "resnet18": (ResNet, {"stage_sizes": (2, 2, 2, 2)}),
    "resnet34": (ResNet, {"stage_sizes": (3, 4, 6, 3)}),
    "resnet50": (ResNet, {"stage_sizes": (3, 4, 6, 3), "is_bottleneck": True}),
    "vgg11": (VGG, {"stages": vgg.VGG11}),
    "vgg11_bn": (VGG, {"stages": vgg.VGG11, "has_batch_norm": True}),
    "vgg16": (VGG, {"stages": vgg.VGG16}),
    "vgg16_bn": (VGG, {"stages": vgg.VGG16, "has_batch_norm": True}),
    "alexnet": (AlexNet, {}),
    "densenet121": (DenseNet, {}),
    "efficientnet_b0": (EfficientNet, {}),
    "efficientnet_b3": (EfficientNet, {"width_factor": 1.2, "depth_factor": 1.4}),
    "vit_s16": (ViT, {"model_dim": 384, "num_heads": 6}),
    "vit_b16": (ViT, {"model_dim": 768, "num_heads": 12}),
}
