"""A student's training step on MOSI's shapes: corrkd's loop against a plain loop.

    python benchmarks/training_step.py [--threads 2] [--dropout 0.1] [--precision bf16-mixed]
    [--device cuda] [--rounds 9] [--compile]

Beside them: the matrix products of corrkd's step alone, which bound what any fusion of the rest can
reach; with --compile, corrkd's step compiled (a minute before the first round). On a GPU corrkd's
steps are captured, as they are in a run.

Both loops train the same network with MRM, the same losses (task, SCD, CPD, RCD), Adam and
clipping. The plain loop is what one writes first: nn.Conv1d and nn.TransformerEncoder, a
DataLoader, masks from torch.rand, the teacher run in every step, `item()` on every term. A round is
an epoch of each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from side_by_side import (
    MOSI,
    Program,
    epoch_by_epoch,
    measure,
    mosi_experiment,
    speeds,
    times_as_fast,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

from corrkd.data.batches import Samples
from corrkd.experiment import processes
from corrkd.experiment.arm import resolve
from corrkd.experiment.plan import RUN_ARMS
from corrkd.experiment.processes import keep_freed_memory
from corrkd.experiment.settings import Settings
from corrkd.experiment.stages import make_method
from corrkd.losses import (
    CategoryPrototypeDistillation,
    ResponseDisentangledConsistency,
    SampleContrastiveDistillation,
)
from corrkd.networks.encoder import sinusoids
from corrkd.settings import NetworkSettings, TrainingSettings
from corrkd.training.fabric import Fabric
from corrkd.training.loop import teacher_outputs, train_run
from corrkd.training.run import TrainingRun
from corrkd.training.stacked import train_together

BATCH = 64


def make_fabric(device: str, precision: str) -> Fabric:
    return processes.make_fabric(Settings(device=device, precision=precision))  # type: ignore[arg-type]


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# --- corrkd's loop
# --------------------------------------------------------------------------------------------------


def make_ours(
    dropout: float,
    device: str,
    precision: str,
    *,
    compiled: bool = False,
    count: int = MOSI["train"],
) -> Program:
    """An epoch of so many samples."""
    keep_freed_memory()
    experiment = mosi_experiment(dropout=dropout, device=device, precision=precision)
    fabric = make_fabric(device, precision)
    samples = experiment.samples("train")
    arms = {name: resolve(name, changes, experiment.settings) for name, changes in RUN_ARMS.items()}
    teacher_network = make_method(arms["teacher"], experiment, 0, samples).student.to(fabric.device)
    method = make_method(
        arms["student"], experiment, 0, samples, teacher_outputs(teacher_network, samples)
    )

    def train(on_epoch: Callable[[Any], None]) -> None:
        torch.set_num_threads(
            torch.get_num_threads()
        )  # of this thread, as of the one that started it
        run = TrainingRun(
            method=method,
            samples=samples.subset(torch.arange(count, device=samples.device)),
            settings=TrainingSettings(epochs=100_000, batch_size=BATCH),
            validate=lambda network: 0.0,
            seed=0,
            missing=experiment.settings.missing,
            on_epoch=on_epoch,
        )
        if compiled or device == "cuda":
            train_together([run], fabric=fabric, compiled=compiled)
        else:
            train_run(run, fabric)

    return epoch_by_epoch(train)


def make_compiled(dropout: float, device: str, precision: str) -> Program:
    return make_ours(dropout, device, precision, compiled=True)


# --- its matrix products alone
# ----------------------------------------------------------------------------------------------


class Products(TorchDispatchMode):
    """Collects the matrix products of what runs inside it."""

    NAMES = ("mm", "addmm", "bmm", "baddbmm")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.overloadpacket.__name__ in self.NAMES:
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


def make_products(dropout: float, device: str, precision: str) -> Program:
    """As many steps' products as an epoch has, on the matrices of corrkd's first step."""
    keep_freed_memory()
    experiment = mosi_experiment(dropout=dropout, device=device, precision=precision)
    samples = experiment.samples("train").subset(torch.arange(BATCH, device=experiment.device))
    arm = resolve("control", RUN_ARMS["control"], experiment.settings)
    collected = Products()
    settings = TrainingSettings(epochs=1, batch_size=BATCH)
    with collected:
        run = TrainingRun(
            method=make_method(arm, experiment, 0, samples),
            samples=samples,
            settings=settings,
            validate=lambda network: 0.0,
            seed=0,
            missing=experiment.settings.missing,
        )
        train_run(run, make_fabric(device, precision))

    def epoch() -> None:
        with torch.no_grad():
            for _ in range(MOSI["train"] // BATCH):
                for function, arguments in collected.calls:
                    function(*arguments)
        wait_for(device)

    return epoch


# --- the plain loop
# --------------------------------------------------------------------------------------------------


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
        self.transformer = nn.TransformerEncoder(
            layer, settings.layers, norm, enable_nested_tensor=False
        )

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
        self.encoders = nn.ModuleDict(
            {m: PlainEncoder(w, frames, settings) for m, w in widths.items()}
        )
        hidden = settings.classifier[0]
        self.classifier = nn.Sequential(
            nn.Dropout(settings.dropout),
            nn.Linear(len(widths) * settings.width, hidden),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(hidden, 2),
        )

    def forward(
        self, frames: dict[str, Tensor], exists: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Representation and logits."""
        representation = torch.cat(
            [encoder(frames[m], exists[m]) for m, encoder in self.encoders.items()], 1
        )
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
    loader = fabric.setup_dataloaders(
        DataLoader(PlainSamples(samples), batch_size=BATCH, shuffle=True, num_workers=0)
    )
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


# --- the machine
# --------------------------------------------------------------------------------------------------

MATRIX = 2048


def make_product(dropout: float, device: str, precision: str) -> Program:
    """A large product of two matrices, in the precision of the step."""
    keep_freed_memory()
    a, b = torch.randn(
        2,
        MATRIX,
        MATRIX,
        device=device,
        dtype=torch.bfloat16 if precision == "bf16-mixed" else torch.float32,
    )

    def product() -> None:
        for _ in range(4):
            a @ b
        wait_for(device)

    return product


def flops_of_a_sample(settings: NetworkSettings) -> float:
    """Multiplications and additions of a sample's forward and backward pass in matrix products; the
    losses' are not counted.
    """
    width, frames = settings.width, MOSI["frames"]
    # Two for each weight and frame; the backward pass costs twice the forward's, but for inputs
    # without a gradient.
    layer = 3 * 2 * frames * (4 * width * width + 2 * width * settings.feedforward)
    attention = 3 * 2 * 2 * frames * frames * width
    total = 0.0
    for inputs in MOSI["widths"].values():
        total += 2 * 2 * frames * inputs * width * settings.kernel + settings.layers * (
            layer + attention
        )
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--precision", choices=["32-true", "tf32", "bf16-mixed"], default="32-true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("training_step.py: no CUDA device here; leave --device out")
    options = {"dropout": asked.dropout, "device": asked.device, "precision": asked.precision}
    makers = {
        "plain": make_plain,
        "ours": make_ours,
        "product": make_product,
        "products": make_products,
    }
    if asked.compile:
        makers["compiled"] = make_compiled
    seconds = measure(makers, options, threads=asked.threads, rounds=asked.rounds)

    samples = MOSI["train"]
    peak = 4 * 2 * MATRIX**3 / statistics.median(seconds["product"])
    settings = NetworkSettings(layers=2)
    work = flops_of_a_sample(settings) * samples
    print(
        f"training step, {asked.device}, {asked.precision}, dropout {asked.dropout}, "
        f"{asked.threads} threads"
    )
    print(f"samples per second, median of {asked.rounds} epochs each in turn (lowest to highest)")
    print(f"  plain loop  {speeds(samples, seconds['plain'])}")
    print(
        f"  corrkd      {speeds(samples, seconds['ours'])}   "
        f"{times_as_fast(seconds['plain'], seconds['ours'])}"
    )
    if asked.compile:
        print(
            f"  compiled    {speeds(samples, seconds['compiled'])}   "
            f"{times_as_fast(seconds['ours'], seconds['compiled'])} corrkd not compiled"
        )
    print(
        f"share of the matrix peak, {peak / 1e9:,.0f} GFLOP/s in a product of {MATRIX} x {MATRIX} "
        f"matrices ({flops_of_a_sample(settings) / 1e6:.0f} MFLOP a sample)"
    )
    for name, title in (
        ("ours", "corrkd"),
        ("compiled", "compiled"),
        ("products", "its products alone"),
    ):
        if name in seconds:
            # The products are of whole batches alone.
            share = MOSI["train"] // BATCH * BATCH / samples if name == "products" else 1.0
            rate = share * work / statistics.median(seconds[name])
            print(f"  {title:<20}{rate / 1e9:,.0f} GFLOP/s = {rate / peak:.0%}")
    if asked.dropout:
        print(
            "what differs: nn.TransformerEncoderLayer drops attention weights too, corrkd does "
            "not; see --dropout 0"
        )


if __name__ == "__main__":
    main()
