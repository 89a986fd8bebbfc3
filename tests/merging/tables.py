"""Small tensors merged in memory, as the tests of this room write them."""

import numpy as np

from alignment.merging import methods
from alignment.merging.blocks import Sources

BASE = np.ones(6)
DELTAS = np.array([(0.4, -0.2, 0.1, 0, 0.6, -0.5), (0.2, 0.3, -0.4, 0.1, -0.2, -0.7), (-0.5, 0.1, -0.3, 0.2, 0.1, 0.4)])
MASKS = np.array([(1, 0, 1, 0, 1, 0), (0, 1, 1, 0, 0, 1), (1, 1, 0, 1, 0, 0)])
DROPPED = np.array([(0.8, 0, 0.2, 0, 1.2, 0), (0, 0.6, -0.8, 0, 0, -1.4), (-1, 0.2, 0, 0.4, 0, 0)])


def sources(views, base=None, *, by_rows=False, dtype=np.float32):
    views = [np.asarray(view, dtype) for view in views]
    return Sources(views, None if base is None else np.asarray(base, dtype), by_rows=by_rows)


def merged(name, views, base=None, *, seed=0, tensor="w", dtype=np.float32, **settings):
    """What a method makes of tensors, and what it measured; settings that a method has per model are lists."""
    method = methods.METHODS[name]
    own = sources(views, base, by_rows=method.by_rows, dtype=dtype)
    each = {key: np.broadcast_to(settings.pop(key, default), len(views)) for key, default in method.each.items()}
    each = {key: np.array(value, np.float64) for key, value in each.items()}
    unknown = set(settings) - set(method.settings)
    assert not unknown, unknown
    out = np.empty(own.shape, dtype)
    job = methods.Tensor(tensor, own, each, {**method.settings, **settings}, seed)
    return out, methods.merge(job, method, out)
