"""Defines the HTTP interface: its routes and their answers."""

import time
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from visionpipe import __version__
from visionpipe.artifact.classifier import Classifier
from visionpipe.errors import ImageError
from visionpipe.serving import page, protocol_v2
from visionpipe.serving.batching import Job
from visionpipe.serving.bodies import Question, Refusal, number, read_body, read_question, set_option
from visionpipe.serving.guard import Direct, Guard, answer_failure
from visionpipe.serving.service import STATUS, Live, Service
from visionpipe.serving.settings import QUICK_BODY, Settings

OPTIONS = {
    "top_k": (
        {"type": "integer", "minimum": 1},
        "list only this number of classes, the most probable ones, beside those that the answer names",
    ),
    "unsure_below": (
        {"type": "number", "minimum": 0, "maximum": 1},
        "add `unsure`: whether the highest probability is below this value",
    ),
}
FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
        **{name: schema for name, (schema, _) in OPTIONS.items()},
    },
}
JSON_BODY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "image": {"type": "string", "format": "byte"},
        "images": {"type": "array", "items": {"type": "string", "format": "byte"}},
        **{name: schema for name, (schema, _) in OPTIONS.items()},
    },
    "additionalProperties": False,
}
INTERFACE: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "query", "schema": schema, "description": text}
        for name, (schema, text) in OPTIONS.items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {"schema": FORM},
            "application/json": {"schema": JSON_BODY},
        },
    },
}
VIEW_INTERFACE: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"image/*": INTERFACE["requestBody"]["content"]["image/*"]}}
}
ERROR: dict[str, Any] = {
    "description": "`code` for programs, `reason` for people",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {name: {"type": "string"} for name in ("code", "reason", "request_id")},
                "required": ["code", "reason", "request_id"],
            }
        }
    },
}


class PNG(Response):
    media_type = "image/png"


def make_app(service: Service) -> ASGIApp:
    """Makes the ASGI application of a service. `service.settings` decides who may call it."""
    app = FastAPI(
        title="visionpipe",
        version=__version__,
        summary="An image classifier",
        docs_url=None,  # this page would load scripts from another host
        redoc_url=None,
        responses={"4XX": ERROR, "5XX": ERROR},
    )

    @app.post(
        "/predict", summary="Labels and probabilities of one or several images", openapi_extra=INTERFACE
    )
    async def predict(request: Request) -> Response:
        start = time.perf_counter()
        live = service.present()
        service.make_room(1)
        body = await read_body(request, service.settings.max_body)
        content_type = request.headers.get("content-type", "")
        question = await service.aside(
            len(body) > QUICK_BODY, read_question, body, content_type, service.settings
        )
        del body
        if request.scope["query_string"]:
            for name, value in request.query_params.items():
                set_option(question, name, number(value.encode()))
        jobs = await service.answer(live, question.images)
        count_predictions(jobs, live, question, service)
        content = await service.aside(live.is_large(jobs), write_answer, jobs, live, question, start)
        return Response(content, media_type="application/json")

    app.include_router(protocol_v2.router(service))

    @app.get("/healthz", summary="Whether the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Whether a model is loaded and the server is not shutting down")
    async def readyz() -> dict[str, str]:
        if service.draining:
            raise Refusal(503, "draining", "the server is shutting down")
        service.present()
        if service.unfollowed is None:
            return {"status": "ready"}
        return {"status": "ready", "alias": service.unfollowed or "followed"}

    @app.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        text = await service.aside(True, service.metrics.text)  # which is long if there are many classes
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post(
        "/view", summary="An image as the model sees it", response_class=PNG, openapi_extra=VIEW_INTERFACE
    )
    async def view(request: Request) -> Response:
        live = service.present()
        service.make_room(1)
        body = await read_body(request, service.settings.max_body)
        return PNG(await service.view(live, body))

    @app.get("/model", summary="Lineage, classes and metrics of the live version")
    async def model(request: Request) -> Response:
        live = service.present()
        tag = f'"{live.number}-{live.since}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        content = orjson.dumps(describe(live, service.settings))
        return Response(content, headers={"ETag": tag}, media_type="application/json")

    app.include_router(page.router())

    for failure in (Refusal, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(failure, answer_failure)
    route = next(route for route in app.routes if isinstance(route, APIRoute) and route.path == "/predict")
    guarded = Guard(Direct(app, route), service)
    origins = list(service.settings.cors_origin)
    if not origins:
        return guarded
    # Outside the guard: browsers send preflight requests without the token, and must be able to read a refusal.
    exposed = ["X-Request-ID", "Retry-After"]
    return CORSMiddleware(
        guarded, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=exposed
    )


def count_predictions(jobs: list[Job], live: Live, question: Question, service: Service) -> None:
    """Counts the predictions in the metrics. Raises Refusal if the only image of a request cannot be decoded."""
    for job in jobs:
        error = job.future.exception()
        if error is None:
            service.count(live, job.future.result())
        elif isinstance(error, ImageError) and not question.several:
            raise Refusal(STATUS[error.code], error.code, error.reason)


def write_answer(jobs: list[Job], live: Live, question: Question, start: float) -> bytes:
    """Writes the answer as JSON, image by image, because Python objects for many classes take ten times the memory."""
    classifier = live.batcher.classifier
    predictions = [orjson.Fragment(orjson.dumps(prediction(job, classifier, question))) for job in jobs]
    content = {
        "predictions": predictions,
        "model": {"name": live.name, "version": live.number},
        "milliseconds": milliseconds(jobs, start),
    }
    return orjson.dumps(content)


def prediction(job: Job, classifier: Classifier, question: Question) -> dict[str, Any]:
    """Returns the answer to one image, or its error, as values for JSON."""
    error = job.future.exception()
    if isinstance(error, ImageError):
        return {"error": {"code": error.code, "reason": error.reason}}
    probabilities, labels = job.future.result(), classifier.labels
    likeliest = (-probabilities).argsort(kind="stable")[: question.top_k].tolist()
    named = [place for place in classifier.task.named(probabilities) if place not in set(likeliest)]
    answer = classifier.task.answer(probabilities, labels)
    if question.unsure_below is not None:
        answer["unsure"] = float(probabilities[likeliest[0]]) < question.unsure_below
    answer["probabilities"] = {labels[place]: float(probabilities[place]) for place in likeliest + named}
    return answer


def milliseconds(jobs: list[Job], start: float) -> dict[str, float]:
    """Returns the milliseconds of each step for the slowest image; "decode" includes waiting for a worker thread."""
    last = max(jobs, key=lambda job: job.finished)
    spans = {
        "decode": last.decoded - last.submitted,
        "wait": last.started - last.decoded,
        "run": last.finished - last.started,
        "total": time.perf_counter() - start,
    }
    return {name: round(seconds * 1000, 3) for name, seconds in spans.items()}


def describe(live: Live, settings: Settings) -> dict[str, Any]:
    """Returns the answer of /model."""
    classifier = live.batcher.classifier
    height, width = classifier.size
    return {
        "name": live.name,
        "version": live.number,
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(live.since)),
        "task": classifier.task.name,
        "score": classifier.task.score,
        "classes": classifier.labels,
        **classifier.task.content(),
        "size": {"height": height, "width": width},
        "channels": classifier.form.channels,
        "depth": classifier.form.depth,
        "crop_ratio": classifier.framing["crop_ratio"],
        "interpolation": classifier.framing["interpolation"],
        "framing": classifier.framing["framing"],
        "pad_color": classifier.framing["pad_color"],
        "levels": classifier.decoding["levels"],
        "max_batch": live.batcher.max_batch,
        "max_images": settings.max_images,
        "max_body": settings.max_body,
        "lineage": live.version.tags,
        "metrics": live.version.metrics,
    }
