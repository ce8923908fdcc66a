"""CorrKD's mended forms: what they compare, and whose representations they take."""

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
    """A method at the start of a training on samples with these targets."""
    torch.manual_seed(0)
    dataset = make_dataset()
    target = target or make_samples(dataset).target
    network = CorrKDNetwork(
        dataset.widths, dict.fromkeys(dataset.widths, 6), target=target, settings=SMALL
    )
    plus = CorrKD(
        network.double(), CorrKDOptions.model_validate({**MENDED, **options}), teachers=teachers
    ).double()
    plus.start(SimpleNamespace(targets=targets))  # type: ignore[arg-type]
    return plus


def losses(
    plus: CorrKD, student: Output, targets: Tensor, rows: Tensor, visible: Tensor | None = None
) -> Losses:
    """The losses where the student answers with `student`; `visible`: (N, M), which modalities a
    sample shows, default: all.
    """
    samples = make_samples(make_dataset())
    batch = samples.take(torch.arange(len(rows)))
    inputs = batch.complete()
    if visible is not None:
        columns = zip(inputs.visible.items(), visible.unbind(1), strict=True)
        inputs = inputs._replace(visible={m: x & shows[:, None] for (m, x), shows in columns})
    plus.student.in_context = lambda inputs, context: student  # type: ignore[method-assign]
    return plus(TrainingBatch(inputs, targets, samples.context(rows)))


def spoken(seed: int, count: int, teachers: int = 3) -> TeacherOutputs:
    """Of several teachers, each with a mean and a scale of its own."""
    random = torch.Generator().manual_seed(seed)
    by = torch.arange(count) % teachers

    def draw(width: int) -> Tensor:
        return torch.randn(count, width, generator=random, dtype=torch.float64)

    return TeacherOutputs((draw(24) + 5 * by[:, None]) * (1 + by[:, None]), draw(3), by)


def output(seed: int = 5, logits: tuple[int, ...] = (N, 3)) -> Output:
    random = torch.Generator().manual_seed(seed)
    return Output(
        torch.randn(N, 24, generator=random, dtype=torch.float64),
        torch.randn(logits, generator=random, dtype=torch.float64),
    )


def test_relations_and_prototypes_are_within_each_teacher() -> None:
    whole, labels = spoken(1, TRAIN), torch.arange(TRAIN) // 3 % 3
    plus = method(whole, labels)
    rows = torch.tensor([0, 3, 4, 7, 11, 12, 18])
    known, own = whole.apply(lambda x: x[rows]), output()
    terms = values(losses(plus, own, labels[rows], rows))
    assert list(terms) == ["task", "scd", "cpd", "rcd"]
    assert whole.answered_by is not None
    by, centred = whole.answered_by, whole.representation.clone()
    for teacher in range(3):
        centred[by == teacher] -= whole.representation[by == teacher].mean(0)
    scd = sample_relation_distillation(own.representation, centred[rows], by[rows])
    torch.testing.assert_close(terms["scd"], scd)
    rcd = decoupled_divergence(own.logits, known.logits, labels[rows], nontarget=2.0)
    torch.testing.assert_close(terms["rcd"], rcd)
    # CPD by loops: the teacher's prototypes from all that it answered for, the student's from the
    # batch.
    student = own.representation - own.representation.mean(0)
    total = 0.0
    for place, row in enumerate(rows.tolist()):
        for k in range(3):
            mine = student[labels[rows] == k].mean(0)
            theirs = centred[(by == by[row]) & (labels == k)].mean(0)
            difference = cosine_similarity(student[place], mine, 0) - cosine_similarity(
                centred[row], theirs, 0
            )
            total += difference.item() ** 2
    assert terms["cpd"].item() == pytest.approx(total / (N * 3), rel=1e-9)


def test_a_class_that_a_teacher_did_not_meet_or_met_alone_is_compared_with_nothing() -> None:
    whole, labels = spoken(1, TRAIN), torch.arange(TRAIN) // 3 % 3
    assert whole.answered_by is not None
    labels[whole.answered_by == 0] = labels[whole.answered_by == 0].clamp(max=1)
    labels[whole.answered_by == 1] = 2
    plus = method(whole, labels)
    found = plus.prototypes.norm(dim=-1)[:, 0] > 0
    assert found.tolist() == [[True, True, False], [False, False, False], [True, True, True]]
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 8])
    own = output().representation.requires_grad_()
    values(losses(plus, Output(own, output().logits), labels[rows], rows))["cpd"].backward()
    assert own.grad is not None
    own.grad = None
    # Only the rows of the second teacher: nothing is known of any class.
    one = torch.tensor([1, 4, 7, 10, 13, 16, 19])
    mixed = torch.arange(N) % 3  # whatever the batch's labels are
    loss = values(losses(plus, Output(own, output().logits), mixed, one))["cpd"]
    loss.backward()
    assert loss.item() == 0.0
    assert own.grad is None or not own.grad.any()


def test_one_teacher_is_compared_with_whole() -> None:
    whole, labels = spoken(1, N), torch.arange(N) % 3
    for known in (
        whole._replace(answered_by=None),
        whole._replace(answered_by=torch.zeros(N, dtype=torch.int64)),
    ):
        plus = method(known, labels)
        centred = whole.representation - whole.representation.mean(0)
        scd = values(losses(plus, output(), labels, torch.arange(N)))["scd"]
        torch.testing.assert_close(
            scd, sample_relation_distillation(output().representation, centred)
        )


def test_the_papers_three_losses_hear_the_same_teachers() -> None:
    """SCD, CPD and RCD are of one set of teacher outputs, out of fold or not."""
    forms = {"scd": {"form": "contrast"}, "cpd": {"form": "batch"}, "rcd": {"form": "information"}}
    teacher, labels, own = spoken(1, N), torch.arange(N) % 3, output()
    for given in (teacher, teacher._replace(answered_by=None)):
        literal = method(given, labels, **forms)
        assert isinstance(literal.scd, SampleContrastiveDistillation)
        terms = values(losses(literal, own, labels, torch.arange(N)))
        torch.testing.assert_close(
            terms["scd"], literal.scd(own.representation, teacher.representation)
        )
        cpd = category_prototype_distillation(
            own.representation, teacher.representation, labels, num_classes=3
        )
        torch.testing.assert_close(terms["cpd"], cpd)
        torch.testing.assert_close(terms["rcd"], literal.rcd(own.logits, teacher.logits, labels))  # type: ignore[misc]


def test_parts_of_a_network_that_declares_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, labels = spoken(1, N), torch.arange(N) % 3
    student = method(whole, labels, cpd=PARTS).student
    assert student.parts == dict.fromkeys(student.modalities, 8)
    monkeypatch.setattr(CorrKDNetwork, "parts", None)
    monkeypatch.setattr(CorrKDNetwork, "representation_width", 24)
    with pytest.raises(CorrKDError, match=r"network 'corrkd' declares no parts .* set it to false"):
        method(whole, labels, cpd=PARTS)


def test_parts_of_h_are_compared_where_their_modality_is_seen() -> None:
    """The whole, and the mean over modalities of each one's own part among the samples that show
    it.
    """
    whole, labels = spoken(1, N), torch.arange(N) % 3
    plus = method(whole, labels, cpd=PARTS)
    assert whole.answered_by is not None
    known = whole.representation - plus.means[whole.answered_by]
    prototypes = plus.prototypes[whole.answered_by]
    shown = torch.rand(N, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    shown[:, 2] = False  # nobody shows the third
    own = output().representation

    def among(rows: Tensor, part: Tensor) -> Tensor:
        return category_prototype_distillation(
            part[rows],
            known[rows],
            labels[rows],
            3,
            center=True,
            teacher_prototypes=prototypes[rows],
        )

    everybody = torch.ones(N, dtype=torch.bool)
    each = [among(shown[:, m], own[:, 8 * m : 8 * m + 8]).item() for m in (0, 1)]
    expected = among(everybody, own).item() + sum(each) / 3
    assert values(losses(plus, output(), labels, torch.arange(N), shown))[
        "cpd"
    ].item() == pytest.approx(expected, rel=1e-9)
    # Complete samples show all.
    each = [among(everybody, own[:, 8 * m : 8 * m + 8]).item() for m in range(3)]
    expected = among(everybody, own).item() + sum(each) / 3
    assert values(losses(plus, output(), labels, torch.arange(N)))["cpd"].item() == pytest.approx(
        expected, rel=1e-9
    )


def test_a_sample_shows_what_exists_alone() -> None:
    """A frame beyond a sample's length is not seen, whatever the mask says."""
    samples = make_samples(make_dataset())
    whole = spoken(1, len(samples)).apply(lambda x: x.float() if x.is_floating_point() else x)
    plus = method(whole, samples.targets, cpd=PARTS).float().eval()
    rows = torch.arange(N)
    batch = samples.take(rows)
    visible = {m: x.clone() for m, x in batch.exists.items()}
    visible["audio"][:4] = ~batch.exists["audio"][:4]
    inputs = Inputs(batch.frames, batch.exists, visible)
    cpd = values(plus(TrainingBatch(inputs, batch.targets, samples.context(rows))))["cpd"]
    shown = torch.ones(N, 3, dtype=torch.bool)
    shown[:4, 1] = False
    answer = plus.student(inputs)
    torch.testing.assert_close(cpd, values(losses(plus, answer, batch.targets, rows, shown))["cpd"])
    assert not torch.equal(cpd, values(losses(plus, answer, batch.targets, rows))["cpd"])


def test_questions_and_scores() -> None:
    asked = QuestionsTarget(name="questions", classes=("no", "yes"), questions=("happy", "sad"))
    rows, whole = torch.arange(N), spoken(1, N)
    answers = torch.randint(2, (N, 2), generator=torch.Generator().manual_seed(0))
    plus = method(whole._replace(logits=output(8, (N, 2, 2)).logits), answers, asked)
    assert plus.prototypes.shape == (3, 2, 2, 24)
    assert all(
        value.isfinite()
        for value in values(losses(plus, output(5, (N, 2, 2)), answers, rows)).values()
    )
    dataset = make_dataset()
    scored = make_samples(dataset, target="score").target
    scores = torch.linspace(-1, 1, N, dtype=torch.float64)
    plus = method(whole._replace(logits=scores[:, None]), scores, scored)
    assert list(losses(plus, output(5, (N, 1)), scores, rows)) == ["task", "scd", "cpd"]


@pytest.mark.parametrize(
    ("change", "line"),
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
def test_what_a_form_does_not_have_is_one_line(change: dict[str, Any], line: str) -> None:
    with pytest.raises(CorrKDError, match=line) as error:
        load_settings(student={"method": change})
    assert "\n" not in str(error.value)
