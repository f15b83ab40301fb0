"""A small GCN2 with every way to keep less at once, and what a step of it shows of noise and of memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch_geometric.nn import GCN2Conv

from rmm_gnn import GradientProbe, NoiseController, RMMConfig, compress_activations, convert_to_rmm
from rmm_gnn.diagnostics.process_peak import status_bytes
from rmm_gnn.diagnostics.products import Product, WatchProducts

NODES, FEATURES, WIDTH, CLASSES, ALPHA, THETA = 384, 24, 16, 6, 0.1, 0.5
_LEAN = {"codec": "int8", "x0_codec": "int4", "norm_codec": "int2", "norm_rate": 0.5, "act_codec": "int4"}
# What cannot be combined: a family that depends on the data can neither be anchored nor be steered by a rate.
CONFIGS = {
    "anchored": RMMConfig(rate=0.3, anchor=True, **_LEAN),  # type: ignore[arg-type]
    "sampled": RMMConfig(rate=0.3, sketch="importance_sampling", **_LEAN),  # type: ignore[arg-type]
}


class GCN2(nn.Module):
    """Convolutions with two weights, so that x_0 is shared, between linear layers; norms of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, CLASSES)
        convs = (GCN2Conv(WIDTH, ALPHA, THETA, layer, shared_weights=False, cached=True) for layer in (1, 2))
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList([nn.BatchNorm1d(WIDTH), nn.LayerNorm(WIDTH)])
        self.act, self.dropout = nn.GELU(), nn.Dropout(0.1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = x_0 = F.relu(self.first(F.dropout(x, 0.1, self.training)))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = self.dropout(self.act(norm(conv(h, x_0, edge_index))))
        return self.last(h)


@dataclass
class SavedStorages:
    """Refers weakly to every storage that autograd keeps, besides those that live on anyway."""

    besides: set[int]
    references: list[StorageWeakRef] = field(default_factory=list)

    @contextmanager
    def watch(self) -> Iterator[None]:
        def pack(tensor: Tensor) -> Tensor:
            if tensor.layout == torch.strided and tensor.untyped_storage().data_ptr() not in self.besides:
                self.references.append(StorageWeakRef(tensor.untyped_storage()))
            # An output that a node saved as it is would hold the node that holds it.
            return tensor if tensor.grad_fn is None else tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield


class Run:
    """Training of the model in one configuration.

    Args:
        name: One of ``CONFIGS``.
    """

    def __init__(self, name: str) -> None:
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.config = CONFIGS[name]
        self.x = torch.randn(NODES, FEATURES, generator=generator)
        self.edge_index = torch.randint(NODES, (2, 4 * NODES), generator=generator)
        self.labels = torch.randint(CLASSES, (NODES,), generator=generator)
        self.model = convert_to_rmm(GCN2(), self.config, lean=True)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.probe = GradientProbe(self.model, every=1, max_records=100)
        self.controller = None
        if self.config.anchor:
            self.controller = NoiseController(self.model, target=0.3, every=10, max_rate=0.8, max_history=100)
        self._parameters = dict(self.model.named_parameters())
        self._names = {parameter: name for name, parameter in self._parameters.items()}

    def loss(self) -> Tensor:
        """Run forward."""
        with compress_activations(self.config, held=(self.x,)):
            return F.cross_entropy(self.model(self.x, self.edge_index), self.labels)

    def step(self) -> dict[str, float]:
        """Make a training step.

        Returns:
            By weight whose gradient is an estimate: the square of its error over what the closed form predicts.
        """
        seen: dict[str, Tensor] = {}

        def note(product: Product) -> None:
            rows, name = product.rows, product.name

            def multiply(grad_output: Tensor) -> None:
                seen[name] = grad_output.T @ rows

            product.out.register_hook(multiply)

        with compress_activations(self.config, held=(self.x,)), WatchProducts(self._names, note):
            loss = F.cross_entropy(self.model(self.x, self.edge_index), self.labels)
        loss.backward()
        ratios = {}
        while self.probe.records:
            record = self.probe.records.popleft()
            if record.kept in ("sketch", "code"):
                error = self._estimate(record.layer) - seen[record.layer]
                ratios[record.layer] = float(error.double().square().sum()) / record.rmm_variance
        if self.controller is not None:
            self.controller.step()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return ratios

    def _estimate(self, name: str) -> Tensor:
        """The gradient of the matrix that a product reads, which a weight of a convolution is a part of."""
        grad = self._parameters[name].grad
        assert grad is not None
        if not name.startswith("convs"):
            return grad
        conv = self.model.get_submodule(name.rpartition(".")[0])
        return grad.T / (conv.beta * (ALPHA if name.endswith("weight2") else 1.0))

    def storages_left(self) -> int:
        """Make forward and backward, and count the storages kept for it that are there still."""
        saved = self.saved_storages()
        with saved.watch():
            loss = self.loss()
        assert self.left(saved)
        loss.backward()
        del loss
        self.optimizer.zero_grad(set_to_none=True)
        return self.left(saved)

    def saved_storages(self) -> SavedStorages:
        """What to watch a forward pass with."""
        lasting = [*self.model.parameters(), *self.model.buffers(), self.x, self.labels, self.edge_index]
        return SavedStorages({tensor.untyped_storage().data_ptr() for tensor in lasting})

    def left(self, saved: SavedStorages) -> int:
        """How many are there still, besides the adjacencies that the convolutions hold."""
        held = [tensor for conv in self.model.convs for tensor in conv._cached_edge_index or ()]
        addresses = {tensor.untyped_storage()._cdata for tensor in held if tensor is not None}
        return sum(reference.cdata not in addresses for reference in saved.references if not reference.expired())


def memory() -> dict[str, int | None]:
    """Resident bytes of the process (None where the system does not say), and tensors that Python knows of."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return {
        "resident_bytes": status_bytes("VmRSS"),
        "tensors": len(tensors),
        "tensor_bytes": sum(storages.values()),
    }
