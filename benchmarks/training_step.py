"""A student's training step on MOSI's shapes: corrkd's loop against a plain loop.

    python benchmarks/training_step.py [--threads 2] [--dropout 0.1] [--precision bf16-mixed] [--device cuda] [--rounds 9]

Both train the same network with MRM, the same losses (task, SCD, CPD, RCD), Adam and clipping. The plain loop is what one writes
first: nn.Conv1d and nn.TransformerEncoder, a DataLoader, masks from torch.rand, the teacher run in every step, `item()` on every
term. A round is an epoch of each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

import torch
from lightning_fabric import Fabric
from side_by_side import MOSI, Program, measure, mosi_experiment, speeds, times_as_fast
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from corrkd.data.batches import Samples
from corrkd.experiment.arm import resolve
from corrkd.experiment.plan import RUN_ARMS
from corrkd.experiment.processes import keep_freed_memory
from corrkd.experiment.stages import make_method
from corrkd.losses import (
    CategoryPrototypeDistillation,
    ResponseDisentangledConsistency,
    SampleContrastiveDistillation,
)
from corrkd.networks.encoder import sinusoids
from corrkd.settings import NetworkSettings, TrainingSettings
from corrkd.training.loop import teacher_outputs, train

BATCH = 64


def make_fabric(device: str, precision: str) -> Fabric:
    fabric = Fabric(accelerator="cuda" if device == "cuda" else "cpu", devices=1, precision=precision)
    fabric.launch()
    return fabric


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# --- corrkd's loop ----------------------------------------------------------------------------------------------------------


def make_ours(dropout: float, device: str, precision: str) -> Program:
    keep_freed_memory()
    experiment = mosi_experiment(dropout=dropout, device=device, precision=precision)
    fabric = make_fabric(device, precision)
    samples = experiment.samples("train")
    settings = TrainingSettings(epochs=1, batch_size=BATCH)
    arms = {name: resolve(name, changes, experiment.settings) for name, changes in RUN_ARMS.items()}
    teacher_network = make_method(arms["teacher"], experiment, 0, samples).student.to(fabric.device)
    method = make_method(arms["student"], experiment, 0, samples, teacher_outputs(teacher_network, samples))

    def epoch() -> None:
        train(
            method,
            samples,
            settings=settings,
            validate=lambda network: 0.0,
            seed=0,
            fabric=fabric,
            missing=experiment.settings.missing,
        )
        wait_for(device)

    return epoch


# --- the plain loop ---------------------------------------------------------------------------------------------------------


class PlainSamples(Dataset[Any]):
    """Sample by sample, to be collated."""

    def __init__(self, samples: Samples) -> None:
        batch = samples.take(torch.arange(len(samples)))
        self.frames, self.exists, self.targets = batch.frames, batch.exists, batch.targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> Any:
        frames = {m: x[row] for m, x in self.frames.items()}
        return frames, {m: x[row] for m, x in self.exists.items()}, self.targets[row]


class PlainEncoder(nn.Module):
    """The encoder of one modality, of torch's own layers."""

    def __init__(self, inputs: int, frames: int, settings: NetworkSettings) -> None:
        super().__init__()
        width, share = settings.width, settings.dropout
        self.embed = nn.Conv1d(inputs, width, settings.kernel, padding=settings.kernel // 2)
        self.register_buffer("positions", sinusoids(frames, width))
        self.dropout = nn.Dropout(share)
        layer = nn.TransformerEncoderLayer(
            width, settings.heads, settings.feedforward, share, batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(width)
        self.transformer = nn.TransformerEncoder(layer, settings.layers, norm, enable_nested_tensor=False)

    def forward(self, frames: Tensor, exists: Tensor) -> Tensor:
        """(N, T, inputs) and (N, T) -> (N, width)."""
        hidden = self.embed(frames.transpose(1, 2)).transpose(1, 2) + self.positions
        hidden = self.transformer(self.dropout(hidden), src_key_padding_mask=~exists)
        weight = exists[..., None].to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)


class PlainNetwork(nn.Module):
    """Encoders and classifier."""

    def __init__(self, widths: dict[str, int], frames: int, settings: NetworkSettings) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({m: PlainEncoder(w, frames, settings) for m, w in widths.items()})
        hidden = settings.classifier[0]
        self.classifier = nn.Sequential(
            nn.Dropout(settings.dropout),
            nn.Linear(len(widths) * settings.width, hidden),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(hidden, 2),
        )

    def forward(self, frames: dict[str, Tensor], exists: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Representation and logits."""
        representation = torch.cat([encoder(frames[m], exists[m]) for m, encoder in self.encoders.items()], 1)
        return representation, self.classifier(representation)


def plain_missing(frames: dict[str, Tensor], exists: dict[str, Tensor]) -> dict[str, Tensor]:
    """MRM: whole modalities at 0.3, frames at a ratio from 0 to 0.7."""
    out = {}
    for m, x in frames.items():
        count, length = exists[m].shape
        lost = torch.rand(count, 1, device=x.device) < 0.3
        ratio = torch.rand(count, 1, device=x.device) * 0.7
        dropped = (torch.rand(count, length, device=x.device) < ratio) | lost
        out[m] = x * ~dropped[..., None]
    return out


def make_plain(dropout: float, device: str, precision: str) -> Program:
    experiment = mosi_experiment(dropout=dropout, device="cpu", precision=precision)
    fabric = make_fabric(device, precision)
    samples = experiment.samples("train")
    loader = fabric.setup_dataloaders(DataLoader(PlainSamples(samples), batch_size=BATCH, shuffle=True, num_workers=0))
    sizes = samples.widths, MOSI["frames"], experiment.settings.student.network.options
    teacher = PlainNetwork(*sizes).to(fabric.device).eval()
    student = PlainNetwork(*sizes)
    scd, cpd, rcd = (
        SampleContrastiveDistillation(),
        CategoryPrototypeDistillation(2),
        ResponseDisentangledConsistency(2),
    )
    parameters = nn.ModuleList([student, rcd])
    optimizer = torch.optim.Adam(parameters.parameters(), lr=1e-3)
    student, optimizer = fabric.setup(student, optimizer)
    rcd.to(fabric.device)

    def epoch() -> None:
        student.train()
        for frames, exists, targets in loader:
            with torch.no_grad(), fabric.autocast():
                teacher_representation, teacher_logits = teacher(frames, exists)
            representation, logits = student(plain_missing(frames, exists), exists)
            terms = {
                "task": cross_entropy(logits, targets),
                "scd": scd(representation, teacher_representation),
                "cpd": cpd(representation, teacher_representation, targets),
                "rcd": rcd(logits, teacher_logits, targets),
            }
            loss = sum(terms.values())
            optimizer.zero_grad()
            fabric.backward(loss)
            nn.utils.clip_grad_norm_(parameters.parameters(), 1.0)
            optimizer.step()
            {name: term.item() for name, term in terms.items()}
        wait_for(device)

    return epoch


# --- the machine ------------------------------------------------------------------------------------------------------------

MATRIX = 2048


def make_product(dropout: float, device: str, precision: str) -> Program:
    """A large product of two matrices, in the precision of the step."""
    keep_freed_memory()
    a, b = torch.randn(
        2, MATRIX, MATRIX, device=device, dtype=torch.float32 if precision == "32-true" else torch.bfloat16
    )

    def product() -> None:
        for _ in range(4):
            a @ b
        wait_for(device)

    return product


def flops_of_a_sample(settings: NetworkSettings) -> float:
    """Multiplications and additions of a sample's forward and backward pass in matrix products; the losses' are not counted."""
    width, frames = settings.width, MOSI["frames"]
    # Two for each weight and frame; the backward pass costs twice the forward's, but for inputs without a gradient.
    layer = 3 * 2 * frames * (4 * width * width + 2 * width * settings.feedforward)
    attention = 3 * 2 * 2 * frames * frames * width
    total = 0.0
    for inputs in MOSI["widths"].values():
        total += 2 * 2 * frames * inputs * width * settings.kernel + settings.layers * (layer + attention)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("training_step.py: no CUDA device here; leave --device out")
    options = {"dropout": asked.dropout, "device": asked.device, "precision": asked.precision}
    makers = {"plain": make_plain, "ours": make_ours, "product": make_product}
    seconds = measure(makers, options, threads=asked.threads, rounds=asked.rounds)

    samples = MOSI["train"]
    peak = 4 * 2 * MATRIX**3 / statistics.median(seconds["product"])
    settings = NetworkSettings(layers=2)
    done = flops_of_a_sample(settings) * samples / statistics.median(seconds["ours"])
    print(f"training step, {asked.device}, {asked.precision}, dropout {asked.dropout}, {asked.threads} threads")
    print(f"samples per second, median of {asked.rounds} epochs each in turn (lowest to highest)")
    print(f"  plain loop  {speeds(samples, seconds['plain'])}")
    print(f"  corrkd      {speeds(samples, seconds['ours'])}   {times_as_fast(seconds['plain'], seconds['ours'])}")
    print(
        f"share of the matrix peak: {done / 1e9:,.0f} of {peak / 1e9:,.0f} GFLOP/s = {done / peak:.0%}"
        f" ({flops_of_a_sample(settings) / 1e6:.0f} MFLOP a sample; peak: a product of {MATRIX} x {MATRIX} matrices)"
    )
    if asked.dropout:
        print("what differs: nn.TransformerEncoderLayer drops attention weights too, corrkd does not; see --dropout 0")


if __name__ == "__main__":
    main()
