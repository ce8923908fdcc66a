"""`synthetic`, the built-in dataset: Gaussian latents with an exact posterior for any set of
visible frames (docs/synthetic.md).

A sample has a latent s that every modality shows and a latent p_m that only modality m shows, all
standard normal and constant over time:

    score   y       = sqrt(c) s_1 + sum_m sqrt((1 - c) b_m) p_m1
    frame   x_{m,t} = A_m [s; p_m] + sigma_m e_{m,t}

y has variance 1, and the class is its exact quantile; A_m' A_m = I, and e is iid standard normal;
c = `shared`, b_m = `informativeness` divided by its sum, sigma_m = `noise`. Latents that y does not
use are clutter.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from corrkd.data.dataset import SPLITS, BoolArray, FloatArray, IntArray, MultimodalDataset, Split
from corrkd.errors import CorrKDError

Float64Array = npt.NDArray[np.float64]
Value = TypeVar("Value", int, float)

# Defaults by modality; other names use OTHER.
WIDTHS = {"language": 24, "audio": 16, "vision": 16}
INFORMATIVENESS = {"language": 0.65, "audio": 0.25, "vision": 0.10}
NOISE = {"language": 1.0, "audio": 1.5, "vision": 2.0}
OTHER_WIDTH, OTHER_INFORMATIVENESS, OTHER_NOISE = 16, 0.25, 1.5


@dataclass(frozen=True)
class ModalityLaw:
    """The parameters of a modality, with all defaults filled in.

    Attributes:
        frames: T_m.
        width: d_m.
        share: share of y's variance from its private latent, (1 - c) b_m.
        noise: sigma_m, standard deviation of a frame's noise in each feature.
    """

    frames: int
    width: int
    share: float
    noise: float


@dataclass(frozen=True, kw_only=True)
class SyntheticSpec:
    """The parameters of the built-in dataset. The same spec gives the same samples.

    `frames`, `widths`, `informativeness` and `noise` are one number for all modalities, or a number
    by name; other modalities keep their defaults.

    Attributes:
        train, valid, test: number of samples, >= 1. A sample does not depend on the sizes of the
            splits.
        modalities: any names, one or more.
        frames: T_m >= 1; default 12.
        shortest: lengths are drawn uniformly from min(shortest, T_m) to T_m for each sample and
            modality; None: all are T_m.
        widths: d_m >= shared_dims + private_dims; default 24 (language), 16 (audio, vision, any
            other).
        informativeness: b_m >= 0, the private latents' weights in the score, divided by their sum;
            default 0.65, 0.25, 0.10 (other: 0.25).
        noise: sigma_m from 0.001 to 1000, standard deviation of a frame's noise in each feature;
            default 1.0, 1.5, 2.0 (other: 1.5).
        shared: c, share of the score's variance from the latent that all modalities have in common,
            0 to 1.
        shared_dims, private_dims: sizes of s and of each p_m, >= 1; y uses the first of each.
        classes: K >= 2 equally likely classes.
        natural_missing: probability that a sample lacks one modality, chosen at random, in the data
            itself; 0 to 1.
        person_samples: number of samples of a person, the group; people are independent of
            everything else.
        seed: >= 0, of the distribution and the samples.

    Raises:
        CorrKDError: if a field is invalid; the message names the field and the allowed values.
    """

    train: int = 1200
    valid: int = 400
    test: int = 800
    modalities: tuple[str, ...] = ("language", "audio", "vision")
    frames: int | Mapping[str, int] = 12
    shortest: int | None = None
    widths: int | Mapping[str, int] = field(default_factory=dict)
    informativeness: float | Mapping[str, float] = field(default_factory=dict)
    noise: float | Mapping[str, float] = field(default_factory=dict)
    shared: float = 0.4
    shared_dims: int = 4
    private_dims: int = 4
    classes: int = 3
    natural_missing: float = 0.0
    person_samples: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        names = self.modalities
        if isinstance(names, str) or not all(isinstance(m, str) and m for m in names) or not names:
            raise CorrKDError(
                f"synthetic data: modalities = {names!r} must be a list of one or more names"
            )
        if len(set(names)) != len(names):
            raise CorrKDError(
                f"synthetic data: modalities = {', '.join(names)} must differ from one another"
            )
        object.__setattr__(self, "modalities", tuple(names))  # YAML gives a list
        for name in ("train", "valid", "test", "shared_dims", "private_dims", "person_samples"):
            _check_integer(name, getattr(self, name), 1)
        _check_integer("classes", self.classes, 2)
        _check_integer("seed", self.seed, 0)
        if self.shortest is not None:
            _check_integer("shortest", self.shortest, 1)
        _number("shared", self.shared, 0.0, 1.0)
        _number("natural_missing", self.natural_missing, 0.0, 1.0)
        if self.natural_missing and len(names) < 2:
            raise CorrKDError(
                "synthetic data: natural_missing > 0 needs at least two modalities, or nothing "
                "would be left"
            )
        laws = self.laws()
        if self.shortest is not None and self.shortest > (
            most := max(law.frames for law in laws.values())
        ):
            raise CorrKDError(
                f"synthetic data: shortest = {self.shortest} exceeds the {most} frames of a sample"
            )

    def laws(self) -> dict[str, ModalityLaw]:
        """Return the parameters of each modality, in order. Raises CorrKDError if a field of the
        spec is out of bounds.
        """
        frames = self._by_modality("frames", {}, 12)
        widths = self._by_modality("widths", WIDTHS, OTHER_WIDTH)
        weights = self._by_modality("informativeness", INFORMATIVENESS, OTHER_INFORMATIVENESS)
        noise = self._by_modality("noise", NOISE, OTHER_NOISE)
        latents = self.shared_dims + self.private_dims
        for m in self.modalities:
            _check_integer(f"frames of {m}", frames[m], 1)
            _check_integer(f"widths of {m}", widths[m], latents, " (shared_dims + private_dims)")
            _number(f"informativeness of {m}", weights[m], 0.0, math.inf)
            _number(f"noise of {m}", noise[m], 1e-3, 1e3)
        total = sum(weights.values())
        if total == 0 and self.shared < 1:
            raise CorrKDError(
                "synthetic data: informativeness is 0 for every modality; give one a weight, or "
                "set shared to 1"
            )
        return {
            m: ModalityLaw(
                frames[m], widths[m], (1 - self.shared) * weights[m] / (total or 1.0), noise[m]
            )
            for m in self.modalities
        }

    def _by_modality(
        self, name: str, defaults: Mapping[str, Value], other: Value
    ) -> dict[str, Value]:
        value = getattr(self, name)
        if not isinstance(value, Mapping):
            return dict.fromkeys(self.modalities, value)
        for key in value:
            if key not in self.modalities:
                raise CorrKDError(
                    f"synthetic data: {name} names modality {key!r}; the modalities are "
                    f"{', '.join(self.modalities)}"
                )
        return {m: value.get(m, defaults.get(m, other)) for m in self.modalities}


@dataclass(frozen=True)
class Readings:
    """What the frames of a modality reveal about the score, in one split: each frame is two
    independent measurements.

    Attributes:
        shared: (N, T_m) A_m's first column times the frame: s_1 plus noise of deviation sigma_m.
        private: (N, T_m) the same for p_m1.
        present: (N, T_m) frames that are neither padding nor naturally missing.
    """

    shared: Float64Array
    private: Float64Array
    present: BoolArray


@dataclass(frozen=True)
class ExactPosterior:
    """The posterior of score and class given the visible frames, by Bayes' rule. Can be pickled.

    A_m has orthonormal columns and the noise is isotropic, so the latent coordinates stay
    independent given the frames: with n_m visible frames of modality m, s_1 has precision 1 + sum_m
    n_m / sigma_m^2, p_m1 has 1 + n_m / sigma_m^2, and the mean of each is the sum of its readings
    over sigma_m^2, divided by that precision. So y given the frames is normal.

    Attributes:
        laws: by modality.
        shared: c.
        cuts: (K - 1,) thresholds between classes.
        readings: by split and modality.
    """

    laws: Mapping[str, ModalityLaw]
    shared: float
    cuts: Float64Array
    readings: Mapping[str, Mapping[str, Readings]]

    def __call__(self, split: str, visible: Mapping[str, BoolArray]) -> Float64Array:
        """Return the exact class probabilities given the visible frames: (N, K), rows sum to 1.

        Args:
            split: "train", "valid" or "test".
            visible: by modality (N, T_m) booleans; modalities left out, padding and naturally
                missing frames are invisible.

        Raises:
            CorrKDError: for an unknown split or modality, or a mask of another shape.
        """
        mean, deviation = self.score(split, visible)
        below = ndtr((self.cuts[None, :] - mean[:, None]) / deviation[:, None])
        ends = np.zeros((len(mean), 1))
        return np.diff(np.concatenate([ends, below, ends + 1.0], axis=1), axis=1)

    def score(
        self, split: str, visible: Mapping[str, BoolArray]
    ) -> tuple[Float64Array, Float64Array]:
        """Return the mean and standard deviation of y given the visible frames, (N,) each.
        Arguments and errors as above.
        """
        if split not in self.readings:
            raise CorrKDError(
                f"synthetic posterior: no split {split!r}; there are {', '.join(self.readings)}"
            )
        readings = self.readings[split]
        count = len(next(iter(readings.values())).present)
        shared_sum, shared_precision = np.zeros(count), np.ones(count)
        mean, variance = np.zeros(count), np.zeros(count)
        for m, mask in visible.items():
            if m not in readings:
                raise CorrKDError(
                    f"synthetic posterior: no modality {m!r}; there are {', '.join(readings)}"
                )
            if np.shape(mask) != readings[m].present.shape:
                raise CorrKDError(
                    f"synthetic posterior: mask of {m} has shape {np.shape(mask)}, expected "
                    f"{readings[m].present.shape}"
                )
        for m, law in self.laws.items():
            seen = readings[m].present & np.asarray(visible.get(m, False), bool)
            weight = 1.0 / law.noise**2
            precision = weight * seen.sum(1)
            shared_precision += precision
            shared_sum += weight * np.where(seen, readings[m].shared, 0.0).sum(1)
            private_sum = weight * np.where(seen, readings[m].private, 0.0).sum(1)
            mean += math.sqrt(law.share) * private_sum / (1.0 + precision)
            variance += law.share / (1.0 + precision)
        mean += math.sqrt(self.shared) * shared_sum / shared_precision
        variance += self.shared / shared_precision
        return mean, np.sqrt(variance)


def make(spec: SyntheticSpec | None = None) -> MultimodalDataset:
    """Return the built-in dataset, with its exact posterior.

    Scores are y (float64), labels its classes by the exact quantiles of the distribution (not of
    the sample), groups "person", and order the position within it. Nothing is missing unless the
    spec says so.
    """
    spec = spec or SyntheticSpec()
    laws = spec.laws()
    cuts = ndtri(np.arange(1, spec.classes) / spec.classes)
    mixings = {m: _mixing(spec, index, law.width) for index, (m, law) in enumerate(laws.items())}
    splits = {name: _split(spec, name, laws, mixings, cuts) for name in SPLITS}
    return MultimodalDataset(
        name="synthetic",
        splits=splits,
        class_names=_class_names(spec.classes),
        layout="built-in",
        missing_rule=dict.fromkeys(
            laws,
            "drawn at random with probability natural_missing"
            if spec.natural_missing
            else "nothing",
        ),
        posterior=ExactPosterior(
            laws=laws,
            shared=spec.shared,
            cuts=cuts,
            readings={
                name: {m: _readings(split, m, mixings[m], spec.shared_dims) for m in laws}
                for name, split in splits.items()
            },
        ),
        extra={"spec": asdict(spec)},
    )


def _stream(seed: int, *index: int) -> np.random.Generator:
    """Return a separate stream of random numbers for each use."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=index))


def _mixing(spec: SyntheticSpec, index: int, width: int) -> Float64Array:
    """Return A_m, (d_m, shared_dims + private_dims), with orthonormal columns."""
    numbers = _stream(spec.seed, 0, index).standard_normal(
        (width, spec.shared_dims + spec.private_dims)
    )
    columns: Float64Array = np.linalg.qr(numbers)[0]
    return columns


def _split(
    spec: SyntheticSpec,
    name: str,
    laws: Mapping[str, ModalityLaw],
    mixings: Mapping[str, Float64Array],
    cuts: Float64Array,
) -> Split:
    count: int = getattr(spec, name)
    number = 1 + SPLITS.index(name)
    # Rows are drawn one after another from separate streams for each split, so that a sample does
    # not depend on the sizes.
    common = _stream(spec.seed, number, 0).standard_normal((count, spec.shared_dims))
    scores = math.sqrt(spec.shared) * common[:, 0]
    lacking = _lacking(spec, number, count)
    frames: dict[str, FloatArray] = {}
    lengths: dict[str, IntArray] = {}
    present: dict[str, BoolArray] = {}
    for index, (m, law) in enumerate(laws.items()):
        private = _stream(spec.seed, number, 2, index).standard_normal((count, spec.private_dims))
        scores += math.sqrt(law.share) * private[:, 0]
        shortest = min(spec.shortest or law.frames, law.frames)
        lengths[m] = _stream(spec.seed, number, 3, index).integers(
            shortest, law.frames, count, endpoint=True
        )
        exists = np.arange(law.frames)[None, :] < lengths[m][:, None]
        present[m] = exists & (lacking != index)[:, None]
        signal = np.concatenate([common, private], axis=1) @ mixings[m].T
        x = _stream(spec.seed, number, 4, index).standard_normal(
            (count, law.frames, law.width), np.float32
        )
        x *= np.float32(law.noise)
        x += signal.astype(np.float32)[:, None, :]
        x[~present[m]] = 0.0
        frames[m] = x
    rows = np.arange(count)
    return Split(
        frames=frames,
        lengths=lengths,
        present=present,
        ids=np.array([f"{name}-{row}" for row in rows]),
        scores=scores,
        labels=np.digitize(scores, cuts).astype(np.int64),
        groups={
            "person": np.array([f"{name}-person-{row // spec.person_samples}" for row in rows])
        },
        order=rows % spec.person_samples,
    )


def _lacking(spec: SyntheticSpec, number: int, count: int) -> IntArray:
    """Return the index of the modality that each sample lacks in the data itself, or -1, (N,)."""
    draws = _stream(spec.seed, number, 1).random((count, 2))
    which = (draws[:, 1] * len(spec.modalities)).astype(np.int64)
    return np.where(draws[:, 0] < spec.natural_missing, which, -1)


def _readings(split: Split, modality: str, mixing: Float64Array, shared_dims: int) -> Readings:
    # einsum, not matmul: no float64 copy of all frames.
    shared, private = (
        np.einsum("ntd,d->nt", split.frames[modality], mixing[:, column], dtype=np.float64)
        for column in (0, shared_dims)
    )
    return Readings(shared, private, split.present[modality])


def _class_names(count: int) -> tuple[str, ...]:
    named = {2: ("negative", "positive"), 3: ("negative", "neutral", "positive")}
    return named.get(count) or tuple(f"class {k}" for k in range(count))


def _check_integer(name: str, value: object, low: int, why: str = "") -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < low:
        raise CorrKDError(
            f"synthetic data: {name} = {value!r} must be a whole number from {low}{why} up"
        )


def _number(name: str, value: object, low: float, high: float) -> None:
    if (
        not isinstance(value, numbers.Real)
        or isinstance(value, bool)
        or not low <= float(value) <= high
        or math.isinf(value)
    ):
        allowed = f"from {low:g} up" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise CorrKDError(f"synthetic data: {name} = {value!r} must be a number {allowed}")
