"""`CorrKDClassifier`: a scikit-learn estimator with `fit`, `predict`, `predict_proba` and `score`
that supports clone and cross-validation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, KeysView, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from corrkd.data import in_memory
from corrkd.data.dataset import SPLITS, WHOLE, Split
from corrkd.data.readers import tables
from corrkd.data.readers.deal import dealt
from corrkd.data.readers.options import ReadOptions
from corrkd.data.readers.sequences import Sequences
from corrkd.data.readers.tables import Column, Columns
from corrkd.errors import CorrKDError
from corrkd.experiment.choices import merged
from corrkd.experiment.distil import distil
from corrkd.experiment.scaling import scaled_folds
from corrkd.experiment.settings import Settings, load_settings
from corrkd.files import write_text
from corrkd.networks.saved import SavedNetwork
from corrkd.parsing import json_text, read_json, refusing
from corrkd.serve.predictor import Predictor
from corrkd.serve.standalone import Arrays

NAME = "arrays"  # name of the training dataset
FEATURES = "features"  # name of the modality if X is an array
ABOUT = "estimator.json"
NOT_FEATURES = ("labels", "scores", "split", "ids", "order")
BATCH = 256
KINDS = "bifUO"  # dtype kinds of classes that can be saved


class EstimatorError(CorrKDError, ValueError):
    """Invalid arguments of an estimator; a ValueError, as in scikit-learn."""


class MultimodalArrays:
    """Modalities of N samples in an object that scikit-learn can divide into folds.

    Args:
        modalities: arrays (N, T, d) or (N, d) by name, or lists of N arrays (T_i, d), some of which
            may be None.
        more: further modalities, as keywords.

    Raises:
        CorrKDError: if there are none, or their numbers of samples differ.

    Examples:
        >>> import numpy as np
        >>> from corrkd import MultimodalArrays
        >>> X = MultimodalArrays(audio=np.ones((8, 4)), text=np.ones((8, 3, 2)))
        >>> X[:5].shape, list(X.keys()), X["text"].shape
        ((5, 6), ['audio', 'text'], (8, 3, 2))
    """

    def __init__(self, modalities: Mapping[str, Any] | None = None, **more: Any) -> None:
        self.modalities: dict[str, Any] = {**(modalities or {}), **more}
        sizes = {name: len(values) for name, values in self.modalities.items()}
        if len(set(sizes.values())) != 1:
            raise EstimatorError(
                f"modalities need one number of samples: {sizes or 'there are none'}"
            )
        self._num_samples = next(iter(sizes.values()))

    @property
    def shape(self) -> tuple[int, int]:
        """N and the total width of all modalities."""
        return self._num_samples, sum(_width(values) for values in self.modalities.values())

    def __len__(self) -> int:
        return self._num_samples

    def keys(self) -> KeysView[str]:
        """Return the names of the modalities."""
        return self.modalities.keys()

    def __getitem__(self, key: Any) -> Any:
        """Return a modality by name, or the samples at an index array, a mask or a slice."""
        if isinstance(key, str):
            return self.modalities[key]
        if isinstance(key, tuple):  # scikit-learn indexes with (rows, ...)
            key = key[0]
        rows = np.arange(self._num_samples)[
            np.atleast_1d(key) if not isinstance(key, slice) else key
        ]
        return MultimodalArrays(
            {name: _rows_of(values, rows) for name, values in self.modalities.items()}
        )

    def __repr__(self) -> str:
        return f"MultimodalArrays({self._num_samples} samples of {', '.join(self.modalities)})"


def _width(values: Any) -> int:
    if hasattr(values, "shape") and len(values.shape) > 1:
        return int(values.shape[-1])
    return next(
        (np.shape(value)[-1] for value in values if value is not None and np.ndim(value)), 1
    )


def _rows_of(values: Any, rows: npt.NDArray[np.int64]) -> Any:
    if hasattr(values, "iloc"):
        return values.iloc[rows]
    return values[rows] if hasattr(values, "shape") else [values[row] for row in rows]


class CorrKDClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that stays accurate when modalities are missing, with scikit-learn's interface.

    `X` may be a `MultimodalArrays` or dict of modalities, a data frame with modalities as prefixes
    of its columns, or an array (N, d) or (N, T, d) of a single modality. Missing values (NaN, None,
    an empty list) are missing frames or modalities.

    Args:
        preset: name of a preset of settings; None: the defaults.
        validation_fraction: fraction of the samples, in whole groups, used for validation.
        random_state: seed of everything random.
        **overrides: settings that override the preset, nested (`student={"epochs": 8}`) or flat
            (`student__epochs=8`), as in `corrkd.load_settings`.

    Attributes:
        classes_: (K,) the classes.
        saved_: the trained network, as from `corrkd.load_student`.
        modalities_: names of the modalities.
        notes_: notes from reading the arrays and from the training, one line each.
        history_: one row per epoch of the student's training.
        n_features_in_: total width of all modalities.

    Examples:
        >>> import numpy as np
        >>> from corrkd import CorrKDClassifier
        >>> rng, y = np.random.default_rng(0), np.arange(60) % 2
        >>> audio = rng.normal(size=(60, 4)) + y[:, None]
        >>> X = {"audio": audio, "text": rng.normal(size=(60, 3, 2)) - y[:, None, None]}
        >>> quick = {"teacher": {"epochs": 2}, "student": {"epochs": 8}}
        >>> model = CorrKDClassifier(preset=None, **quick).fit(X, y)
        >>> model.predict_proba(X).shape, model.score(X, y, missing="audio") > 0.5
        ((60, 2), True)
    """

    def __init__(
        self,
        preset: str | None = "corrkd-plus",
        *,
        validation_fraction: float = 0.15,
        random_state: Any = 0,
        **overrides: Any,
    ) -> None:
        self.preset = preset
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        for name, value in overrides.items():
            if not _is_setting(name):
                raise TypeError(
                    f"CorrKDClassifier: no parameter {name!r}; settings are "
                    f"{', '.join(Settings.model_fields)}"
                )
            setattr(self, name, value)

    # ----------------------------------------------------------------------------------------------
    # parameters

    @property
    def _overrides(self) -> dict[str, Any]:
        """Settings that were passed, each stored as an attribute."""
        return {name: value for name, value in vars(self).items() if _is_setting(name)}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters, including settings. `deep` has no effect."""
        return {**super().get_params(deep=False), **self._overrides}

    def set_params(self, **params: Any) -> Self:
        """Set parameters and settings, nested or flat. Raises ValueError for an unknown name."""
        parameters = self._get_param_names()
        for name, value in params.items():
            if name in parameters or _is_setting(name):
                setattr(self, name, value)
            else:
                allowed = ", ".join([*parameters, *Settings.model_fields])
                raise EstimatorError(f"CorrKDClassifier: no parameter {name!r}; it has {allowed}")
        return self

    def __sklearn_tags__(self) -> Any:
        """Return tags that allow NaN and three-dimensional arrays."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.three_d_array = True
        return tags

    # ----------------------------------------------------------------------------------------------
    # training

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Train out-of-fold teachers and the student.

        Args:
            X: N samples.
            y: (N,) classes: numbers or text.
            groups: (N,) group of each sample, such as a person; groups are never divided between
                folds. A data frame may have a column `person`, `speaker`, `session` or `video`
                instead.

        Raises:
            ValueError: if an argument is invalid.
        """
        with _value_errors():
            columns = self._columns(X, reset=True)
            self.classes_, codes = self._encoded(y, _num_rows(columns))
            seed = self._seed()
            if groups is not None:
                check_consistent_length(codes, groups)
                columns["person"] = np.array(
                    [str(name) for name in np.asarray(groups).tolist()], object
                )
            members = _members(columns, len(codes))
            split = self._split(members, seed)
            names = _class_names(self.classes_)
            arrays = {
                **columns,
                "labels": codes,
                "class_names": names,
                "split": split.astype(object),
            }
            dataset = tables.read(arrays, NAME, "arrays of an estimator", ReadOptions())
            tree = self._settings(len(np.unique(members[split == SPLITS[0]])))
            network = load_settings(preset=self.preset, **tree).student.network.name
            made = distil(
                network,
                dataset=dataset,
                preset=self.preset,
                seed=seed,
                test=False,
                settings=tree,
                progress=False,
            )
        self.saved_: SavedNetwork = made.student
        self.history_ = made.history
        self.notes_ = [*dataset.notes, *made.notes]
        self.modalities_ = list(dataset.modalities)
        return self

    def _encoded(self, y: Any, count: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Return the classes (K,) and the index of each sample's class (N,)."""
        if y is None:
            raise EstimatorError("requires y to be passed, but the target y is None")
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        if len(y) != count:
            raise EstimatorError(
                f"X has {count} samples and y has {len(y)}: inconsistent numbers of samples"
            )
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise EstimatorError(
                f"y holds one class alone, {classes[0]!r}; classifying needs samples of two "
                f"classes or more"
            )
        return classes, codes.astype(np.int64)

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _split(self, members: npt.NDArray[np.str_], seed: int) -> npt.NDArray[np.str_]:
        if not 0 < self.validation_fraction < 1:
            raise EstimatorError(
                f"validation_fraction must be between 0 and 1, but it is {self.validation_fraction}"
            )
        if len(np.unique(members)) < 2:
            raise EstimatorError(
                f"n_samples={len(members)} in one group: training needs two groups of samples or "
                f"more"
            )
        shares = {SPLITS[0]: 1 - self.validation_fraction, SPLITS[1]: self.validation_fraction}
        return dealt(members, shares, seed=seed)

    def _settings(self, num_groups: int) -> dict[str, Any]:
        """Return the settings that override the preset: those passed, and fewer teacher folds if
        there are fewer groups.
        """
        tree: dict[str, Any] = {"data": {"target": "classes"}, "evaluation": {"split": SPLITS[1]}}
        for key, value in self._overrides.items():
            for section in reversed(key.split("__")[1:]):
                value = {section: value}
            tree = merged(tree, {key.partition("__")[0]: value})
        folds = load_settings(preset=self.preset, **tree).teacher.folds
        tree = merged(tree, {"teacher": scaled_folds(folds, num_groups)})
        return tree

    # ----------------------------------------------------------------------------------------------
    # prediction

    def predict(self, X: Any, *, missing: str | Sequence[str] = ()) -> npt.NDArray[Any]:
        """Return the most probable class of each sample, (N,).

        Args:
            X: N samples. Modalities that it lacks are missing.
            missing: names of modalities to drop.

        Raises:
            ValueError: if an argument is invalid.
        """
        chosen: npt.NDArray[Any] = self.predict_proba(X, missing=missing).argmax(1)
        return self.classes_[chosen]

    def predict_proba(
        self, X: Any, *, missing: str | Sequence[str] = ()
    ) -> npt.NDArray[np.float64]:
        """Return the probabilities (N, K) of the classes, in the order of `classes_`. Arguments as
        for `predict`.
        """
        check_is_fitted(self)
        with _value_errors():
            hidden = self._hidden(missing)
            columns = self._columns(X, reset=False)
            columns = {
                name: column for name, column in columns.items() if _shows_any(column)
            } or columns
            dataset = tables.read(
                columns, NAME, "arrays of an estimator", ReadOptions(targets=False)
            )
            stray = sorted(set(dataset.modalities) - set(self.modalities_))
            if stray:
                raise EstimatorError(
                    f"X has a modality {stray[0]!r}, which was not there in fit; there was "
                    f"{self._listed()}"
                )
            split = self.saved_.fit(dataset, partly=True).split(WHOLE)
            predictor = Predictor(self.saved_)
            batches = [
                np.arange(start, min(start + BATCH, len(split)))
                for start in range(0, len(split), BATCH)
            ]
            logits = [predictor.logits(self._arrays(split.take(rows), hidden)) for rows in batches]
        return _softmax(np.concatenate(logits).astype(np.float64))

    def score(
        self, X: Any, y: Any, sample_weight: Any = None, *, missing: str | Sequence[str] = ()
    ) -> float:
        """Return the accuracy. `missing`: names of modalities to drop."""
        return float(
            accuracy_score(y, self.predict(X, missing=missing), sample_weight=sample_weight)
        )

    def _hidden(self, missing: str | Sequence[str]) -> set[str]:
        names = {missing} if isinstance(missing, str) else set(missing)
        for name in names - set(self.modalities_):
            raise EstimatorError(f"missing: no modality {name!r}; there is {self._listed()}")
        if names == set(self.modalities_):
            raise EstimatorError("missing: every modality; leave one")
        return names

    def _listed(self) -> str:
        return ", ".join(self.modalities_)

    def _arrays(self, split: Split, hidden: set[str]) -> dict[str, Arrays]:
        """Return the inputs of the network; an absent modality has one invisible frame."""
        arrays = {}
        for m, width in self.saved_.widths.items():
            if m in split.frames:
                exists = split.exists(m)
                arrays[m] = Arrays(split.frames[m], exists, split.present[m] & (m not in hidden))
            else:
                exists = np.ones((len(split), 1), bool)
                arrays[m] = Arrays(np.zeros((len(split), 1, width), np.float32), exists, ~exists)
        return arrays

    def _columns(self, X: Any, *, reset: bool) -> Columns:
        """Return the columns of X with features or groups of samples."""
        by_name = X.modalities if isinstance(X, MultimodalArrays) else X
        is_mapping = isinstance(by_name, Mapping) and not issparse(X)
        if is_mapping:
            columns = in_memory.columns_of(NAME, by_name)
        elif hasattr(X, "iloc") and tables.has_modalities(in_memory.columns_of(NAME, X)):
            features = [name for name in X.columns if not tables.is_about_samples(str(name))]
            validate_data(self, X[features], reset=reset, skip_check_array=True)
            columns = in_memory.columns_of(NAME, X)
        else:
            options = {
                "reset": reset,
                "dtype": "numeric",
                "ensure_all_finite": "allow-nan",
                "allow_nd": True,
            }
            columns = in_memory.columns_of(
                NAME, {FEATURES: np.asarray(validate_data(self, X, **options))}
            )
        named, _ = tables.with_usual_names(NAME, columns, ReadOptions())
        columns = {key: column for key, column in named.items() if key not in NOT_FEATURES}
        if reset and is_mapping and by_name:
            self.n_features_in_ = MultimodalArrays(by_name).shape[1]
        return columns

    # ----------------------------------------------------------------------------------------------
    # disk

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the files of `corrkd.Predictor.save_pretrained` and estimator.json to a folder.

        Args:
            path: a new folder, or one with a model to replace.
            overwrite: whether to replace an existing model.

        Raises:
            CorrKDError: if the folder already contains a model and `overwrite` is False, or a
                parameter cannot be saved.
        """
        check_is_fitted(self)
        params = {**self.get_params(), "random_state": self._seed()}
        about = {
            "params": params,
            "classes": self.classes_.tolist(),
            "kind": self.classes_.dtype.kind,
            "modalities": self.modalities_,
            "features": int(self.n_features_in_),
            "names": [str(name) for name in getattr(self, "feature_names_in_", ())],
        }
        try:
            text = json_text(json.loads(json.dumps(about)))
        except (TypeError, ValueError):
            raise EstimatorError(
                "a parameter or a class is no plain value and cannot be saved; use joblib.dump"
            ) from None
        Predictor(self.saved_).save_pretrained(path, overwrite=overwrite)
        write_text(Path(path) / ABOUT, text)

    @classmethod
    def load(cls, path: str | Path) -> CorrKDClassifier:
        """Return the classifier that `save` wrote. Raises CorrKDError if it is missing or
        damaged.
        """
        file = Path(path) / ABOUT
        about = read_json(file)
        predictor = Predictor.from_pretrained(path)
        with refusing(file, "damaged; save the model again"):
            made = cls().set_params(**about["params"])
            if about["kind"] not in KINDS or len(about["classes"]) != len(
                predictor.saved.target.classes
            ):
                raise ValueError("its classes are not the model's")
            made.classes_ = np.array(about["classes"], object if about["kind"] == "O" else None)
            if set(about["modalities"]) != set(predictor.saved.modalities):
                raise ValueError("its modalities are not the model's")
            made.modalities_ = list(about["modalities"])
            made.n_features_in_ = int(about["features"])
            if about["names"]:
                made.feature_names_in_ = np.array(about["names"], object)
        made.saved_ = predictor.saved
        return made


def _is_setting(name: str) -> bool:
    """Return whether a parameter is a setting, nested or flat."""
    return name.partition("__")[0] in Settings.model_fields


def _num_rows(columns: Columns) -> int:
    if not columns:
        raise EstimatorError("X has no modality; give arrays by name")
    return len(next(iter(columns.values())))


def _shows_any(column: Column) -> bool:
    """Return whether a column has any value; without one, its width is unknown."""
    if isinstance(column, Sequences):
        return column.present is None or bool(column.present.any())
    return column.dtype.kind != "f" or not bool(np.isnan(column).all())


def _members(columns: Columns, count: int) -> npt.NDArray[np.str_]:
    """Return the group of each sample, (N,)."""
    groups = {key: column for key, column in columns.items() if isinstance(column, np.ndarray)}
    return tables.members_of_columns(groups, count)[1]


def _class_names(classes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return valid class names for a model card: the classes as text, or else their indices."""
    names = [str(name) for name in classes.tolist()]
    fit = len(set(names)) == len(names) and all(0 < len(name) <= 200 for name in names)
    return np.array(names if fit else [f"class {index}" for index in range(len(names))], object)


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    result: npt.NDArray[np.float64] = exponents / exponents.sum(1, keepdims=True)
    return result


@contextmanager
def _value_errors() -> Iterator[None]:
    """Convert a CorrKDError to one that is also a ValueError, as scikit-learn's tools expect."""
    try:
        yield
    except EstimatorError:
        raise
    except CorrKDError as error:
        raise EstimatorError(str(error)) from None
