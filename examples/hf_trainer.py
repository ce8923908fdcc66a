"""CorrKD's three losses with Hugging Face's Trainer: a student on incomplete samples learns
from the outputs of a teacher on complete ones.

    pip install corrkd transformers accelerate
    python examples/hf_trainer.py

The teacher's outputs are computed once and stored with the samples. The losses compare the samples
of a batch with one another, so with several processes gather the rows of all processes first, with
gradients for the student's (docs/distilling.md).
"""

import tempfile

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

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


class Distilled(nn.Module):
    """What the Trainer trains: the student, and the critics of the loss. Without a teacher's
    outputs, the student alone.
    """

    def __init__(self, distils: bool) -> None:
        super().__init__()
        self.network = Network()
        self.loss = CorrKDLoss(CLASSES) if distils else None

    def forward(
        self,
        x: Tensor,
        labels: Tensor,
        teacher_representation: Tensor | None = None,
        teacher_logits: Tensor | None = None,
    ) -> dict[str, Tensor]:
        if self.loss is None:
            return {"loss": cross_entropy(self.network(x)[1], labels)}
        lost = torch.rand(
            len(x), 1, device=x.device
        )  # below a quarter the first modality, below a half the second
        first = torch.arange(2 * WIDTH, device=x.device) < WIDTH
        incomplete = x * ~torch.where(first, lost < 0.25, (lost >= 0.25) & (lost < 0.5))
        representation, logits = self.network(incomplete)
        distillation, _ = self.loss(
            representation, logits, teacher_representation, teacher_logits, labels
        )
        return {"loss": cross_entropy(logits, labels) + distillation, "logits": logits}


class Rows(Dataset):
    """Tensors of N rows by name, as the Trainer takes samples: dicts of a row each."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["labels"])

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: tensor[row] for name, tensor in self.tensors.items()}


def fit(model: Distilled, rows: Rows, epochs: int, lr: float) -> Network:
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=60,
            learning_rate=lr,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=0,
        )
        Trainer(model, arguments, train_dataset=rows).train()
    return model.network.eval()


def main() -> None:
    torch.manual_seed(0)
    labels = torch.randint(CLASSES, (900,))
    strength = torch.tensor([0.8, 0.5]).repeat_interleave(WIDTH)  # the first modality says more
    x = torch.randn(900, 2 * WIDTH) + (strength * torch.randn(CLASSES, 2 * WIDTH))[labels]
    train, test = {"x": x[:600], "labels": labels[:600]}, (x[600:], labels[600:])
    teacher = fit(Distilled(distils=False), Rows(**train), 8, 1e-2)
    with torch.no_grad():
        representation, logits = teacher(train["x"])
    rows = Rows(**train, teacher_representation=representation, teacher_logits=logits)
    student = fit(Distilled(distils=True), rows, 16, 8e-3)
    without = test[0] * (torch.arange(2 * WIDTH) >= WIDTH)
    for name, network in {"teacher": teacher, "student": student}.items():
        accuracy = [
            (network(inputs)[1].argmax(1) == test[1]).float().mean().item()
            for inputs in (test[0], without)
        ]
        print(f"{name}: accuracy {accuracy[0]:.3f}, without the first modality {accuracy[1]:.3f}")


if __name__ == "__main__":
    main()
