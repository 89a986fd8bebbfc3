"""Captum and pytorch-grad-cam on torch, with Focus in numpy (see focus_task.py).

Variants: "" as their documentation shows; "tuned" with what a user may do to be faster: images and weights with
channels last and, for GradCAM, gradients of nothing before the last block.  Batch norm is folded into the convolutions
for LRP, where Captum's rule for convolutions would otherwise not be ours.  Several targets are as many passes.

pytorch-grad-cam imports torchvision for helpers that no CAM needs; where there is none, empty names stand in for it,
because a torchvision has to be built for the very torch beside it.
"""

import sys
import types

import focus_task

args = focus_task.arguments()

import importlib.metadata  # noqa: E402
import importlib.util  # noqa: E402
import warnings  # noqa: E402

import channel  # noqa: E402
import numpy as np  # noqa: E402
import resnet_torch  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.fusion import fuse_conv_bn_eval  # noqa: E402

if importlib.util.find_spec("torchvision") is None:
    names = {"torchvision": (), "torchvision.transforms": ("Compose", "Normalize", "ToTensor")}
    for module, missing in (names | {"torchvision.transforms.functional": ("resize",)}).items():
        sys.modules[module] = types.ModuleType(module)
        sys.modules[module].__dict__.update(dict.fromkeys(missing))

from captum import attr  # noqa: E402
from captum.attr._utils.custom_modules import Addition_Module  # noqa: E402
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule  # noqa: E402

warnings.filterwarnings("ignore")  # Captum says at every call that the input needs gradients
IS_TUNED, EPS = args.variant == "tuned", 1e-6


def fold(net: nn.Module) -> None:
    """Fold every batch norm into the convolution before it, and remove the norm."""
    blocks = [module for module in net.modules() if isinstance(module, resnet_torch.Block)]
    for module, conv, norm in [(net, "conv1", "bn1")] + [(b, f"conv{i}", f"bn{i}") for b in blocks for i in (1, 2)]:
        setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
        setattr(module, norm, None)
    for block in blocks:
        if block.downsample is not None:
            block.downsample = fuse_conv_bn_eval(*block.downsample)


def gradcam_fn(net):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    if IS_TUNED:  # its hook needs a gradient in the last block, and in nothing before
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name == "layer4.1.bn2.bias")
    cam = GradCAM(model=net, target_layers=[net.layer4[-1]])
    return lambda x, target_M: cam(input_tensor=x, targets=[ClassifierOutputTarget(int(t)) for t in target_M])


def lrp_fn(net):
    fold(net)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    method = attr.LRP(net)
    kinds = nn.Linear | nn.AdaptiveAvgPool2d | Addition_Module  # of max-pools it has its own, 1e-9
    epsilon = [module for module in net.modules() if isinstance(module, kinds)]
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d) and module is not net.conv1]

    def maps(x, target_M):
        for module in (net.conv1, *epsilon):  # Captum takes the rules away after each call
            module.rule = EpsilonRule(EPS)
        for module in convs:
            module.rule = Alpha1_Beta0_Rule(set_bias_to_zero=True)
        return method.attribute(x, target=torch.as_tensor(target_M)).sum(1).detach().cpu().numpy()

    return maps


def integrated_gradients_fn(net):
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    method, options = attr.IntegratedGradients(net), {"n_steps": args.steps, "method": "gausslegendre"}

    def maps(x, target_M):
        maps = method.attribute(x, target=torch.as_tensor(target_M), internal_batch_size=max(len(x), 1), **options)
        return maps.sum(1).detach().cpu().numpy()

    return maps


METHODS = {"gradcam": gradcam_fn, "lrp": lrp_fn, "integrated_gradients": integrated_gradients_fn}


def score(map_YX: np.ndarray, is_target_4: np.ndarray) -> float:
    """Focus of one map."""
    y, x = map_YX.shape[0] // 2, map_YX.shape[1] // 2
    positive_YX = np.maximum(map_YX, 0)
    tiles = (positive_YX[:y, :x], positive_YX[:y, x:], positive_YX[y:, :x], positive_YX[y:, x:])
    masses_4 = np.array([tile.sum() for tile in tiles])
    total = masses_4.sum()
    return float(masses_4[is_target_4].sum() / total) if total > 0 else float("nan")


def mosaics(tiles_IYXC: np.ndarray, tile_index_M4: np.ndarray) -> torch.Tensor:
    """Normalised images [M, C, 2Y, 2X]."""
    tiles_M4 = tiles_IYXC[tile_index_M4]
    rows = [np.concatenate([tiles_M4[:, i], tiles_M4[:, i + 1]], axis=2) for i in (0, 2)]
    whole = torch.from_numpy(np.concatenate(rows, axis=1)).to("cuda" if args.device == "gpu" else "cpu")
    return (whole.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


def main() -> None:
    torch.set_num_threads(args.threads)
    is_tf32 = args.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = is_tf32
    torch.backends.cudnn.benchmark = True
    task = focus_task.Task(args.folder, args.targets)
    net = resnet_torch.ResNet18(task.num_classes, Addition_Module)
    net.load_state_dict(load_file(args.folder / "model.safetensors"), strict=False)
    net = net.to("cuda" if args.device == "gpu" else "cpu").eval()
    maps_fn = METHODS[args.method](net)
    if IS_TUNED:
        net = net.to(memory_format=torch.channels_last)

    def explain(first, count, wants_maps):
        all_maps, all_scores = [], []
        for rows in task.rows(first, count, args.batch):
            x = mosaics(task.tiles_IYXC, task.tile_index_M4[rows])
            x = x.contiguous(memory_format=torch.channels_last) if IS_TUNED else x
            maps_KMYX = [maps_fn(x, target_M) for target_M in task.targets_MK[rows].T]
            maps_MKYX = np.stack(maps_KMYX, axis=1)
            for maps_KYX, label_4, target_K in zip(maps_MKYX, task.tile_label_M4[rows], task.targets_MK[rows]):
                all_scores.append([score(map_YX, label_4 == t) for map_YX, t in zip(maps_KYX, target_K)])
            all_maps += list(maps_MKYX) if wants_maps else []
        scores_MK = np.array(all_scores)[:count]
        return (np.array(all_maps)[:count], scores_MK) if wants_maps else scores_MK

    def floor(size: int = 3072) -> float:
        left, right = torch.randn(2, size, size, device=x_device())
        out = torch.empty(size, size, device=x_device())
        return channel.best_gflops(lambda: (torch.mm(left, right, out=out), synchronise()), size)

    def memory() -> float:
        return torch.cuda.max_memory_allocated() / 2**20 if args.device == "gpu" else channel.peak_rss_mb()

    packages = {"torch": "torch", "captum": "captum", "pytorch-grad-cam": "grad-cam", "numpy": "numpy"}
    versions = {name: importlib.metadata.version(package) for name, package in packages.items()}
    focus_task.serve(explain, versions, floor, memory)


def x_device() -> str:
    return "cuda" if args.device == "gpu" else "cpu"


def synchronise() -> None:
    if args.device == "gpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
