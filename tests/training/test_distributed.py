"""Two processes must give the loss and gradients of a single one with the joint batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from corrkd.data.batches import Samples
from corrkd.data.inputs import Inputs
from corrkd.losses import (
    CategoryPrototypeDistillation,
    ResponseDisentangledConsistency,
    SampleContrastiveDistillation,
)
from corrkd.methods.base import TeacherOutputs, TrainingBatch
from corrkd.methods.corrkd import CorrKD, CorrKDOptions
from corrkd.methods.hrlf import HRLF, HRLFOptions
from corrkd.methods.task import TaskOnly
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.networks.gcnet import GCNetSettings, GCNetwork
from corrkd.networks.hrlf import HRLFNetwork, HRLFSettings
from corrkd.settings import NetworkSettings
from corrkd.training.distributed import gather
from tests.command import START_METHOD
from tests.conftest import make_dataset, make_samples, total

N, FEATURES, WIDTH, CLASSES = 10, 5, 6, 3
# The rows of the joint batch in each of the two processes.
SHARDS: dict[str, list[list[int]]] = {
    "equal": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]],
    "unequal": [[0, 1, 2], [3, 4, 5, 6, 7, 8, 9]],
    "interleaved": [[0, 2, 4, 6, 8, 9], [1, 3, 5, 7]],
    "one of them empty": [[*range(N)], []],
}


class Training(nn.Module):
    """A small student in float64 with all four terms of the objective."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, WIDTH))
        self.classifier = nn.Linear(WIDTH, CLASSES)
        self.scd = SampleContrastiveDistillation(1.2)
        self.cpd = CategoryPrototypeDistillation(CLASSES)
        self.rcd = ResponseDisentangledConsistency(CLASSES, hidden=8)

    def forward(self, x: Tensor, teacher: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        representation = self.encoder(x)
        logits = gather(self.classifier(representation))
        representation, labels = gather(representation), gather(labels)
        teacher_representation, teacher_logits = map(gather, teacher)
        return (
            cross_entropy(logits, labels)
            + self.scd(representation, teacher_representation)
            + self.cpd(representation, teacher_representation, labels)
            + self.rcd(logits, teacher_logits, labels)
        )


def make_training() -> Training:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Training().double()


def take(rows: list[int]) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Return rows of the joint batch: features, teacher's (representation, logits), labels."""
    random = torch.Generator().manual_seed(1)
    x, representation, logits = (
        torch.randn(N, width, generator=random, dtype=torch.float64)
        for width in (FEATURES, WIDTH, CLASSES)
    )
    labels = torch.randint(CLASSES, (N,), generator=random)
    return x[rows], (representation[rows], logits[rows]), labels[rows]


def measure(model: nn.Module, training: Training, rows: list[int]) -> dict[str, Any]:
    loss = model(*take(rows))
    loss.backward()
    return {
        "loss": loss.detach(),
        "gradients": {name: p.grad for name, p in training.named_parameters()},
    }


class Mended(nn.Module):
    """The total loss of CorrKD's mended forms; teacher ids and visibility are gathered, too."""

    def __init__(self) -> None:
        super().__init__()
        samples = make_samples(make_dataset(sizes=(N, 6, 6)))
        small = NetworkSettings(
            width=4, heads=2, feedforward=8, layers=1, classifier=(6,), dropout=0.0
        )
        network = CorrKDNetwork(
            samples.widths, dict.fromkeys(samples.widths, 6), target=samples.target, settings=small
        )
        forms = {
            "scd": {"form": "relations"},
            "cpd": {"form": "all", "parts": True},
            "rcd": {"form": "divergence"},
        }
        random = torch.Generator().manual_seed(2)
        drawn = [
            torch.randn(N, width, generator=random, dtype=torch.float64) for width in (12, CLASSES)
        ]
        teachers = TeacherOutputs(*drawn, torch.arange(N) // 2 % 2)
        options = CorrKDOptions.model_validate(forms)
        self.method = CorrKD(network, options, teachers=teachers, gather=gather).double()
        self.samples = samples
        self.method.start(samples)

    def forward(self, rows: Tensor) -> Tensor:
        return total(self.method(incomplete(self.samples, rows)))


class Hierarchical(nn.Module):
    """HRLF, whose factors, critics and discriminators see the rows of all processes."""

    def __init__(self) -> None:
        super().__init__()
        self.samples = make_samples(make_dataset(sizes=(N, 6, 6)))
        small = HRLFSettings(
            width=4, heads=2, feedforward=8, layers=1, classifier=(6,), factor_hidden=4, dropout=0.0
        )
        frames = dict.fromkeys(self.samples.widths, 6)
        network = HRLFNetwork(
            self.samples.widths, frames, target=self.samples.target, settings=small
        )
        random = torch.Generator().manual_seed(2)
        widths = (network.representation_width, CLASSES)
        drawn = [torch.randn(N, width, generator=random, dtype=torch.float64) for width in widths]
        options = HRLFOptions.model_validate({"frf": {"reach": "targets"}})
        self.method = HRLF(
            network, options, teachers=TeacherOutputs(*drawn), gather=gather
        ).double()

    def forward(self, rows: Tensor) -> Tensor:
        return total(self.method(incomplete(self.samples, rows)))


def make_hierarchical() -> Hierarchical:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Hierarchical()


def incomplete(samples: Samples, rows: Tensor) -> TrainingBatch:
    """Return samples in float64, each without one modality."""
    batch = samples.take(rows)
    frames = {m: x.double() for m, x in batch.frames.items()}
    visible = {
        m: x & (rows % 3 != index)[:, None] for index, (m, x) in enumerate(batch.exists.items())
    }
    return TrainingBatch(
        Inputs(frames, batch.exists, visible), batch.targets, samples.context(rows)
    )


class Conversations(nn.Module):
    """The task loss of a network that reads conversations, which are split across the processes."""

    def __init__(self) -> None:
        super().__init__()
        dataset = make_dataset(sizes=(N, 6, 6))
        video, order = np.array(["a", "b"] * (N // 2)), np.arange(N)
        train = replace(dataset.split("train"), groups={"video": video}, order=order)
        self.samples = make_samples(replace(dataset, splits={**dataset.splits, "train": train}))
        settings = GCNetSettings(width=4, heads=2, dropout=0.0)
        frames = dict.fromkeys(self.samples.widths, 6)
        network = GCNetwork(
            self.samples.widths, frames, target=self.samples.target, settings=settings
        )
        self.method = TaskOnly(network, gather=gather).double()

    def forward(self, rows: Tensor) -> Tensor:
        batch = self.samples.take(rows)
        inputs = Inputs(
            {m: x.double() for m, x in batch.frames.items()}, batch.exists, batch.present
        )
        return total(self.method(TrainingBatch(inputs, batch.targets, self.samples.context(rows))))


def make_conversations() -> Conversations:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Conversations()


def measure_rows(model: nn.Module, training: nn.Module, rows: list[int]) -> dict[str, Any]:
    loss = model(torch.tensor(rows, dtype=torch.int64))
    loss.backward()
    gradients = {name: p.grad for name, p in training.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "gradients": gradients}


def make_mended() -> Mended:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Mended()


def work(rank: int, folder: str) -> None:
    """Run in each of the two processes; save the results to a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting-point", rank=rank, world_size=2
    )
    results: dict[str, Any] = {}
    for name, shards in SHARDS.items():
        training = make_training()
        results[name] = measure(DistributedDataParallel(training), training, shards[rank])
        mended = make_mended()
        results[f"mended {name}"] = measure_rows(
            DistributedDataParallel(mended), mended, shards[rank]
        )
        hierarchical = make_hierarchical()
        results[f"hierarchical {name}"] = measure_rows(
            DistributedDataParallel(hierarchical), hierarchical, shards[rank]
        )
        conversations = make_conversations()
        distributed = DistributedDataParallel(conversations, find_unused_parameters=True)
        results[f"conversations {name}"] = measure_rows(distributed, conversations, shards[rank])
    # Process 0 has rows 0 and 1, process 1 has row 10; they weigh the gathered rows by different
    # powers of two.
    rows_of_rank = torch.arange(2 - rank).reshape(-1, 1) + 10 * rank
    results["integers"], results["booleans"] = gather(rows_of_rank), gather(rows_of_rank > 0)
    leaf = rows_of_rank.double().requires_grad_()
    gathered = gather(leaf)
    (gathered[:, 0] * torch.tensor([1.0, 2.0, 4.0]) * 8.0**rank).sum().backward()
    results["gathered"], results["leaf gradient"] = gathered.detach(), leaf.grad
    torch.save(results, f"{folder}/results-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the results of the two processes, by rank."""
    folder = tmp_path_factory.mktemp("two-processes")
    mp.start_processes(work, args=(str(folder),), nprocs=2, start_method=START_METHOD)
    return [torch.load(folder / f"results-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_match_one(results: list[dict[str, Any]], shards: str, rank: int) -> None:
    training = make_training()
    agree(results[rank][shards], measure(training, training, list(range(N))))


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_match_one_in_the_mended_forms(
    results: list[dict[str, Any]], shards: str, rank: int
) -> None:
    mended = make_mended()
    agree(results[rank][f"mended {shards}"], measure_rows(mended, mended, list(range(N))))


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_conversation_across_processes_is_read_completely(
    results: list[dict[str, Any]], shards: str, rank: int
) -> None:
    conversations = make_conversations()
    agree(
        results[rank][f"conversations {shards}"],
        measure_rows(conversations, conversations, list(range(N))),
    )


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_match_one_at_every_scale(
    results: list[dict[str, Any]], shards: str, rank: int
) -> None:
    hierarchical = make_hierarchical()
    agree(
        results[rank][f"hierarchical {shards}"],
        measure_rows(hierarchical, hierarchical, list(range(N))),
    )


def agree(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    torch.testing.assert_close(ours["loss"], expected["loss"], rtol=1e-6, atol=0)
    gradients = ours["gradients"]
    assert gradients.keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        assert gradient.any()
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-6, atol=1e-12, msg=name)


@pytest.mark.parametrize("rank", [0, 1])
def test_rows_are_gathered_in_the_order_of_ranks(results: list[dict[str, Any]], rank: int) -> None:
    rows = torch.tensor([[0], [1], [10]])
    assert torch.equal(results[rank]["integers"], rows)
    assert torch.equal(results[rank]["booleans"], rows > 0)
    assert torch.equal(results[rank]["gathered"], rows.double())


def test_backward_sums_the_gradients_of_all_processes(results: list[dict[str, Any]]) -> None:
    # Row k gets gradient 2^k from process 0 and 8 * 2^k from process 1.
    assert results[0]["leaf gradient"].flatten().tolist() == [9.0, 18.0]
    assert results[1]["leaf gradient"].flatten().tolist() == [36.0]


def test_a_single_process_keeps_its_tensor() -> None:
    rows = torch.ones(3, 2, requires_grad=True)
    assert gather(rows) is rows
