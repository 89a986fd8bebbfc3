"""The scores by gradients of single samples, with torch.func: one for each sample and class, then inner products.

This is how the stated objective reads, and what a user of torch.func writes first (see saflex_task.py).
"""

import saflex_task

args = saflex_task.arguments()

import importlib.metadata  # noqa: E402
import itertools  # noqa: E402

import numpy as np  # noqa: E402
import resnet_torch  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.func import functional_call, grad, jacrev, vmap  # noqa: E402


class Mlp(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        widths = (saflex_task.COLUMNS, *saflex_task.WIDTHS)
        for i, (before, width) in enumerate(itertools.pairwise(widths)):
            setattr(self, f"hidden{i}", nn.Linear(before, width))
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x):
        for i in range(len(saflex_task.WIDTHS)):
            x = torch.relu(getattr(self, f"hidden{i}")(x))
        return self.fc(x)


def main() -> None:
    torch.set_num_threads(args.threads)
    model = {"resnet18": resnet_torch.ResNet18, "mlp": Mlp}[args.network](saflex_task.CLASSES).eval()
    model.load_state_dict(load_file(args.folder / f"{args.network}.safetensors"), strict=False)
    params = {name: value.detach() for name, value in model.named_parameters()}
    rows = saflex_task.batch(args.folder, args.network)

    def tensor(x):
        x = torch.from_numpy(x)
        return x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x

    aug, val, val_y = tensor(rows["aug"]), tensor(rows["val"]), torch.from_numpy(rows["val_y"]).long()
    # of one sample of ResNet-18 the gradients of ten classes take 0.5 GB, so samples of it come one by one
    chunk = 1 if args.network == "resnet18" else 8

    def val_loss(params):
        return nn.functional.cross_entropy(functional_call(model, params, (val,)), val_y)

    def losses_of_one(params, x):
        return -torch.log_softmax(functional_call(model, params, (x[None],))[0], dim=0)

    def scores():
        direction = grad(val_loss)(params)

        def of_one(x):
            per_class = jacrev(losses_of_one)(params, x)
            return sum((per_class[n].flatten(1) @ direction[n].flatten()) for n in params)

        return vmap(of_one, chunk_size=chunk)(aug).numpy().astype(np.float32)

    saflex_task.serve({"torch": importlib.metadata.version("torch")}, scores)


if __name__ == "__main__":
    main()
