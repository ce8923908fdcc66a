"""What a notebook shows of an object on the last line of a cell."""

from __future__ import annotations

import corrkd
from tests.conftest import make_dataset
from tests.experiment.conftest import tiny


def test_a_dataset_shows_its_shapes_and_no_values() -> None:
    dataset = make_dataset(sizes=(9, 5, 4))
    lines = repr(dataset).splitlines()
    assert lines[0] == "MultimodalDataset tiny (in memory)"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["train", "valid", "test"]
    frames = dataset.split("train").frames["language"].shape
    assert f"Split(9 samples; language {frames[1]} × {frames[2]}, " in lines[1]
    assert "array" not in repr(dataset)


def test_a_distilled_student_shows_what_it_is() -> None:
    done = corrkd.distil(
        "mlp", dataset=make_dataset(), preset=None, settings=tiny(), progress=False
    )
    saved = done.student
    parameters = sum(p.numel() for p in saved.network.parameters())
    shown = repr(done)
    assert shown.startswith(f"Distilled(SavedNetwork(mlp, {parameters:,} parameters; language ")
    assert ", ".join(saved.target.output_names) in shown
    assert f"{len(done.history)} epochs" in shown
    assert repr(corrkd.Predictor(saved)) == f"Predictor({saved!r}, device='cpu')"
