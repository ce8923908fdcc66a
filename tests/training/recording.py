"""A CUDA graph without a GPU: operations are recorded once and replayed on the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that a capture on a GPU refuses or would freeze: values read back, sizes that depend on
# values, constants copied from the host, and torch's random numbers.
REFUSED = (
    "_local_scalar_dense",
    "nonzero",
    "lift_fresh",
    "is_nonzero",
    "equal",
    "unique",
    "masked_select",
    "rand",
    "rand_like",
    "randn",
    "randn_like",
    "randint",
    "randperm",
    "bernoulli",
    "bernoulli_",
    "native_dropout",
    "normal_",
    "uniform_",
)


class RecordedGraph(TorchDispatchMode):
    """A graph of torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[Any, Any]] = {}

    def record(self, work: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """Record the work. As in a capture, existing tensors keep their values."""
        with self:
            outputs = work()
        for storage, content in self._before.values():
            storage.copy_(content)
        return outputs

    def replay(self) -> None:
        """Repeat each operation, and copy its results to the recorded outputs."""
        with torch.no_grad():
            for function, arguments, options, outputs in self.operations:
                results = function(*arguments, **options)
                for old, new in zip(_tensors(outputs), _tensors(results), strict=True):
                    if old.data_ptr() != new.data_ptr():  # neither a view nor changed in place
                        old.copy_(new)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            x.dtype == torch.bool for x in _tensors(args[1])
        )
        refused = by_mask or name in REFUSED
        assert not refused, f"{name} cannot be captured"
        for schema, argument in zip(function._schema.arguments, args, strict=False):
            if schema.alias_info is not None and schema.alias_info.is_write:
                for tensor in _tensors(argument):
                    self._remember(tensor)
        out = function(*args, **(kwargs or {}))
        read = {x.untyped_storage().data_ptr() for x in _tensors([*args, *(kwargs or {}).values()])}
        self._made |= {x.untyped_storage().data_ptr() for x in _tensors(out)} - read
        self.operations.append((function, args, kwargs or {}, out))
        return out

    def _remember(self, tensor: Tensor) -> None:
        """Keep the content of an existing tensor that is about to be changed."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._made and storage.data_ptr() not in self._before:
            self._before[storage.data_ptr()] = storage, storage.clone()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
