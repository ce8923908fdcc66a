"""Number of epochs of a method in a comparison: the budget is doubled until the validation score
gains little.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from corrkd.errors import CorrKDError
from corrkd.experiment.arm import Arm
from corrkd.files import write_text
from corrkd.networks.saved import recorded
from corrkd.parsing import DIGEST, check_digest, json_text, read_json, refusing, with_digest
from corrkd.settings import Count, Strict
from corrkd.training.loop import VALID

FILE = "budget.json"


class BudgetRule(Strict):
    """Rule for when to stop doubling a budget."""

    gain: float = Field(
        0.3,
        ge=0.0,
        description="points of the validation score (0 to 100) by which a doubled budget has to "
        "be better",
    )
    doublings: int = Field(
        5, ge=1, le=20, description="at most so many: 5 end at 32 times the first budget"
    )


class Budget(BaseModel):
    """The budget chosen for an arm on a dataset.

    Attributes:
        epochs: chosen number of epochs.
        scores: validation score, 0 to 1, by number of epochs tried, ascending.
        seed: seed of the trainings.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    epochs: Count
    scores: dict[int, float] = Field(default_factory=dict)
    seed: int = 0


def with_epochs(arm: Arm, epochs: int) -> Arm:
    """Return the arm with another number of epochs, over which its schedule is stretched."""
    return replace(arm, training=arm.training.model_copy(update={"epochs": epochs}))


def choose_budget(
    arm: Arm, rule: BudgetRule, seed: int, folder: Path, train: Callable[[Arm, Path], None]
) -> Budget:
    """Choose an arm's budget with one seed, and keep the training with that budget in the folder.

    The first budget is the arm's number of epochs. It is doubled until the validation score gains
    less than `rule.gain` points over half the budget, or the training fails; half the budget is
    then chosen. An interrupted search continues when called again.

    Args:
        arm: arm in the plan.
        rule: when to stop.
        seed: seed of the trainings.
        folder: folder of the arm and seed.
        train: trains an arm in a given folder, unless the folder already contains the model.

    Raises:
        CorrKDError: if the training with the first budget fails.
    """
    budget = read_budget(folder)
    if budget is None:
        scores: dict[int, float] = {}
        epochs = arm.training.epochs
        for number in range(rule.doublings + 1):
            epochs = arm.training.epochs * 2**number
            try:
                train(with_epochs(arm, epochs), _trial(folder, epochs))
            except CorrKDError:  # the loss was no longer finite
                if not number:
                    raise
                epochs //= 2
                break
            scores[epochs] = float(recorded(_trial(folder, epochs) / arm.name, VALID))
            if number and 100 * (scores[epochs] - scores[epochs // 2]) < rule.gain:
                epochs //= 2
                break
        budget = Budget(epochs=epochs, scores=scores, seed=seed)
        write_text(folder / FILE, json_text(with_digest(budget.model_dump(mode="json"))))
    _keep(_trial(folder, budget.epochs), folder, arm.name)
    for trial in folder.glob("epochs-*"):
        shutil.rmtree(trial, ignore_errors=True)
    return budget


def read_budget(folder: Path) -> Budget | None:
    """Return the budget stored in an arm's folder, or None. Raises CorrKDError if it is damaged."""
    path = folder / FILE
    if not path.is_file():
        return None
    advice = "delete the folder to choose the budget again"
    tree = read_json(path, advice)
    with refusing(path, f"damaged; {advice}"):
        check_digest(tree, path, advice)
        return Budget.model_validate({key: value for key, value in tree.items() if key != DIGEST})


def _trial(folder: Path, epochs: int) -> Path:
    return folder / f"epochs-{epochs}"


def _keep(trial: Path, folder: Path, name: str) -> None:
    """Move a finished training one folder up. The card, which marks it as complete, comes last."""
    if not (trial / f"{name}.json").is_file():
        return
    for path in sorted(trial.iterdir(), key=lambda path: path.name == f"{name}.json"):
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
