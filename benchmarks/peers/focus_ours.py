"""Ours: tiles stay on the device; a batch is three compiled programs: mosaics, maps, scores (see focus_task.py)."""

import os
import sys
from pathlib import Path

import focus_task

args = focus_task.arguments()
if args.device == "cpu":
    os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.append(str(Path(__file__).resolve().parents[2]))

import functools  # noqa: E402
import importlib.metadata  # noqa: E402

import channel  # noqa: E402
import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from alignment.explain import composites, explaining, focus, lrp_rules  # noqa: E402
from alignment.models import pretrained, vision  # noqa: E402

# Captum's settings in peers/focus_torch.py, in our words
RULES = (
    (composites.first, functools.partial(lrp_rules.epsilon, eps=1e-6)),
    (composites.kind("conv"), functools.partial(lrp_rules.z_plus, bias=False)),
)
OPTIONS = {
    "gradcam": {"layer": "layer4"},
    "lrp": {"composite": RULES},
    "integrated_gradients": {"num_steps": args.steps},
}


def network(num_classes: int, size: int):
    model = vision.network("resnet18", num_classes=num_classes)
    variables = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3))))
    return model, pretrained.load(args.folder / "model.safetensors", variables, network="resnet18")[0]


def main() -> None:
    jax.config.update("jax_default_matmul_precision", "highest" if args.precision == "float32" else "tensorfloat32")
    task = focus_task.Task(args.folder, args.targets)
    model, variables = network(task.num_classes, 2 * task.tiles_IYXC.shape[1])
    maps_fn = explaining.build(model.apply, variables, method=args.method, **OPTIONS[args.method])
    tiles_IYXC, tile_index_M4, tile_label_M4, targets_MK = jax.device_put(
        (task.tiles_IYXC, task.tile_index_M4, task.tile_label_M4, task.targets_MK.astype(np.int32))
    )
    tiles_IYXC.block_until_ready()
    del task.tiles_IYXC  # the device has them

    def mosaics(tiles_IYXC, tile_index_M4):
        return focus.assemble(tiles_IYXC, tile_index_M4).astype(jnp.float32) / 127.5 - 1

    def scores(maps_MKYX, tile_label_M4, targets_MK):
        (M, K, *size), flags_MK4 = maps_MKYX.shape, tile_label_M4[:, None] == targets_MK[:, :, None]
        return focus.measure(maps_MKYX.reshape(M * K, *size), flags_MK4.reshape(M * K, 4))["focus"].reshape(M, K)

    mosaics_fn, scores_fn = jax.jit(mosaics), jax.jit(scores)

    def explain(first, count, wants_maps):
        parts = []
        for rows in task.rows(first, count, args.batch):
            x_MYXC = mosaics_fn(tiles_IYXC, tile_index_M4[rows])
            maps_MKYX = maps_fn(x_MYXC, targets_MK[rows])
            scores_MK = scores_fn(maps_MKYX, tile_label_M4[rows], targets_MK[rows])
            parts.append((maps_MKYX, scores_MK) if wants_maps else scores_MK)
        return jax.tree.map(lambda *arrays: np.concatenate([np.asarray(a) for a in arrays])[:count], *parts)

    def floor(size: int = 3072) -> float:
        left, right = jax.random.normal(jax.random.key(0), (2, size, size))
        product = jax.jit(jnp.matmul)
        return channel.best_gflops(lambda: product(left, right).block_until_ready(), size)

    def memory() -> float:
        statistics = jax.devices()[0].memory_stats() if args.device == "gpu" else None
        return statistics["peak_bytes_in_use"] / 2**20 if statistics else channel.peak_rss_mb()

    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    focus_task.serve(explain, versions, floor, memory)


if __name__ == "__main__":
    main()
