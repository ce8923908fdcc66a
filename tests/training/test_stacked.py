"""Runs trained together must match separate runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corrkd.data.batches import Samples
from corrkd.methods.base import AnyMethod, TeacherOutputs
from corrkd.methods.registry import method_class
from corrkd.networks.registry import network_class
from corrkd.settings import MissingSettings, TrainingSettings
from corrkd.training.fabric import Fabric
from corrkd.training.loop import train
from corrkd.training.run import Trained, TrainingRun
from corrkd.training.stacked import train_together
from tests.conftest import make_dataset, make_samples
from tests.training.recording import RecordedGraph

SMALL: dict[str, dict[str, Any]] = {
    "corrkd": {
        "width": 8,
        "heads": 2,
        "feedforward": 16,
        "layers": 1,
        "classifier": (6,),
        "dropout": 0.2,
    },
    "cubemlp": {"channels": 6, "hidden": ((4, 2, 6),), "shapes": ((4, 3, 6),), "dropout": 0.2},
    "mlp": {"width": 6, "hidden": (8,), "classifier": (6,), "dropout": 0.2},
    "gru": {"width": 6, "classifier": (6,), "dropout": 0.2},
    "perceiver": {
        "width": 8,
        "latents": 3,
        "heads": 2,
        "feedforward": 12,
        "layers": 1,
        "dropout": 0.2,
    },
}
SMALL["late-fusion"] = SMALL["corrkd"]
SMALL["dmd"] = {"width": 8, "heads": 2, "graph": 5}
SMALL["self-mm"] = {"width": 8, "unimodal": 6, "fusion": 8}
SMALL["hrlf"] = {**SMALL["corrkd"], "factor_hidden": 8}
MENDED = {
    "scd": {"form": "relations"},
    "cpd": {"form": "all", "parts": True},
    "rcd": {"form": "divergence"},
}
SETTINGS = TrainingSettings(
    epochs=3,
    batch_size=16,
    lr=1e-2,
    optimizer="adamw",
    weight_decay=0.05,
    schedule="cosine",
    average=0.9,
    clip_norm=0.5,
)
FABRIC = Fabric(accelerator="cpu", devices=1)  # the methods are in float64 themselves


def teachers(samples: Samples, seed: int, width: int = 24) -> TeacherOutputs:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    count = len(samples)
    return TeacherOutputs(
        draw(count, width), draw(count, *samples.target.response_shape), torch.arange(count) % 3
    )


def make_method(
    name: str, samples: Samples, seed: int, options: Any = None, network: str | None = None
) -> AnyMethod:
    kind = method_class(name)
    net = network_class(network or kind.network or "corrkd")
    torch.manual_seed(seed)
    settings = net.settings_type.model_validate(SMALL.get(net.name, {}))
    student = net(
        samples.widths, dict.fromkeys(samples.widths, 6), target=samples.target, settings=settings
    )
    outputs = teachers(samples, seed, student.representation_width) if kind.needs_teacher else None
    return kind(student, kind.options_type.model_validate(options or {}), teachers=outputs).double()


def scores(seed: int) -> Callable[[Any], float]:
    """Return validation scores that start to fall at a different epoch in each run."""
    remaining = iter([0.5 + 0.01 * epoch if epoch <= seed else 0.3 for epoch in range(100)])
    return lambda network: next(remaining)


def together_and_alone(
    make: Callable[[int], AnyMethod],
    samples: Callable[[int], Samples],
    settings: TrainingSettings = SETTINGS,
    **options: Any,
) -> tuple[list[Trained], list[Trained]]:
    alone = [
        train(
            make(s),
            samples(s),
            settings=settings,
            validate=scores(s),
            seed=s,
            fabric=FABRIC,
            **options,
        )
        for s in range(3)
    ]
    runs = [
        TrainingRun(
            method=make(s),
            samples=samples(s),
            settings=settings,
            validate=scores(s),
            seed=s,
            **options,
        )
        for s in range(3)
    ]
    return train_together(runs, fabric=FABRIC), alone


def assert_equal(together: list[Trained], alone: list[Trained]) -> None:
    for a, b in zip(together, alone, strict=True):
        assert (a.epoch, a.score, len(a.history)) == (b.epoch, b.score, len(b.history))
        for name, value in b.state.items():
            assert torch.allclose(a.state[name], value, rtol=0, atol=1e-9), name
        for mine, theirs in zip(a.history, b.history, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-9)


def split(target: str) -> Samples:
    dataset = make_dataset()
    if target == "questions":
        splits = {
            name: replace(original, labels=np.stack([original.labels % 2, original.labels // 2], 1))
            for name, original in dataset.splits.items()
        }
        dataset = replace(dataset, splits=splits, class_names=(), question_names=("odd", "large"))
    return make_samples(dataset, target=target, dtype=torch.float64)


# With other targets than classes, the methods that use categories are always tested, the others
# only in the slow tests.
TARGETS = [
    "classes",
    pytest.param("score", marks=pytest.mark.slow),
    pytest.param("questions", marks=pytest.mark.slow),
]
WITH_CATEGORIES = pytest.mark.parametrize(
    ("name", "options", "target"),
    [
        (name, options, target)
        for target in ("score", "questions")
        for name, options in (("corrkd", MENDED), ("self-mm", None))
    ],
)


@WITH_CATEGORIES
def test_runs_together_with_other_targets(name: str, options: Any, target: str) -> None:
    test_runs_together_match_separate_runs(name, options, None, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("name", "options", "network"),
    [
        ("no-distillation", None, None),
        ("no-distillation", None, "cubemlp"),
        ("corrkd", None, None),
        ("corrkd", MENDED, None),
        ("kl", None, None),
        ("kl", None, "mlp"),
        ("kl", None, "gru"),
        ("kl", None, "perceiver"),
        ("feature-mse", None, None),
        ("late-fusion", None, None),
        ("cubemlp", None, None),
        ("dmd", None, None),
        ("self-mm", None, None),
        ("hrlf-teacher", None, None),
        ("hrlf", None, None),
    ],
)
def test_runs_together_match_separate_runs(
    name: str, options: Any, network: str | None, target: str
) -> None:
    samples = split(target)
    missing = MissingSettings()
    together, alone = together_and_alone(
        lambda seed: make_method(name, samples, seed, options, network),
        lambda seed: samples,
        missing=missing,
    )
    assert_equal(together, alone)
    first, second = (torch.cat([x.flatten() for x in run.state.values()]) for run in together[:2])
    assert not torch.allclose(first, second, atol=1e-2)


def test_folds_of_unequal_size_have_different_steps_and_stop_early() -> None:
    """Like teachers of folds, they differ in last batches, numbers of steps and final epochs."""
    samples = split("classes")
    folds = [
        samples.subset(torch.arange(len(samples))[rows])
        for rows in (slice(0, 48), slice(3, 40), slice(1, 33, 2))
    ]
    settings = SETTINGS.model_copy(update={"epochs": 6, "patience": 2})
    together, alone = together_and_alone(
        lambda seed: make_method("no-distillation", samples, seed),
        lambda seed: folds[seed],
        settings,
    )
    assert_equal(together, alone)
    assert len({len(run.history) for run in together}) == 3


def make_runs(
    name: str,
    samples: Callable[[int], Samples] | None = None,
    settings: TrainingSettings = SETTINGS,
    options: Any = None,
    network: str | None = None,
) -> list[TrainingRun]:
    shared = split("classes") if samples is None else samples(0)
    return [
        TrainingRun(
            method=make_method(name, shared, seed, options, network),
            samples=shared if samples is None else samples(seed),
            settings=settings,
            validate=scores(seed),
            seed=seed,
            missing=MissingSettings(),
        )
        for seed in range(3)
    ]


# A learning rate that float32 represents exactly, since a captured one is a float32 tensor.
CAPTURABLE = (
    "kl",
    "feature-mse",
    "late-fusion",
    "cubemlp",
    "dmd",
    "self-mm",
    "hrlf-teacher",
    "hrlf",
)
CAPTURED = SETTINGS.model_copy(update={"lr": 2.0**-7, "schedule": "constant"})


@WITH_CATEGORIES
def test_a_recorded_step_with_other_targets(name: str, options: Any, target: str) -> None:
    test_a_replayed_step_matches_the_plain_step(name, options, None, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("name", "options", "network"),
    [
        ("corrkd", None, None),
        ("corrkd", MENDED, None),
        *((method, None, None) for method in CAPTURABLE),
        *(("kl", None, network) for network in ("mlp", "gru", "perceiver")),
    ],
)
def test_a_replayed_step_matches_the_plain_step(
    name: str, options: Any, network: str | None, target: str
) -> None:
    samples = split(target)
    runs = [make_runs(name, lambda _: samples, CAPTURED, options, network) for _ in range(2)]
    recorded = train_together(runs[0], fabric=FABRIC, make_graph=RecordedGraph)
    assert_equal(recorded, train_together(runs[1], fabric=FABRIC))


def test_recorded_steps_of_unequal_folds_follow_their_schedules() -> None:
    """Epochs differ in length, so batches have several shapes and learning rates differ by run."""
    samples = split("classes")
    folds = [
        samples.subset(torch.arange(len(samples))[rows])
        for rows in (slice(0, 48), slice(3, 40), slice(1, 33, 2))
    ]
    settings = CAPTURED.model_copy(update={"epochs": 6, "patience": 2, "schedule": "linear"})
    graphs: list[RecordedGraph] = []

    def make_graph() -> RecordedGraph:
        graphs.append(RecordedGraph())
        return graphs[-1]

    runs = [make_runs("no-distillation", lambda seed: folds[seed], settings) for _ in range(2)]
    captured = train_together(runs[0], fabric=FABRIC, make_graph=make_graph)
    plain = train_together(runs[1], fabric=FABRIC)
    assert len(graphs) > 2
    for a, b in zip(captured, plain, strict=True):
        assert len(a.history) == len(b.history)
        for key, value in b.state.items():
            assert torch.allclose(a.state[key], value, rtol=0, atol=1e-7), (
                key
            )  # rates rounded to float32


def test_a_methods_memory_is_kept_after_other_runs_end() -> None:
    """Self-MM's labels and memory keep changing in the remaining runs."""
    samples = split("classes")
    settings = SETTINGS.model_copy(update={"epochs": 6, "patience": 2})
    together, alone = together_and_alone(
        lambda seed: make_method("self-mm", samples, seed), lambda seed: samples, settings
    )
    assert_equal(together, alone)
    assert len({len(run.history) for run in together}) == 3


class StoppedError(Exception):
    pass


def test_a_stopped_stack_resumes_with_the_same_results(tmp_path: Path) -> None:
    """It stops between two runs' checkpoints: one has an epoch more than the others."""
    samples = split("classes")

    def runs(stop: bool) -> list[TrainingRun]:
        def on_epoch(record: dict[str, float], seed: int) -> None:
            if stop and (record["epoch"], seed) == (2, 1):
                raise StoppedError

        return [
            TrainingRun(
                method=make_method("corrkd", samples, seed),
                samples=samples,
                settings=SETTINGS,
                validate=lambda network: 0.5,
                seed=seed,
                missing=MissingSettings(),
                checkpoint=tmp_path / f"{seed}.ckpt",
                on_epoch=lambda record, seed=seed: on_epoch(record, seed),  # type: ignore[misc]
            )
            for seed in range(3)
        ]

    with pytest.raises(StoppedError):
        train_together(runs(stop=True), fabric=FABRIC)
    resumed = train_together(runs(stop=False), fabric=FABRIC)
    for seed in range(3):
        (tmp_path / f"{seed}.ckpt").unlink()
    uninterrupted = train_together(runs(stop=False), fabric=FABRIC)
    for a, b in zip(resumed, uninterrupted, strict=True):
        assert all(torch.equal(value, b.state[name]) for name, value in a.state.items())
        assert a.history == b.history
