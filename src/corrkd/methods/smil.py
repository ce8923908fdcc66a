"""SMIL: Bayesian meta-learning with severely missing modalities (Ma et al., AAAI 2021)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.func import functional_call

from corrkd.data.batches import Samples
from corrkd.data.inputs import Inputs
from corrkd.losses.frames import frame_errors, mean_error
from corrkd.methods.base import Losses, Method, TrainingBatch
from corrkd.networks.smil import NEUTRAL, SMILNetwork, SMILOutput


class SMIL(Method[SMILNetwork]):
    """SMIL. D^m are the incomplete samples of a batch, D^f its complete ones.

    Components of the original, and where they are:

    - Modality priors: k-means centres of the training features of each modality; `start`.
    - Missing modality reconstruction: missing features are a convex combination of the priors, as
      in the released code, with weights that are softplus of normal variables, divided by their
      sum. A network predicts their distribution from what is visible (phi_c): `reconstruction` of
      the network. Its likelihood is term `reconstruction`.
    - Uncertainty-guided feature regularisation: features are multiplied by softplus of a normal
      perturbation, predicted by a network (phi_r): `regularisation`. Its divergence from the prior,
      part of the paper's variational bound but not of the released code, is term `divergence`.
    - Meta-learning: an inner gradient step on D^m (`adapted`), with reconstruction and
      regularisation, and an outer loss on D^f under the adapted parameters, terms `inner` and
      `outer`; both are minimised.

    Adapted: the original computes its priors from encoder features and starts from pretrained
    networks. Here nothing is pretrained and the encoders change, so the priors are of the data's
    features, averaged over time because sequences of different lengths have no common centres. The
    reconstruction replaces every missing frame, so single missing frames are filled as well, and
    any subset of any number of modalities may be missing. The mean of the weights is predicted too,
    because tests reconstruct from it; the original's fixed mean and Monte-Carlo draws would give
    every sample the same expectation. The reconstruction is learned on all visible frames of a
    modality, from the other modalities; the original also hides a modality of D^f in the outer
    loss, and matches features there with weight 0.01. The meta-gradient is first-order. A step's
    D^m and D^f come from one batch, and each process adapts to its share of it.
    """

    title: ClassVar[str] = "SMIL"
    network = "smil"
    trains_on: ClassVar[Literal["complete", "missing"]] = "missing"

    def start(self, samples: Samples) -> None:
        """Set the priors of each modality from the samples in which it is not entirely missing."""
        self.student.set_priors(centres(samples, self.student.settings.priors))

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return inner (incomplete samples), outer (complete samples, adapted parameters),
        reconstruction and divergence.
        """
        network, (inputs, targets, _) = self.student, batch
        settings = network.settings
        complete = torch.stack(
            [(inputs.visible[m] | ~inputs.exists[m]).all(1) for m in network.modalities]
        ).all(0)
        before = network.respond(inputs)
        inner = self.target.masked_task_loss(before.logits, targets, ~complete, self.class_weights)
        after: SMILOutput = functional_call(
            _Responding(network), self.adapted(inner), args=(inputs,), strict=False
        )
        truth, is_complete = self.gather(targets), self.gather(complete)
        divergence = before.perturbation.divergence(NEUTRAL, settings.deviation)
        return {
            "inner": (settings.inner, self.masked_task_loss(before, truth, ~is_complete)),
            "outer": (settings.outer, self.masked_task_loss(after, truth, is_complete)),
            "reconstruction": (settings.reconstruction, self._reconstruction(inputs)),
            "divergence": (settings.divergence, self.gather(divergence).mean()),
        }

    def masked_task_loss(self, output: SMILOutput, targets: Tensor, mask: Tensor) -> Tensor:
        """Return the task loss over the samples of a mask on all processes, from this process's
        output.
        """
        return self.target.masked_task_loss(
            self.gather(output.logits), targets, mask, self.class_weights
        )

    def adapted(self, loss: Tensor) -> dict[str, Tensor]:
        """Return the parameters theta - alpha d loss / d theta, by name; the gradient is treated as
        a constant (first order).
        """
        network = self.student
        parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(
            loss, list(parameters.values()), retain_graph=True, allow_unused=True
        )
        rate = network.settings.inner_lr
        pairs = zip(parameters.items(), gradients, strict=True)
        return {
            f"network.{name}": p if g is None else p - rate * g.detach() for (name, p), g in pairs
        }

    def _reconstruction(self, inputs: Inputs) -> Tensor:
        network = self.student
        visible = network.look(inputs)
        errors = []
        for m in network.modalities:
            made = network.reconstruct(m, network.without(m, visible))[:, None].expand_as(
                inputs.frames[m]
            )
            errors.append(
                mean_error(self.gather(frame_errors(made, inputs.frames[m], inputs.visible[m])))
            )
        return torch.stack(errors).mean()


class _Responding(nn.Module):
    """A module with `respond` as its forward pass, for `functional_call`."""

    def __init__(self, network: SMILNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Inputs) -> SMILOutput:
        return self.network.respond(inputs)


@torch.no_grad()
def centres(samples: Samples, count: int) -> dict[str, Tensor]:
    """Return k-means centres of the samples' features averaged over time, (up to `count`, d_m) by
    modality, on the CPU.
    """
    sums: dict[str, list[Tensor]] = {m: [] for m in samples.modalities}
    for batch in samples.batches(1024):
        for m, rows in sums.items():
            present = batch.present[m].to(batch.frames[m].dtype)
            mean = torch.einsum("nt,ntd->nd", present, batch.frames[m]) / present.sum(
                1, keepdim=True
            ).clamp(min=1.0)
            rows.append(mean[batch.present[m].any(1)].cpu())
    out = {}
    for m, rows in sums.items():
        points = torch.cat(rows).double().numpy()
        clusters = KMeans(min(count, len(points)), n_init=4, random_state=0).fit(points)
        out[m] = torch.as_tensor(clusters.cluster_centers_)
    return out
