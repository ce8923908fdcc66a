"""Convert MediaPipe's face networks to the weights that `corrkd.media` ships. A developer's tool.

    npm pack @mediapipe/face_mesh@0.4.1657299874
    pip install tflite safetensors ai-edge-litert
    python scripts/convert_face_mesh.py mediapipe-face_mesh-0.4.1657299874.tgz

It takes three files out of the package (Apache-2.0, Google LLC): the short-range BlazeFace
detector, the mesh of 468 points and the canonical face. Each network becomes a list of operations
(JSON) and a table of float16 tensors, as the original stores them; nothing is trained or changed.
With `--reference FILE` it also runs the original networks by LiteRT on `reference_input`, for the
test of equality.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tflite
from safetensors.numpy import save_file

Array = npt.NDArray[Any]

WEIGHTS = (
    Path(__file__).parents[1] / "src" / "corrkd" / "media" / "weights" / "face_mesh.safetensors"
)
ASSETS, LOADER = (
    "package/face_mesh_solution_packed_assets.data",
    "package/face_mesh_solution_packed_assets_loader.js",
)
NETWORKS = {"detector": "face_detection_short_range.tflite", "mesh": "face_landmark.tflite"}
GEOMETRY = "geometry_pipeline_metadata_landmarks.binarypb"
DTYPES = {
    tflite.TensorType.FLOAT32: np.float32,
    tflite.TensorType.FLOAT16: np.float16,
    tflite.TensorType.INT32: np.int32,
}
ACTIVATIONS = {tflite.ActivationFunctionType.NONE: None, tflite.ActivationFunctionType.RELU: "relu"}
VERTEX = 5  # numbers a vertex of the canonical face: x, y, z and two of a texture


def assets_of(package: Path) -> dict[str, bytes]:
    """Return the packed files of the npm package, by their last name."""
    with tarfile.open(package) as archive:
        members = {name: archive.extractfile(name) for name in (ASSETS, LOADER)}
        data, loader = (file.read() for file in members.values() if file is not None)
    files = re.findall(r'"filename": "([^"]+)", "start": (\d+), "end": (\d+)', loader.decode())
    return {name.rpartition("/")[2]: data[int(start) : int(end)] for name, start, end in files}


class Converter:
    """Converts one .tflite of plain convolutions."""

    def __init__(self, data: bytes) -> None:
        self.model = tflite.Model.GetRootAs(data, 0)
        self.graph = self.model.Subgraphs(0)
        self.constants: dict[int, Array] = {}
        self.tensors: dict[str, Array] = {}
        for index in range(self.graph.TensorsLength()):
            tensor = self.graph.Tensors(index)
            buffer = self.model.Buffers(tensor.Buffer())
            if buffer.DataLength():
                values = np.frombuffer(buffer.DataAsNumpy().tobytes(), DTYPES[tensor.Type()])
                self.constants[index] = values.reshape(
                    tensor.ShapeAsNumpy() if tensor.ShapeLength() else ()
                )

    def convert(self) -> dict[str, Any]:
        """Return the operations; their tensors are in `tensors`."""
        steps = []
        for number in range(self.graph.OperatorsLength()):
            operator = self.graph.Operators(number)
            code = self.model.OperatorCodes(operator.OpcodeIndex())
            kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            inputs, output = (
                operator.InputsAsNumpy().tolist(),
                operator.OutputsAsNumpy().tolist()[0],
            )
            if kind == tflite.BuiltinOperator.DEQUANTIZE:
                self.constants[output] = self.constants[inputs[0]]
                continue
            step = {
                "inputs": [i for i in inputs if i >= 0 and i not in self.constants],
                "output": output,
            }
            steps.append(step | self._operation(kind, operator, inputs, output, str(number)))
        outputs = self.graph.OutputsAsNumpy().tolist()
        return {"input": int(self.graph.Inputs(0)), "outputs": outputs, "steps": steps}

    def _operation(
        self, kind: int, operator: Any, inputs: list[int], output: int, name: str
    ) -> dict[str, Any]:
        known = tflite.BuiltinOperator
        if kind in (known.CONV_2D, known.DEPTHWISE_CONV_2D):
            return self._convolution(
                operator, inputs, output, name, depthwise=kind == known.DEPTHWISE_CONV_2D
            )
        if kind == known.PRELU:
            self._keep(f"{name}.slope", self.constants[inputs[1]].reshape(-1))
            return {"kind": "prelu", "name": name}
        if kind == known.RELU:
            return {"kind": "relu"}
        if kind == known.ADD:
            return {"kind": "add", "activation": _activation(operator, tflite.AddOptions)}
        if kind == known.MAX_POOL_2D:
            pool = _options(operator, tflite.Pool2DOptions)
            return {"kind": "pool", "size": pool.FilterHeight(), "stride": pool.StrideH()}
        if kind == known.PAD:
            pads = self.constants[inputs[1]].tolist()
            return {
                "kind": "pad",
                "pad": [*pads[2], *pads[1], *pads[3]],
            }  # of NHWC, as torch orders them: W, H, C
        if kind == known.RESHAPE:
            return {"kind": "reshape", "shape": self._shape(output)[1:]}
        if kind == known.CONCATENATION:
            return {
                "kind": "concatenate",
                "axis": _options(operator, tflite.ConcatenationOptions).Axis(),
            }
        raise SystemExit(f"no conversion for {tflite.opcode2name(kind)}")

    def _convolution(
        self, operator: Any, inputs: list[int], output: int, name: str, *, depthwise: bool
    ) -> dict[str, Any]:
        options = _options(
            operator, tflite.DepthwiseConv2DOptions if depthwise else tflite.Conv2DOptions
        )
        kernel = self.constants[inputs[1]]  # (out, H, W, in); depthwise (1, H, W, out)
        stride = [options.StrideH(), options.StrideW()]
        self._keep(
            f"{name}.weight",
            kernel.transpose(3, 0, 1, 2) if depthwise else kernel.transpose(0, 3, 1, 2),
        )
        self._keep(f"{name}.bias", self.constants[inputs[2]])
        return {
            "kind": "convolution",
            "name": name,
            "stride": stride,
            "pad": self._padding(inputs[0], output, kernel.shape[1:3], stride, options.Padding()),
            "groups": kernel.shape[3] if depthwise else 1,
            "activation": ACTIVATIONS[options.FusedActivationFunction()],
        }

    def _padding(
        self, source: int, output: int, kernel: tuple[int, ...], stride: list[int], padding: int
    ) -> list[int]:
        """Return (left, right, top, bottom), as `torch.nn.functional.pad` takes them."""
        if padding == tflite.Padding.VALID:
            return [0, 0, 0, 0]
        before, after = self._shape(source), self._shape(output)
        pads = []
        for axis, side in ((2, 1), (1, 0)):
            total = max((after[axis] - 1) * stride[side] + kernel[side] - before[axis], 0)
            pads += [total // 2, total - total // 2]
        return pads

    def _shape(self, index: int) -> list[int]:
        return self.graph.Tensors(index).ShapeAsNumpy().tolist()

    def _keep(self, name: str, values: Array) -> None:
        half = np.ascontiguousarray(values).astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values.astype(np.float32)):
            raise SystemExit(f"{name}: float16 does not hold its values")
        self.tensors[name] = half


def _options(operator: Any, kind: Any) -> Any:
    options, table = kind(), operator.BuiltinOptions()
    options.Init(table.Bytes, table.Pos)
    return options


def _activation(operator: Any, kind: Any) -> str | None:
    return ACTIVATIONS[_options(operator, kind).FusedActivationFunction()]


# --------------------------------------------------------------------------------------------------
# the canonical face


def canonical_face(data: bytes) -> dict[str, Array]:
    """Return the vertices (468, 3) in centimetres, and index and weight of the points by which
    faces are laid onto them.
    """
    vertices = np.zeros(0, np.float32)
    index, weight = [], []
    for field, value in _fields(data):
        if field == 1:  # canonical_mesh
            packed = [part for number, part in _fields(value) if number == 3]
            vertices = np.frombuffer(b"".join(packed), np.float32).reshape(-1, VERTEX)[:, :3]
        elif field == 2:  # procrustes_landmark_basis
            pair = dict(_fields(value))
            index.append(pair.get(1, 0))
            weight.append(struct.unpack("<f", pair[2])[0])
    return {
        "geometry.vertices": np.ascontiguousarray(vertices),
        "geometry.index": np.array(index, np.int32),
        "geometry.weight": np.array(weight, np.float32),
    }


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a protocol buffer's fields; values of four bytes stay bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        size, at = (4, at) if wire == 5 else _varint(data, at)
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


# --------------------------------------------------------------------------------------------------
# reference


def reference_input(size: int) -> npt.NDArray[np.float32]:
    """Return a picture (size, size, 3) in [0, 1] of smooth waves, the same in every run; the test
    makes it again.
    """
    y, x, channel = np.meshgrid(np.arange(size), np.arange(size), np.arange(3), indexing="ij")
    return (0.5 + 0.5 * np.sin(0.11 * x + 0.07 * y * (channel + 1) + channel)).astype(np.float32)


def reference(files: dict[str, bytes]) -> dict[str, Array]:
    """Return what the original networks make of `reference_input`; of the detector's anchors every
    eighth.
    """
    from ai_edge_litert.interpreter import Interpreter

    out = {}
    for name, file in NETWORKS.items():
        interpreter = Interpreter(model_content=files[file])
        interpreter.allocate_tensors()
        given = interpreter.get_input_details()[0]
        picture = reference_input(given["shape"][1])
        interpreter.set_tensor(
            given["index"], (picture * 2 - 1 if name == "detector" else picture)[None]
        )
        interpreter.invoke()
        for number, output in enumerate(interpreter.get_output_details()):
            values = interpreter.get_tensor(output["index"])[0]
            out[f"{name}.{number}"] = np.ascontiguousarray(
                values[::8] if name == "detector" else values.reshape(-1)
            )
    return out


def main() -> None:
    """Convert; see the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--reference", type=Path)
    options = parser.parse_args()
    files = assets_of(options.package)
    tensors, graphs = canonical_face(files[GEOMETRY]), {}
    for name, file in NETWORKS.items():
        converter = Converter(files[file])
        graphs[name] = json.dumps(converter.convert(), separators=(",", ":"))
        tensors |= {f"{name}.{key}": values for key, values in converter.tensors.items()}
    source = "npm package @mediapipe/face_mesh, Apache-2.0, Google LLC; converted, see NOTICE"
    save_file(tensors, options.out, metadata={**graphs, "source": source})
    if options.reference:
        save_file(reference(files), options.reference)


if __name__ == "__main__":
    main()
