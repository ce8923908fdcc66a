"""MediaPipe's two face networks in plain torch: BlazeFace (short range) detects faces, Face Mesh
locates 468 points of one.

scripts/convert_face_mesh.py converts the weights from the npm package @mediapipe/face_mesh
(Apache-2.0, see NOTICE). Each network is a list of operations, run in order, with a table of
float16 tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from corrkd.media.decode import Picture

Points = npt.NDArray[np.float64]

WEIGHTS = Path(__file__).parents[1] / "weights" / "face_mesh.safetensors"
NUM_POINTS = 468
DETECTOR_SIZE, MESH_SIZE = 128, 192  # pixels of the networks' inputs
GRIDS = ((16, 2), (8, 6))  # of the detector: cells per side, anchors per cell
CERTAIN = 0.5  # score of a detection, and of the mesh that there is a face
SAME_FACE = 0.3  # of a box: closer detections are the same face
MARGIN = 1.5  # factor by which the input of the mesh is larger than the box
OUTER_EYES = [33, 263]  # points of the mesh: the corners of the right and the left eye
# Degrees. The detector is trained on upright faces: its roll of a face on its side is up to 15
# degrees too small, and a quarter of that error remains in the mesh. Such faces therefore pass
# through the mesh again, as MediaPipe does from one picture to the next.
TILTED = 3.0
# factor in size or score by which another face must exceed the last one to replace it
KEPT_FACE = 2.0
KEPT_MEMORY = 31 << 20  # bytes: glibc counts blocks below 32 MiB
BATCH = 8  # pictures per batch: more of them do not fit into a core's cache
# Operations whose result may be overwritten in place, by operation that overwrites it.
OVERWRITABLE = {"add": ("convolution",), "relu": ("convolution", "add")}
LOGIT = 100.0  # beyond it the exponential overflows


class Square(NamedTuple):
    """A rotated square in a picture: centre and half the side in pixels, and the angle in radians,
    clockwise on screen.
    """

    x: float
    y: float
    half: float
    angle: float


@dataclass(frozen=True)
class Face:
    """A face in a picture.

    Attributes:
        points: (468, 3) in pixels: x to the right, y down, z away from the camera.
        certainty: probability of a face according to the mesh, 0 to 1.
        square: area of the picture that the mesh has read.
        picture_size: height and width in pixels.
    """

    points: Points
    certainty: float
    square: Square
    picture_size: tuple[int, int]


class ConvolutionGraph:
    """A network as a list of operations, in channels-last memory format.

    Args:
        graph: input, outputs and steps; they refer to values by number.
        tensors: by "step.weight", "step.bias" and "step.slope".
    """

    def __init__(self, graph: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self._graph = graph
        self._tensors = {name: tensor.float() for name, tensor in tensors.items()}
        last: dict[int, int] = {
            i: number for number, step in enumerate(graph["steps"]) for i in step["inputs"]
        }
        self._unused_after = {  # so that memory is reused
            number: [i for i in step["inputs"] if last[i] == number and i not in graph["outputs"]]
            for number, step in enumerate(graph["steps"])
        }
        kinds = {step["output"]: step["kind"] for step in graph["steps"]}
        # by a sum or a rectifier: a value that nothing else reads, and that is no other one under a
        # second number
        self._overwritten = {
            number: index
            for number, step in enumerate(graph["steps"])
            for index in self._unused_after[number]
            if kinds.get(index) in OVERWRITABLE.get(step["kind"], ())
        }
        self._padding: dict[str, tuple[int, int]] = {}
        for step in graph["steps"]:
            if step["kind"] == "convolution":
                self._prepare(step)

    def _prepare(self, step: Mapping[str, Any]) -> None:
        """Convert a kernel to the layout that computes fastest. The zeros added to it change no
        result.
        """
        left, right, top, bottom = step["pad"]
        name = f"{step['name']}.weight"
        weight = self._tensors[name]
        if weight.shape[2:] == (1, 1) and step["stride"] == [1, 1]:
            self._tensors[name] = weight[:, :, 0, 0].t().contiguous()
            return
        # Unequal padding would copy the picture; a kernel that is larger by zeros pads both sides
        # alike.
        weight = functional.pad(weight, (right - left, 0, bottom - top, 0))
        self._padding[step["name"]] = bottom, right
        self._tensors[name] = weight.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> list[Tensor]:
        """Return the outputs for (N, 3, size, size)."""
        values = {self._graph["input"]: pictures.contiguous(memory_format=torch.channels_last)}
        for number, step in enumerate(self._graph["steps"]):
            output = self._apply(
                step,
                [values[i] for i in step["inputs"]],
                values.get(self._overwritten.get(number, -1)),
            )
            values[step["output"]] = (
                functional.relu_(output) if step.get("activation") == "relu" else output
            )
            for index in self._unused_after[number]:
                values.pop(index, None)
        return [values[index] for index in self._graph["outputs"]]

    def _apply(
        self, step: Mapping[str, Any], inputs: list[Tensor], overwritten: Tensor | None
    ) -> Tensor:
        kind, first = step["kind"], inputs[0]
        if kind == "convolution":
            return self._convolution(step, first)
        if kind == "prelu":
            return functional.prelu(first, self._tensors[f"{step['name']}.slope"])
        if kind == "relu":
            return functional.relu(first) if overwritten is None else functional.relu_(first)
        if kind == "add":
            return _sum(inputs, overwritten)
        if kind == "pool":
            return functional.max_pool2d(first, step["size"], step["stride"])
        if kind == "pad":  # of channels, for a sum with more of them: `_sum` takes fewer
            return first
        if kind == "reshape":  # of what the original stores with the channels last
            return first.permute(0, 2, 3, 1).reshape(len(first), *step["shape"])
        return torch.cat(inputs, step["axis"])

    def _convolution(self, step: Mapping[str, Any], values: Tensor) -> Tensor:
        weight, bias = (self._tensors[f"{step['name']}.{what}"] for what in ("weight", "bias"))
        if weight.ndim == 2:  # of a single pixel: a product
            count, channels, height, width = values.shape
            rows = torch.addmm(bias, values.permute(0, 2, 3, 1).reshape(-1, channels), weight)
            return rows.view(count, height, width, -1).permute(0, 3, 1, 2)
        padding = self._padding[step["name"]]
        return functional.conv2d(
            values, weight, bias, step["stride"], padding, groups=step["groups"]
        )


def _sum(terms: list[Tensor], overwritten: Tensor | None) -> Tensor:
    """Return the sum of (N, C, H, W) and (N, D, H, W), of which the one with fewer channels has
    zeros in place of the others.
    """
    few, many = sorted(terms, key=lambda values: values.shape[1])
    if overwritten is few and few.shape == many.shape:
        few, many = many, few
    if overwritten is not many:
        many = many.clone()
    many[:, : few.shape[1]] += few
    return many


@dataclass(frozen=True)
class Networks:
    """The contents of the file of weights.

    Attributes:
        detector, mesh: the two networks.
        vertices: (468, 3) of the canonical face in centimetres: x to its left, y up, z to the
            front.
        basis: (B,) indices of the points used to align a face to the canonical one.
        weight: (B,) their weights, summing to 1.
        sha256: SHA-256 of the file.
    """

    detector: ConvolutionGraph
    mesh: ConvolutionGraph
    vertices: Points
    basis: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]
    sha256: str


@cache
def networks() -> Networks:
    """Return the two networks and the canonical face, loaded once per process."""
    from safetensors import safe_open

    with safe_open(WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)

    def graph(name: str) -> ConvolutionGraph:
        part = {
            key.partition(".")[2]: value
            for key, value in tensors.items()
            if key.startswith(f"{name}.")
        }
        return ConvolutionGraph(json.loads(metadata[name]), part)

    # glibc keeps freed memory up to twice the largest block ever freed: without this one it gives
    # that of each layer back to the system, and clearing the next costs a quarter of the time.
    torch.empty(KEPT_MEMORY, dtype=torch.uint8)
    weight = tensors["geometry.weight"].double().numpy()
    return Networks(
        detector=graph("detector"),
        mesh=graph("mesh"),
        vertices=tensors["geometry.vertices"].double().numpy(),
        basis=tensors["geometry.index"].long().numpy(),
        weight=weight / weight.sum(),
        sha256=hashlib.sha256(WEIGHTS.read_bytes()).hexdigest(),
    )


def faces(pictures: Iterable[Picture | None]) -> Iterator[Face | None]:
    """Yield the face in each picture, or None. Of several faces, a large and certain one, with a
    preference for the last one.

    Args:
        pictures: in temporal order; an object identical to the previous one is not processed again.
            A few are held in memory at a time.
    """
    pictures, last = iter(pictures), None
    before: tuple[Picture | None, Face | None] = (None, None)
    while batch := list(islice(pictures, BATCH)):
        distinct = list({id(p): p for p in batch if p is not None and p is not before[0]}.values())
        met, last = _faces_of(distinct, last)
        by_picture = {id(picture): face for picture, face in zip(distinct, met, strict=True)}
        for picture in batch:
            if picture is not None and picture is not before[0]:
                before = picture, by_picture[id(picture)]
            yield None if picture is None else before[1]


def _faces_of(
    pictures: list[Picture], last: Square | None
) -> tuple[list[Face | None], Square | None]:
    """Return the face in each picture, and the square of the last one."""
    met: list[Face | None] = [None] * len(pictures)
    if not pictures:
        return met, last
    raw, logits = networks().detector(
        torch.stack([_scaled(picture) for picture in pictures]) * 2 - 1
    )
    squares: dict[int, Square] = {}
    for index, picture in enumerate(pictures):
        square = best_square(
            raw[index].double().numpy(),
            logits[index, :, 0].double().numpy(),
            picture.shape[:2],
            last,
        )
        if square is not None:
            squares[index] = last = square
    if not squares:
        return met, last
    looked = _looked_at(pictures, squares)
    upright = {index: upright_square(face) for index, face in looked.items()}
    looked |= _looked_at(
        pictures, {i: square for i, square in upright.items() if _tilt(looked[i], square) > TILTED}
    )
    for index, face in looked.items():
        if face.certainty > CERTAIN:
            met[index] = face
    return met, last


def _looked_at(pictures: Sequence[Picture], squares: Mapping[int, Square]) -> dict[int, Face]:
    """Return the face that the mesh locates in the square of each picture, by index of the
    picture.
    """
    if not squares:
        return {}
    crops = torch.stack(
        [cropped(pictures[index], square, MESH_SIZE) for index, square in squares.items()]
    )
    points, flags = networks().mesh(crops)
    return {
        index: Face(
            _in_picture(points[row].reshape(NUM_POINTS, 3).double().numpy(), square),
            _probability(float(flags[row].reshape(()))),
            square,
            pictures[index].shape[:2],
        )
        for row, (index, square) in enumerate(squares.items())
    }


def upright_square(face: Face) -> Square:
    """Return the square around the points of a face, rotated so that the eyes are level."""
    (x, y), (to_x, to_y) = face.points[OUTER_EYES, :2]
    angle = math.atan2(to_y - y, to_x - x)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    level = face.points[:, :2] @ turn
    low, high = level.min(0), level.max(0)
    centre = turn @ (low + high) / 2
    return Square(float(centre[0]), float(centre[1]), float(MARGIN / 2 * (high - low).max()), angle)


def _tilt(face: Face, upright: Square) -> float:
    """Return the angle in degrees between the square that the mesh has read and the upright one."""
    turn = math.degrees(upright.angle - face.square.angle)
    return abs((turn + 180) % 360 - 180)


def _tensor(picture: Picture) -> Tensor:
    """Return (1, 3, height, width) in [0, 1]."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def _scaled(picture: Picture) -> Tensor:
    """Return (3, 128, 128): the picture centred and padded with black."""
    height, width = picture.shape[:2]
    scale = DETECTOR_SIZE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = functional.interpolate(
        _tensor(picture), size, mode="bilinear", align_corners=False, antialias=True
    )[0]
    top, left = (DETECTOR_SIZE - size[0]) // 2, (DETECTOR_SIZE - size[1]) // 2
    return functional.pad(
        small, (left, DETECTOR_SIZE - size[1] - left, top, DETECTOR_SIZE - size[0] - top)
    )


def cropped(picture: Picture, square: Square, size: int) -> Tensor:
    """Return (3, size, size) in [0, 1]: the content of a square, upright; black outside the
    picture.
    """
    height, width = picture.shape[:2]
    cos, sin = math.cos(square.angle) * square.half, math.sin(square.angle) * square.half
    rows = [
        [2 * cos / width, -2 * sin / width, 2 * square.x / width - 1],
        [2 * sin / height, 2 * cos / height, 2 * square.y / height - 1],
    ]
    grid = functional.affine_grid(torch.tensor([rows]), [1, 3, size, size], align_corners=False)
    return functional.grid_sample(_tensor(picture), grid, "bilinear", "zeros", align_corners=False)[
        0
    ]


def _in_picture(points: Points, square: Square) -> Points:
    """Convert the mesh's points (468, 3) from pixels of its input to pixels of the picture."""
    flat = (points[:, :2] / MESH_SIZE * 2 - 1) * square.half
    cos, sin = math.cos(square.angle), math.sin(square.angle)
    turned = flat @ np.array([[cos, sin], [-sin, cos]]) + (square.x, square.y)
    return np.column_stack([turned, points[:, 2] / MESH_SIZE * 2 * square.half])


@cache
def _anchors() -> Points:
    """Return the centres (896, 2) of the detector's anchors, as fractions of its input size."""
    cells = []
    for side, number in GRIDS:
        middle = (np.arange(side) + 0.5) / side
        x, y = np.meshgrid(middle, middle)
        cells.append(np.repeat(np.stack([x, y], -1).reshape(-1, 2), number, 0))
    return np.concatenate(cells)


def best_square(
    raw: Points, logits: Points, size: tuple[int, int], last: Square | None
) -> Square | None:
    """Return the square around one face, rotated so that the eyes are level; None if the detector
    finds no face.

    Args:
        raw: (896, 16): centre, size and six points of each anchor's box, in pixels of the input.
        logits: (896,) logits of a face in each box.
        size: height and width of the picture in pixels.
        last: square of the previous picture, or None.
    """
    score = _probability(logits)
    certain = np.flatnonzero(score > CERTAIN)
    if not len(certain):
        return None
    height, width = size
    half = max(size) / 2

    def in_picture(offset: Points) -> Points:
        return ((offset / DETECTOR_SIZE + _anchors()[certain]) * 2 - 1) * half + (
            width / 2,
            height / 2,
        )

    boxes, score = raw[certain], score[certain]
    centres, sides = in_picture(boxes[:, :2]), boxes[:, 2:4].max(1) / DETECTOR_SIZE * 2 * half
    worth = score * sides
    if last is not None:
        near_last = np.linalg.norm(centres - (last.x, last.y), axis=1) < last.half
        worth = worth * np.where(near_last, KEPT_FACE, 1.0)
    best = worth.argmax()
    # One face has many boxes: their mean, weighted by their scores, is steadier than the best.
    same = np.linalg.norm(centres - centres[best], axis=1) < SAME_FACE * sides[best]
    weight = score * same / (score * same).sum()
    right_eye, left_eye = weight @ in_picture(boxes[:, 4:6]), weight @ in_picture(boxes[:, 6:8])
    angle = math.atan2(left_eye[1] - right_eye[1], left_eye[0] - right_eye[0])
    x, y = weight @ centres
    return Square(float(x), float(y), float(MARGIN / 2 * (weight @ sides)), angle)


def _probability(logit: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(logit, -LOGIT, LOGIT)))
