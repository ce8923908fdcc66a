"""The service as a client sees it: a separate process, real sockets, good and bad bodies."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

import corrkd
from corrkd.data.batches import sample_key
from corrkd.data.synthetic import SyntheticSpec, make
from corrkd.errors import CorrKDError
from corrkd.missing.masks import drop_frames, uniform
from corrkd.serve.predictor import Predictor
from corrkd.serve.server import bound
from tests.command import TINY
from tests.command import corrkd as corrkd_command
from tests.serve.conftest import sample_of
from tests.serve.running import Running, running

JSON, NPZ = "application/json", "application/x-npz"
HOLE = {"language": [[0.5] * 8, None, [1.0] * 8], "vision": None}


@pytest.fixture(scope="module")
def service(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(
        served, tmp_path_factory.mktemp("log") / "log", "--max-body", "0.2", "--body-seconds", "2"
    ) as started:
        yield started


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def samples(count: int) -> list[dict[str, Any]]:
    split = make(SyntheticSpec(**TINY["data"]["synthetic"])).split("test")
    return [sample_of(split, row % len(split)) for row in range(count)]


def as_json(sample: dict[str, Any]) -> dict[str, Any]:
    return {m: x.tolist() for m, x in sample.items()}


def post(service: Running, sample: Any, **options: Any) -> httpx.Response:
    return httpx.post(
        f"{service.url}/v1/predict", json={"samples": [sample]}, timeout=60, **options
    )


def same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare up to rounding, which depends on the rest of the batch."""
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert actual[key] == (pytest.approx(value, abs=1e-5) if key == "probabilities" else value)


# --------------------------------------------------------------------------------------------------
# predictions


def test_predicts_as_the_predictor(service: Running, served: Path) -> None:
    predictor, inputs = Predictor.from_pretrained(served), [*map(as_json, samples(5)), HOLE]
    response = httpx.post(f"{service.url}/v1/predict", json={"samples": inputs})
    assert response.status_code == 200
    body = response.json()
    assert body["model"] == predictor.card["sha256"]
    assert len(body["predictions"]) == 6
    for actual, sample in zip(body["predictions"], inputs, strict=True):
        same(actual, json.loads(json.dumps(predictor.predict(sample).to_json())))


@pytest.mark.parametrize("kind", [NPZ, "application/octet-stream", "Application/X-NPZ; v=1"])
def test_takes_npz(service: Running, served: Path, kind: str) -> None:
    sample = samples(1)[0] | {"audio_present": np.array([True, False, True, True])}
    response = httpx.post(
        f"{service.url}/v1/predict", content=npz(**sample), headers={"content-type": kind}
    )
    expected = Predictor.from_pretrained(served).predict(sample).to_json()
    same(response.json()["predictions"][0], json.loads(json.dumps(expected)))
    assert expected["used"]["audio"] == 0.75


def test_describes_the_model(service: Running, served: Path) -> None:
    body = httpx.get(f"{service.url}/v1/model").json()
    card = Predictor.from_pretrained(served).card
    assert body["modalities"] == card["modalities"]
    assert body["evaluated"] == card["evaluated"]
    assert body["corrkd"] == corrkd.__version__
    assert httpx.get(f"{service.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{service.url}/readyz").json() == {"status": "ready"}


def metric(service: Running, name: str) -> float:
    text = httpx.get(f"{service.url}/metrics").text
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)
    )


def test_metrics_count_requests_and_predictions(service: Running) -> None:
    answered = 'corrkd_requests_total{path="/v1/predict",status="200"}'
    before, alone = (
        metric(service, answered),
        metric(service, 'corrkd_predictions_total{condition="audio"}'),
    )
    post(service, {"audio": [[0.0] * 8]})
    post(service, {"smell": []})
    assert metric(service, answered) == before + 1
    assert metric(service, 'corrkd_predictions_total{condition="audio"}') == alone + 1
    assert metric(service, 'corrkd_requests_total{path="/v1/predict",status="422"}') >= 1


def test_requests_are_batched(service: Running, served: Path) -> None:
    before = (
        metric(service, "corrkd_batch_samples_count"),
        metric(service, "corrkd_batch_samples_sum"),
    )
    inputs, results = [as_json(s) for s in samples(18)] * 4, {}

    def ask(i: int) -> None:
        results[i] = post(service, inputs[i]).json()["predictions"][0]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(48)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metric(service, "corrkd_batch_samples_sum") == before[1] + 48
    assert metric(service, "corrkd_batch_samples_count") < before[0] + 48
    expected = Predictor.from_pretrained(served).predict(inputs[:48])
    for i, prediction in enumerate(expected):
        same(results[i], json.loads(json.dumps(prediction.to_json())))


# --------------------------------------------------------------------------------------------------
# bad bodies


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f8", "fortran_order": False, "shape": (4_000_000, 8)}
        )
        archive.writestr("language.npy", header.getvalue() + bytes(32_000_000))
    return file.getvalue()


def odd_archive(header: bytes = b"", method: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive whose array has this header, or whose compressed bytes are damaged."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        if header:
            archive.writestr(
                "audio.npy",
                b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(96),
            )
        else:
            archive.writestr("audio.npy", npy(np.arange(8000.0).reshape(-1, 8)))
    out = bytearray(file.getvalue())
    if not header:
        out[100:160] = b"\xff" * 60
    return bytes(out)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


GOOD = json.dumps({"samples": [{"audio": [[0.0] * 8]}]}).encode()
BAD: dict[str, tuple[bytes, str, int, str]] = {
    "empty": (b"", JSON, 422, "Invalid JSON"),
    "no json": (b"{", JSON, 422, "Invalid JSON"),
    "no utf-8": (b"\xff\xfe", JSON, 422, "Invalid JSON"),
    "deep": (b"[" * 50_000, JSON, 422, "Invalid JSON"),
    "a list": (b"[]", JSON, 422, "body: Input should be an object"),
    "nothing in it": (b"{}", JSON, 422, "samples: Field required"),
    "no sample": (b'{"samples": []}', JSON, 422, "samples: "),
    "empty sample": (b'{"samples": [{}]}', JSON, 422, "samples.0: no modality is given"),
    "all null": (b'{"samples": [{"audio": null}]}', JSON, 422, "samples.0: no modality is given"),
    "unknown": (
        b'{"samples": [{"smell": [[1]]}]}',
        JSON,
        422,
        "samples.0.smell: not a modality of this model; it has lang",
    ),
    "width": (
        b'{"samples": [{"audio": [[1, 2]]}]}',
        JSON,
        422,
        "samples.0.audio.0: List should have at least 8 items",
    ),
    "text": (
        b'{"samples": [{"audio": [["1",2,3,4,5,6,7,8]]}]}',
        JSON,
        422,
        "samples.0.audio.0.0: Input should be a valid number",
    ),
    "nan": (
        b'{"samples": [{"audio": [[NaN,2,3,4,5,6,7,8]]}]}',
        JSON,
        422,
        "samples.0.audio.0.0: Input should be a finite number",
    ),
    "huge": (
        b'{"samples": [{"audio": [[1e39,2,3,4,5,6,7,8]]}]}',
        JSON,
        422,
        "samples.0.audio.0.0: Input should be less than",
    ),
    "no frames": (
        b'{"samples": [{"audio": []}]}',
        JSON,
        422,
        "samples.0.audio: List should have at least 1 item",
    ),
    "more keys": (GOOD[:-1] + b', "x": 1}', JSON, 422, "x: Extra inputs are not permitted"),
    "key twice": (
        GOOD[:-1] + b', "samples": ' + GOOD[12:],
        JSON,
        422,
        "body: 'samples' appears 2 times in one object",
    ),
    "modality twice": (
        rb'{"samples": [{"audio": null, "a\u0075dio": [[0,0,0,0,0,0,0,0]]}]}',
        JSON,
        422,
        "body: 'audio' appears 2 times in one object",
    ),
    "names": (
        b"{" + b",".join(b'"%d":0' % n for n in range(9000)) + b"}",
        JSON,
        413,
        "more values, lists or names than a request may",
    ),
    "other type": (
        GOOD,
        "text/plain",
        415,
        "content type 'text/plain': send application/json or application/x-npz",
    ),
    "no zip": (GOOD, NPZ, 422, "body: a damaged .npz file"),
    "cut off": (npz(audio=np.zeros((4, 8)))[:-40], NPZ, 422, "body: a damaged .npz file"),
    "pickle": (npz(audio=np.array([{}], object)), NPZ, 422, "pickled objects"),
    "lzma": (odd_archive(method=zipfile.ZIP_LZMA), NPZ, 422, "body: a damaged .npz file"),
    "bzip2": (odd_archive(method=zipfile.ZIP_BZIP2), NPZ, 422, "body: a damaged .npz file"),
    "half a header": (
        odd_archive(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,8"),
        NPZ,
        422,
        "a damaged .npz file",
    ),
    "no type": (
        odd_archive(b"{'descr': [], 'fortran_order': False, 'shape': (3,8)}".ljust(117) + b"\n"),
        NPZ,
        422,
        "body",
    ),
    "bomb": (bomb(), NPZ, 422, "refused as a decompression bomb"),
    "npz width": (
        npz(audio=np.zeros((4, 7))),
        NPZ,
        422,
        r"samples.0, audio: shape (4, 7), expected (frames, 8)",
    ),
    "npz nan": (
        npz(audio=np.full((4, 8), np.nan)),
        NPZ,
        422,
        "samples.0, audio: NaN or infinite values in frame 0",
    ),
    "npz unknown": (npz(smell=np.zeros((4, 8))), NPZ, 422, "'smell' is not a modality"),
    "npz too long": (
        npz(audio=np.zeros((5000, 8), np.float16)),
        NPZ,
        422,
        "audio: 5000 frames, more than 1024",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bodies_are_refused_in_one_line(service: Running, name: str) -> None:
    body, kind, status, message = BAD[name]
    response = httpx.post(f"{service.url}/v1/predict", content=body, headers={"content-type": kind})
    assert (response.status_code, list(response.json())) == (status, ["detail"])
    assert message in response.json()["detail"]
    assert "\n" not in response.json()["detail"]
    assert post(service, {"audio": [[0.0] * 8]}).status_code == 200


def test_too_large_bodies(service: Running) -> None:
    large = b" " * 300_000 + GOOD
    for content in (
        large,
        (large[start : start + 10_000] for start in range(0, len(large), 10_000)),
    ):  # declared, and in chunks
        response = httpx.post(
            f"{service.url}/v1/predict", content=content, headers={"content-type": JSON}
        )
        assert response.status_code == 413
        assert "larger than 200,000 bytes" in response.json()["detail"]
    small = b" " * 150_000 + GOOD
    assert (
        httpx.post(
            f"{service.url}/v1/predict", content=small, headers={"content-type": JSON}
        ).status_code
        == 200
    )


def test_too_many_samples(service: Running) -> None:
    response = httpx.post(
        f"{service.url}/v1/predict", json={"samples": [{"audio": [[0] * 8]}] * 257}
    )
    assert response.status_code == 422
    assert "at most 256 items" in response.json()["detail"]


def exchange(service: Running, *chunks: bytes) -> bytes:
    """Send these chunks; return what the service sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as client:
        for chunk in chunks:
            client.sendall(chunk)
        received = b""
        while chunk := client.recv(65536):
            received += chunk
        return received


def head(length: int, *extra: bytes) -> bytes:
    lines = [
        b"POST /v1/predict HTTP/1.1",
        b"Host: localhost",
        b"Content-Type: application/json",
        b"Content-Length: %d" % length,
    ]
    return b"\r\n".join([*lines, *extra, b"", b""])


def test_slow_clients_are_disconnected_and_block_nobody(service: Running) -> None:
    responses: dict[str, bytes] = {}
    slow = {"body": (head(len(GOOD)), GOOD[:10]), "head": (head(len(GOOD))[:40],), "nothing": ()}

    def send(name: str) -> None:
        responses[name] = exchange(service, *slow[name])

    threads = [threading.Thread(target=send, args=(name,)) for name in slow]
    for thread in threads:
        thread.start()
    assert post(service, {"audio": [[0.0] * 8]}).status_code == 200
    for thread in threads:
        thread.join(30)
    assert responses["body"].startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 2 seconds" in responses["body"]
    assert (responses["head"], responses["nothing"]) == (b"", b"")


@pytest.mark.slow
def test_clients_that_do_not_read_are_disconnected_and_block_nobody(
    served: Path, tmp_path: Path
) -> None:
    """While the service runs, and when it stops."""
    count = 3000
    with running(served, tmp_path / "log", "--body-seconds", "1") as service:
        size = len(httpx.get(f"{service.url}/openapi.json").content)
        clients = [
            stalled_client(
                service, b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * count
            )
            for _ in range(2)
        ]
        assert post(service, {"audio": [[0.0] * 8]}).status_code == 200
        time.sleep(3)
        assert len(read_all(clients[0])) < size * count / 2
        clients.append(
            stalled_client(
                service, b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * count
            )
        )
        assert service.stop() == 0
        for client in clients:
            client.close()
        assert "timeout graceful shutdown exceeded" not in service.text
        assert "Traceback" not in service.text


def stalled_client(service: Running, data: bytes) -> socket.socket:
    """Return a client that has sent what it could of the data and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", service.port))
    client.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        client.sendall(data)
    return client


def read_all(client: socket.socket) -> bytes:
    """Read until the service closes the connection."""
    received = b""
    client.settimeout(30)
    with contextlib.suppress(ConnectionResetError):
        while chunk := client.recv(65536):
            received += chunk
    return received


def test_malformed_http(service: Running) -> None:
    assert exchange(service, b"NONSENSE\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert (
        b" 413 " in exchange(service, head(10**12, b"Expect: 100-continue")).partition(b"\r\n")[0]
    )
    assert post(service, {"audio": [[0.0] * 8]}).status_code == 200


def test_disconnected_clients_free_their_slots(served: Path, tmp_path: Path) -> None:
    with running(served, tmp_path / "log", "--max-requests", "1") as service:
        for body in (GOOD[:10], GOOD) * 2:  # while it is read, and while it is predicted
            with socket.create_connection(("127.0.0.1", service.port)) as client:
                client.sendall(head(len(GOOD)) + body)
        end = time.monotonic() + 60
        while (
            status := post(service, {"audio": [[0.0] * 8]}).status_code
        ) == 503 and time.monotonic() < end:
            time.sleep(0.05)
        assert status == 200
        assert "Traceback" not in service.text


# --------------------------------------------------------------------------------------------------
# limits and tokens


def test_a_token(served: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    with running(served, tmp_path / "log", "--token-file", str(tmp_path / "token")) as service:
        sample = {"audio": [[0.0] * 8]}
        for authorization in (
            None,
            "Bearer wrong",
            "Bearer s3cre",
            "Bearer s3cretx",
            "Basic s3cret",
            "s3cret",
            "Bearer",
            "Bearer é",
        ):
            headers = {} if authorization is None else {"authorization": authorization.encode()}
            response = post(service, sample, headers=headers)
            assert response.status_code == 401, authorization
            assert response.headers["www-authenticate"] == "Bearer"
            assert "s3cret" not in response.text
        for path in ("/v1/model", "/metrics", "/v1/samples", "/openapi.json"):
            assert httpx.get(f"{service.url}{path}").status_code == 401
        for path in ("/healthz", "/readyz", "/", "/static/app.js"):
            assert httpx.get(f"{service.url}{path}").status_code == 200
        assert post(service, sample, headers={"authorization": "Bearer s3cret"}).status_code == 200
        assert post(service, sample, headers={"authorization": "bearer  s3cret"}).status_code == 200


def test_a_token_from_the_environment(served: Path, tmp_path: Path) -> None:
    with running(served, tmp_path / "log", environment={"CORRKD_TOKEN": "hush"}) as service:
        assert httpx.get(f"{service.url}/v1/model").status_code == 401
        assert (
            httpx.get(
                f"{service.url}/v1/model", headers={"authorization": "Bearer hush"}
            ).status_code
            == 200
        )


def test_listens_only_on_loopback(service: Running) -> None:
    assert service.url.startswith("http://127.0.0.1:")


@pytest.mark.slow
def test_addresses_that_cannot_be_used(service: Running, served: Path, tmp_path: Path) -> None:
    for options in (("--port", service.port), ("--host", ".")):
        assert corrkd_command("serve", served, *options).line.startswith("error: cannot listen on ")
    with contextlib.closing(bound("127.0.0.1", 0)) as listener:  # before a service runs there
        port = listener.getsockname()[1]
        assert (
            listener.proto == socket.IPPROTO_TCP
        )  # else each response waits 40 ms for the client's acknowledgement
        with pytest.raises(
            CorrKDError, match=f"cannot listen on 127.0.0.1, port {port}: Address already in use"
        ):
            bound("127.0.0.1", port)
    with running(served, tmp_path / "log", "--host", "localhost") as other:  # and by name
        assert httpx.get(f"{other.url}/readyz").status_code == 200
        assert other.stop() == 0


# --------------------------------------------------------------------------------------------------
# shutdown


def test_sigterm_under_load_loses_no_accepted_request(served: Path, tmp_path: Path) -> None:
    """Every accepted request gets a complete response."""
    with running(served, tmp_path / "log") as service:
        inputs = [as_json(s) for s in samples(4)]
        answered, refused, broken = [0] * 12, [0] * 12, []
        stopping = threading.Event()

        def ask(number: int) -> None:
            with httpx.Client() as client:
                while True:
                    try:
                        response = client.post(
                            f"{service.url}/v1/predict", json={"samples": inputs}, timeout=60
                        )
                    except httpx.TransportError as error:
                        if not stopping.is_set():
                            broken.append(repr(error))
                        refused[number] += 1
                        return
                    if response.status_code != 200 or len(response.json()["predictions"]) != 4:
                        broken.append(response.text)
                    answered[number] += 1

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        stopping.set()
        code = service.stop()
        for thread in threads:
            thread.join(60)
        assert code == 0, service.text
        assert not broken
        assert refused == [1] * 12
        counts = re.search(
            r"(\d+) requests for the model were accepted, (\d+) answered", service.text
        )
        assert counts is not None, service.text
        assert int(counts[1]) == int(counts[2]) == sum(answered) > 12
        assert "Traceback" not in service.text


# --------------------------------------------------------------------------------------------------
# the page


def test_the_pages_requests(service: Running, served: Path) -> None:
    listing = httpx.get(f"{service.url}/v1/samples", params={"count": 5}).json()
    assert listing["total"] == 18
    assert len(listing["samples"]) == 5
    only = httpx.get(f"{service.url}/v1/samples", params={"search": "positive"}).json()
    assert {s["truth"] for s in only["samples"]} == {"positive"}
    number = only["samples"][0]["number"]
    split = make(SyntheticSpec(**TINY["data"]["synthetic"])).split("test")
    sample = sample_of(split, number)
    body = httpx.get(
        f"{service.url}/v1/samples/{number}", params={"off": ["vision"], "missing": 0.0}
    ).json()
    assert body["id"] == split.ids[number]
    assert list(body["answers"]) == ["student", "teacher", "control"]
    sample["vision_present"] = np.zeros(len(sample["vision"]), bool)
    for role in ("student", "teacher", "control"):
        expected = (
            Predictor.from_pretrained(served / "synthetic" / "seed-0" / role / f"{role}.json")
            .predict(sample)
            .to_json()
        )
        same(body["answers"][role], json.loads(json.dumps(expected)))
    assert httpx.get(f"{service.url}/v1/samples/999").status_code == 404
    bad = httpx.get(f"{service.url}/v1/samples/0", params={"off": "smell"})
    assert (bad.status_code, bad.json()) == (
        422,
        {"detail": "off: 'smell' is not a modality of this model"},
    )


def test_frames_are_dropped_as_in_the_evaluation_and_nested(service: Running) -> None:
    visible = []
    for share in (0.0, 0.3, 0.6, 1.0):
        body = httpx.get(f"{service.url}/v1/samples/2", params={"missing": share}).json()
        visible.append(
            {
                (m, index)
                for m, mask in body["visible"].items()
                for index, is_visible in enumerate(mask)
                if is_visible
            }
        )
    assert len(visible[0]) == 12
    assert not visible[-1]
    assert all(later <= before for before, later in itertools.pairwise(visible))
    numbers = uniform(
        torch.tensor([sample_key(body["id"])]), 4, seed=2024, purpose="frame", modality="audio"
    )
    expected = {
        index for index, dropped in enumerate(drop_frames(numbers, 0.6)[0].tolist()) if not dropped
    }
    assert {index for m, index in visible[2] if m == "audio"} == expected


def test_a_visitors_sample(service: Running) -> None:
    sample = samples(1)[0]
    by_json = httpx.post(
        f"{service.url}/v1/explore", json=as_json(sample), params={"off": "audio"}
    ).json()
    by_npz = httpx.post(
        f"{service.url}/v1/explore",
        content=npz(**sample),
        params={"off": "audio"},
        headers={"content-type": NPZ},
    ).json()
    assert by_json["visible"] == by_npz["visible"]
    assert not any(by_json["visible"]["audio"])
    same(by_json["answers"]["control"], by_npz["answers"]["control"])
    bad = httpx.post(f"{service.url}/v1/explore", json={"audio": [[1.0]]})
    assert bad.status_code == 422
    assert bad.json()["detail"].startswith("audio.0: List should have at least 8 items")


def test_the_page_loads_nothing_from_other_sites(service: Running) -> None:
    for path in (
        "/",
        "/docs",
        "/static/app.js",
        "/static/docs.js",
        "/static/recording.js",
        "/static/style.css",
    ):
        response = httpx.get(f"{service.url}{path}")
        assert response.status_code == 200
        assert "default-src 'self'" in response.headers["content-security-policy"]
        addresses = set(re.findall(r"https?://[^\s\"'<>)]+", response.text))
        assert addresses <= {"http://www.w3.org/2000/svg"}
    for path in (
        "/static/app.py",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/swagger-ui",
        "/redoc",
        "/nowhere",
    ):
        assert httpx.get(f"{service.url}{path}").status_code == 404


@pytest.mark.slow
def test_the_service_conforms_to_its_openapi(served: Path, tmp_path: Path) -> None:
    """schemathesis: whatever the schema allows is answered as the schema says, whatever it forbids
    is refused, nothing crashes.
    """
    with running(served, tmp_path / "log", "--max-frames", "4", "--max-samples", "2") as service:
        arguments = [
            "run",
            f"{service.url}/openapi.json",
            "--checks",
            "all",
            "--max-examples",
            "10",
            "--seed",
            "1",
        ]
        arguments += [
            "--generation-database",
            "none",
            "--suppress-health-check",
            "all",
            "--workers",
            "1",
            "--no-color",
        ]
        program = Path(sys.executable).with_name("schemathesis")
        done = subprocess.run(
            [str(program), *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=300
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert re.search(r"Tested: +8", done.stdout), done.stdout
        assert "Traceback" not in service.text
