"""CorrKD's mended forms: what they compare, and with which teacher."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.experiment.settings import load_settings
from corrkd.losses import (
    SampleContrastiveDistillation,
    category_prototype_distillation,
    decoupled_divergence,
    sample_relation_distillation,
)
from corrkd.methods.base import Losses, TeacherOutputs, TrainingBatch
from corrkd.methods.corrkd import CorrKD, CorrKDOptions
from corrkd.networks.base import Output
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.settings import NetworkSettings
from corrkd.targets.base import Target
from corrkd.targets.questions import QuestionsTarget
from tests.conftest import make_dataset, make_samples, values

SMALL = NetworkSettings(width=8, heads=2, feedforward=16, layers=1, classifier=(6,), dropout=0.0)
MENDED: dict[str, Any] = {
    "scd": {"form": "relations"},
    "cpd": {"form": "all"},
    "rcd": {"form": "divergence", "nontarget": 2.0},
}
PARTS = {"form": "all", "parts": True}
N, TRAIN = 7, 20


def method(
    teachers: TeacherOutputs, targets: Tensor, target: Target | None = None, **options: Any
) -> CorrKD:
    """Return a method at the start of training on samples with these targets."""
    torch.manual_seed(0)
    dataset = make_dataset()
    target = target or make_samples(dataset).target
    network = CorrKDNetwork(
        dataset.widths, dict.fromkeys(dataset.widths, 6), target=target, settings=SMALL
    )
    corrkd = CorrKD(
        network.double(), CorrKDOptions.model_validate({**MENDED, **options}), teachers=teachers
    ).double()
    corrkd.start(SimpleNamespace(targets=targets))  # type: ignore[arg-type]
    return corrkd


def losses(
    corrkd: CorrKD, student: Output, targets: Tensor, rows: Tensor, visible: Tensor | None = None
) -> Losses:
    """Return the losses of a student that outputs `student`; `visible` (N, M) defaults to all."""
    samples = make_samples(make_dataset())
    batch = samples.take(torch.arange(len(rows)))
    inputs = batch.complete()
    if visible is not None:
        columns = zip(inputs.visible.items(), visible.unbind(1), strict=True)
        inputs = inputs._replace(visible={m: x & seen[:, None] for (m, x), seen in columns})
    corrkd.student.in_context = lambda inputs, context: student  # type: ignore[method-assign]
    return corrkd(TrainingBatch(inputs, targets, samples.context(rows)))


def make_teachers(seed: int, count: int, num_teachers: int = 3) -> TeacherOutputs:
    """Return outputs of several teachers that differ in mean and scale."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.arange(count) % num_teachers

    def draw(width: int) -> Tensor:
        return torch.randn(count, width, generator=random, dtype=torch.float64)

    return TeacherOutputs((draw(24) + 5 * ids[:, None]) * (1 + ids[:, None]), draw(3), ids)


def output(seed: int = 5, logits: tuple[int, ...] = (N, 3)) -> Output:
    random = torch.Generator().manual_seed(seed)
    return Output(
        torch.randn(N, 24, generator=random, dtype=torch.float64),
        torch.randn(logits, generator=random, dtype=torch.float64),
    )


def test_relations_and_prototypes_are_within_each_teacher() -> None:
    teachers, labels = make_teachers(1, TRAIN), torch.arange(TRAIN) // 3 % 3
    corrkd = method(teachers, labels)
    rows = torch.tensor([0, 3, 4, 7, 11, 12, 18])
    selected, outputs = teachers.apply(lambda x: x[rows]), output()
    terms = values(losses(corrkd, outputs, labels[rows], rows))
    assert list(terms) == ["task", "scd", "cpd", "rcd"]
    assert teachers.answered_by is not None
    teacher_ids, centred = teachers.answered_by, teachers.representation.clone()
    for teacher in range(3):
        centred[teacher_ids == teacher] -= teachers.representation[teacher_ids == teacher].mean(0)
    scd = sample_relation_distillation(outputs.representation, centred[rows], teacher_ids[rows])
    torch.testing.assert_close(terms["scd"], scd)
    rcd = decoupled_divergence(outputs.logits, selected.logits, labels[rows], nontarget=2.0)
    torch.testing.assert_close(terms["rcd"], rcd)
    # CPD by loops: a teacher's prototypes are of all its samples, the student's of the batch.
    student = outputs.representation - outputs.representation.mean(0)
    total = 0.0
    for i, row in enumerate(rows.tolist()):
        for k in range(3):
            mine = student[labels[rows] == k].mean(0)
            theirs = centred[(teacher_ids == teacher_ids[row]) & (labels == k)].mean(0)
            difference = cosine_similarity(student[i], mine, 0) - cosine_similarity(
                centred[row], theirs, 0
            )
            total += difference.item() ** 2
    assert terms["cpd"].item() == pytest.approx(total / (N * 3), rel=1e-9)


def test_classes_that_a_teacher_lacks_or_has_alone_are_skipped() -> None:
    teachers, labels = make_teachers(1, TRAIN), torch.arange(TRAIN) // 3 % 3
    assert teachers.answered_by is not None
    labels[teachers.answered_by == 0] = labels[teachers.answered_by == 0].clamp(max=1)
    labels[teachers.answered_by == 1] = 2
    corrkd = method(teachers, labels)
    has_prototype = corrkd.prototypes.norm(dim=-1)[:, 0] > 0
    assert has_prototype.tolist() == [
        [True, True, False],
        [False, False, False],
        [True, True, True],
    ]
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 8])
    h = output().representation.requires_grad_()
    values(losses(corrkd, Output(h, output().logits), labels[rows], rows))["cpd"].backward()
    assert h.grad is not None
    h.grad = None
    # Only the second teacher's rows: no class has a prototype.
    others = torch.tensor([1, 4, 7, 10, 13, 16, 19])
    mixed = torch.arange(N) % 3  # whatever the batch's labels are
    loss = values(losses(corrkd, Output(h, output().logits), mixed, others))["cpd"]
    loss.backward()
    assert loss.item() == 0.0
    assert h.grad is None or not h.grad.any()


def test_a_single_teacher_is_compared_over_all_samples() -> None:
    teachers, labels = make_teachers(1, N), torch.arange(N) % 3
    for single in (
        teachers._replace(answered_by=None),
        teachers._replace(answered_by=torch.zeros(N, dtype=torch.int64)),
    ):
        corrkd = method(single, labels)
        centred = teachers.representation - teachers.representation.mean(0)
        scd = values(losses(corrkd, output(), labels, torch.arange(N)))["scd"]
        torch.testing.assert_close(
            scd, sample_relation_distillation(output().representation, centred)
        )


def test_the_papers_three_losses_use_the_same_teacher_outputs() -> None:
    """SCD, CPD and RCD use the same outputs, out of fold or not."""
    forms = {"scd": {"form": "contrast"}, "cpd": {"form": "batch"}, "rcd": {"form": "information"}}
    teacher, labels, student = make_teachers(1, N), torch.arange(N) % 3, output()
    for outputs in (teacher, teacher._replace(answered_by=None)):
        literal = method(outputs, labels, **forms)
        assert isinstance(literal.scd, SampleContrastiveDistillation)
        terms = values(losses(literal, student, labels, torch.arange(N)))
        torch.testing.assert_close(
            terms["scd"], literal.scd(student.representation, teacher.representation)
        )
        cpd = category_prototype_distillation(
            student.representation, teacher.representation, labels, num_classes=3
        )
        torch.testing.assert_close(terms["cpd"], cpd)
        rcd = literal.rcd(student.logits, teacher.logits, labels)  # type: ignore[misc]
        torch.testing.assert_close(terms["rcd"], rcd)


def test_parts_of_a_network_that_declares_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    teachers, labels = make_teachers(1, N), torch.arange(N) % 3
    student = method(teachers, labels, cpd=PARTS).student
    assert student.parts == dict.fromkeys(student.modalities, 8)
    monkeypatch.setattr(CorrKDNetwork, "parts", None)
    monkeypatch.setattr(CorrKDNetwork, "representation_width", 24)
    with pytest.raises(CorrKDError, match=r"network 'corrkd' declares no parts .* set it to false"):
        method(teachers, labels, cpd=PARTS)


def test_parts_of_h_are_compared_where_their_modality_is_visible() -> None:
    """The loss is that of h, plus the mean of its parts', each over samples with the modality."""
    teachers, labels = make_teachers(1, N), torch.arange(N) % 3
    corrkd = method(teachers, labels, cpd=PARTS)
    assert teachers.answered_by is not None
    centred = teachers.representation - corrkd.means[teachers.answered_by]
    prototypes = corrkd.prototypes[teachers.answered_by]
    visible = torch.rand(N, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    visible[:, 2] = False  # the third is never visible
    h = output().representation

    def among(rows: Tensor, features: Tensor) -> Tensor:
        return category_prototype_distillation(
            features[rows],
            centred[rows],
            labels[rows],
            3,
            center=True,
            teacher_prototypes=prototypes[rows],
        )

    all_rows = torch.ones(N, dtype=torch.bool)
    each = [among(visible[:, m], h[:, 8 * m : 8 * m + 8]).item() for m in (0, 1)]
    expected = among(all_rows, h).item() + sum(each) / 3
    assert values(losses(corrkd, output(), labels, torch.arange(N), visible))[
        "cpd"
    ].item() == pytest.approx(expected, rel=1e-9)
    # Of complete samples all parts are compared.
    each = [among(all_rows, h[:, 8 * m : 8 * m + 8]).item() for m in range(3)]
    expected = among(all_rows, h).item() + sum(each) / 3
    assert values(losses(corrkd, output(), labels, torch.arange(N)))["cpd"].item() == pytest.approx(
        expected, rel=1e-9
    )


def test_frames_beyond_a_samples_length_are_never_visible() -> None:
    """Even if the mask marks them visible."""
    samples = make_samples(make_dataset())
    teachers = make_teachers(1, len(samples)).apply(
        lambda x: x.float() if x.is_floating_point() else x
    )
    corrkd = method(teachers, samples.targets, cpd=PARTS).float().eval()
    rows = torch.arange(N)
    batch = samples.take(rows)
    visible = {m: x.clone() for m, x in batch.exists.items()}
    visible["audio"][:4] = ~batch.exists["audio"][:4]
    inputs = Inputs(batch.frames, batch.exists, visible)
    cpd = values(corrkd(TrainingBatch(inputs, batch.targets, samples.context(rows))))["cpd"]
    seen = torch.ones(N, 3, dtype=torch.bool)
    seen[:4, 1] = False
    predicted = corrkd.student(inputs)
    torch.testing.assert_close(
        cpd, values(losses(corrkd, predicted, batch.targets, rows, seen))["cpd"]
    )
    assert not torch.equal(cpd, values(losses(corrkd, predicted, batch.targets, rows))["cpd"])


def test_questions_and_scores() -> None:
    target = QuestionsTarget(name="questions", classes=("no", "yes"), questions=("happy", "sad"))
    rows, teachers = torch.arange(N), make_teachers(1, N)
    answers = torch.randint(2, (N, 2), generator=torch.Generator().manual_seed(0))
    corrkd = method(teachers._replace(logits=output(8, (N, 2, 2)).logits), answers, target)
    assert corrkd.prototypes.shape == (3, 2, 2, 24)
    assert all(
        value.isfinite()
        for value in values(losses(corrkd, output(5, (N, 2, 2)), answers, rows)).values()
    )
    dataset = make_dataset()
    score_target = make_samples(dataset, target="score").target
    scores = torch.linspace(-1, 1, N, dtype=torch.float64)
    corrkd = method(teachers._replace(logits=scores[:, None]), scores, score_target)
    assert list(losses(corrkd, output(5, (N, 1)), scores, rows)) == ["task", "scd", "cpd"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cpd": {"form": "batch", "parts": True}},
            r"method\.cpd\.parts: unknown key; allowed: weight, form",
        ),
        (
            {"rcd": {"form": "divergence", "nontarget": -1}},
            "nontarget: input should be greater than or equal to 0",
        ),
        (
            {"scd": {"form": "relations", "boundary": 1.0}},
            "boundary: unknown key; allowed: weight, form, center",
        ),
        ({"scd": {"form": "contrasts"}}, r"student\.method\.scd: unknown form 'contrasts'"),
        ({"scd": 0.5}, r"student\.method\.scd: "),
    ],
)
def test_unknown_options_of_a_form_are_refused_in_one_line(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CorrKDError, match=message) as error:
        load_settings(student={"method": change})
    assert "\n" not in str(error.value)
