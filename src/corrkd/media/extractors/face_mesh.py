"""Vision from the embedded networks: distances between points of the face, and the pose and
position of the head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from corrkd.data.dataset import FloatArray
from corrkd.media.clip import Clip
from corrkd.media.extractors.base import Extractor, Frames
from corrkd.media.extractors.face_networks import WEIGHTS, Face, Points, networks
from corrkd.media.extractors.steps import WithFaces, face_frames

# Pairs of points of the mesh whose distance facial muscles change; `right` is the person's right.
DISTANCES = {
    "brow_inner_right": (107, 133),
    "brow_middle_right": (105, 159),
    "brow_outer_right": (70, 33),
    "brow_inner_left": (336, 362),
    "brow_middle_left": (334, 386),
    "brow_outer_left": (300, 263),
    "brows_apart": (107, 336),
    "eye_open_right": (159, 145),
    "eye_open_left": (386, 374),
    "eye_open_inner_right": (158, 153),
    "eye_open_inner_left": (385, 380),
    "lid_to_brow_right": (66, 158),
    "lid_to_brow_left": (296, 385),
    "cheek_to_eye_right": (145, 50),
    "cheek_to_eye_left": (374, 280),
    "nose_to_brow_right": (107, 168),
    "nose_to_brow_left": (336, 168),
    "nostrils": (98, 327),
    "nose_to_lip": (2, 0),
    "mouth_open": (13, 14),
    "mouth_width": (61, 291),
    "lips_height": (0, 17),
    "upper_lip": (0, 13),
    "lower_lip": (14, 17),
    "corner_to_eye_right": (61, 133),
    "corner_to_eye_left": (291, 362),
    "corner_to_nose_right": (61, 48),
    "corner_to_nose_left": (291, 278),
    "lip_to_chin": (17, 152),
    "face_height": (168, 152),
    "corner_to_chin_right": (61, 152),
    "corner_to_chin_left": (291, 152),
    "mouth_open_right": (81, 178),
    "mouth_open_left": (311, 402),
}
POSE = ("yaw", "pitch", "roll")  # radians
POSITION = ("size", "x", "y")  # size in heights of the picture; x and y of the centre, -1 to 1
FACE_HEIGHT = 15.0  # centimetres: height of the canonical face, for `size`
_PAIRS = np.array(list(DISTANCES.values()))


class FaceMesh(Extractor):
    """40 features at 10 frames per second: 34 distances in centimetres on the face scaled to
    canonical size and turned to the front, and the head's pose and position.
    """

    name: ClassVar[str] = "facemesh"
    version: ClassVar[int] = 2
    modality: ClassVar[str] = "vision"
    columns: tuple[str, ...] = (*DISTANCES, *POSE, *POSITION)
    libraries: ClassVar[tuple[str, ...]] = ("av", "numpy", "torch")

    def weights(self) -> Mapping[str, str]:
        """Return the SHA-256 of the file of weights."""
        return {WEIGHTS.name: networks().sha256}

    def frames(self, clip: Clip) -> Frames:
        """Return (steps, 40). Steps without a face or without a picture are missing."""
        return face_frames([clip], self.width, _rows)[0]


def _rows(pictures: WithFaces) -> Iterator[FloatArray | None]:
    """Yield the features of the face in each picture, or None."""
    for _, face in pictures:
        yield None if face is None else measured(face)


def measured(face: Face) -> npt.NDArray[np.float32]:
    """Return the (40,) features of a face."""
    height, width = face.picture_size
    rotation, scale, canonical = laid_on_canonical(face.points)
    distances = np.linalg.norm(canonical[_PAIRS[:, 0]] - canonical[_PAIRS[:, 1]], axis=1)
    pose = (
        math.asin(np.clip(-rotation[2, 0], -1, 1)),
        math.atan2(rotation[2, 1], rotation[2, 2]),
        math.atan2(rotation[1, 0], rotation[0, 0]),
    )
    x, y = face.points[:, :2].mean(0)
    position = (FACE_HEIGHT / scale / height, x / width * 2 - 1, y / height * 2 - 1)
    return np.array([*distances, *pose, *position], np.float32)


def laid_on_canonical(points: Points) -> tuple[Points, float, Points]:
    """Align a face to the canonical one (weighted Procrustes analysis).

    Args:
        points: (468, 3) in pixels, y down, z away from the camera.

    Returns:
        The rotation (3, 3) from the canonical face to the picture's, the scale in centimetres per
        pixel, and the aligned points (468, 3) in centimetres.
    """
    net = networks()
    upright = points * (1, -1, -1)  # y up, z towards the camera
    source, target = upright[net.basis], net.vertices[net.basis]
    source_mean, target_mean = net.weight @ source, net.weight @ target
    source, target = source - source_mean, target - target_mean
    u, singular, vt = np.linalg.svd((target * net.weight[:, None]).T @ source)
    proper = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])  # a rotation, not a reflection
    turn = (u * proper) @ vt
    scale = float((singular * proper).sum() / (net.weight @ (source**2).sum(1)))
    return turn.T, scale, scale * (upright - source_mean) @ turn.T
