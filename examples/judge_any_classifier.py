"""Testing any classifier under missing modalities, with corrkd's conditions, masks and metrics.

    python examples/judge_any_classifier.py

The classifier here is scikit-learn's logistic regression on the mean of the visible frames. For
another one, change only `features` and `predict`.
"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

import corrkd
from corrkd.data.batches import Samples
from corrkd.data.normalise import fit_normalisation
from corrkd.evaluation.judge import judge_predictor
from corrkd.targets.registry import make_target

dataset = corrkd.load_dataset("synthetic")  # or any file that `corrkd data inspect` can read
target = make_target("classes", dataset)
normalisation = fit_normalisation(
    dataset.split("train"), "standard"
)  # "none": features as they are


def samples_of(split):
    return Samples(dataset.split(split), target, normalisation, device=torch.device("cpu"))


def features(frames, visible):
    """Mean of the visible frames of each modality, side by side; zeros where a modality is
    missing.
    """
    shares = {m: mask / np.maximum(mask.sum(1, keepdims=True), 1) for m, mask in visible.items()}
    return np.concatenate(
        [np.einsum("nt,ntd->nd", shares[m], x) for m, x in frames.items()], axis=1
    )


train = samples_of("train")
everything = train.take(torch.arange(len(train)))
complete = features(
    {m: x.numpy() for m, x in everything.frames.items()},
    {m: x.numpy() for m, x in everything.present.items()},
)
classifier = LogisticRegression(max_iter=1000).fit(complete, everything.targets.numpy())


def predict(frames, exists, visible):
    """Probabilities (N, K). `exists` marks what is not padding; what is missing is not visible, and
    zero.
    """
    return classifier.predict_proba(features(frames, visible))


table = judge_predictor(predict, samples_of("test"))
shown = table[table["metric"].isin(["weighted_f1", "accuracy", "ece"])]
print(
    shown.pivot_table(index="condition", columns="metric", values="value", sort=False)
    .round(3)
    .to_string()
)
area = table.loc[table["metric"] == "auc_weighted_f1", "value"].item()
print(f"area under weighted F1 over missing ratios: {area:.3f}")
