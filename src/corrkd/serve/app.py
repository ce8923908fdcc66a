"""The HTTP service: predictions, model information, health, metrics, and the web page."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from importlib import resources
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel, Field

from corrkd._version import __version__
from corrkd.data.readers.containers import unpacked_npz
from corrkd.errors import CorrKDError
from corrkd.evaluation.explain import ModalityEffects
from corrkd.media.decode import STEP
from corrkd.serve import standalone
from corrkd.serve.access import Access, Refused
from corrkd.serve.batching import Batcher, Full
from corrkd.serve.clip_processes import ClipProcesses, ReadClip
from corrkd.serve.explore import Exhibit, hidden
from corrkd.serve.limits import BODY_FILE, MEDIA_PATH, Guard, Limits
from corrkd.serve.media_response import MEDIA_BODY, MediaResponse, details_of
from corrkd.serve.predictor import FRAMES
from corrkd.serve.schema import (
    EffectsResponse,
    PredictionResponse,
    PredictResponse,
    Problem,
    parsed,
    refuse_oversized,
    request_type,
    sample_type,
)
from corrkd.serve.standalone import InputError, Prediction, ReadSample
from corrkd.serve.upload import is_taken

JSON, NPZ = "application/json", "application/x-npz"
LARGE = 1 << 16  # bytes; larger bodies are parsed in a thread, one at a time
COST = 8_000_000  # default limit of the cost of a request, unless one sample may cost more
SLICE = 2 << 20  # largest cost of a batch; a more expensive sample is a batch of one
EFFECTS = "effects"  # in place of a role: effects of modalities on the student's prediction
Question = tuple[str, ReadSample]  # (role of the network, sample)
Result = Prediction | list[ModalityEffects]
STATIC = {
    "app.js": "text/javascript",
    "recording.js": "text/javascript",
    "style.css": "text/css",
    "docs.js": "text/javascript",
    "swagger-ui/swagger-ui-bundle.js": "text/javascript",
    "swagger-ui/swagger-ui.css": "text/css",
}
# The page loads nothing from other sites and may not be framed.
PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; media-src blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class RecordingsResponse(BaseModel):
    """Limits of recordings."""

    bytes: int
    seconds: float


class ModelResponse(BaseModel):
    """The model that is served."""

    corrkd: str
    sha256: str
    modalities: dict[str, dict[str, int | float]] = Field(
        description="width: features per frame; frames: their largest number in the training data; "
        "usual: their median number, also for a missing modality; missing: share of missing frames "
        "that 19 of 20 training samples do not exceed"
    )
    target: dict[str, Any]
    about: dict[str, Any]
    evaluated: dict[str, Any] | None = Field(
        description="temperature and metrics by missing condition"
    )
    recordings: RecordingsResponse | None = Field(description="null if the model takes none")


class Listed(BaseModel):
    """A sample of the split."""

    number: int
    id: str
    truth: str


class SamplesResponse(BaseModel):
    """Samples of the split."""

    split: str
    total: int
    samples: list[Listed]


class ExploreResponse(BaseModel):
    """The predictions of student, teacher and control for a sample."""

    id: str
    truth: str
    visible: dict[str, list[bool]] = Field(description="which of its frames are visible")
    answers: dict[str, PredictionResponse]
    effects: list[EffectsResponse] = Field(
        description="effect of each modality on the student's prediction, or on each of its answers"
    )


class Status(BaseModel):
    """Health of the service."""

    status: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route, for OpenAPI."""
    return {status: {"model": Problem} for status in (401, 403, 408, 413, 421, 422, 503, *statuses)}


Missing = Annotated[
    float,
    Query(
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="fraction of frames dropped from the other modalities",
    ),
]
WithDetails = Annotated[
    bool, Query(description="also return what the page shows: words, faces, loudness, features")
]
Draw = Annotated[int, Query(ge=0, le=1_000_000, description="seed of the dropped frames")]


def num_frames(modality: Any) -> int:
    """Return the number of frames of a modality, a list or an array; 1 for a single vector."""
    return len(modality) if isinstance(modality, list) or np.ndim(modality) == 2 else 1


class Service:
    """The service of a student over HTTP.

    Args:
        exhibit: the student, and the networks and samples on the page.
        limits: limits of one request and of all requests together.
        token: token that clients must send; None if none is needed.
        hosts: host names that it accepts, besides localhost and IP addresses; "*" for any.
        wait: time that a request waits for others to share its batch, in seconds.
        batch: largest number of samples in a batch.

    Attributes:
        app: the ASGI application.
    """

    def __init__(
        self,
        exhibit: Exhibit,
        *,
        limits: Limits | None = None,
        token: str | None = None,
        hosts: Iterable[str] = (),
        wait: float = 0.004,
        batch: int = 64,
    ) -> None:
        self.exhibit, self.limits = exhibit, limits or Limits()
        self.card, self.student = exhibit.student.card, next(iter(exhibit.predictors))
        self.longest = {
            m: self._most_frames(m, size) for m, size in self.card["modalities"].items()
        }
        self.sample = sample_type(self.card, self.longest)
        self.request = request_type(self.sample, self.limits)
        self.ready = False
        self.usual = standalone.frames_seen({}, self.card)  # frames of missing modalities
        longest_sample = {m: max(self.longest[m], self.usual[m]) for m in self.longest}
        self.most_cost = self.limits.cost or max(COST, self._cost(longest_sample))
        # parsing a large body takes several times its size
        self._parsing = asyncio.Semaphore(1)
        self._count()
        self.clips, self.no_clips = self._clip_processes()
        self.batcher: Batcher[Question, Result] = Batcher(
            self._predict,
            wait=wait,
            most=batch,
            cost=lambda question: self._cost(standalone.frames_seen(question[1], self.card)),
            slice_cost=SLICE,
            queue_cost=self.limits.together * self.most_cost,
            on_batch=self.batches.observe,
        )
        access = Access(token=token, hosts=hosts)
        self.guard = Guard(
            self._routes(),
            limits=self.limits,
            access=access,
            on_answer=self._answered,
            takes_recordings=self.clips is not None,
        )
        self.app = self.guard

    def stop(self, error: Refused) -> None:
        """Refuse all unanswered and new requests with this error."""
        self.batcher.stop(error)
        if self.clips is not None:
            self.clips.stop(error)

    # ----------------------------------------------------------------------------------------------
    # prediction

    def _predict(self, questions: Sequence[Question]) -> list[Result]:
        out: dict[int, Result] = {}
        for role in dict.fromkeys(role for role, _ in questions):
            rows = [row for row, question in enumerate(questions) if question[0] == role]
            samples = [questions[row][1] for row in rows]
            results: Sequence[Result]
            if role == EFFECTS:
                results = [self.exhibit.student.modality_effects(sample) for sample in samples]
            else:
                predictor = self.exhibit.predictors[role]
                results = standalone.predicted(samples, predictor.card, predictor.logits)
            out |= dict(zip(rows, results, strict=True))
        return [out[row] for row in range(len(questions))]

    async def _predictions(self, samples: Sequence[ReadSample]) -> list[Prediction]:
        answers = await self._answers([(self.student, sample) for sample in samples])
        predictions = [answer for answer in answers if isinstance(answer, Prediction)]
        for prediction in predictions:
            tested = prediction.reliability
            self.conditions.labels(tested.condition if tested else "untested").inc()
        return predictions

    async def _answers(self, questions: Sequence[Question]) -> Sequence[Result]:
        try:
            return await self.batcher.ask(questions)
        except Full:
            raise Refused(503, "too many requests are waiting; try again in a second") from None
        except (InputError, CorrKDError) as error:
            raise Refused(422, str(error)) from None

    def _cost(self, frames: Mapping[str, int]) -> int:
        """Return the cost of a sample: the number of values in its input and attention maps."""
        return sum(
            count * (int(self.card["modalities"][m]["width"]) + count)
            for m, count in frames.items()
        )

    def read(
        self, samples: Sequence[Mapping[str, Any]], where: str = "samples.{}"
    ) -> list[ReadSample]:
        """Return the samples of a request. Raises Refused if a sample is invalid or, before
        anything is allocated, if the samples cost too much.
        """
        cost = 0
        for number, sample in enumerate(samples):
            counts = {m: num_frames(sample[m]) for m in self.longest if sample.get(m) is not None}
            for m, count in counts.items():
                if count > self.longest[m]:
                    raise Refused(
                        422,
                        f"{where.format(number)}, {m}: {count} frames, more than {self.longest[m]}",
                    )
            cost += self._cost(self.usual | counts)
            if cost > self.most_cost:
                raise Refused(
                    413,
                    f"the samples cost more than {self.most_cost:,}, the sum of frames x (width "
                    f"+ frames); send fewer, or shorter ones",
                )
        out = []
        for number, sample in enumerate(samples):
            try:
                out.append(standalone.read_sample(sample, self.card, where.format(number)))
            except InputError as error:
                raise Refused(422, str(error)) from None
        return out

    async def _samples_of(self, request: Request, *, single: bool = False) -> list[ReadSample]:
        kind = request.headers.get("content-type", "")
        # instead of `request.body()`, which would keep a copy
        body = b"".join([chunk async for chunk in request.stream()])
        if len(body) < LARGE:
            return self.read_body(body, kind, single=single)
        async with self._parsing:
            return await run_in_threadpool(self.read_body, body, kind, single=single)

    def read_body(
        self, body: bytes, content_type: str, *, single: bool = False
    ) -> list[ReadSample]:
        """Return the samples in a body. Raises Refused if the body is invalid."""
        kind = content_type.partition(";")[0].strip().lower()
        if kind in (NPZ, "application/octet-stream"):
            return self.read([self._npz(body)])
        if kind != JSON:
            raise Refused(415, f"content type {kind[:60] or '(none)'!r}: send {JSON} or {NPZ}")
        modalities = self.card["modalities"]
        samples = 1 if single else self.limits.samples
        refuse_oversized(body, cost=self.most_cost, samples=samples, modalities=len(modalities))
        return self.read(parsed(self.sample if single else self.request, body, modalities))

    def _most_frames(self, modality: str, size: Mapping[str, Any]) -> int:
        most = self.limits.frames or max(FRAMES, int(size["frames"]))
        return min(most, self.card["longest"].get(modality, most))

    def _npz(self, body: bytes) -> dict[str, Any]:
        try:
            # values in float64, and 1 MiB for masks and headers
            numbers = sum(
                int(size["width"]) * self.longest[m] for m, size in self.card["modalities"].items()
            )
            most = 8 * numbers + (1 << 20)
            return dict(unpacked_npz(io.BytesIO(body), "body", most=most))
        except CorrKDError as error:
            raise Refused(422, str(error)) from None

    # ----------------------------------------------------------------------------------------------
    # recordings

    def _clip_processes(self) -> tuple[ClipProcesses | None, str]:
        """Return the processes that read recordings, or None with the reason."""
        try:
            settings, _ = self.exhibit.student.media_settings
        except CorrKDError as error:
            return None, str(error)
        # otherwise a longer recording would be refused only after it is read
        seconds = min(
            [
                self.limits.clips.seconds,
                *(STEP * self.longest[m] for m in self.longest if m not in self._by_word()),
            ]
        )
        return ClipProcesses(settings, replace(self.limits.clips, seconds=seconds)), ""

    def _by_word(self) -> list[str]:
        """Return the modalities with one frame per word."""
        aligned = self.exhibit.student.media_settings[0].align == "words"
        return list(self.card["modalities"]) if aligned else ["language"]

    async def _read_clip(self, request: Request, *, details: bool) -> ReadClip:
        if self.clips is None:
            raise Refused(422, f"this model takes no recordings: {self.no_clips}")
        kind = request.headers.get("content-type", "")
        if not is_taken(kind):
            raise Refused(
                415,
                f"content type {kind[:60] or '(none)'!r}: send multipart/form-data, a video/, "
                f"audio/ or text/plain",
            )
        return await self.clips.read(request.scope[BODY_FILE], kind, details=details)

    # ----------------------------------------------------------------------------------------------
    # metrics

    def _count(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "corrkd_requests",
            "Requests by path and status.",
            ["path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "corrkd_request_seconds",
            "Seconds from the complete body of a request to its response.",
            ["path"],
            registry=self.registry,
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
        )
        self.batches = Histogram(
            "corrkd_batch_samples",
            "Samples per batch.",
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        )
        self.conditions = Counter(
            "corrkd_predictions",
            "Predictions by the most similar tested condition.",
            ["condition"],
            registry=self.registry,
        )

    def _answered(self, path: str, status: int, seconds: float) -> None:
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    # ----------------------------------------------------------------------------------------------
    # routes

    def _routes(self) -> FastAPI:
        @asynccontextmanager
        async def life(_: FastAPI) -> AsyncIterator[None]:
            # because the first prediction is slow
            self._predict([(self.student, standalone.read_sample(self._example(), self.card))])
            if self.clips is not None:
                await run_in_threadpool(self.clips.start)
            self.ready = True
            yield
            self.ready = False
            await self.batcher.close(patience=1.0)

        app = FastAPI(
            title="corrkd",
            version=__version__,
            summary="Sentiment from the available modalities.",
            lifespan=life,
            redirect_slashes=False,
            docs_url=None,  # FastAPI's documentation pages load scripts from other sites
            redoc_url=None,
        )

        @app.exception_handler(Refused)
        async def refused(_: Request, error: Exception) -> Response:
            assert isinstance(error, Refused)
            return JSONResponse({"detail": error.detail}, error.status, error.headers)

        @app.exception_handler(RequestValidationError)
        async def misread(_: Request, error: Exception) -> Response:
            assert isinstance(error, RequestValidationError)
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"][1:]))
            return JSONResponse({"detail": f"{where}: {first['msg']}"}, 422)

        self._api(app)
        self._page(app)
        return app

    def _example(self) -> dict[str, Any]:
        return {
            m: [[0.0] * int(size["width"])] for m, size in list(self.card["modalities"].items())[:1]
        }

    def _api(self, app: FastAPI) -> None:
        @app.post(
            "/v1/predict",
            response_model=PredictResponse,
            response_model_exclude_none=True,
            responses=problems(415),
            openapi_extra={"requestBody": self._body(self.request, {"samples": [self._example()]})},
            summary="Predict",
        )
        async def predict(request: Request) -> Response:
            """Predict one or more samples, each with any subset of the modalities."""
            answers = await self._predictions(await self._samples_of(request))
            # not validated again, which would cost more than the network; tests check the form
            return JSONResponse(
                {"model": self.card["sha256"], "predictions": [a.to_json() for a in answers]}
            )

        @app.post(
            MEDIA_PATH,
            response_model=MediaResponse,
            response_model_exclude_none=True,
            responses=problems(415),
            openapi_extra={"requestBody": MEDIA_BODY},
            include_in_schema=self.clips is not None,
            summary="Predict a recording",
        )
        async def predict_media(request: Request, details: WithDetails = False) -> MediaResponse:
            """Predict a video, a sound file or a text, and count missing frames by reason."""
            read = await self._read_clip(request, details=details)
            (sample,) = self.read([read.sample], "the recording")
            (prediction,) = await self._predictions([sample])
            return MediaResponse(
                model=self.card["sha256"],
                prediction=PredictionResponse(**prediction.to_json()),
                details=await run_in_threadpool(details_of, read, self._by_word())
                if details
                else None,
                **read.result.model_dump(include={"seconds", "transcript", "frames", "missing"}),
            )

        @app.get(
            "/v1/model", response_model=ModelResponse, responses=problems(), summary="The model"
        )
        async def model() -> ModelResponse:
            """Describe the model: modalities, target, and test results by missing condition."""
            return ModelResponse(
                corrkd=__version__,
                sha256=self.card["sha256"],
                modalities=self.card["modalities"],
                target=self.card["target"],
                about=self.card["about"],
                evaluated=self.card.get("evaluated"),
                recordings=None
                if self.clips is None
                else RecordingsResponse(
                    bytes=self.clips.limits.body, seconds=self.clips.limits.seconds
                ),
            )

        @app.get("/healthz", response_model=Status, summary="Health")
        async def healthz() -> Status:
            return Status(status="ok")

        @app.get(
            "/readyz",
            response_model=Status,
            responses={503: {"model": Problem}},
            summary="Readiness",
        )
        async def readyz() -> Status:
            if not self.ready or self.guard.draining:
                raise Refused(503, "stopping" if self.guard.draining else "starting")
            return Status(status="ready")

        @app.get(
            "/metrics",
            response_class=PlainTextResponse,
            responses={401: {"model": Problem}},
            summary="Metrics for Prometheus",
        )
        async def metrics() -> Response:
            return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    def _body(self, kind: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
        """Return the schema of a request body for OpenAPI, with nested types inlined."""
        schema = kind.model_json_schema()
        inside = schema.pop("$defs", {})
        text = json.dumps(schema)
        for name, value in inside.items():
            text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(value))
        npz = {"schema": {"type": "string", "format": "binary"}}
        return {
            "required": True,
            "content": {JSON: {"schema": json.loads(text), "example": example}, NPZ: npz},
        }

    def _page(self, app: FastAPI) -> None:
        files = resources.files("corrkd.serve") / "static"
        items = {"type": "string", "enum": list(self.card["modalities"])}
        switched_off: Any = Query(
            [],
            description="modalities that are switched off",
            max_length=len(self.card["modalities"]),
            json_schema_extra={"items": items},
        )

        def file(name: str, kind: str) -> Response:
            return Response((files / name).read_bytes(), media_type=kind, headers=PAGE_HEADERS)

        @app.get("/", include_in_schema=False)
        async def page() -> Response:
            return file("index.html", "text/html")

        @app.get("/docs", include_in_schema=False)
        async def docs() -> Response:
            return file("docs.html", "text/html")

        @app.get("/static/{name:path}", include_in_schema=False)
        async def static(name: str) -> Response:
            if name not in STATIC:
                raise Refused(404, "no such file")
            return file(name, STATIC[name])

        @app.get(
            "/v1/samples",
            response_model=SamplesResponse,
            responses=problems(),
            summary="List samples",
        )
        async def samples(
            search: Annotated[str, Query(max_length=200)] = "",
            start: Annotated[int, Query(ge=0, le=10**9)] = 0,
            count: Annotated[int, Query(ge=1, le=200)] = 50,
        ) -> SamplesResponse:
            total, matches = self.exhibit.listed(search, start, count)
            return SamplesResponse(
                split=self.exhibit.name, total=total, samples=[Listed(**row) for row in matches]
            )

        @app.get(
            "/v1/samples/{number}",
            response_model=ExploreResponse,
            response_model_exclude_none=True,
            responses=problems(404),
            summary="Predict a sample of the split",
        )
        async def look(
            number: int, off: list[str] = switched_off, missing: Missing = 0.0, draw: Draw = 0
        ) -> ExploreResponse:
            """Predict a sample of the split with student, teacher and control, with modalities
            switched off or frames dropped.
            """
            try:
                name, truth, read = self.exhibit.sample(number)
            except IndexError:
                raise Refused(404, f"there is no sample {number}") from None
            return await self._explored(name, truth, read, off, missing, draw)

        @app.post(
            "/v1/explore",
            response_model=ExploreResponse,
            response_model_exclude_none=True,
            responses=problems(415),
            openapi_extra={"requestBody": self._body(self.sample, self._example())},
            summary="Predict a sample with modalities switched off or frames dropped",
        )
        async def explore(
            request: Request, off: list[str] = switched_off, missing: Missing = 0.0, draw: Draw = 0
        ) -> ExploreResponse:
            """Predict the sample in the body with student, teacher and control."""
            (read,) = await self._samples_of(request, single=True)
            return await self._explored("yours", "", read, off, missing, draw)

    async def _explored(
        self, name: str, truth: str, read: ReadSample, off: Sequence[str], missing: float, draw: int
    ) -> ExploreResponse:
        for m in off:
            if m not in self.card["modalities"]:
                raise Refused(422, f"off: {m[:60]!r} is not a modality of this model")
        visible = hidden(read, name, off=off, missing=missing, draw=draw)
        roles = [*self.exhibit.predictors, EFFECTS]
        answers = dict(
            zip(roles, await self._answers([(role, visible) for role in roles]), strict=True)
        )
        effects = answers.pop(EFFECTS)
        return ExploreResponse(
            id=name,
            truth=truth,
            visible={m: mask.tolist() for m, (_, mask) in visible.items()},
            answers={
                role: PredictionResponse(**a.to_json())
                for role, a in answers.items()
                if isinstance(a, Prediction)
            },
            effects=[EffectsResponse(**asdict(e)) for e in effects]
            if isinstance(effects, list)
            else [],
        )
