from __future__ import annotations

import torch
from torch import Tensor

from corrkd.data.inputs import Inputs

MODALITIES = ("language", "audio", "vision")


def masks(rows: dict[str, list[str]]) -> dict[str, Tensor]:
    """Booleans by modality from strings, one for each sample: `x` is True."""
    return {
        m: torch.tensor([[mark == "x" for mark in row] for row in texts])
        for m, texts in rows.items()
    }


def made() -> Inputs:
    """Two samples: the first shows language and vision, the second audio alone; two masks reach
    into the padding.
    """
    frames = {m: torch.arange(16.0).reshape(2, 4, 2) + place for place, m in enumerate(MODALITIES)}
    exists = masks(
        {"language": ["xxx.", "xx.."], "audio": ["xx..", "xxxx"], "vision": ["xxxx", "x..."]}
    )
    visible = masks(
        {"language": ["x.xx", "..xx"], "audio": ["..xx", ".x.x"], "vision": ["...x", "...."]}
    )
    return Inputs(frames, exists, visible)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(found) == list(expected) and all(
        torch.equal(found[m], x) for m, x in expected.items()
    )


WITHIN = masks(
    {"language": ["x.x.", "...."], "audio": ["....", ".x.x"], "vision": ["...x", "...."]}
)


def test_padding_is_never_visible() -> None:
    assert same(made().visible, WITHIN)


def test_the_masks_given_are_left_as_they_were() -> None:
    exists, visible = masks({"a": ["xx.."]}), masks({"a": ["x.xx"]})
    inputs = Inputs({"a": torch.zeros(1, 4, 2)}, exists, visible)
    assert same(inputs.visible, masks({"a": ["x..."]}))
    assert same(visible, masks({"a": ["x.xx"]}))
    assert same(exists, masks({"a": ["xx.."]}))


def test_replaced_masks_are_restricted_too() -> None:
    inputs = made()
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


def test_of_gives_the_three_tensors_of_one_modality() -> None:
    inputs = made()
    for m in MODALITIES:
        frames, exists, visible = inputs.of(m)
        assert torch.equal(frames, inputs.frames[m])
        assert torch.equal(exists, inputs.exists[m])
        assert torch.equal(visible, WITHIN[m])


def test_shown_is_in_the_order_of_the_names_given() -> None:
    inputs = made()
    assert inputs.shown(MODALITIES).tolist() == [[True, False, True], [False, True, False]]
    assert inputs.shown(("audio", "vision", "language")).tolist() == [
        [False, True, True],
        [True, False, False],
    ]
    assert inputs.shown(["vision"]).tolist() == [[True], [False]]


def test_without_hides_one_modality_and_touches_nothing_else() -> None:
    inputs = made()
    hidden = inputs.without("audio")
    assert same(hidden.visible, {**WITHIN, "audio": torch.zeros(2, 4, dtype=torch.bool)})
    frames = made().frames
    assert same(
        hidden.frames, {**frames, "audio": torch.zeros_like(frames["audio"])}
    )  # nothing to read by mistake
    assert same(hidden.exists, made().exists)
    assert same(inputs.visible, WITHIN)
