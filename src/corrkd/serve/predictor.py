"""Predicting with a trained student from raw features: one sample or many, of any length, with any
subset of the modalities.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError

from corrkd import zoo
from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.evaluation.explain import Explanation, ModalityEffects, explain, modality_effects
from corrkd.files import CARD, README, WEIGHTS, replacing_all, write_bytes
from corrkd.media.features import FeatureSettings
from corrkd.networks.saved import (
    SavedNetwork,
    dataset_folder,
    folder_alone,
    load_student,
    packed,
    write_card,
)
from corrkd.report.run_folder import RunFolder
from corrkd.serve import predict_clips, standalone
from corrkd.serve.model_card import model_card
from corrkd.serve.standalone import Arrays, InputError, Prediction, ReadSample, Sample

FRAMES = 1024  # frames of a modality that are always supported


class Predictor(
    ModelHubMixin,
    library_name="corrkd",
    tags=["multimodal-sentiment-analysis", "missing-modalities"],
):
    """Predictions of a trained network (docs/using.md).

    Args:
        saved: the network with its normalisation and target, as loaded from disk.
        run: run folder of the network; the model card shows its tables.
        device: device of the network, such as "cpu" or "cuda".

    Attributes:
        card: the model card, as JSON values.

    Raises:
        CorrKDError: if the network cannot predict single samples or the device is not available.
    """

    _hub_mixin_config: dict[str, Any] = {}  # noqa: RUF012  (the mixin's; set, so that it does not copy the network)

    def __init__(
        self, saved: SavedNetwork, *, run: Path | None = None, device: torch.device | str = "cpu"
    ) -> None:
        if saved.network.reads_conversations:
            raise CorrKDError(
                f"network {saved.network.name!r} reads a sample in the context of its "
                f"conversation and cannot predict single samples"
            )
        self.saved = saved
        self.run = run
        self.card: dict[str, Any] = card_of(saved)
        self._readme: str | None = None
        try:
            self.device = torch.device(device)
            saved.network.to(self.device).eval()
        # the device is unknown, absent, or not supported by this build of torch
        except (RuntimeError, AssertionError) as error:
            raise CorrKDError(
                f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}"
            ) from None

    def __repr__(self) -> str:
        return f"Predictor({self.saved!r}, device={str(self.device)!r})"

    # ----------------------------------------------------------------------------------------------
    # prediction

    @overload
    def predict(self, samples: Sample, *, batch_size: int = 256) -> Prediction: ...

    @overload
    def predict(self, samples: Sequence[Sample], *, batch_size: int = 256) -> list[Prediction]: ...

    def predict(
        self, samples: Sample | Sequence[Sample], *, batch_size: int = 256
    ) -> Prediction | list[Prediction]:
        """Predict one or more samples.

        Args:
            samples: a sample or a sequence of samples. A sample is a mapping from modality to an
                array of raw features of shape (frames, width), or (width,) for a single vector. A
                missing modality is None or left out. Missing frames are None in a list of frames,
                or False in a boolean array `<modality>_present` of shape (frames,).
            batch_size: samples per batch; affects memory, and results only by rounding.

        Returns:
            A `Prediction` for one sample, or a list for a sequence. It has the label, the
            probabilities (calibrated for the missing condition of the sample), the fraction of
            frames used of each modality, and the test results under that condition.

        Raises:
            CorrKDError: if a sample is not a mapping, a modality is unknown or has another width, a
                value is NaN or infinite, or a sample has no modality.
        """
        single = isinstance(samples, Mapping)
        try:
            batch = [samples] if isinstance(samples, Mapping) else list(samples)
        except TypeError:
            raise CorrKDError(
                f"samples: expected a mapping, or several, found {type(samples).__name__}"
            ) from None
        try:
            answers = standalone.predictions(batch, self.card, self.logits, batch_size=batch_size)
        except InputError as error:
            raise CorrKDError(str(error)) from None
        return answers[0] if single else answers

    def predict_media(self, path: str | Path, *, text: str = "") -> Prediction:
        """Predict a recording, with the extractors of the training data (docs/recordings.md).

        Args:
            path: a recording or a .txt file.
            text: transcript; "" to read a .vtt, .srt or .txt file of the same name next to the
                recording, if present.

        Raises:
            CorrKDError: if the recording cannot be read, the model was not trained on features of
                recordings, or the installed extractors differ from the ones used for training (the
                message lists the differences).
        """
        return self.predict(predict_clips.clip_sample(Path(path), self.media_settings[0], text))

    @cached_property
    def media_settings(self) -> tuple[FeatureSettings, list[str]]:
        """Settings that extract features for this model, and notes on libraries of other versions.
        Raises CorrKDError like `predict_media`.
        """
        return predict_clips.feature_settings(self.card, str(self.device))

    @torch.no_grad()
    def logits(self, arrays: Mapping[str, Arrays]) -> npt.NDArray[np.float32]:
        """Return logits (N, K) or (N, Q, 2), or scores (N, 1), for raw frames. Raises CorrKDError
        if a sample is too long for the model or the memory.
        """
        frames = {m: a.exists.shape[1] for m, a in arrays.items()}
        self.saved.network.check_memory(frames, len(next(iter(arrays.values())).exists))
        out: npt.NDArray[np.float32] = (
            self.saved.network(self.inputs(arrays)).logits.float().cpu().numpy()
        )
        return out

    def inputs(self, arrays: Mapping[str, Arrays]) -> Inputs:
        """Return the normalised inputs of the network for raw frames, on the device. Raises
        CorrKDError if a sample is too long for the model.
        """
        for m, longest in self.card["longest"].items():
            if (count := arrays[m].frames.shape[1]) > longest:
                raise CorrKDError(
                    f"sample, {m}: {count} frames, but the model reads no more than {longest}"
                )
        exists = {m: torch.from_numpy(a.exists).to(self.device) for m, a in arrays.items()}
        visible = {m: torch.from_numpy(a.visible).to(self.device) for m, a in arrays.items()}
        raw = {m: torch.from_numpy(a.frames).to(self.device) for m, a in arrays.items()}
        frames = {
            m: self.saved.normalisation.apply(m, x).mul_(exists[m][..., None])
            for m, x in raw.items()
        }
        return Inputs(frames, exists, visible).with_lengths(self.saved.normalisation.lengths)

    def explain(
        self,
        sample: Sample,
        *,
        label: str | None = None,
        question: str | None = None,
        steps: int = 64,
    ) -> Explanation:
        """Explain the prediction for one sample: the contributions of modalities and frames
        (`corrkd.evaluation.explain`).

        Args:
            sample: as for `predict`.
            label: class to explain; default: the predicted class. Must be None for scores.
            question: yes/no question to explain; required if the model has several.
            steps: number of points of the integrated gradients. More points are more accurate and
                take proportionally longer.

        Returns:
            An `Explanation` of the log-odds of the probability from `predict`, or of the score.

        Raises:
            CorrKDError: like `predict`, or if the class or question is unknown or captum is not
                installed.
        """
        try:
            arrays = standalone.collate([standalone.read_sample(sample, self.card)], self.card)
        except InputError as error:
            raise CorrKDError(str(error)) from None
        target = self.saved.target
        used = {m: float(a.visible.sum() / a.exists.sum()) for m, a in arrays.items()}
        condition, _ = standalone.tested_condition(self.card, used)
        return explain(
            self.saved.network,
            self.inputs(arrays),
            target=target,
            lengths=self.saved.normalisation.lengths,
            output=_index_of(label, target.classes if target.has_classes else (), "class"),
            question=_index_of(question, target.questions, "question"),
            temperature=1.0 if condition is None else condition["temperature"],
            steps=steps,
        )

    def modality_effects(self, read: ReadSample) -> list[ModalityEffects]:
        """Return the effects of the modalities on the prediction for one sample: one entry, or one
        per yes/no question.

        Args:
            read: sample from `standalone.read_sample`.

        Raises:
            CorrKDError: like `explain`, except for captum.
        """
        arrays = standalone.collate([read], self.card)
        used = {m: float(a.visible.sum() / a.exists.sum()) for m, a in arrays.items()}
        condition, _ = standalone.tested_condition(self.card, used)
        return modality_effects(
            self.saved.network,
            self.inputs(arrays),
            target=self.saved.target,
            lengths=self.saved.normalisation.lengths,
            temperature=1.0 if condition is None else condition["temperature"],
        )

    # ----------------------------------------------------------------------------------------------
    # on disk

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: torch.device | str = "cpu",
        **hub: Any,
    ) -> Predictor:
        """Load a model from a run folder (its first seed), the folder of a seed, a model file, a
        folder of `save_pretrained`, a zoo, or the Hugging Face hub.

        Args:
            pretrained_model_name_or_path: a path, "zoo:NAME" for a released student (`corrkd.zoo`),
                or "owner/name" on the Hugging Face hub.
            device: device of the network, such as "cpu" or "cuda".
            hub: revision, token, cache_dir, force_download, local_files_only; passed to
                `huggingface_hub.snapshot_download`.

        Raises:
            CorrKDError: if the model does not exist, cannot be downloaded or is damaged.
        """
        path = zoo.resolve(pretrained_model_name_or_path)
        if path.exists() or path.with_name(f"{path.name}.json").exists():
            return cls._from_path(path, device)
        try:
            # Only these files of a repository are downloaded; none can contain code.
            folder = snapshot_download(
                str(pretrained_model_name_or_path), allow_patterns=[WEIGHTS, CARD, README], **hub
            )
        except HFValidationError:
            raise CorrKDError(
                f"{path}: no such file or folder, and not the name of a model on the hub "
                f"(owner/name)"
            ) from None
        except Exception as error:  # exception types of huggingface_hub and of its HTTP library
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CorrKDError(
                f"{path}: no such file or folder, and could not be downloaded from the hub "
                f"({reason})"
            ) from None
        return cls._from_path(Path(folder), device)

    @classmethod
    def _from_path(cls, path: Path, device: torch.device | str) -> Predictor:
        path = path.absolute()
        if (folder := folder_alone(path)) is not None:
            predictor = cls(load_student(path), device=device)
            if (folder / README).is_file():
                predictor._readme = (folder / README).read_text("utf-8", errors="replace")
            return predictor
        return cls(load_student(path), run=dataset_folder(path), device=device)

    def save_pretrained(
        self, save_directory: str | Path, *, overwrite: bool = False, **hub: Any
    ) -> str | None:
        """Write model.safetensors, config.json and the model card README.md to a folder.

        Args:
            save_directory: the folder; it may exist.
            overwrite: replace an existing model.
            hub: repo_id, push_to_hub and other options of `huggingface_hub.ModelHubMixin`.

        Raises:
            CorrKDError: if the folder already contains a model.
        """
        folder = Path(save_directory)
        existing = next(
            (name for name in (WEIGHTS, CARD, README) if (folder / name).exists()), None
        )
        if existing and not overwrite:
            raise CorrKDError(
                f"{folder}: already contains {existing}; choose another folder, or pass "
                f"overwrite=True"
            )
        with replacing_all(folder, (README, WEIGHTS, CARD)) as aside:
            return super().save_pretrained(aside, **{"repo_id": folder.name, **hub})

    def _save_pretrained(self, save_directory: Path) -> None:
        data, card = packed(self.saved)
        write_bytes(save_directory / WEIGHTS, data)
        write_card(save_directory / CARD, card)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the model card: inputs and outputs, training, test results, and the tables of the
        run. Raises CorrKDError if the run folder cannot be read.
        """
        if self._readme is not None and self.run is None:
            return ModelCard(self._readme)
        run = None if self.run is None else RunFolder.open(self.run)
        return ModelCard(model_card(self.saved, self.card, run))


def card_of(saved: SavedNetwork) -> dict[str, Any]:
    """Return the model card with the additional values that the stand-alone code needs."""
    card: dict[str, Any] = json.loads(json.dumps(packed(saved)[1]))
    card["about"].pop("history", None)
    return card | {"longest": saved.network.longest(saved.frames)}


def _index_of(name: str | None, names: Sequence[str], what: str) -> int | None:
    """Return the index of a class or question, or None for None. Raises CorrKDError if the name is
    unknown.
    """
    if name is None:
        return None
    if name not in names:
        raise CorrKDError(
            f"{what} {name!r} is not in this model, which has {', '.join(names) or f'no {what}'}"
        )
    return names.index(name)
