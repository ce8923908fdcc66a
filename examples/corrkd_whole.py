"""CorrKD in one file: masks, teacher and student, three losses with critics, a plain loop.

    python examples/corrkd_whole.py

Li et al., "Correlation-decoupled Knowledge Distillation for Multimodal Sentiment Analysis with
Incomplete Modalities", CVPR 2024. The frozen teacher sees complete samples; the student sees what
is left after modalities and frames are dropped at random.
"""

import torch
from torch.nn.functional import cross_entropy

from corrkd.data.batches import Samples
from corrkd.data.normalise import fit_normalisation
from corrkd.data.synthetic import SyntheticSpec, make
from corrkd.losses import (
    CategoryPrototypeDistillation,
    ResponseDisentangledConsistency,
    SampleContrastiveDistillation,
)
from corrkd.missing.training import RandomMissing
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.settings import MissingSettings, NetworkSettings
from corrkd.targets.registry import make_target

EPOCHS, BATCH, LR = 8, 32, 3e-3
torch.manual_seed(0)

# The built-in dataset: three modalities, three classes, most of them known from language alone.
dataset = make(SyntheticSpec(train=600, valid=1, test=600, frames=6))
target = make_target("classes", dataset)
normalisation = fit_normalisation(dataset.split("train"))
train, test = (
    Samples(dataset.split(name), target, normalisation, device=torch.device("cpu"))
    for name in ("train", "test")
)
classes = len(target.classes)


def network() -> CorrKDNetwork:
    """Inputs -> representation H (N, 3 x 16) and logits (N, classes)."""
    settings = NetworkSettings(width=16, heads=4, feedforward=32, layers=1, classifier=(16,))
    return CorrKDNetwork(train.widths, train.lengths, target=target, settings=settings)


@torch.no_grad()
def accuracy(model: CorrKDNetwork, without: str | None = None) -> float:
    """Share of right answers on the test split; `without`: a modality that is missing."""
    model.eval()
    batch = test.take(torch.arange(len(test)))
    inputs = batch.complete() if without is None else batch.complete().without(without)
    return (model(inputs).logits.argmax(1) == batch.targets).float().mean().item()


# The teacher, on complete samples.
teacher = network()
optimizer = torch.optim.AdamW(teacher.parameters(), lr=LR)
for _ in range(EPOCHS):
    for rows in torch.randperm(len(train)).split(BATCH):
        batch = train.take(rows)
        optimizer.zero_grad()
        cross_entropy(teacher(batch.complete()).logits, batch.targets).backward()
        optimizer.step()
with torch.no_grad():  # frozen: its outputs are computed once
    teacher.eval()
    samples = train.take(torch.arange(len(train)))
    teacher_representation, teacher_logits = teacher(samples.complete())

# The student, on incomplete samples: new masks each epoch, drawn from the seed and the ids.
student = network()
missing = RandomMissing(MissingSettings(), seed=0)
scd = SampleContrastiveDistillation(boundary=1.2)
cpd = CategoryPrototypeDistillation(classes)
rcd = ResponseDisentangledConsistency(classes)  # its two critics are trained with the student
optimizer = torch.optim.AdamW([*student.parameters(), *rcd.parameters()], lr=LR)
for epoch in range(EPOCHS):
    masks = missing.epoch(train, epoch)
    student.train()
    for rows in torch.randperm(len(train)).split(BATCH):
        batch = train.take(rows)
        representation, logits = student(masks.apply(batch))
        loss = (
            cross_entropy(logits, batch.targets)
            + scd(representation, teacher_representation[rows])
            + cpd(representation, teacher_representation[rows], batch.targets)
            + rcd(logits, teacher_logits[rows], batch.targets)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

for name, model in {"teacher": teacher, "student": student}.items():
    complete, muted = accuracy(model), accuracy(model, "language")
    print(f"{name}: accuracy {complete:.3f}, without language {muted:.3f}")
