"""Recordings sent to the service: their predictions, and that none harms the service."""

from __future__ import annotations

import base64
import contextlib
import io
import multiprocessing
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest

from corrkd.serve import clip_processes
from corrkd.serve.clip_worker import Task
from corrkd.serve.limits import MEDIA_PATH, ClipLimits
from corrkd.serve.predictor import Predictor
from tests.media.clips import RATE, plain, tone, with_face, write_clip
from tests.serve import hostile
from tests.serve.local import Local, local, request, wait_until

TEXT = "I love this"
SUBTITLES = "WEBVTT\n\n00:00.100 --> 00:00.300\nI love this\n"


@pytest.fixture(scope="module")
def model(recordings_run: Path) -> Predictor:
    return Predictor.from_pretrained(recordings_run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder where the service keeps recordings while it reads them."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="module")
def service(model: Predictor, folder: Path) -> Iterator[Local]:
    with local(student=model, clips=ClipLimits(body=1_000_000, seconds=3.0)) as service:
        yield service


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a clip with a face for three of five steps, and sound for all of them."""
    pictures = [with_face(0.45), with_face(0.5), with_face(0.5), plain(100), plain(100)]
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mkv", pictures, tone(0.5))


def send(
    service: Local, path: Path | None = None, text: str | None = None, **parameters: Any
) -> httpx.Response:
    """Send a form with a recording, its transcript, or both."""
    fields: dict[str, Any] = {} if path is None else {"file": (path.name, path.read_bytes())}
    if text is not None:
        fields["text"] = (None, text)
    return httpx.post(f"{service.url}{MEDIA_PATH}", files=fields, params=parameters, timeout=120)


def remaining(folder: Path) -> list[Path]:
    """Return the recordings that were not deleted."""
    return list(folder.glob("corrkd-clip-*"))


def refusal(response: httpx.Response, status: int = 422) -> str:
    assert (response.status_code, list(response.json())) == (status, ["detail"]), response.text
    detail: str = response.json()["detail"]
    assert "\n" not in detail
    return detail


# --------------------------------------------------------------------------------------------------
# predictions


def test_a_recording_is_predicted_as_by_the_command(
    service: Local, model: Predictor, clip: Path, folder: Path
) -> None:
    response = send(service, clip, TEXT, details=True)
    assert response.status_code == 200, response.text
    result = response.json()
    expected = model.predict_media(clip, text=TEXT)
    assert result["prediction"] == expected.to_json()
    assert result["frames"] == {"language": 3, "audio": 5, "vision": 5}
    assert result["missing"] == {"language": {}, "audio": {}, "vision": {"no face": 2}}
    assert result["transcript"] == "text"
    assert result["seconds"] == pytest.approx(0.5, abs=0.05)
    wait_until(lambda: not remaining(folder))

    details = result["details"]
    assert [face is not None for face in details["faces"]] == [True] * 3 + [False] * 2
    points = np.array(details["faces"][1]).reshape(-1, 2) / details["scale"]
    assert len(points) == sum(details["outline"].values())
    assert points.mean(0) == pytest.approx([0.5, 0.6], abs=0.1)
    assert details["aspect"] == pytest.approx(4 / 3)
    assert [word["text"] for word in details["words"]] == TEXT.split()
    assert all(0 <= word["start"] < word["end"] <= result["seconds"] for word in details["words"])
    assert min(details["loudness"]) > -20
    # The features can be sent again.
    body, kind = base64.b64decode(details["sample"]), {"content-type": "application/x-npz"}
    repeated = httpx.post(f"{service.url}/v1/predict", content=body, headers=kind).json()
    assert repeated["predictions"] == [result["prediction"]]
    off = httpx.post(
        f"{service.url}/v1/explore", params={"off": "vision"}, content=body, headers=kind
    ).json()
    assert off["visible"]["vision"] == [False] * 5
    assert off["answers"]["student"]["used"]["vision"] == 0
    (effects,) = off["effects"]
    without = {m: x for m, x in np.load(io.BytesIO(body)).items() if "vision" not in m}
    explanation = model.explain(without)
    assert effects["label"] == explanation.label
    for m, effect in explanation.modalities.items():
        assert effects["modalities"][m]["probability"] == pytest.approx(
            effect.probability, abs=1e-5
        )
        assert effects["modalities"][m]["value"] == pytest.approx(effect.value, abs=1e-4)


def test_sound_only_and_text_only(service: Local, tmp_path: Path) -> None:
    sound = write_clip(tmp_path / "clip.wav", sound=tone(0.5))
    body = {"content": sound.read_bytes(), "headers": {"content-type": "audio/wav"}}
    result = httpx.post(f"{service.url}{MEDIA_PATH}", timeout=60, **body).json()
    assert result["missing"]["vision"] == {"no video stream": 5}
    assert result["prediction"]["used"] == {"language": 0, "audio": 1, "vision": 0}
    assert "details" not in result
    text = {"content": TEXT.encode(), "headers": {"content-type": "text/plain"}}
    result = httpx.post(f"{service.url}{MEDIA_PATH}", timeout=60, **text).json()
    assert result["prediction"]["used"] == {"language": 1, "audio": 0, "vision": 0}
    assert result["seconds"] == 0


def test_subtitles_give_words_their_times(service: Local, clip: Path) -> None:
    result = send(service, clip, SUBTITLES, details=True).json()
    assert result["transcript"] == "subtitles"
    words = result["details"]["words"]
    assert (words[0]["start"], words[-1]["end"]) == (0.1, pytest.approx(0.3))


def test_the_limits_of_recordings_are_published(service: Local) -> None:
    assert httpx.get(f"{service.url}/v1/model").json()["recordings"] == {
        "bytes": 1_000_000,
        "seconds": 3,
    }
    assert MEDIA_PATH in httpx.get(f"{service.url}/openapi.json").json()["paths"]


# --------------------------------------------------------------------------------------------------
# models that take no recordings


def test_a_model_that_was_not_trained_on_recordings_refuses_them(clip: Path, folder: Path) -> None:
    with local(clips=ClipLimits(body=1_000)) as service:
        line = refusal(send(service, text=TEXT))
        assert line.startswith("this model takes no recordings: the model card lists no extractors")
        assert "corrkd features" in line
        assert httpx.get(f"{service.url}/v1/model").json()["recordings"] is None
        assert MEDIA_PATH not in httpx.get(f"{service.url}/openapi.json").json()["paths"]
        assert service.service.guard.held == 0


def test_a_model_of_another_extractor_names_it(recordings_run: Path) -> None:
    other = Predictor.from_pretrained(recordings_run)
    other.card["about"]["extractors"]["modalities"]["audio"]["version"] = 0
    with local(student=other) as service:
        assert (
            "its audio was extracted by 'prosody', which differs from the installed one "
            "(version 0, installed 1)" in refusal(send(service, text=TEXT))
        )


# --------------------------------------------------------------------------------------------------
# bad files


def many_streams(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(300)]
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 160), np.int16), format="s16", layout="mono"
        )
        frame.sample_rate = RATE
        for stream in streams:
            container.mux(stream.encode(frame))
    return path


def hours(path: Path) -> Path:
    """Write a few kilobytes that last for three hours."""
    return write_clip(path, [plain(0), plain(0)], times=[0, 10_800])


def large_pictures(path: Path) -> Path:
    """Write a few kilobytes of 5K video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 5120, 2880, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((4320, 5120), np.uint8), format="yuv420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def writer(content: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
BAD: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "random": ("a.mp4", writer(np.random.default_rng(0).bytes(50_000)), "cannot be decoded"),
    "playlist": ("a.mp4", writer(PLAYLIST), "cannot be decoded"),
    "too long": (
        "a.wav",
        lambda path: write_clip(path, sound=tone(4.0)),
        "lasts 4 s, and 3 s are allowed",
    ),
    "hours": ("a.mkv", hours, "lasts 10,80"),
    "5K": ("a.mkv", large_pictures, "pictures of 5120 x 2880 pixels"),
    "silence": (
        "a.wav",
        lambda path: write_clip(path, sound=tone(0.5) * 0),
        "has none of language, audio, vision",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_recordings_are_refused_in_one_line(
    service: Local, tmp_path: Path, folder: Path, name: str
) -> None:
    file, make, message = BAD[name]
    assert message in refusal(send(service, make(tmp_path / file)))
    wait_until(lambda: not remaining(folder))


def test_truncated_and_odd_recordings(
    service: Local, clip: Path, tmp_path: Path, folder: Path
) -> None:
    data = clip.read_bytes()
    for size in (40, len(data) // 2):
        (tmp_path / "cut.mkv").write_bytes(data[:size])
        assert send(service, tmp_path / "cut.mkv").status_code in (200, 422)
    assert send(service, many_streams(tmp_path / "a.mkv")).status_code in (200, 422)
    wait_until(lambda: not remaining(folder))
    assert send(service, text=TEXT).status_code == 200


def test_too_large_and_of_another_type(service: Local, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(bytes(1_100_000))
    assert "larger than 1,000,000 bytes; send a shorter recording" in refusal(
        send(service, tmp_path / "a.mp4"), 413
    )
    response = httpx.post(
        f"{service.url}{MEDIA_PATH}", content=b"{}", headers={"content-type": "application/json"}
    )
    assert "content type 'application/json': send multipart/form-data" in refusal(response, 415)
    assert "unknown" in refusal(httpx.post(f"{service.url}{MEDIA_PATH}", files={"clip": b"x"}))
    wait_until(lambda: not remaining(folder))


# ---------------------------------------------------------------------------------------------
# failing processes


@contextlib.contextmanager
def with_work(
    model: Predictor, work: Callable[[Task], None], patience: int = 30, **limits: Any
) -> Iterator[Local]:
    """Run a service whose processes call `work`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_processes, "work", work)
        with local(student=model, patience=patience, clips=ClipLimits(**limits)) as service:
            yield service


def predicts(service: Local) -> bool:
    body = {"samples": [{"audio": [[0.0] * 54]}]}
    return httpx.post(f"{service.url}/v1/predict", json=body).status_code == 200


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (hostile.hang, "could not be read within 2 seconds"),
        (hostile.burn, "could not be read within 2 seconds"),
        (hostile.abort, "crashed the process"),
        (hostile.write_too_much, "crashed the process"),
        (hostile.lie, "cannot be read"),
        (hostile.send_objects, "cannot be read"),
    ],
)
def test_a_failing_process_does_not_affect_the_service(
    model: Predictor, folder: Path, work: Callable[[Task], None], message: str
) -> None:
    with with_work(model, work, work_seconds=2.0) as service, ThreadPoolExecutor() as pool:
        response = pool.submit(send, service, text=TEXT)
        assert predicts(service)
        assert message in refusal(response.result())
        assert multiprocessing.active_children() == []
        wait_until(lambda: not remaining(folder))


def test_memory_is_bounded(model: Predictor) -> None:
    with with_work(model, hostile.fill_memory, memory=2_000_000_000) as service:
        assert "needs more than 2.0 GB of memory" in refusal(send(service, text=TEXT))
        assert predicts(service)


def test_child_processes_end_with_their_process(model: Predictor, folder: Path) -> None:
    with with_work(model, hostile.start_another, work_seconds=2.0) as service:
        refusal(send(service, text=TEXT))
        other = int((folder / "pid").read_text())
        (folder / "pid").unlink()
    wait_until(lambda: not is_alive(other))


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def form() -> tuple[bytes, str]:
    sent = httpx.Request("POST", "http://localhost", files={"text": (None, TEXT)})
    return sent.read(), sent.headers["content-type"]


def leaving(service: Local) -> socket.socket:
    """Return a client that has sent a recording and does not wait for the response."""
    body, kind = form()
    head = request(body, path=MEDIA_PATH).replace(b"application/json", kind.encode())
    return service.client(head)


def test_a_client_that_leaves_ends_its_process(model: Predictor, folder: Path) -> None:
    with with_work(model, hostile.hang) as service:
        with leaving(service):
            wait_until(multiprocessing.active_children)
        wait_until(lambda: not multiprocessing.active_children())
        wait_until(lambda: service.service.guard.given_up == 1)
        wait_until(lambda: not remaining(folder))


def test_recordings_queue_and_further_ones_are_asked_to_retry(
    model: Predictor, clip: Path, folder: Path
) -> None:
    with with_work(model, hostile.wait_for_go, waiting=1) as service, ThreadPoolExecutor() as pool:
        first = pool.submit(send, service, clip, TEXT)
        wait_until(multiprocessing.active_children)
        second = pool.submit(send, service, text=TEXT)
        wait_until(lambda: service.service.guard.accepted == 2)
        response = send(service, text=TEXT)
        assert "1 recordings are waiting" in refusal(response, 503)
        assert response.headers["retry-after"] == "1"
        assert len(multiprocessing.active_children()) == 1
        (folder / hostile.GO).touch()
        assert [first.result().status_code, second.result().status_code] == [200, 200]
        (folder / hostile.GO).unlink()
        wait_until(lambda: not remaining(folder))


def test_stopping_is_in_time(model: Predictor, folder: Path) -> None:
    with with_work(model, hostile.hang, patience=4) as service, ThreadPoolExecutor() as pool:
        futures = [pool.submit(send, service, text=TEXT) for _ in range(2)]  # one of them waits
        wait_until(multiprocessing.active_children)
        wait_until(lambda: service.service.guard.accepted == 2)
        service.stop()
        for future in futures:
            assert "the service is stopping" in refusal(future.result(), 503)
        assert multiprocessing.active_children() == []
        wait_until(lambda: not remaining(folder))
