"""Named test conditions: both protocols of the paper, and more (docs/missingness.md). Each kind is
a class in a file.
"""

from corrkd.missing.conditions.base import Condition, Family
from corrkd.missing.conditions.protocols import PROTOCOLS, Protocol
from corrkd.missing.conditions.registry import (
    AVERAGE,
    RATIOS,
    check_settings,
    condition,
    condition_class,
    missing_subsets,
    named_conditions,
    standard_conditions,
    subsets,
)
from corrkd.missing.conditions.subset import COMPLETE

__all__ = [
    "AVERAGE",
    "COMPLETE",
    "PROTOCOLS",
    "RATIOS",
    "Condition",
    "Family",
    "Protocol",
    "check_settings",
    "condition",
    "condition_class",
    "missing_subsets",
    "named_conditions",
    "standard_conditions",
    "subsets",
]
