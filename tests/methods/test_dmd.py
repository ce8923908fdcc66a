"""DMD in training: its terms by hand, and the effect of each on the network."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from corrkd.data.batches import Samples
from corrkd.data.synthetic import make
from corrkd.evaluation.bayes import bayes_accuracy
from corrkd.methods.dmd import DMD, distillation_loss, margin_loss, one_of, orthogonality_loss
from corrkd.networks.dmd import Decoupled, DMDNetwork, DMDSettings, Graph
from corrkd.settings import TrainingSettings
from corrkd.targets.questions import QuestionsTarget
from corrkd.training.fabric import Fabric
from corrkd.training.loop import train
from tests.conftest import make_dataset, make_samples, total, training_batch, values

SMALL = {"width": 8, "heads": 2, "graph": 5, "dropout": 0.0}


def fresh(samples: Samples, **options: float) -> DMD:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        frames = {m: x.shape[1] for m, x in samples.exists.items()}
        target, settings = samples.target, DMDSettings(**options)  # type: ignore[arg-type]
        net = DMDNetwork(samples.widths, frames, target=target, settings=settings)
        return DMD(net)


def fit(method: DMD, samples: Samples, *, epochs: int = 12, lr: float = 1e-2) -> list:
    stage = TrainingSettings(epochs=epochs, batch_size=32, lr=lr, schedule="cosine")
    fabric = Fabric(accelerator="cpu", devices=1)
    return train(
        method, samples, settings=stage, validate=lambda _: 0.0, seed=1, fabric=fabric
    ).history


def terms(method: DMD, samples: Samples) -> dict[str, float]:
    torch.manual_seed(0)
    with torch.no_grad():
        out = method.eval()(training_batch(samples))
    return {name: float(value) for name, value in values(out).items()}


@pytest.mark.parametrize("target", ["classes", "binary-nonzero", "score"])
def test_every_kind_of_target_learns(target: str) -> None:
    samples = make_samples(make_dataset(), target=target)
    method = fresh(samples, **SMALL)
    history = fit(method, samples)
    assert history[-1]["loss/task"] < 0.8 * history[0]["loss/task"]
    assert {f"loss/{name}" for name in terms(method, samples)} < set(history[0])
    # The margin's pairs are drawn at random: it falls reliably only with three classes.
    for name in (
        "unimodal",
        "reconstruction",
        "cycle",
        *(["margin"] if target == "classes" else []),
    ):
        first, last = (
            np.mean([record[f"loss/{name}"] for record in epochs])
            for epochs in (history[:3], history[-3:])
        )
        assert last < first, name


def test_shared_and_private_features_are_separated() -> None:
    """Compare the cosine on unseen samples with and without its term."""
    dataset = make_dataset()
    samples, unseen = make_samples(dataset), make_samples(dataset, "test")
    apart, free = (
        fresh(samples, **SMALL, decoupling=1.0, gamma=1.0),
        fresh(samples, **SMALL, decoupling=1.0, gamma=0.0),
    )
    fit(apart, samples), fit(free, samples)
    separated = terms(apart, unseen)["orthogonality"]
    assert separated < 0.05
    assert terms(free, unseen)["orthogonality"] > 2 * separated


def test_the_margin_holds_on_unseen_samples() -> None:
    dataset = make_dataset()
    samples, unseen = make_samples(dataset), make_samples(dataset, "test")
    with_margin, without = (
        fresh(samples, **SMALL, decoupling=1.0, gamma=gamma) for gamma in (1.0, 0.0)
    )
    fit(with_margin, samples), fit(without, samples)
    assert terms(with_margin, unseen)["margin"] < 0.7 * terms(without, unseen)["margin"]


def test_shared_and_private_features_reconstruct_the_modality() -> None:
    samples = make_samples(make_dataset())
    method = fresh(samples, **SMALL, decoupling=1.0)
    before = terms(method, samples)
    fit(method, samples, epochs=20)
    after = terms(method, samples)
    assert after["reconstruction"] < 0.3 * before["reconstruction"]
    assert after["cycle"] < 0.5 * before["cycle"]


def test_margin_loss_is_the_mean_over_the_triples() -> None:
    torch.manual_seed(0)
    shared, label = torch.randn(5, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1])
    seen = torch.ones(5, 2, dtype=torch.bool)
    seen[4, 1] = False
    unit = shared / shared.norm(dim=-1, keepdim=True)
    nodes = [(n, m) for n in range(5) for m in range(2) if seen[n, m]]
    means = []
    for i in nodes:
        positive = [j for j in nodes if j[1] != i[1] and label[j[0]] == label[i[0]]]
        negative = [k for k in nodes if k[1] == i[1] and label[k[0]] != label[i[0]]]
        hinges = [
            max(0.0, 0.4 - float(unit[i] @ unit[j]) + float(unit[i] @ unit[k]))
            for j, k in itertools.product(positive, negative)
        ]
        means.append(sum(hinges) / len(hinges))
    same = label[:, None] == label
    drawn = torch.stack([margin_loss(shared, same, seen, 0.4) for _ in range(3000)])
    assert float(drawn.mean()) == pytest.approx(
        sum(means) / len(means), abs=5 * float(drawn.std()) / 3000**0.5
    )
    assert float(margin_loss(shared, same | True, seen, 0.4)) == 0.0  # one class: no triple


def test_one_of_draws_uniformly_from_allowed_values() -> None:
    torch.manual_seed(0)
    values = torch.arange(4.0).expand(8000, 4)
    drawn = one_of(values, torch.tensor([True, False, True, True]).expand(8000, 4))
    counts = torch.bincount(drawn.long(), minlength=4)
    assert counts[1] == 0
    assert (counts[[0, 2, 3]] - 8000 / 3).abs().max() < 220  # five deviations


def test_orthogonality_is_the_positive_cosine_over_visible_frames() -> None:
    shared = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    private = torch.tensor([[[0.0, 2.0], [3.0, 3.0], [5.0, 0.0]]])
    seen = torch.tensor([[True, True, False]])
    decoupled = Decoupled(shared, shared, private, shared, private, seen)
    assert float(orthogonality_loss(decoupled)) == pytest.approx(0.5**0.5 / 2)
    assert float(orthogonality_loss(decoupled._replace(private=-private))) == 0.0


def test_distillation_moves_the_end_of_an_edge_and_not_its_start() -> None:
    logits = torch.tensor([[[0.0, 0.0], [1.0, 3.0]]], requires_grad=True)
    edges = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])  # modality 0 teaches modality 1
    loss = distillation_loss(Graph(logits, logits, edges), 0.0)
    assert float(loss.detach()) == pytest.approx(
        1.5 * 2.0
    )  # the weight and an even share, of the only edge
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0].tolist() == [[0.0, 0.0], [0.75, 0.75]]
    uneven = distillation_loss(Graph(logits, torch.zeros(1, 2, 2), edges), 10.0)
    assert float(uneven) == pytest.approx(10 * 2 * 0.25)


def test_distillation_brings_the_modalities_logits_together() -> None:
    samples = make_samples(make_dataset())
    batch = samples.take(torch.arange(len(samples)))

    def spread(weight: float) -> float:
        method = fresh(samples, **SMALL, distillation=weight)
        fit(method, samples)
        with torch.no_grad():
            logits = method.eval().student.details(batch.complete()).shared.logits
        return float(logits.std(1).mean())

    assert spread(3.0) < 0.7 * spread(0.0)


def test_representations_of_the_heterogeneous_graph_are_pushed_apart() -> None:
    """By loops: ten times the positive cosine between an edge's ends, detached at its start."""
    torch.manual_seed(0)
    vectors = torch.randn(4, 3, 5, requires_grad=True)
    edges = torch.rand(4, 3, 3) * ~torch.eye(3, dtype=torch.bool)
    edges[1, 0], edges[1, :, 0] = 0.0, 0.0  # the first modality of the second sample is not visible
    graph = Graph(vectors, torch.zeros(4, 3, 2), edges)
    total = 0.0
    for n in range(4):
        for start in range(3):
            for end in range(3):
                if edges[n, start, end] > 0:
                    cosine = torch.cosine_similarity(
                        vectors[n, start].detach(), vectors[n, end], 0
                    ).clamp(min=0)
                    total = total + (edges[n, start, end] + 1 / 6) * 10.0 * cosine
    loss = distillation_loss(graph, 0.0, 10.0)
    torch.testing.assert_close(loss, total / 4)
    (gradient,) = torch.autograd.grad(loss, vectors, retain_graph=True)
    (expected,) = torch.autograd.grad(total / 4, vectors)
    torch.testing.assert_close(gradient, expected)
    assert not gradient[1, 0].any()
    assert float(distillation_loss(graph, 0.0)) == 0.0  # the homogeneous graph has no such term


def test_same_class_of_scores_and_of_questions() -> None:
    samples = make_samples(make_dataset(), target="score")
    method = fresh(samples, **SMALL)
    same = method.same_class(torch.tensor([-2.0, -0.5, 3.0]))
    assert same.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    answers = torch.tensor([[0, 1], [0, 1], [1, 1]])
    method.target = QuestionsTarget.with_questions(2)
    assert method.same_class(answers).tolist() == same.tolist()


def test_modalities_add_up_their_means_over_visible_samples() -> None:
    samples = make_samples(make_dataset())
    method = fresh(samples, **SMALL)
    seen = torch.tensor([[True, True, False], [True, False, False]])
    values = [torch.tensor([1.0, 3.0]), torch.tensor([5.0, 99.0]), torch.tensor([99.0, 99.0])]
    assert float(method.over_seen(values, seen)) == 2.0 + 5.0
    logits, targets = torch.randn(2, 3, 3), torch.tensor([0, 2])
    graph = Graph(logits, logits, torch.zeros(2, 3, 3))
    expected = cross_entropy(logits[:, 0], targets) + cross_entropy(logits[:1, 1], targets[:1])
    torch.testing.assert_close(method.unimodal_loss(graph, targets, seen), expected)


@pytest.mark.parametrize(
    ("component", "term"),
    [
        ("decouplers.0.decoder", "reconstruction"),
        ("decouplers.0.decoder", "cycle"),
        ("decouplers.1.private_encoder", "orthogonality"),
        ("shared_encoder", "margin"),
        ("homogeneous.predict", "unimodal"),
        ("heterogeneous.predict", "unimodal"),
        ("homogeneous.energy", "distillation"),
        ("heterogeneous.view_logits", "distillation"),
        ("homogeneous.view_vectors", "distillation"),
        ("crossmodal.0.memory", "distillation"),
    ],
)
def test_no_component_of_the_loss_is_idle(component: str, term: str) -> None:
    samples = make_samples(make_dataset())
    method = fresh(samples, **SMALL)
    before = terms(method, samples)[term]
    with torch.no_grad():
        for parameter in method.student.get_submodule(component).parameters():
            parameter.zero_()
    assert terms(method, samples)[term] != pytest.approx(before, rel=1e-6)


def test_every_parameter_learns() -> None:
    samples = make_samples(make_dataset())
    method = fresh(samples, **SMALL)
    total(method(training_batch(samples))).backward()
    # A key's bias moves all of a query's energies alike, and so does the energy's bias.
    idle = [
        name for name, p in method.named_parameters() if p.grad is None or not bool(p.grad.any())
    ]
    assert [name for name in idle if not name.endswith("energy.bias")] == []


@pytest.mark.slow
def test_reaches_half_way_from_the_floor_to_bayes_accuracy() -> None:
    dataset = make()
    samples, test = make_samples(dataset), make_samples(dataset, "test")
    method = fresh(samples)
    fit(method, samples, epochs=8, lr=3e-3)
    batch = test.take(torch.arange(len(test)))
    method.eval()
    with torch.no_grad():
        predictions = method.student(batch.complete()).logits.argmax(1)
    accuracy = float((predictions == test.targets).float().mean())
    floor = float(torch.bincount(test.targets).max() / len(test))
    assert dataset.posterior is not None
    best = bayes_accuracy(
        dataset.posterior("test", {m: x.numpy() for m, x in test.present.items()})
    )
    assert accuracy > (floor + best) / 2
