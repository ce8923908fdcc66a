"""CorrKD on your NumPy arrays: any number of modalities, with any names.

    python examples/arrays.py

Writes mine.npz, trains teacher, student and control on it, and tests the student without the
speech.
"""

import numpy as np

import corrkd

rng = np.random.default_rng(0)

# 240 recordings of 40 people, two classes. Two sequences of up to 8 frames, and one vector for each
# recording.
count, frames = 240, 8
labels = rng.integers(2, size=count)
lengths = rng.integers(4, frames + 1, size=count)


def hint(strength):
    """What all frames of a recording say of its label."""
    return strength * (2 * labels - 1) + rng.normal(size=count)


speech = hint(1.0)[:, None, None] + rng.normal(size=(count, frames, 12))
gaze = hint(0.6)[:, None, None] + rng.normal(size=(count, frames, 6))
form = hint(0.8)[:, None] + rng.normal(size=(count, 5))

np.savez(
    "mine.npz",
    speech=speech,
    speech_lengths=lengths,
    gaze=gaze,
    gaze_lengths=lengths,
    form=form,
    labels=labels,
    class_names=np.array(["calm", "tense"]),
    person=np.array([f"person-{i % 40}" for i in range(count)]),  # nobody will be in two splits
)

# What is not named here keeps its default: docs/running.md lists every setting.
settings = corrkd.load_settings(
    data={"path": "mine.npz", "target": "classes"},
    teacher={
        "network": {"width": 16, "heads": 4, "layers": 1, "feedforward": 32},  # the student's too
        "epochs": 6,
        "batch_size": 32,
        "lr": 3e-3,
    },
    student={"epochs": 8, "batch_size": 32, "lr": 3e-3},
    evaluation={"conditions": {"ratio": [0.0, 0.5, 1.0], "burst": []}, "draws": 1},
)
done = corrkd.run(settings, "runs/mine", overwrite=True)
print("weighted F1, averaged over the missing subsets:")
print(done.average().round(3).to_string())

student = corrkd.load_student("runs/mine")
table = corrkd.evaluate(
    student, corrkd.load_dataset("mine.npz"), conditions=["complete", "gaze+form", "ratio-0.5"]
)
print("\nthe student:")
print(
    table.pivot_table(index="condition", columns="metric", values="value", sort=False)
    .round(3)
    .to_string()
)
