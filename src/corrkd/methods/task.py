"""The task loss alone: the teacher on complete samples, and the no-distillation control on
incomplete ones.
"""

from typing import ClassVar

from corrkd.methods.base import Method
from corrkd.networks.base import AnyNetwork


class TaskOnly(Method[AnyNetwork]):
    """Training without distillation. On complete samples it gives the teacher; under MRM it is the
    control that distillation has to beat.
    """

    title: ClassVar[str] = "No distillation"
    stackable: ClassVar[bool] = True
