"""The outline of a face: which of its 468 points are drawn, and in which order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from corrkd.media.extractors.face_networks import Face

# Points of Face Mesh, each line in the order in which it is drawn.
OUTLINE: dict[str, tuple[int, ...]] = {
    "face": (
        *(
            10,
            338,
            297,
            332,
            284,
            251,
            389,
            356,
            454,
            323,
            361,
            288,
            397,
            365,
            379,
            378,
            400,
            377,
            152,
        ),
        *(148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109, 10),
    ),
    "lips": (
        61,
        146,
        91,
        181,
        84,
        17,
        314,
        405,
        321,
        375,
        291,
        409,
        270,
        269,
        267,
        0,
        37,
        39,
        40,
        185,
        61,
    ),
    "mouth": (
        78,
        95,
        88,
        178,
        87,
        14,
        317,
        402,
        318,
        324,
        308,
        415,
        310,
        311,
        312,
        13,
        82,
        81,
        80,
        191,
        78,
    ),
    "right eye": (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246, 33),
    "left eye": (
        263,
        249,
        390,
        373,
        374,
        380,
        381,
        382,
        362,
        398,
        384,
        385,
        386,
        387,
        388,
        466,
        263,
    ),
    "right brow": (70, 63, 105, 66, 107),
    "left brow": (300, 293, 334, 296, 336),
    "nose": (168, 6, 197, 195, 5, 4, 1, 19, 94, 2),
    "nostrils": (98, 97, 2, 326, 327),
}
SCALE = 10_000  # units per width and height of the picture
NUM_OUTLINE_POINTS = sum(map(len, OUTLINE.values()))
_POINTS = np.array([point for line in OUTLINE.values() for point in line])


def outline(face: Face) -> npt.NDArray[np.int16]:
    """Return (NUM_OUTLINE_POINTS, 2) x and y of a face's outline, line after line; `SCALE` units
    are the width or height of the picture.
    """
    height, width = face.picture_size
    scaled = face.points[_POINTS, :2] / (width, height) * SCALE
    return np.clip(np.nan_to_num(np.round(scaled)), -SCALE, 2 * SCALE).astype(np.int16)
