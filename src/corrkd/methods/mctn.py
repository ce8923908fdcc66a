"""MCTN: prediction from an embedding that cyclic translation makes joint (Pham et al., AAAI
2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from corrkd.losses.frames import frame_errors, mean_error
from corrkd.methods.base import Losses, Method, TrainingBatch
from corrkd.networks.mctn import MCTNNetwork, MCTNPerSourceNetwork


class MCTN(Method[MCTNNetwork]):
    """Multimodal Cyclic Translation Network, with its coupled objective L_p + lambda_t L_t +
    lambda_c L_c.

    Components of the original, and where they are:

    - Seq2Seq translation with attention from the source to a target: `encoders`, `decoders` of the
      network; term `translation`, squared error.
    - Cyclic translation: the translated target goes through the same encoder and decoder back to
      the source; term `cycle`.
    - Joint embedding: the states of the encoder, a bidirectional LSTM whose directions are added;
      the source alone is needed: `join`.
    - Hierarchy for more than two modalities: the joint embedding is translated on to the next
      target by a translator of its own, forth only, since an embedding has no true value to come
      back to; its error joins `translation`.
    - Prediction: an LSTM over the joint embedding, softmax attention over the tanh of its states'
      energies, one linear layer: `predictor`, `attention`, `head`; term `task`, trained together
      with the rest. The head's squared weights are term `l2`, weight 0.01 as released.

    Adapted: targets come in the order of the dataset's modalities. Modalities of different widths
    and lengths, which the original pads or aligns, are embedded and projected by a linear layer
    each around the shared translator, and the decoder writes as many frames as the target has.
    Classes and yes/no questions take cross-entropy in place of the score's L1. The errors are means
    over frames that are there and visible, not sums, so that weights mean the same for every
    length. A frame that is missing in the source is zero. Nothing stands in for a missing source.
    """

    title: ClassVar[str] = "MCTN"
    network = "mctn"
    trains_on: ClassVar[Literal["complete", "missing"]] = "complete"

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return task, l2, and translation and cycle where there is more than one modality."""
        return mctn_losses(self, self.student, batch)


class MCTNPerSource(Method[MCTNPerSourceNetwork]):
    """One MCTN for each source modality, trained side by side: nothing is shared, so each learns as
    if it were alone.

    The original answers from its one source, and knows nothing where that is missing. This is its
    fair rival under missing modalities: whatever is visible is a source, and the responses of
    several are averaged.
    """

    title: ClassVar[str] = "MCTN per source"
    network = "mctn-per-source"
    trains_on: ClassVar[Literal["complete", "missing"]] = "complete"

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return the losses of `MCTN`, each summed over the sources."""
        models = cast(Sequence[MCTNNetwork], self.student.models)
        losses = [mctn_losses(self, model, batch) for model in models]
        return {
            name: (weight, torch.stack([each[name][1] for each in losses]).sum())
            for name, (weight, _) in losses[0].items()
        }


def mctn_losses(method: Method[Any], network: MCTNNetwork, batch: TrainingBatch) -> Losses:
    """Return MCTN's losses by name, of the rows of all processes."""
    settings, inputs = network.settings, batch.inputs
    levels = network.join(inputs)
    logits = network.predict(levels[-1], inputs.exists[network.source]).logits
    losses = {
        "task": (1.0, method.task_loss(method.gather(logits), method.gather(batch.targets))),
        "l2": (settings.l2, network.head.weight.square().sum()),
    }
    translations = network.translate(levels, inputs.exists)

    def error(written: Tensor, modality: str) -> Tensor:
        errors = frame_errors(written, inputs.frames[modality], inputs.visible[modality])
        return mean_error(method.gather(errors))

    if translations.back is not None:
        to_targets = torch.stack([error(translations.targets[m], m) for m in network.targets]).sum()
        losses["translation"] = (settings.translation, to_targets)
        losses["cycle"] = (settings.cycle, error(translations.back, network.source))
    return losses
