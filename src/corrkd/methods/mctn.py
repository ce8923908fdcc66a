"""MCTN: prediction from a joint embedding that is learned by cyclic translation
(Pham et al., AAAI 2019).
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
    - Cyclic translation: the translated target passes through the same encoder and decoder back to
      the source; term `cycle`.
    - Joint embedding: the states of the encoder, a bidirectional LSTM with its directions added,
      which needs only the source: `join`.
    - Hierarchy for more than two modalities: another translator maps the joint embedding to the
      next target, forwards only, because an embedding has no true value to translate back to; its
      error is added to `translation`.
    - Prediction: an LSTM over the joint embedding, softmax attention over the tanh of its states'
      energies, one linear layer: `predictor`, `attention`, `head`; term `task`, trained together
      with the rest. The head's squared weights are term `l2`, weight 0.01 as in the released code.

    Adapted: targets are in the order of the dataset's modalities. Modalities of different widths
    and lengths, which the original pads or aligns, are embedded and projected by a linear layer
    each around the shared translator, and the decoder writes as many frames as the target has.
    Classes and yes/no questions use cross-entropy instead of the score's L1. Errors are means over
    visible frames, not sums, so that weights mean the same at every length. A missing frame of the
    source is zero. Nothing replaces a missing source.
    """

    title: ClassVar[str] = "MCTN"
    network = "mctn"
    trains_on: ClassVar[Literal["complete", "missing"]] = "complete"

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return task and l2, and with more than one modality also translation and cycle."""
        return mctn_losses(self, self.student, batch)


class MCTNPerSource(Method[MCTNPerSourceNetwork]):
    """One MCTN per source modality, trained side by side: nothing is shared, so each learns as if
    it were alone.

    The original predicts from its single source, so it has no information if that is missing. For a
    fair comparison under missing modalities, here every visible modality is a source, and the
    responses of several are averaged.
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
    """Return MCTN's losses by name, for the rows of all processes."""
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
