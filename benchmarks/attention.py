"""Self-attention of an encoder layer, forward and backward: two batched products, as the package
computes it, against torch's fused kernel.

    python benchmarks/attention.py [--device cuda] [--frames 50] [--runs 20] [--threads 1] [--rounds
    5]

With --runs, the maps of that many networks at once, as in a stack (`torch.vmap`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from side_by_side import Program, measure, speeds, times_as_fast
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import scaled_dot_product_attention
from training_step import wait_for

SAMPLES, HEADS, WIDTH, STEPS = 64, 10, 4, 10


def products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """(N, H, d, T) three times and (N, 1, 1, T) -> (N, H, d, T), time last as in
    `corrkd.networks.encoder`.
    """
    count, heads, width, frames = query.shape
    batch = count * heads
    query, key, value = (x.reshape(batch, width, frames) for x in (query * width**-0.5, key, value))
    columns = bias.expand(count, heads, 1, frames).reshape(batch, frames, 1)
    weights = torch.softmax(torch.baddbmm(columns, key.transpose(1, 2), query), 1)
    return torch.bmm(value, weights).view(count, heads, width, frames)


def fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """The same by `scaled_dot_product_attention`, which has the width last."""
    query, key, value = (x.transpose(2, 3) for x in (query, key, value))
    return scaled_dot_product_attention(query, key, value, bias).transpose(2, 3)


def make(attention: Callable[..., Tensor], device: str, frames: int, runs: int) -> Program:
    random = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, runs, SAMPLES, HEADS, WIDTH, frames, generator=random).to(
        device
    )
    bias = torch.zeros(runs, SAMPLES, 1, 1, frames, device=device)
    gradients = vmap(
        grad(lambda q, k, v, b: attention(q, k, v, b).square().sum(), argnums=(0, 1, 2))
    )

    def steps() -> None:
        for _ in range(STEPS):
            gradients(query, key, value, bias)
        wait_for(device)

    return steps


def make_products(**options: object) -> Program:
    return make(products, **options)  # type: ignore[arg-type]


def make_fused(**options: object) -> Program:
    return make(fused, **options)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    options = {"device": asked.device, "frames": asked.frames, "runs": asked.runs}
    makers = {"products": make_products, "fused": make_fused}
    seconds = measure(makers, options, threads=asked.threads, rounds=asked.rounds)
    print(
        f"attention over {asked.frames} frames, {SAMPLES} samples, {HEADS} heads, {asked.runs} "
        f"runs, {asked.device}"
    )
    for name, times in seconds.items():
        print(f"  {name:<10}{speeds(STEPS * SAMPLES * asked.runs, times)} samples/s")
    print(f"  fused: {times_as_fast(*seconds.values())}")


if __name__ == "__main__":
    main()
