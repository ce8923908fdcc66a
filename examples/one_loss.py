"""One of corrkd's losses in your training loop. Needs only torch and corrkd.losses.

    python examples/one_loss.py

The teacher sees complete samples; the student, which sees only half of the features, learns from
its representations.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from corrkd.losses import SampleContrastiveDistillation

torch.manual_seed(0)

# 600 samples of 3 classes with 16 features, the last 8 of which are missing (zero) for the student.
labels = torch.randint(3, (600,))
complete = torch.randn(600, 16) + 0.7 * torch.randn(3, 16)[labels]
incomplete = complete * (torch.arange(16) < 8)


def network() -> nn.Sequential:
    """Features (N, 16) -> representation (N, 24) -> logits (N, 3)."""
    return nn.Sequential(
        nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 24)), nn.Linear(24, 3)
    )


teacher = network()
optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
for _ in range(60):
    optimizer.zero_grad()
    cross_entropy(teacher(complete), labels).backward()
    optimizer.step()
with torch.no_grad():  # frozen: its representations are computed once
    wanted = teacher[0](complete)

student = network()
distillation = SampleContrastiveDistillation(boundary=1.2)
# This loss has no parameters; those of ResponseDisentangledConsistency would go to the optimizer
# with the student's.
optimizer = torch.optim.Adam(student.parameters(), lr=4e-3)
for epoch in range(1, 9):
    total = 0.0
    for rows in torch.randperm(600).split(60):
        representation = student[0](incomplete[rows])
        consistency = distillation(representation, wanted[rows])
        loss = cross_entropy(student[1](representation), labels[rows]) + consistency
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += consistency.item() / 10
    print(f"epoch {epoch}  distillation loss {total:.4f}")
