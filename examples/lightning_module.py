"""CorrKD's three losses in a LightningModule: a student on incomplete samples, a frozen teacher
on complete ones.

    pip install corrkd lightning
    python examples/lightning_module.py

The losses compare samples with one another, so with several processes (strategy="ddp") they see the
batches of all of them.
"""

import lightning
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from corrkd.losses import CorrKDLoss

CLASSES, WIDTH = 3, 8  # of each of two modalities


class Network(nn.Module):
    """Features of both modalities (N, 2 x WIDTH) -> representation (N, 24) and logits (N,
    CLASSES).
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2 * WIDTH, 48), nn.ReLU(), nn.Linear(48, 24))
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        representation = self.body(x)
        return representation, self.head(representation)


class Teacher(lightning.LightningModule):
    """Trained on complete samples."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def training_step(self, batch: list[Tensor]) -> Tensor:
        x, labels = batch
        return cross_entropy(self.network(x)[1], labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Student(lightning.LightningModule):
    """Trained on samples of which a modality is missing half of the time."""

    def __init__(self, teacher: Network) -> None:
        super().__init__()
        self.network, self.loss = Network(), CorrKDLoss(CLASSES)
        self.teacher = teacher.eval().requires_grad_(False)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        x, labels = batch
        with torch.no_grad():
            teacher = self.teacher(x)
        lost = torch.rand(
            len(x), 1, device=x.device
        )  # below a quarter the first modality, below a half the second
        first = torch.arange(2 * WIDTH, device=x.device) < WIDTH
        incomplete = x * ~torch.where(first, lost < 0.25, (lost >= 0.25) & (lost < 0.5))
        student = self.network(incomplete)
        distillation, parts = self.loss(*map(self.together, (*student, *teacher, labels)))
        self.log_dict(parts)
        return cross_entropy(student[1], labels) + distillation

    def together(self, x: Tensor) -> Tensor:
        """The rows of all processes, with gradients for those of this one."""
        return (
            x
            if self.trainer.world_size == 1
            else self.all_gather(x, sync_grads=x.requires_grad).flatten(0, 1)
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # The critics of the loss are parameters of this module, as the student's are; the teacher's
        # take no gradient.
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=4e-3)


def main() -> None:
    lightning.seed_everything(0, verbose=False)
    labels = torch.randint(CLASSES, (900,))
    strength = torch.tensor([0.8, 0.5]).repeat_interleave(WIDTH)  # the first modality says more
    x = torch.randn(900, 2 * WIDTH) + (strength * torch.randn(CLASSES, 2 * WIDTH))[labels]
    train, test = (
        DataLoader(TensorDataset(x[:600], labels[:600]), 60, shuffle=True),
        (x[600:], labels[600:]),
    )

    def fit(module: lightning.LightningModule, epochs: int) -> None:
        quiet = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        lightning.Trainer(max_epochs=epochs, accelerator="cpu", devices=1, **quiet).fit(
            module, train
        )

    teacher = Teacher()
    fit(teacher, 8)
    student = Student(teacher.network)
    fit(student, 16)
    without = test[0] * (torch.arange(2 * WIDTH) >= WIDTH)
    for name, network in {"teacher": teacher.network, "student": student.network}.items():
        accuracy = [
            (network(inputs)[1].argmax(1) == test[1]).float().mean().item()
            for inputs in (test[0], without)
        ]
        print(f"{name}: accuracy {accuracy[0]:.3f}, without the first modality {accuracy[1]:.3f}")


if __name__ == "__main__":
    main()
