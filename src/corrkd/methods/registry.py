"""The methods by name, including those of other packages (entry points in the group
`corrkd.methods`).
"""

from __future__ import annotations

from corrkd import plugins
from corrkd.methods.base import AnyMethod, Method

GROUP = "corrkd.methods"
BUILT_IN = {
    "self-mm": "corrkd.methods.self_mm:SelfMM",
    "cubemlp": "corrkd.methods.cubemlp:CubeMLP",
    "dmd": "corrkd.methods.dmd:DMD",
    "mctn": "corrkd.methods.mctn:MCTN",
    "mctn-per-source": "corrkd.methods.mctn:MCTNPerSource",
    "transm": "corrkd.methods.transm:TransM",
    "smil": "corrkd.methods.smil:SMIL",
    "gcnet": "corrkd.methods.gcnet:GCNet",
    "late-fusion": "corrkd.methods.late_fusion:LateFusion",
    "no-distillation": "corrkd.methods.task:TaskOnly",
    "kl": "corrkd.methods.response_kl:ResponseKL",
    "feature-mse": "corrkd.methods.feature_mse:FeatureMSE",
    "hrlf-teacher": "corrkd.methods.hrlf:HRLFTeacher",
    "hrlf": "corrkd.methods.hrlf:HRLF",
    "corrkd": "corrkd.methods.corrkd:CorrKD",
}


def method_names() -> tuple[str, ...]:
    """Return the names of all methods, the built-in ones first, in the order of the tables."""
    return plugins.names(BUILT_IN, GROUP)


def method_class(name: str) -> type[AnyMethod]:
    """Return a method by name. Raises CorrKDError if it is unknown or cannot be loaded."""
    class_: type[AnyMethod] = plugins.find(name, BUILT_IN, GROUP, Method, "method")
    return class_
