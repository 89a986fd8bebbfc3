"""torchvision's ResNet-18 without torchvision, which has to be built for the very torch beside it."""

from torch import nn


class Sum(nn.Module):
    def forward(self, x, y):
        return x + y


class Block(nn.Module):
    """Two convolutions beside a shortcut; each ReLU and the sum are modules, as Captum's LRP needs."""

    def __init__(self, channels_in: int, channels: int, stride: int, sum_class: type[nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.relu1, self.relu2, self.add, self.downsample = nn.ReLU(), nn.ReLU(), sum_class(), None
        if stride > 1 or channels_in != channels:
            projection = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x):
        inner = self.relu1(normed(self.bn1, self.conv1(x)))
        inner = normed(self.bn2, self.conv2(inner))
        return self.relu2(self.add(inner, x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """With torchvision's names; `sum_class` adds a block's two branches."""

    def __init__(self, num_classes: int, sum_class: type[nn.Module] = Sum):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool, self.avgpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1)
        for i, (before, channels) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), 1):
            first = Block(before, channels, 1 if i == 1 else 2, sum_class)
            setattr(self, f"layer{i}", nn.Sequential(first, Block(channels, channels, 1, sum_class)))
        self.fc = nn.Linear(512, num_classes)

    def forward(self, x):
        x = self.maxpool(self.relu(normed(self.bn1, self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def normed(norm, x):
    return x if norm is None else norm(x)
