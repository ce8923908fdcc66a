"""CorrKD: sentiment models that stay accurate when language, audio or vision goes missing.

The public names below are stable. They are loaded on first use, so that `import corrkd.losses`
loads neither lightning nor pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from corrkd._version import __version__

if TYPE_CHECKING:
    from corrkd.data.dataset import MultimodalDataset, Split
    from corrkd.data.load import load_dataset
    from corrkd.errors import CorrKDError
    from corrkd.evaluation.judge import evaluate
    from corrkd.experiment.distil import Distilled, distil
    from corrkd.experiment.estimator import CorrKDClassifier, MultimodalArrays
    from corrkd.experiment.plan import Plan, load_plan
    from corrkd.experiment.run import Run, compare, resume, run
    from corrkd.experiment.settings import Settings, load_settings
    from corrkd.experiment.teacher_file import ask_teacher
    from corrkd.networks.saved import SavedNetwork, load_student
    from corrkd.serve.predictor import Predictor
    from corrkd.serve.standalone import Prediction

_HOMES = {
    "CorrKDClassifier": "corrkd.experiment.estimator",
    "CorrKDError": "corrkd.errors",
    "Distilled": "corrkd.experiment.distil",
    "MultimodalArrays": "corrkd.experiment.estimator",
    "MultimodalDataset": "corrkd.data.dataset",
    "Plan": "corrkd.experiment.plan",
    "Prediction": "corrkd.serve.standalone",
    "Predictor": "corrkd.serve.predictor",
    "Run": "corrkd.experiment.run",
    "SavedNetwork": "corrkd.networks.saved",
    "Settings": "corrkd.experiment.settings",
    "Split": "corrkd.data.dataset",
    "ask_teacher": "corrkd.experiment.teacher_file",
    "compare": "corrkd.experiment.run",
    "distil": "corrkd.experiment.distil",
    "evaluate": "corrkd.evaluation.judge",
    "load_dataset": "corrkd.data.load",
    "load_plan": "corrkd.experiment.plan",
    "load_settings": "corrkd.experiment.settings",
    "load_student": "corrkd.networks.saved",
    "resume": "corrkd.experiment.run",
    "run": "corrkd.experiment.run",
}

__all__ = [
    "CorrKDClassifier",
    "CorrKDError",
    "Distilled",
    "MultimodalArrays",
    "MultimodalDataset",
    "Plan",
    "Prediction",
    "Predictor",
    "Run",
    "SavedNetwork",
    "Settings",
    "Split",
    "__version__",
    "ask_teacher",
    "compare",
    "distil",
    "evaluate",
    "load_dataset",
    "load_plan",
    "load_settings",
    "load_student",
    "resume",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'corrkd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
