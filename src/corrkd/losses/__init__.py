"""The three distillation losses of CorrKD (Li et al., CVPR 2024), and a mended form of two of them, each a function and a Module.

They need torch alone. `decoupled_divergence` can stand in RCD's place, `sample_relation_distillation` in SCD's (docs/corrkd-plus.md).

None detaches the teacher: freeze it, or run it under `torch.no_grad()`.
"""

from corrkd.losses.category_prototype import CategoryPrototypeDistillation, category_prototype_distillation
from corrkd.losses.critics import ConcatCritic, Critic
from corrkd.losses.decoupled_divergence import DecoupledDivergence, decoupled_divergence
from corrkd.losses.response_disentangled import (
    ResponseDisentangledConsistency,
    jensen_shannon_information,
    response_disentangled_consistency,
)
from corrkd.losses.sample_contrastive import SampleContrastiveDistillation, sample_contrastive_distillation
from corrkd.losses.sample_relations import SampleRelationDistillation, sample_relation_distillation

__all__ = [
    "CategoryPrototypeDistillation",
    "ConcatCritic",
    "Critic",
    "DecoupledDivergence",
    "ResponseDisentangledConsistency",
    "SampleContrastiveDistillation",
    "SampleRelationDistillation",
    "category_prototype_distillation",
    "decoupled_divergence",
    "jensen_shannon_information",
    "response_disentangled_consistency",
    "sample_contrastive_distillation",
    "sample_relation_distillation",
]
