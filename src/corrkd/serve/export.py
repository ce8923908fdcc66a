"""Exporting a trained student to ONNX, with a card and a script for using it without PyTorch and
corrkd.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from corrkd.data.batches import for_masks
from corrkd.data.dataset import MultimodalDataset, Split
from corrkd.data.inputs import Inputs
from corrkd.data.normalise import Normalisation
from corrkd.errors import CorrKDError
from corrkd.files import WRITING, replacing_all, write_bytes, write_text
from corrkd.missing.conditions import COMPLETE, Condition, standard_conditions
from corrkd.networks.base import AnyNetwork
from corrkd.networks.encoder import Encoder, sinusoids
from corrkd.networks.saved import SavedNetwork
from corrkd.serve.predictor import FRAMES, Predictor
from corrkd.serve.standalone import Arrays, ExportedStudent, InputError, ReadSample, collate
from corrkd.settings import EvaluationSettings

MODEL, CARD, SCRIPT = "model.onnx", "card.json", "predict.py"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18  # written by the exporter without conversion, and supported by onnxruntime 1.18
TOLERANCE = 1e-4
BATCH, ALONE = 32, 4  # samples compared in a batch, and samples compared again one by one

Compare = Callable[[Mapping[str, Arrays]], float]


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """An exported model, and how much its logits differ from PyTorch.

    Attributes:
        folder: folder with model.onnx, card.json and predict.py.
        differences: largest |logit - PyTorch's| / max(1, |PyTorch's|), by condition. In addition,
            "complete, one frame" is for samples cut to one frame, and "complete, N frames" for a
            sample repeated to twice the longest length in training, if the model supports it.
        samples: number of samples that were compared.
        longest: largest number of frames that the model supports, by modality.
        opset: version of the ONNX operator set.
    """

    folder: Path
    differences: Mapping[str, float]
    samples: int
    longest: Mapping[str, int]
    opset: int

    @property
    def largest(self) -> float:
        """Largest difference under any condition."""
        return max(self.differences.values())


def export(
    predictor: Predictor,
    folder: str | Path,
    *,
    dataset: MultimodalDataset,
    split: str = "test",
    max_frames: int | None = None,
    samples: int = 64,
    overwrite: bool = False,
) -> ExportReport:
    """Export a student to model.onnx, card.json and predict.py, if the logits of onnxruntime and
    PyTorch agree within `TOLERANCE` under every standard condition.

    The inputs of the model for its i-th modality are raw features `frames_i` (N, T_i, d_i), and
    booleans `exists_i` and `visible_i` (N, T_i), for any N and T_i. Its output is `logits` (N, K),
    (N, Q, 2) or (N, 1). The predictor is not changed.

    Args:
        predictor: the student.
        folder: output folder, new or empty.
        dataset: raw features for the comparison, with the modalities of the student; targets are
            not used.
        split: split for the comparison.
        max_frames: largest number of frames of a modality that the exported model supports;
            default: the largest of 1024, four times the longest in the training data, and the
            longest in the split. Learned positions support no more frames than in training.
        samples: number of samples to compare under each condition.
        overwrite: replace an existing exported model. Other files in the folder stay.

    Raises:
        CorrKDError: if a package is not installed, the folder is not empty, the dataset does not
            fit, the network cannot be exported, or the logits differ. The folder is then unchanged.
    """
    folder = Path(folder)
    _check_installed()
    check_folder(folder, overwrite=overwrite)
    if samples < 1:
        raise CorrKDError(f"samples = {samples}: the comparison needs at least one")
    saved = predictor.saved
    where = f"dataset {dataset.name}, {split}"
    chosen = saved.fit(dataset).split(split)
    if not len(chosen):
        raise CorrKDError(f"{where}: no samples to compare on")
    longest = _longest(saved, chosen, max_frames, where)
    # The graph is traced and compared on the CPU, whatever the device of the predictor.
    reference = Predictor(replace(saved, network=deepcopy(saved.network).cpu()))
    # The card comes last, because its checksum identifies the model.
    with replacing_all(folder, (MODEL, SCRIPT, CARD)) as aside:
        model, opset = _exported(reference.saved, longest)
        facts = {"sha256": hashlib.sha256(model).hexdigest(), "opset": opset}
        card = {**predictor.card, "longest": longest, "exported": facts}
        write_bytes(aside / MODEL, model)
        _write_card(aside / CARD, card)
        compare = _comparison(aside, reference)
        differences, count = _compared(compare, chosen, card, longest, saved.frames, samples)
        name = max(differences, key=lambda name: differences[name])
        if differences[name] > TOLERANCE:
            raise CorrKDError(
                f"{folder}: nothing written: under condition {name!r} the exported model's logits "
                f"differ from PyTorch's by {differences[name]:.2g} (allowed: {TOLERANCE:g}); try "
                "other versions of torch, onnxscript and onnxruntime"
            )
        checked_on = {
            "data": dataset.name,
            "split": split,
            "samples": count,
            "largest_difference": differences[name],
        }
        versions = {
            "torch": torch.__version__,
            "onnxruntime": import_module("onnxruntime").__version__,
        }
        _write_card(
            aside / CARD,
            card | {"exported": {**facts, **checked_on, "differences": differences, **versions}},
        )
        write_bytes(
            aside / SCRIPT, (resources.files("corrkd") / "serve" / "standalone.py").read_bytes()
        )
    return ExportReport(
        folder=folder, differences=differences, samples=count, longest=longest, opset=opset
    )


def _check_installed() -> None:
    for name in NEEDED:
        try:
            import_module(name)
        except ImportError as error:
            raise CorrKDError(
                f"{error.name or name} is not installed; pip install 'corrkd[export]'"
            ) from None


def _longest(
    saved: SavedNetwork, split: Split, max_frames: int | None, where: str
) -> dict[str, int]:
    """Return the largest number of frames that the exported model supports, by modality."""
    bounds, out = saved.network.longest(saved.frames), {}
    for m in saved.modalities:
        seen, trained = int(split.lengths[m].max()), saved.frames[m]
        if max_frames is not None and max_frames < max(seen, trained):
            raise CorrKDError(
                f"max_frames = {max_frames}: the training data or {where} has {max(seen, trained)} "
                f"frames of {m}; give as many"
            )
        unbound = max(FRAMES, 4 * trained, seen) if max_frames is None else max_frames
        out[m] = min(unbound, bounds.get(m, unbound))
    return out


# --------------------------------------------------------------------------------------------------
# the graph


class _Graph(nn.Module):
    """The network with its normalisation, as a function of frames, exists and visible of the first
    modality, of the second, and so on.
    """

    def __init__(self, network: AnyNetwork, normalisation: Normalisation) -> None:
        super().__init__()
        self.network, self.clip = network, normalisation.clip
        for index, m in enumerate(network.modalities):
            self.register_buffer(f"center_{index}", torch.tensor(normalisation.center[m]))
            self.register_buffer(f"scale_{index}", torch.tensor(normalisation.scale[m]))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the logits in the shape of the target."""
        frames, exists, visible = {}, {}, {}
        for index, m in enumerate(self.network.modalities):
            raw, exists[m], visible[m] = inputs[3 * index : 3 * index + 3]
            scaled = (raw - self.get_buffer(f"center_{index}")) / self.get_buffer(f"scale_{index}")
            frames[m] = (
                scaled if self.clip is None else scaled.clamp(-self.clip, self.clip)
            ) * exists[m][..., None]
        logits: Tensor = self.network(Inputs(frames, exists, visible)).logits
        return logits


def _exported(saved: SavedNetwork, longest: Mapping[str, int]) -> tuple[bytes, int]:
    """Return the ONNX file and its opset. Raises CorrKDError if the exporter does not support the
    code of the network.
    """
    network = deepcopy(saved.network)
    for module in network.modules():
        if isinstance(module, Encoder):
            _lengthen(module, max(longest.values()))
    graph = _Graph(network, saved.normalisation).eval()
    inputs: list[Tensor] = []
    shapes: list[dict[int, Any]] = []
    batch = torch.export.Dim("batch", min=1)
    for index, m in enumerate(saved.modalities):
        # Sizes of 0 or 1, and equal sizes, would become constants of the graph.
        count = min(3 + index, longest[m])
        inputs.append(torch.zeros(2, count, saved.widths[m]))
        # the same tensor twice would become one input
        inputs += [torch.ones(2, count, dtype=torch.bool) for _ in range(2)]
        length = (
            {}
            if longest[m] == 1
            else {1: torch.export.Dim(f"length_{index}", min=1, max=longest[m])}
        )
        shapes += [{0: batch, **length}] * 3
    names = [
        f"{kind}_{index}"
        for index in range(len(longest))
        for kind in ("frames", "exists", "visible")
    ]
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                graph, tuple(inputs), dynamic_shapes=(tuple(shapes),), strict=False
            )
            done = torch.onnx.export(
                program,
                (),
                input_names=names,
                output_names=["logits"],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=(tuple(shapes),),  # once more, for the names of the axes
                verbose=False,
            )
            assert done is not None
            model = done.model_proto
    except Exception as error:  # of many types, from the exporter or the code of the network
        raise _not_exportable(saved.network.name, error) from None
    # so that the exported file does not reveal paths of this machine
    for described in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.initializer,
    ):
        described.ClearField("metadata_props")
    return model.SerializeToString(), next(
        entry.version for entry in model.opset_import if not entry.domain
    )


def _lengthen(encoder: Encoder, frames: int) -> None:
    """Extend the table of positions unless they are learned, since a running graph cannot do so."""
    width, kind = encoder.settings.width, encoder.settings.positions
    if kind != "learned":
        table = sinusoids(frames, width) if kind == "sinusoidal" else torch.zeros(frames, width)
        encoder.register_buffer("positions", table, persistent=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the output and warnings of libraries within the block."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _not_exportable(name: str, error: Exception) -> CorrKDError:
    first = next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )
    return CorrKDError(f"network {name!r} cannot be exported: {first[:200]}")


# --------------------------------------------------------------------------------------------------
# the comparison


def _comparison(folder: Path, reference: Predictor) -> Compare:
    """Return a function that returns the largest difference between the logits of an exported
    folder and of the reference on arrays.
    """
    name = reference.saved.network.name
    try:
        exported = ExportedStudent(folder, threads=1)
    except InputError as error:
        raise _not_exportable(
            name, InputError(str(error).replace(f"{folder}{os.sep}", ""))
        ) from None

    def compare(arrays: Mapping[str, Arrays]) -> float:
        expected = reference.logits(arrays).astype(np.float64)
        try:
            actual = exported.run(arrays)
        except Exception as error:  # exception types of onnxruntime
            raise _not_exportable(name, error) from None
        if actual.shape != expected.shape:
            return math.inf
        gap = np.abs(actual - expected) / np.maximum(1.0, np.abs(expected))
        return float(np.where(np.isnan(gap), math.inf, gap).max())

    return compare


def _compared(
    compare: Compare,
    split: Split,
    card: Mapping[str, Any],
    longest: Mapping[str, int],
    trained: Mapping[str, int],
    samples: int,
) -> tuple[dict[str, float], int]:
    """Return the largest difference by condition, and the number of samples compared."""
    settings, incomplete = EvaluationSettings(draws=1), split.naturally_incomplete()
    conditions = standard_conditions(tuple(split.frames), settings, incomplete=incomplete)
    out: dict[str, float] = {}
    seen: set[int] = set()
    for condition in conditions:
        rows = _spread(condition.tested_rows(incomplete), samples)
        seen.update(rows.tolist())
        batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        batches += list(rows[:ALONE, None])
        out[condition.name] = max(
            compare(_arrays(split.take(batch), condition, settings.mask_seed, card))
            for batch in batches
        )
    complete = next(c for c in conditions if c.name == COMPLETE)
    rows = _spread(np.arange(len(split)), BATCH)
    arrays = _arrays(split.take(rows), complete, settings.mask_seed, card)
    out[f"{COMPLETE}, one frame"] = max(
        compare({m: _resized(a, count, 1) for m, a in arrays.items()}) for count in (1, len(rows))
    )
    twice = {m: min(longest[m], 2 * trained[m]) for m in arrays}
    name = f"{COMPLETE}, {' and '.join(str(count) for count in sorted(set(twice.values())))} frames"
    out[name] = compare({m: _resized(a, 1, twice[m]) for m, a in arrays.items()})
    return out, len(seen)


def _spread(rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return at most `count` of the indices, evenly spaced from the first to the last."""
    chosen: npt.NDArray[np.int64] = rows[
        np.unique(np.linspace(0, len(rows) - 1, count).round().astype(np.int64))
    ]
    return chosen


def _arrays(
    split: Split, condition: Condition, seed: int, card: Mapping[str, Any]
) -> dict[str, Arrays]:
    """Return raw samples under a condition as input arrays of a network."""
    batch = for_masks(split)
    visible = {m: mask.numpy() for m, mask in condition.visible(batch, seed=seed, draw=0).items()}

    def sample(row: int) -> ReadSample:
        count = {m: int(lengths[row]) for m, lengths in split.lengths.items()}
        return {
            m: (np.asarray(x[row, : count[m]], np.float32), visible[m][row, : count[m]])
            for m, x in split.frames.items()
        }

    return collate([sample(row) for row in range(len(split))], card)


def _resized(arrays: Arrays, samples: int, frames: int) -> Arrays:
    """Return the first samples, cut or repeated to `frames` existing frames each."""
    chosen = np.arange(frames) % arrays.frames.shape[1]
    everything = np.ones((samples, frames), bool)
    return Arrays(np.ascontiguousarray(arrays.frames[:samples, chosen]), everything, everything)


# --------------------------------------------------------------------------------------------------
# the folder


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise CorrKDError if `folder` is a file or is not empty; an exported model in it is allowed
    with `overwrite`.
    """
    if folder.exists() and not folder.is_dir():
        raise CorrKDError(f"{folder}: is a file; name a folder")
    if not folder.is_dir() or all(path.name.startswith(WRITING) for path in folder.iterdir()):
        return
    if not (folder / MODEL).is_file():
        raise CorrKDError(
            f"{folder}: is not empty and has no exported model; choose another folder"
        )
    if not overwrite:
        raise CorrKDError(
            f"{folder}: contains an exported model; choose another folder, or replace it with "
            f"--overwrite"
        )


def _write_card(path: Path, card: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(_plain(card), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """Return values with None for numbers that are not finite, which JSON cannot represent."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
