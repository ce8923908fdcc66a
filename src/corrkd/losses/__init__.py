"""The distillation losses, each as a function and as a Module. They depend only on torch.

- CorrKD (Li et al., CVPR 2024): SCD, CPD and RCD; `CorrKDLoss` combines the three.
  `decoupled_divergence` can replace RCD, and `sample_relation_distillation` can replace SCD
  (docs/corrkd-plus.md).
- HRLF (Li et al., NeurIPS 2024): reconstruction of factorised representations, hierarchical mutual
  information and hierarchical adversarial learning.

No loss detaches the teacher: freeze it, or run it under `torch.no_grad()`.
"""

from corrkd.losses.category_prototype import (
    CategoryPrototypeDistillation,
    category_prototype_distillation,
)
from corrkd.losses.critics import ConcatCritic, Critic, Discriminator
from corrkd.losses.decoupled_divergence import DecoupledDivergence, decoupled_divergence
from corrkd.losses.factorisation import FactorisationReconstruction, factorisation_reconstruction
from corrkd.losses.hierarchical_adversarial import HierarchicalAdversarial, hierarchical_adversarial
from corrkd.losses.hierarchical_information import HierarchicalInformation, hierarchical_information
from corrkd.losses.response_disentangled import (
    ResponseDisentangledConsistency,
    jensen_shannon_information,
    response_disentangled_consistency,
)
from corrkd.losses.sample_contrastive import (
    SampleContrastiveDistillation,
    sample_contrastive_distillation,
)
from corrkd.losses.sample_relations import SampleRelationDistillation, sample_relation_distillation
from corrkd.losses.together import CorrKDLoss

__all__ = [
    "CategoryPrototypeDistillation",
    "ConcatCritic",
    "CorrKDLoss",
    "Critic",
    "DecoupledDivergence",
    "Discriminator",
    "FactorisationReconstruction",
    "HierarchicalAdversarial",
    "HierarchicalInformation",
    "ResponseDisentangledConsistency",
    "SampleContrastiveDistillation",
    "SampleRelationDistillation",
    "category_prototype_distillation",
    "decoupled_divergence",
    "factorisation_reconstruction",
    "hierarchical_adversarial",
    "hierarchical_information",
    "jensen_shannon_information",
    "response_disentangled_consistency",
    "sample_contrastive_distillation",
    "sample_relation_distillation",
]
