"""Torch's side of benchmarks/sketch_gnn.py: PyTorch Geometric's GCN where it is installed, else one of plain torch."""

import functools
import importlib.metadata
import importlib.util
import itertools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers import decode_task

FOLDER = Path(sys.argv[1])
HAS_PYG = importlib.util.find_spec("torch_geometric") is not None


def versions():
    return {name: importlib.metadata.version(name) for name in ["torch"] + ["torch_geometric"] * HAS_PYG}


def network_class():
    """GCN of any widths; torch is imported here, behind the limit on threads."""
    import torch

    class Plain(torch.nn.Module):
        """C (H W) + b, as GCNConv has it."""

        def __init__(self, fan_in, fan_out):
            super().__init__()
            self.linear = torch.nn.Linear(fan_in, fan_out, bias=False)
            torch.nn.init.xavier_uniform_(self.linear.weight)
            self.bias = torch.nn.Parameter(torch.zeros(fan_out))

        def forward(self, x, matrix):
            return torch.sparse.mm(matrix, self.linear(x)) + self.bias

    class Network(torch.nn.Module):
        def __init__(self, widths, dropout):
            super().__init__()
            layer = Plain
            if HAS_PYG:
                from torch_geometric.nn import GCNConv

                layer = functools.partial(GCNConv, normalize=False)
            self.layers = torch.nn.ModuleList([layer(a, b) for a, b in itertools.pairwise(widths)])
            self.dropout = dropout

        def forward(self, x, graph):
            for number, layer in enumerate(self.layers):
                x = torch.nn.functional.dropout(x, self.dropout, self.training)
                x = layer(x, graph)
                x = torch.relu(x) if number + 1 < len(self.layers) else x
            return x

    return Network


def jobs():
    import numpy as np
    import scipy.sparse
    import torch

    network_of = network_class()

    @functools.cache
    def task_of(task):
        with np.load(FOLDER / f"{task}.npz") as file:
            shape = (len(file["y"]),) * 2
            ones = np.ones(len(file["indices"]), np.float32)
            adjacency = scipy.sparse.csr_matrix((ones, file["indices"], file["indptr"]), shape=shape)
            x, y = file["x"].astype(np.float32), torch.from_numpy(file["y"].astype(np.int64))
            train, test = (torch.from_numpy(file[split]) for split in ("train", "test"))
        hidden = 16 if task == "small" else 64
        x = (
            x / np.maximum(np.abs(x).sum(axis=1, keepdims=True), 1e-9)
            if task == "small"
            else (x - x.mean(0)) / x.std(0)
        )
        looped = (adjacency + scipy.sparse.eye_array(shape[0], dtype=np.float32)).tocsr()
        scale = scipy.sparse.diags_array(1 / np.sqrt(np.asarray(looped.sum(axis=1)).ravel()))
        matrix = scipy.sparse.csr_matrix(scale @ looped @ scale, dtype=np.float32)
        # GCNConv reads such a matrix too; pairs of nodes would cost it a gather and a scatter of every edge's row.
        parts = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
        graph = torch.sparse_csr_tensor(*parts, size=shape)
        return torch.from_numpy(x), y, train, test, graph, (x.shape[1], hidden, int(y.max()) + 1)

    def answer(task, size, *, evaluates):
        begin, cpu = time.perf_counter(), time.process_time()
        x, y, train, test, graph, widths = task_of(task)
        torch.manual_seed(0)
        network = network_of(widths, 0.5 if task == "small" else 0.0)
        adam = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=5e-4 if task == "small" else 0.0)
        spans, accuracy = [], 0.0
        for _ in range(size + 2):
            start = time.perf_counter()
            network.train()
            adam.zero_grad()
            torch.nn.functional.cross_entropy(network(x, graph)[train], y[train]).backward()
            adam.step()
            if evaluates:
                network.eval()
                with torch.no_grad():
                    accuracy = float((network(x, graph)[test].argmax(dim=1) == y[test]).float().mean())
            spans.append(time.perf_counter() - start)
        out = {"full": sorted(spans[2:])[size // 2], "accuracy": accuracy}
        return out | {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}

    return {
        "small": lambda size: answer("small", size, evaluates=True),
        "large": lambda size: answer("large", size, evaluates=False),
    }


if __name__ == "__main__":
    decode_task.serve(versions, jobs)
