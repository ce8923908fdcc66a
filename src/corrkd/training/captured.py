"""Steps as fixed programs, recorded as a CUDA graph or compiled, because on a GPU most of a step's
time is spent between small kernels.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from corrkd.errors import CorrKDError

Outputs = Mapping[str, Tensor]
COMPILER_FAILED = (
    torch._dynamo.exc.BackendCompilerFailed,
    torch._dynamo.exc.ShortenTraceback,  # if Triton is missing, or the GPU is too old for it
)


class Graph(Protocol):
    """Work that is recorded once and replayed on the same memory."""

    def record(self, work: Callable[[], Outputs]) -> Outputs:
        """Record the work without running it, and return the tensors that a replay fills."""

    def replay(self) -> None:
        """Run the work again."""


class CudaGraph:
    """A CUDA graph.

    Args:
        pool: memory pool, shared by graphs that are replayed one after the other
            (`torch.cuda.graph_pool_handle`).
    """

    def __init__(self, pool: Any) -> None:
        self._graph, self._pool = torch.cuda.CUDAGraph(), pool

    def record(self, work: Callable[[], Outputs]) -> Outputs:
        """Record the work's kernels."""
        gc.collect()  # destroying an older graph during the capture would break it
        gc.disable()
        try:
            with torch.cuda.graph(self._graph, pool=self._pool):
                return work()
        finally:
            gc.enable()

    def replay(self) -> None:
        """Launch all recorded kernels at once."""
        self._graph.replay()


class Captured:
    """Work on tensors, recorded once per set of shapes, with its tensors in fixed buffers.

    The first call with a set of shapes runs the work directly, so that everything created on first
    use exists (an optimiser's state, a library's workspace); the second call records it.

    Args:
        work: function of tensors that reads nothing back from the device and draws no random
            numbers from torch.
        make_graph: creates the graph for a set of shapes.
    """

    def __init__(
        self, work: Callable[[Sequence[Tensor]], Outputs], make_graph: Callable[[], Graph]
    ) -> None:
        self._work, self._make_graph = work, make_graph
        self._recorded: dict[Any, tuple[Graph, list[Tensor], Outputs] | None] = {}

    def __call__(self, arguments: Sequence[Tensor]) -> Outputs:
        """Run the work. Its outputs are overwritten by the next call."""
        shapes = tuple(x.shape for x in arguments)
        if shapes not in self._recorded:
            self._recorded[shapes] = None
            return self._work(arguments)
        recorded = self._recorded[shapes]
        if recorded is None:
            graph, buffers = self._make_graph(), [x.clone() for x in arguments]
            recorded = graph, buffers, graph.record(lambda: self._work(buffers))
            self._recorded[shapes] = recorded
        graph, buffers, outputs = recorded
        for buffer, x in zip(buffers, arguments, strict=True):
            buffer.copy_(x)
        graph.replay()
        return outputs


class Compiled:
    """A function of tensors and containers of tensors, compiled for the shapes of its first call;
    with other shapes it runs uncompiled.

    It is first traced down to torch's operations, so that the compiler need not support the
    transforms around them.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._shapes: Any = None
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Return the output of the function.

        Raises:
            CorrKDError: if there is no working compiler.
        """
        shapes = [x.shape for x in torch.utils._pytree.tree_leaves(arguments)]
        if self._compiled is None:
            self._shapes = shapes
            traced = make_fx(lambda *inputs: self._function(*inputs))(*arguments)
            self._compiled = torch.compile(traced, fullgraph=True, dynamic=False)
        if shapes != self._shapes:
            return self._function(*arguments)
        try:
            return self._compiled(*arguments)
        except COMPILER_FAILED as error:
            reason = str(error).strip().splitlines()[0]
            raise CorrKDError(
                f"compile: torch.compile failed ({reason}); install a C++ compiler (on a GPU: "
                f"Triton) or set compile: false"
            ) from None
