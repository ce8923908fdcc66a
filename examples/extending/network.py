"""A network for any method: the mean visible frame of each modality, embedded.

python examples/extending/network.py     computes logits
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from corrkd.data.inputs import Inputs
from corrkd.networks.base import Network, Output
from corrkd.networks.encoder import pool
from corrkd.settings import Strict, Width
from corrkd.targets.classes import ClassesTarget


class MeanSettings(Strict):
    """Settings of `MeanNetwork`."""

    width: Width = 16


class MeanNetwork(Network[MeanSettings]):
    """The mean visible frame of each modality, embedded; the vectors side by side."""

    name = "mean"
    settings_type = MeanSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Make the layers."""
        self.embed = nn.ModuleList(
            nn.Linear(widths[m], self.settings.width) for m in self.modalities
        )
        self.classifier = nn.Linear(self.representation_width, self.target.num_logits)

    @property
    def parts(self) -> dict[str, int]:
        """Width of each modality's segment of the representation."""
        return dict.fromkeys(self.modalities, self.settings.width)

    def forward(self, inputs: Inputs) -> Output:
        """Return the representation (N, D) and the logits in the target's shape."""
        means = [pool(inputs.frames[m], inputs.visible[m]) for m in self.modalities]
        embedded = [embed(x) for embed, x in zip(self.embed, means, strict=True)]
        representation = torch.cat(embedded, 1)
        logits = self.target.shape_logits(self.classifier(representation))
        return Output(representation, logits)


if __name__ == "__main__":
    network = MeanNetwork({"audio": 8}, {"audio": 5}, target=ClassesTarget.with_classes(3))
    everything = torch.ones(2, 5, dtype=torch.bool)
    inputs = Inputs({"audio": torch.randn(2, 5, 8)}, {"audio": everything}, {"audio": everything})
    print(network(inputs).logits.shape)
