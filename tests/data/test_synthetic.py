"""The built-in dataset: its distribution, and its posterior against independent computations."""

import itertools
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from corrkd.data.dataset import check_split
from corrkd.data.synthetic import SyntheticSpec, _mixing, make
from corrkd.errors import CorrKDError
from corrkd.evaluation.bayes import bayes_accuracy

DOCS = Path(__file__).parents[2] / "docs" / "synthetic.md"
TINY = SyntheticSpec(
    train=6, valid=6, test=6, frames=3, widths=6, shared_dims=2, private_dims=2, noise=2.0
)
UNEVEN = SyntheticSpec(
    train=12,
    valid=12,
    test=12,
    modalities=("text", "gaze", "pulse", "pose"),
    frames={"text": 5, "gaze": 3, "pulse": 1, "pose": 4},
    widths={"text": 9, "gaze": 7, "pulse": 5, "pose": 6},
    informativeness={"text": 3.0, "gaze": 2.0, "pulse": 0.0, "pose": 1.0},
    noise={"text": 0.7, "gaze": 1.3, "pulse": 2.0, "pose": 3.0},
    shared=0.25,
    shared_dims=2,
    private_dims=3,
    shortest=2,
    classes=4,
    natural_missing=0.5,
    seed=7,
)
MANY = make(SyntheticSpec(train=10, valid=10, test=20_000, seed=3))


def full_masks(dataset, split="test", modalities=None):
    selected = dataset.modalities if modalities is None else modalities
    return {m: np.ones(dataset.split(split).frames[m].shape[:2], bool) for m in selected}


def random_masks(dataset, keep, seed):
    numbers = np.random.default_rng(seed)
    shapes = {m: x.shape[:2] for m, x in dataset.split("test").frames.items()}
    return {m: numbers.random(shape) < keep for m, shape in shapes.items()}


def mixings(spec):
    return {m: _mixing(spec, i, law.width) for i, (m, law) in enumerate(spec.laws().items())}


def weights_of_y(spec):
    """Return y as a linear map (D,) of the latents [s, p_1, ..., p_M], and the columns of each
    modality's [s; p_m].
    """
    laws = spec.laws()
    total = spec.shared_dims + len(laws) * spec.private_dims
    out = np.zeros(total)
    out[0] = spec.shared**0.5
    columns = {}
    for i, (m, law) in enumerate(laws.items()):
        first = spec.shared_dims + i * spec.private_dims
        out[first] = law.share**0.5
        columns[m] = np.r_[np.arange(spec.shared_dims), np.arange(first, first + spec.private_dims)]
    return out, columns


# The posterior


@pytest.mark.parametrize("keep", [0.3, 0.8])
def test_the_posterior_agrees_with_brute_force_monte_carlo(keep):
    # Latents from the prior, weighted by the likelihood of every visible feature: no use of
    # sufficiency or orthogonality.
    draws = 200_000
    dataset = make(TINY)
    split = dataset.split("test")
    visible = random_masks(dataset, keep, seed=1)
    exact = dataset.posterior("test", visible)
    direction, columns = weights_of_y(TINY)
    latents = np.random.default_rng(0).standard_normal((draws, len(direction)))
    classes = np.digitize(latents @ direction, norm.ppf([1 / 3, 2 / 3]))
    truth = np.eye(3)[classes]
    signals = {m: latents[:, columns[m]] @ mixing.T for m, mixing in mixings(TINY).items()}
    for i in range(len(split)):
        log_likelihood = np.zeros(draws)
        for m, law in TINY.laws().items():
            for frame in split.frames[m][i][visible[m][i]]:
                log_likelihood -= ((frame - signals[m]) ** 2).sum(1) / (2 * law.noise**2)
        weight = np.exp(log_likelihood - log_likelihood.max())
        weight /= weight.sum()
        assert 1 / (weight**2).sum() > 300  # effective draws, else the comparison means nothing
        estimate = weight @ truth
        error = np.sqrt((weight[:, None] ** 2 * (truth - estimate) ** 2).sum(0))
        assert (np.abs(exact[i] - estimate) < 4.5 * error + 1e-6).all()


@pytest.mark.parametrize("spec", [TINY, UNEVEN], ids=["tiny", "uneven"])
@pytest.mark.parametrize("keep", [0.2, 0.6, 1.0])
def test_the_posterior_score_agrees_with_conditioning_the_joint_normal_distribution(spec, keep):
    dataset = make(spec)
    split = dataset.split("test")
    visible = random_masks(dataset, keep, seed=2)
    mean, deviation = dataset.posterior.score("test", visible)
    direction, columns = weights_of_y(spec)
    for i in range(len(split)):
        rows, observed, noise = [np.zeros((0, len(direction)))], [np.zeros(0)], [np.zeros(0)]
        for m, mixing in mixings(spec).items():
            design = np.zeros((len(mixing), len(direction)))
            design[:, columns[m]] = mixing
            for frame in split.frames[m][i][visible[m][i] & split.present[m][i]]:
                rows.append(design)
                observed.append(frame)
                noise.append(np.full(len(frame), spec.laws()[m].noise ** 2))
        design, x, variance = np.concatenate(rows), np.concatenate(observed), np.concatenate(noise)
        gain = np.linalg.solve(design @ design.T + np.diag(variance), design @ direction)
        assert mean[i] == pytest.approx(gain @ x, abs=1e-5)
        assert deviation[i] ** 2 == pytest.approx(1 - gain @ design @ direction, abs=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_nothing_visible_leaves_the_prior(classes):
    dataset = make(SyntheticSpec(train=2, valid=2, test=4, classes=classes))
    nothing = {m: ~mask for m, mask in full_masks(dataset).items()}
    for visible in (nothing, {}):
        np.testing.assert_allclose(
            dataset.posterior("test", visible), 1 / classes, rtol=0, atol=1e-12
        )


@settings(deadline=None, max_examples=30)
@given(keep=st.floats(0, 1), more=st.floats(0, 1), seed=st.integers(0, 1000))
def test_posteriors_are_probabilities_and_more_frames_never_add_uncertainty(keep, more, seed):
    dataset = UNEVEN_DATA
    few, many = (
        random_masks(dataset, min(keep, more), seed),
        random_masks(dataset, max(keep, more), seed),
    )
    p = dataset.posterior("test", few)
    assert p.shape == (12, 4)
    assert p.dtype == np.float64
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-12)
    assert (
        dataset.posterior.score("test", many)[1] <= dataset.posterior.score("test", few)[1] + 1e-12
    ).all()


UNEVEN_DATA = make(UNEVEN)


@pytest.mark.parametrize("keep", [1.0, 0.5, 0.1])
def test_posterior_is_calibrated(keep):
    p = MANY.posterior("test", random_masks(MANY, keep, seed=4))
    labels = MANY.split("test").labels
    picked = p.argmax(1)
    error = np.sqrt((p.max(1) * (1 - p.max(1))).mean() / len(p))
    assert abs((picked == labels).mean() - bayes_accuracy(p)) < 4 * error
    for k in range(3):
        for low, high in itertools.pairwise(np.linspace(0, 1, 6)):
            group = (p[:, k] >= low) & (p[:, k] < high)
            if group.sum() > 100:
                spread = np.sqrt((p[group, k] * (1 - p[group, k])).sum())
                assert abs((labels[group] == k).sum() - p[group, k].sum()) < 4.5 * spread


def test_bayes_accuracy_falls_with_the_missing_ratio_down_to_chance():
    values = [
        bayes_accuracy(MANY.posterior("test", random_masks(MANY, keep, seed=5)))
        for keep in np.linspace(1, 0, 11)
    ]
    assert (np.diff(values) < 0).all()
    assert values[0] - values[5] > 0.03
    assert values[5] - values[9] > 0.1
    assert values[10] == pytest.approx(1 / 3)


def test_padding_and_naturally_missing_frames_are_invisible_whatever_the_mask_says():
    split = UNEVEN_DATA.split("test")
    posterior = UNEVEN_DATA.posterior("test", full_masks(UNEVEN_DATA))
    assert any(not split.present[m].all() for m in UNEVEN.modalities)
    np.testing.assert_array_equal(posterior, UNEVEN_DATA.posterior("test", split.present))


def test_the_posterior_refuses_invalid_splits_modalities_and_shapes():
    masks = full_masks(MANY)
    with pytest.raises(CorrKDError, match="no split 'dev'"):
        MANY.posterior("dev", masks)
    with pytest.raises(CorrKDError, match="no modality 'touch'"):
        MANY.posterior("test", {"touch": masks["audio"]})
    with pytest.raises(CorrKDError, match=r"audio has shape \(20000, 3\), expected \(20000, 12\)"):
        MANY.posterior("test", {"audio": masks["audio"][:, :3]})


def test_posterior_survives_pickling():
    copy = pickle.loads(pickle.dumps(UNEVEN_DATA.posterior))
    masks = random_masks(UNEVEN_DATA, 0.5, seed=1)
    np.testing.assert_array_equal(copy("test", masks), UNEVEN_DATA.posterior("test", masks))


# The samples


@pytest.mark.parametrize("dataset", [make(TINY), UNEVEN_DATA], ids=["tiny", "uneven"])
def test_splits_pass_the_checks_of_every_reader(dataset):
    for name, split in dataset.splits.items():
        check_split(name, split)
        for m, frames in split.frames.items():
            assert frames.dtype == np.float32
            assert not frames[~split.present[m]].any()
            assert not (split.present[m] & ~split.exists(m)).any()
    people = [set(split.groups["person"]) for split in dataset.splits.values()]
    assert not people[0] & people[1]
    assert not people[0] & people[2]
    assert not people[1] & people[2]


def test_classes_are_the_exact_tertiles_of_a_standard_normal_score():
    split = MANY.split("test")
    assert MANY.class_names == ("negative", "neutral", "positive")
    np.testing.assert_array_equal(split.labels, np.digitize(split.scores, norm.ppf([1 / 3, 2 / 3])))
    share = np.bincount(split.labels) / len(split)
    assert (np.abs(share - 1 / 3) < 4 * np.sqrt(2 / 9 / len(split))).all()
    assert split.scores.mean() == pytest.approx(0, abs=4 / np.sqrt(len(split)))
    assert split.scores.var() == pytest.approx(1, abs=4 * np.sqrt(2 / len(split)))


def test_equal_specs_give_equal_samples_and_other_seeds_others():
    first, second, other = make(UNEVEN), make(UNEVEN), make(SyntheticSpec(seed=1))
    for name in first.splits:
        for m in first.modalities:
            np.testing.assert_array_equal(first.split(name).frames[m], second.split(name).frames[m])
        np.testing.assert_array_equal(first.split(name).scores, second.split(name).scores)
    default = make()
    assert not np.isclose(default.split("test").scores, other.split("test").scores).any()
    assert not np.isclose(default.split("test").scores[:400], default.split("valid").scores).any()


def test_splits_are_independent():
    dataset = make(SyntheticSpec(train=400, test=400))
    for a, b in itertools.combinations(dataset.splits.values(), 2):
        pairs = [(a.scores, b.scores)]
        pairs += [
            (a.frames[m].mean(1)[:, 0], b.frames[m].mean(1)[:, 0]) for m in dataset.modalities
        ]
        for x, y in pairs:
            assert abs(np.corrcoef(x, y)[0, 1]) < 4.5 / np.sqrt(400)


def test_a_sample_does_not_depend_on_the_splits_size():
    sizes = {"shortest": 4, "natural_missing": 0.3}
    small = make(SyntheticSpec(train=5, valid=4, test=3, **sizes))
    large = make(SyntheticSpec(train=50, valid=40, test=30, **sizes))
    for name, split in small.splits.items():
        longer = large.split(name).take(np.arange(len(split)))
        np.testing.assert_array_equal(split.ids, longer.ids)
        np.testing.assert_array_equal(split.scores, longer.scores)
        for m in small.modalities:
            np.testing.assert_array_equal(split.present[m], longer.present[m])
            np.testing.assert_array_equal(split.frames[m], longer.frames[m])


def test_lengths_run_from_the_shortest_to_all_frames():
    dataset = make(SyntheticSpec(frames={"language": 6, "vision": 2}, shortest=4))
    split = dataset.split("train")
    assert set(split.lengths["language"]) == {4, 5, 6}
    assert set(split.lengths["audio"]) == set(range(4, 13))
    assert set(split.lengths["vision"]) == {2}


def test_natural_missing_drops_one_modality_of_the_requested_share_of_samples():
    split = make(SyntheticSpec(train=5000, natural_missing=0.3)).split("train")
    missing = np.stack([~present.any(1) for present in split.present.values()])
    assert missing.sum(0).max() == 1
    assert missing.any(0).mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / 5000))
    np.testing.assert_array_equal(missing.any(0), split.naturally_incomplete())
    assert missing.mean(1) == pytest.approx(0.1, abs=0.02)


def test_mosi_sizes():
    widths = {"language": 300, "audio": 74, "vision": 35}
    dataset = make(SyntheticSpec(train=20, valid=5, test=5, frames=50, widths=widths))
    assert dataset.widths == widths
    assert dataset.split("train").frames["language"].shape == (20, 50, 300)


@pytest.mark.parametrize("modalities", [("one",), ("text", "gaze"), ("a", "b", "c", "d")])
def test_any_modalities(modalities):
    dataset = make(SyntheticSpec(test=4000, modalities=modalities))
    assert dataset.modalities == modalities
    p = dataset.posterior("test", full_masks(dataset))
    assert (p.argmax(1) == dataset.split("test").labels).mean() == pytest.approx(
        bayes_accuracy(p), abs=0.03
    )


def test_modalities_are_unequally_informative_and_each_adds():
    value = {
        subset: bayes_accuracy(MANY.posterior("test", full_masks(MANY, modalities=subset)))
        for size in (1, 2, 3)
        for subset in itertools.combinations(MANY.modalities, size)
    }
    assert value["language",] > value["audio",] + 0.05 > value["vision",] + 0.08 > 1 / 3 + 0.2
    for subset, accuracy in value.items():
        for m in subset:
            others = tuple(other for other in subset if other != m)
            if others:
                assert accuracy > value[others] + 0.01


def test_documented_bayes_accuracies():
    rows = re.findall(r"^\| ([a-z+]+)((?: \| 0\.\d{3}){4}) \|", DOCS.read_text("utf-8"), flags=re.M)
    assert len(rows) == 7
    for name, numbers in rows:
        subset = MANY.modalities if name == "complete" else tuple(name.split("+"))
        for count, documented in zip((12, 6, 3, 1), re.findall(r"0\.\d{3}", numbers), strict=True):
            masks = {
                m: mask & (np.arange(12) < count)
                for m, mask in full_masks(MANY, modalities=subset).items()
            }
            assert bayes_accuracy(MANY.posterior("test", masks)) == pytest.approx(
                float(documented), abs=0.01
            )


def test_learnable_from_the_default_training_split_but_not_beyond_the_ceiling():
    dataset = make()
    means = {
        name: np.concatenate([x.mean(1) for x in split.frames.values()], 1)
        for name, split in dataset.splits.items()
    }
    model = LogisticRegression(max_iter=1000).fit(means["train"], dataset.split("train").labels)
    accuracy = model.score(means["test"], dataset.split("test").labels)
    ceiling = bayes_accuracy(dataset.posterior("test", full_masks(dataset)))
    assert ceiling - 0.08 < accuracy < ceiling + 4 * np.sqrt(0.15 / 800)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": 0}, "train = 0 must be a whole number from 1 up"),
        ({"test": "many"}, "test = 'many' must be a whole number from 1 up"),
        ({"valid": True}, "valid = True must be a whole number"),
        ({"classes": 1}, "classes = 1 must be a whole number from 2 up"),
        ({"seed": -1}, "seed = -1 must be a whole number from 0 up"),
        ({"modalities": ()}, "one or more names"),
        ({"modalities": "language"}, "must be a list"),
        ({"modalities": ("a", "a")}, "must differ"),
        (
            {"widths": {"text": 30}},
            "widths names modality 'text'; the modalities are language, audio, vision",
        ),
        ({"widths": {"audio": 7}}, "widths of audio = 7 must be a whole number from 8"),
        ({"frames": {"audio": 0}}, "frames of audio = 0"),
        ({"shortest": 13}, "shortest = 13 exceeds the 12 frames"),
        ({"noise": 0.0}, "noise of language = 0.0 must be a number from 0.001"),
        ({"noise": float("nan")}, "noise of language = nan"),
        ({"informativeness": 0}, "informativeness is 0 for every modality"),
        (
            {"informativeness": {"audio": -1}},
            "informativeness of audio = -1 must be a number from 0 up",
        ),
        ({"shared": 1.5}, "shared = 1.5 must be a number from 0 to 1"),
        ({"modalities": ("one",), "natural_missing": 0.1}, "at least two modalities"),
    ],
)
def test_a_bad_spec_is_a_one_line_error(changes, message):
    with pytest.raises(CorrKDError) as caught:
        SyntheticSpec(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_everything_shared_needs_no_private_weight():
    dataset = make(SyntheticSpec(shared=1.0, informativeness=0.0))
    p = dataset.posterior("test", full_masks(dataset))
    assert (p.argmax(1) == dataset.split("test").labels).mean() == pytest.approx(
        bayes_accuracy(p), abs=0.05
    )
