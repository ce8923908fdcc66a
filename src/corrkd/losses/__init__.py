"""The three distillation losses of CorrKD (Li et al., CVPR 2024), each a function and a Module. They need torch alone.

None detaches the teacher: freeze it, or run it under `torch.no_grad()`.
"""

from corrkd.losses.category_prototype import CategoryPrototypeDistillation, category_prototype_distillation
from corrkd.losses.critics import ConcatCritic, Critic
from corrkd.losses.response_disentangled import (
    ResponseDisentangledConsistency,
    jensen_shannon_information,
    response_disentangled_consistency,
)
from corrkd.losses.sample_contrastive import SampleContrastiveDistillation, sample_contrastive_distillation

__all__ = [
    "CategoryPrototypeDistillation",
    "ConcatCritic",
    "Critic",
    "ResponseDisentangledConsistency",
    "SampleContrastiveDistillation",
    "category_prototype_distillation",
    "jensen_shannon_information",
    "response_disentangled_consistency",
    "sample_contrastive_distillation",
]
