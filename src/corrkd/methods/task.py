"""The task loss alone: the teacher on complete samples, and the no-distillation control on what is
left of them.
"""

from typing import ClassVar

from corrkd.methods.base import Method
from corrkd.networks.base import AnyNetwork


class TaskOnly(Method[AnyNetwork]):
    """No distillation. Trained on complete samples it is the teacher; under MRM it is the control
    that a distillation has to beat.
    """

    title: ClassVar[str] = "No distillation"
    stackable: ClassVar[bool] = True
