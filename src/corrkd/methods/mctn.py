"""MCTN: prediction from an embedding that cyclic translation makes joint (Pham et al., AAAI 2019)."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from corrkd.data.batches import Context
from corrkd.data.inputs import Inputs
from corrkd.losses.frames import frame_errors, mean_error
from corrkd.methods.base import Method, TeacherOutput, task_loss
from corrkd.networks.mctn import MCTNNetwork


class MCTN(Method[MCTNNetwork]):
    """Multimodal Cyclic Translation Network, with its coupled objective L_p + lambda_t L_t + lambda_c L_c.

    Components of the original, and where they are:

    - Seq2Seq translation with attention from the source to a target: `encoders`, `decoders` of the network; term `translation`,
      squared error.
    - Cyclic translation: the translated target goes through the same encoder and decoder back to the source; term `cycle`.
    - Joint embedding: the states of the encoder, a bidirectional LSTM whose directions are added; the source alone is needed: `join`.
    - Hierarchy for more than two modalities: the joint embedding is translated on to the next target by a translator of its own, forth
      only, since an embedding has no true value to come back to; its error joins `translation`.
    - Prediction: an LSTM over the joint embedding, softmax attention over its states, one linear layer: `predictor`, `attention`, `head`;
      term `task`, trained together with the rest.

    Adapted: targets come in the order of the dataset's modalities. Modalities of different widths and lengths, which the original pads or
    aligns, are embedded and projected by a linear layer each around the shared translator, and the decoder writes as many frames as the
    target has. Classes and yes/no questions take cross-entropy in place of the score's L1. The errors are means over frames that are there
    and visible, not sums, so that weights mean the same for every length. A frame that is missing in the source is zero. Nothing stands in
    for a missing source.
    """

    title: ClassVar[str] = "MCTN"
    network_type = MCTNNetwork
    trains_on: ClassVar[Literal["complete", "missing"]] = "complete"

    def forward(
        self,
        inputs: Inputs,
        targets: Tensor,
        teacher: TeacherOutput | None = None,
        context: Context | None = None,
    ) -> dict[str, Tensor]:
        """task, and translation and cycle where there is more than one modality."""
        network = self.network
        levels = network.join(inputs)
        logits = network.predict(levels[-1], inputs.exists[network.source]).logits
        out = {"task": task_loss(self.gather(logits), self.gather(targets), self.class_weights)}
        made = network.translate(levels, inputs.exists)
        if made.back is not None:
            frames, seen = inputs.frames, inputs.visible
            errors = [self._error(made.targets[m], frames[m], seen[m]) for m in network.targets]
            out["translation"] = sum(errors[1:], errors[0])
            out["cycle"] = self._error(made.back, frames[network.source], seen[network.source])
        return out

    def _error(self, made: Tensor, frames: Tensor, seen: Tensor) -> Tensor:
        return mean_error(self.gather(frame_errors(made, frames, seen)))

    @property
    def weights(self) -> dict[str, float]:
        """1, lambda_t and lambda_c."""
        network = self.network
        more = {"translation": network.settings.translation, "cycle": network.settings.cycle}
        return {"task": 1.0, **(more if network.targets else {})}
