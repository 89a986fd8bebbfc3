"""Ours: the upstream's step and SAFLEX's, and the scores alone (see saflex_task.py).

Variants of the step: upstream, full, last (the last layer's gradient alone), every10 (a full pass at every tenth step),
and with replace- in front without the clean rows.
"""

import os
import sys
from pathlib import Path

import saflex_task

args = saflex_task.arguments()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Each contestant is a process; compiling ResNet-18 for all of them takes longer than their steps.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache/plumbline/bench/programs"))
sys.path.append(str(Path(__file__).resolve().parents[2]))

import importlib.metadata  # noqa: E402

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from alignment.augment import saflex, training  # noqa: E402
from alignment.models import pretrained, vision  # noqa: E402
from alignment.train.train_state import TrainState  # noqa: E402

OPTIONS = {"upstream": None, "full": {}, "last": {"subset": "last"}, "every10": {"every": 10}}


def mlp():
    """Parameters by torch's names and layout, so that both sides read one file."""
    params = {}
    for name, array in load_file(args.folder / "mlp.safetensors").items():
        layer, _, kind = name.rpartition(".")
        params.setdefault("head" if layer == "fc" else layer, {})[kind] = jnp.asarray(array)

    def apply(params, x):
        for i in range(len(saflex_task.WIDTHS)):
            x = jax.nn.relu(x @ params[f"hidden{i}"]["weight"].T + params[f"hidden{i}"]["bias"])
        return x @ params["head"]["weight"].T + params["head"]["bias"]

    def forward(params, statistics, x, *, train, rng):
        return apply(params, x), statistics

    return params, {}, forward


def resnet18():
    model = vision.network("resnet18", num_classes=saflex_task.CLASSES)
    example = jnp.zeros((1, saflex_task.SIDE, saflex_task.SIDE, 3))
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), example))
    variables = dict(pretrained.load(args.folder / "resnet18.safetensors", shapes, network="resnet18")[0])
    params = variables.pop("params")

    def forward(params, statistics, x, *, train, rng):
        if not train:
            return model.apply({"params": params, **statistics}, x, train=False)[0], statistics
        (logits, _), changed = model.apply({"params": params, **statistics}, x, train=True, mutable=["batch_stats"])
        return logits, dict(changed)

    return params, variables, forward


def main() -> None:
    params, statistics, forward = {"mlp": mlp, "resnet18": resnet18}[args.network]()
    rows = saflex_task.batch(args.folder, args.network)
    ones = np.ones(len(rows["y"]), np.float32)
    eye_KK = np.eye(saflex_task.CLASSES, dtype=np.float32)
    batch = {"x": rows["x"], "y": rows["y"], "real": ones}
    batch |= {"aug/x": rows["aug"], "aug/y0": eye_KK[rows["aug_y"]], "aug/real": ones}
    batch = jax.device_put(batch | {"val/x": rows["val"], "val/y": rows["val_y"], "val/real": ones})
    apply_fn = lambda params, x: forward(params, statistics, x, train=False, rng=None)[0]  # noqa: E731

    @jax.jit
    def scores(params, batch):
        val_loss = lambda p: jnp.mean(  # noqa: E731
            optax.softmax_cross_entropy_with_integer_labels(apply_fn(p, batch["val/x"]), batch["val/y"])
        )
        losses = lambda p: saflex.cross_entropies(apply_fn(p, batch["aug/x"]))  # noqa: E731
        return saflex.along(losses, params, jax.grad(val_loss)(params))

    variant = args.variant.removeprefix("replace-") or "full"
    options = OPTIONS[variant]
    mode = "replace" if args.variant.startswith("replace-") else "add"
    # So small a rate that the task stays what it is: thousands of steps on one batch would end in gradients near 0.
    num_classes, tx = saflex_task.CLASSES, optax.adam(1e-9)
    assign = training.upstream(num_classes) if options is None else training.refined(num_classes, forward, **options)
    update = jax.jit(training.build(assign, forward, tx, mode=mode), donate_argnums=0)
    subset = (options or {}).get("subset", "all")
    frozen = {"statistics": statistics, "saflex": saflex.start(params, subset)}
    copy = jax.tree.map(jnp.copy, (params, frozen))
    state = [TrainState(jnp.zeros((), jnp.int32), copy[0], tx.init(params), jax.random.PRNGKey(0), copy[1])]

    def steps(count):
        for _ in range(count):
            state[0], _ = update(state[0], batch)
        jax.block_until_ready(state[0].params)

    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    saflex_task.serve(versions, lambda: np.asarray(scores(params, batch)), steps)


if __name__ == "__main__":
    main()
