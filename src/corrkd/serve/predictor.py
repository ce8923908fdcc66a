"""A trained student that takes raw features of the available modalities: one sample or many, any
lengths, any modalities.
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

FRAMES = 1024  # of a modality that are read in any case, where nothing says otherwise


class Predictor(
    ModelHubMixin,
    library_name="corrkd",
    tags=["multimodal-sentiment-analysis", "missing-modalities"],
):
    """Predictions of a trained network (docs/using.md).

    Args:
        saved: the network with its normalisation and target.
        run: the run folder it is from, whose tables a model card shows.
        device: where it computes.

    Raises:
        CorrKDError: where the network cannot be used so, or the device is not there.

    Attributes:
        card: what the model knows of itself, as plain values.
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
        except (
            RuntimeError,
            AssertionError,
        ) as error:  # no such kind, none here, or torch built without it
            raise CorrKDError(
                f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}"
            ) from None

    # ----------------------------------------------------------------------------------------------
    # prediction

    @overload
    def predict(self, samples: Sample, *, batch_size: int = 256) -> Prediction: ...

    @overload
    def predict(self, samples: Sequence[Sample], *, batch_size: int = 256) -> list[Prediction]: ...

    def predict(
        self, samples: Sample | Sequence[Sample], *, batch_size: int = 256
    ) -> Prediction | list[Prediction]:
        """What the student says of raw features.

        Args:
            samples: a sample, or several. A sample is a mapping with, for each modality that is
                there, an array of (frames, width) raw features, or (width,) for a single vector. A
                modality that is missing is None or left out. Single frames that are missing are
                None in a list of frames, or False in an array `<modality>_present` of (frames,)
                booleans.
            batch_size: samples at once; changes memory and, in the last bits, rounding.

        Returns:
            For one sample a `Prediction`: classes, probabilities (with the temperature of the
                sample's condition), which modalities and
            what share of their frames were used, and how reliable predictions under that condition
            were when the model was tested.

        Raises:
            CorrKDError: where samples are none, a modality is unknown or has another width, a value
                is NaN or infinite, or nothing is given.
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
        """Predict a recording, with features made as those of its training
        data were (docs/recordings.md).

        Args:
            path: a recording, or a .txt.
            text: what is said in it; "": what a .vtt, .srt or .txt of the same name beside it
                holds, if any.

        Raises:
            CorrKDError: the recording cannot be read, the model was not trained on features of
                recordings, or the extractors here differ from those of its training data; the line
                names what differs.
        """
        return self.predict(predict_clips.clip_sample(Path(path), self.media_settings[0], text))

    @cached_property
    def media_settings(self) -> tuple[FeatureSettings, list[str]]:
        """What makes features of recordings for this model, and notes on libraries of other
        versions. Raises as `predict_media`.
        """
        return predict_clips.feature_settings(self.card, str(self.device))

    @torch.no_grad()
    def logits(self, arrays: Mapping[str, Arrays]) -> npt.NDArray[np.float32]:
        """Logits (N, K) or (N, Q, 2), or scores (N, 1), of raw frames. Raises CorrKDError where a
        sample is too long for the model.
        """
        frames = {m: a.exists.shape[1] for m, a in arrays.items()}
        self.saved.network.check_memory(frames, len(next(iter(arrays.values())).exists))
        out: npt.NDArray[np.float32] = (
            self.saved.network(self.inputs(arrays)).logits.float().cpu().numpy()
        )
        return out

    def inputs(self, arrays: Mapping[str, Arrays]) -> Inputs:
        """Return what the network sees of raw frames, on the device. Raises CorrKDError where a
        sample is too long for the model.
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
        """Which modalities and which frames carried the prediction of one sample
        (corrkd.evaluation.explain).

        Args:
            sample: as for `predict`.
            label: the class to explain; default: the predicted one. None for scores.
            question: the yes/no question to explain; needed where the model answers several.
            steps: points at which integrated gradients are evaluated; more make the frames' sum
                more exact, and take as much longer.

        Returns:
            An `Explanation`: of the probability that `predict` gives (the same temperature), in
                log-odds, or of the score.

        Raises:
            CorrKDError: as `predict`, where class or question is unknown, or where captum is not
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
        """What each modality adds to the prediction of one sample: one entry, or one for each
        yes/no question. Raises as `explain`.

        Args:
            read: from `standalone.read_sample`.
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
        """A model from a run folder (its first seed), a seed's folder, a model's file, a folder of
        `save_pretrained`, a zoo, or the hub.

        Args:
            pretrained_model_name_or_path: a path, "zoo:NAME" for a released student (`corrkd.zoo`),
                or "owner/name" on the Hugging Face hub.
            device: where it computes.
            hub: revision, token, cache_dir, force_download, local_files_only, as
                huggingface_hub.snapshot_download takes them.

        Raises:
            CorrKDError: where there is no model, or it is damaged.
        """
        path = zoo.resolve(pretrained_model_name_or_path)
        if path.exists() or path.with_name(f"{path.name}.json").exists():
            return cls._from_path(path, device)
        try:
            # These files alone: nothing else of a repository is looked at, and none of them can
            # carry code.
            folder = snapshot_download(
                str(pretrained_model_name_or_path), allow_patterns=[WEIGHTS, CARD, README], **hub
            )
        except HFValidationError:
            raise CorrKDError(
                f"{path}: no such file or folder, and no model's name on the hub (owner/name)"
            ) from None
        except (
            Exception
        ) as error:  # of huggingface_hub's own kinds, and of what it sends requests with
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
        """Writes model.safetensors, config.json and a model card README.md.

        Args:
            save_directory: a new folder, or one with a model to replace.
            overwrite: replace a model that is there.
            hub: repo_id, push_to_hub and more, as huggingface_hub's mixin takes them.

        Raises:
            CorrKDError: where the folder holds a model already.
        """
        folder = Path(save_directory)
        existing = next(
            (name for name in (WEIGHTS, CARD, README) if (folder / name).exists()), None
        )
        if existing and not overwrite:
            raise CorrKDError(
                f"{folder}: holds {existing} already; choose another folder, or pass overwrite=True"
            )
        with replacing_all(folder, (README, WEIGHTS, CARD)) as aside:
            return super().save_pretrained(aside, **{"repo_id": folder.name, **hub})

    def _save_pretrained(self, save_directory: Path) -> None:
        data, card = packed(self.saved)
        write_bytes(save_directory / WEIGHTS, data)
        write_card(save_directory / CARD, card)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The model card: what it predicts, how it was tested, with the run's own tables."""
        if self._readme is not None and self.run is None:
            return ModelCard(self._readme)
        run = None if self.run is None else RunFolder.open(self.run)
        return ModelCard(model_card(self.saved, self.card, run))


def card_of(saved: SavedNetwork) -> dict[str, Any]:
    """The plain values of a model that the stand-alone code needs."""
    card: dict[str, Any] = json.loads(json.dumps(packed(saved)[1]))
    card["about"].pop("history", None)
    return card | {"longest": saved.network.longest(saved.frames)}


def _index_of(name: str | None, names: Sequence[str], what: str) -> int | None:
    """Index of a class or question; None for None."""
    if name is None:
        return None
    if name not in names:
        raise CorrKDError(
            f"{what} {name!r} is not in this model, which has {', '.join(names) or f'no {what}'}"
        )
    return names.index(name)
