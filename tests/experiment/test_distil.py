"""Any network, distilled by one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import corrkd
from corrkd.data.dataset import MultimodalDataset
from corrkd.errors import CorrKDError
from corrkd.methods.base import TeacherOutputs
from corrkd.networks.wrapped import WrappedNetwork
from tests.conftest import make_dataset, make_samples
from tests.experiment.conftest import run_unreported, tiny, write_npz

SHORT: dict[str, Any] = {
    "teacher": {
        "epochs": 2,
        "folds": 2,
        "repeats": 1,
        "network": {"width": 8, "heads": 2, "feedforward": 16},
    },
    "student": {"epochs": 3, "batch_size": 16},
}
distil = partial(corrkd.distil, preset="corrkd-plus-1")  # which has CPD, so that it can be left out


class Plain(nn.Module):
    """Return logits of mean frames, and record the inputs."""

    def __init__(self, widths: Sequence[int] = (5, 3, 4), outputs: int = 3) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Linear(width, 8) for width in widths)
        self.head = nn.Linear(8 * len(widths), outputs)
        self.received: list[dict[str, Tensor]] = []

    def vectors(self, *frames: Tensor) -> Tensor:
        return torch.cat([embed(x).mean(1) for embed, x in zip(self.embed, frames, strict=True)], 1)

    def forward(self, language: Tensor, audio: Tensor, vision: Tensor) -> Any:
        self.received.append({"language": language, "audio": audio, "vision": vision})
        return self.head(self.vectors(language, audio, vision))


class Representing(Plain):
    def forward(self, *frames: Tensor) -> Any:
        vectors = self.vectors(*frames)
        return vectors, self.head(vectors)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(x, second[name]) for name, x in first.items()
    )


def plain(seed: int = 0, kind: type[Plain] = Plain, **options: Any) -> Plain:
    torch.manual_seed(seed)
    return kind(**options)


def test_logits_alone_are_enough() -> None:
    network = plain()
    before = state(network)
    done = distil(network, dataset=make_dataset(), settings=SHORT)
    assert done.student.network.module is network
    assert not same(before, state(network))
    assert list(done.history["epoch"]) == [1, 2, 3]
    assert {"loss/task", "loss/rcd"} <= set(done.history)
    assert "loss/cpd" not in done.history
    assert done.notes == (
        "CPD is left out: it compares representations, and not all networks return one",
    )
    assert {"complete", "language", "audio+vision", "average"} <= set(done.evaluation["condition"])
    assert done.teachers.logits.shape == (48, 3)


def test_the_callers_random_state_neither_matters_nor_changes() -> None:
    results = []
    for seed in (1, 2):
        network = plain()
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        distil(network, dataset=make_dataset(), settings=SHORT, test=False)
        assert torch.equal(torch.random.get_rng_state(), before)
        results.append(state(network))
    assert same(*results)


COMMITTEE = {
    "temperature": "fit",
    "weights": "fit",
    "others": [{"network": {"name": "mlp", "width": 4}, "repeats": 1, "folds": 2, "epochs": 2}],
}


@pytest.mark.parametrize(("teachers", "committee"), [(["corrkd"], {}), ([], COMMITTEE)])
def test_a_distilled_network_of_the_package_equals_that_of_a_run(
    teachers: list[str], committee: dict[str, Any], tmp_path: Path
) -> None:
    data = write_npz(tmp_path / "d.npz", {"language": 5, "audio": 3})
    teacher = {"folds": 3, "repeats": 2, **committee}
    tree = tiny(data={"path": str(data), "synthetic": {}}, teacher=teacher, seeds=[4])
    run_unreported(tree, tmp_path / "run")
    del tree["seeds"], tree["data"]["path"]
    options = {"preset": None, "dataset": data, "settings": tree, "seed": 4}
    done = distil("corrkd", teachers, **options)
    ours = corrkd.load_student(tmp_path / "run" / "d" / "seed-4" / "student").network
    assert same(state(done.student.network), state(ours))


def test_missing_frames_are_zero_and_modalities_are_passed_by_name() -> None:
    samples = make_samples(make_dataset())
    batch = samples.take(torch.arange(6))
    network = plain()
    wrapped = WrappedNetwork(network, batch, samples.target)
    dropped = {m: torch.zeros_like(x) for m, x in batch.present.items()}
    dropped["audio"][:3] = True
    network.received.clear()
    wrapped(batch.inputs(dropped))
    (received,) = network.received
    assert not received["audio"][:3].any()
    length = batch.frames["audio"].shape[1]
    assert torch.equal(
        received["audio"][3:, :length],
        batch.frames["audio"][3:] * batch.present["audio"][3:, :, None],
    )
    positional = WrappedNetwork(plain(kind=Representing), batch, samples.target)
    assert torch.allclose(positional(batch.complete()).logits, wrapped(batch.complete()).logits)
    assert positional.representation_width == 24


def test_a_projector_aligns_representations_and_is_dropped() -> None:
    method = {"name": "corrkd", "scd": {"form": "contrast", "weight": 1.0}}
    settings = {**SHORT, "student": {**SHORT["student"], "method": method}}
    network = plain(kind=Representing)
    names = set(network.state_dict())
    done = distil(network, ["mlp"], dataset=make_dataset(), settings=settings, test=False)
    assert {"loss/scd", "loss/cpd", "loss/rcd"} <= set(done.history)
    assert done.teachers.representation.shape[1] != 24
    assert set(done.student.network.module.state_dict()) == names


def test_external_teachers_are_called_once() -> None:
    dataset, requests = make_dataset(), []

    def oracle(ids: Sequence[str]) -> Any:
        requests.append(list(ids))
        return (
            8.0
            * torch.nn.functional.one_hot(torch.as_tensor(dataset.split("train").labels), 3).float()
        )

    done = distil(plain(), [oracle], dataset=dataset, settings=SHORT, test=False)
    assert requests == [[str(name) for name in dataset.split("train").ids]]
    assert done.teachers.logits.argmax(1).tolist() == dataset.split("train").labels.tolist()


def test_a_committee_is_averaged() -> None:
    dataset = make_dataset()
    first, second = torch.randn(2, 48, 3, generator=torch.Generator().manual_seed(0))
    settings = {**SHORT, "teacher": {**SHORT["teacher"], "temperature": 1.0}}
    done = distil(
        plain(),
        [lambda _: first, TeacherOutputs(torch.zeros(48, 0), second)],
        dataset=dataset,
        settings=settings,
    )
    expected = (first.softmax(1) + second.softmax(1)) / 2
    assert torch.allclose(done.teachers.logits.softmax(1), expected, atol=1e-6)


def test_a_third_party_network_is_distilled_as_it_is() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
    }
    config = transformers.VisualBertConfig(
        vocab_size=10, visual_embedding_dim=6, num_labels=3, **sizes
    )
    torch.manual_seed(0)
    network = transformers.VisualBertForVisualReasoning(config)
    dataset = make_dataset({"inputs_embeds": 8, "visual_embeds": 6})
    before = state(network)
    done = distil(network, dataset=dataset, settings=SHORT)
    assert not same(before, state(network))
    assert {"complete", "inputs_embeds", "visual_embeds"} <= set(done.evaluation["condition"])


class Failing(Plain):
    def forward(self, *frames: Tensor) -> Any:
        raise ValueError("mat1 and mat2\ncannot be multiplied")


class Strange(Plain):
    def forward(self, *frames: Tensor) -> Any:
        return {"scores": frames[0]}


def with_cpd() -> dict[str, Any]:
    return {
        **SHORT,
        "student": {
            **SHORT["student"],
            "method": {"name": "corrkd", "cpd": {"weight": 1.0, "parts": False}},
        },
    }


@pytest.mark.parametrize(
    ("make", "options", "line"),
    [
        (
            lambda: plain(outputs=4),
            {},
            r"Plain: returns logits \(N, 4\); classes needs 3 numbers a sample",
        ),
        (
            lambda: plain(kind=Failing),
            {},
            r"Failing: its forward fails on language \(4, 6, 5\), .*: mat1 and mat2",
        ),
        (lambda: plain(kind=Strange), {}, r"forward returns a dict; expected logits, "),
        (
            plain,
            {"teachers": ["mlp"], "settings": {"teacher": {"others": [{"network": "mlp"}]}}},
            r"teacher\.others: give such teachers in `teachers`, too",
        ),
        (
            plain,
            {"settings": {"teacher": {"outputs": "x.npz"}}},
            r"teacher\.outputs: is of runs; give",
        ),
        (
            plain,
            {"settings": with_cpd()},
            r"CPD compares representations, and the student and the teachers have none",
        ),
        (
            plain,
            {"teachers": [lambda ids: torch.zeros(5, 3)]},
            r"teachers\[0\]: logits of shape \(5, 3\); .* \(48, 3\)",
        ),
        (
            plain,
            {"teachers": [lambda ids: torch.full((48, 3), torch.nan)]},
            r"teachers\[0\]: not all numbers are finite",
        ),
        (
            plain,
            {"teachers": [lambda ids: (torch.zeros(2, 5), torch.zeros(48, 3))]},
            r"teachers\[0\]: representations of shape \(2, 5\); expected \(48, D\)",
        ),
    ],
)
def test_invalid_arguments_are_one_line_errors(
    make: Callable[[], nn.Module], options: dict[str, Any], line: str
) -> None:
    dataset: MultimodalDataset = make_dataset()
    with pytest.raises(CorrKDError, match=line) as error:
        distil(make(), dataset=dataset, **{"settings": SHORT, **options})
    assert "\n" not in str(error.value)
