from __future__ import annotations

import torch
from torch import Tensor

from corrkd.data.inputs import Inputs

MODALITIES = ("language", "audio", "vision")


def masks(rows: dict[str, list[str]]) -> dict[str, Tensor]:
    """Return masks by modality from a string for each sample: `x` is True."""
    return {
        m: torch.tensor([[mark == "x" for mark in row] for row in texts])
        for m, texts in rows.items()
    }


def example_inputs() -> Inputs:
    """Return two samples: language and vision of the first are visible, only audio of the second;
    two masks reach into the padding.
    """
    frames = {m: torch.arange(16.0).reshape(2, 4, 2) + i for i, m in enumerate(MODALITIES)}
    exists = masks(
        {"language": ["xxx.", "xx.."], "audio": ["xx..", "xxxx"], "vision": ["xxxx", "x..."]}
    )
    visible = masks(
        {"language": ["x.xx", "..xx"], "audio": ["..xx", ".x.x"], "vision": ["...x", "...."]}
    )
    return Inputs(frames, exists, visible)


def same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(actual) == list(expected) and all(
        torch.equal(actual[m], x) for m, x in expected.items()
    )


EXPECTED_VISIBLE = masks(
    {"language": ["x.x.", "...."], "audio": ["....", ".x.x"], "vision": ["...x", "...."]}
)


def test_padding_is_never_visible() -> None:
    assert same(example_inputs().visible, EXPECTED_VISIBLE)


def test_the_masks_passed_in_are_not_changed() -> None:
    exists, visible = masks({"a": ["xx.."]}), masks({"a": ["x.xx"]})
    inputs = Inputs({"a": torch.zeros(1, 4, 2)}, exists, visible)
    assert same(inputs.visible, masks({"a": ["x..."]}))
    assert same(visible, masks({"a": ["x.xx"]}))
    assert same(exists, masks({"a": ["xx.."]}))


def test_replaced_masks_are_restricted_too() -> None:
    inputs = example_inputs()
    everything = {m: torch.ones_like(mask) for m, mask in inputs.visible.items()}
    assert same(inputs._replace(visible=everything).visible, inputs.exists)
    shorter = masks(
        {"language": ["x...", "x..."], "audio": ["x...", "xx.."], "vision": ["xxx.", "x..."]}
    )
    replaced = inputs._replace(exists=shorter)
    assert same(replaced.exists, shorter)
    expected = masks(
        {"language": ["x...", "...."], "audio": ["....", ".x.."], "vision": ["....", "...."]}
    )
    assert same(replaced.visible, expected)
    assert type(replaced) is Inputs


def test_of_returns_the_three_tensors_of_a_modality() -> None:
    inputs = example_inputs()
    for m in MODALITIES:
        frames, exists, visible = inputs.of(m)
        assert torch.equal(frames, inputs.frames[m])
        assert torch.equal(exists, inputs.exists[m])
        assert torch.equal(visible, EXPECTED_VISIBLE[m])


def test_shown_follows_the_order_of_the_names() -> None:
    inputs = example_inputs()
    assert inputs.shown(MODALITIES).tolist() == [[True, False, True], [False, True, False]]
    assert inputs.shown(("audio", "vision", "language")).tolist() == [
        [False, True, True],
        [True, False, False],
    ]
    assert inputs.shown(["vision"]).tolist() == [[True], [False]]


def test_without_hides_one_modality_and_changes_nothing_else() -> None:
    inputs = example_inputs()
    hidden = inputs.without("audio")
    assert same(hidden.visible, {**EXPECTED_VISIBLE, "audio": torch.zeros(2, 4, dtype=torch.bool)})
    frames = example_inputs().frames
    assert same(
        hidden.frames, {**frames, "audio": torch.zeros_like(frames["audio"])}
    )  # nothing to read by mistake
    assert same(hidden.exists, example_inputs().exists)
    assert same(inputs.visible, EXPECTED_VISIBLE)
