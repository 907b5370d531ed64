# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""A trained detector behind HTTP.

    pip install 'paq_detr[serve]'
    python examples/server.py output/demo --port 8000
    curl --data-binary @image.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8000/predict?threshold=0.4'

Requests that come together go through the model together. It has no users, passwords or TLS: leave it on this machine,
or put it behind a proxy that has them. /docs shows the interface.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import logging
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image, ImageOps, UnidentifiedImageError

from paq_detr import Detector
from paq_detr.engine import UserError, run_cli
from paq_detr.predict import Result
from paq_detr.predict.arrays import as_rgb

FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP", "image/bmp": "BMP", "image/tiff": "TIFF"}
logger = logging.getLogger("paq_detr.server")


@dataclass(frozen=True)
class Limits:
    """What a request may cost."""

    megabytes: float = 10.0
    megapixels: float = 40.0
    seconds: float = 30.0  # in which a picture must have been sent
    requests: int = 32  # at once; more are told to come again
    batch: int = 8
    wait: float = 0.01  # seconds that the first of a batch waits for others


class Batcher:
    """Collects pictures that come together and hands them to the detector in one call."""

    def __init__(self, detector: Detector, limits: Limits):
        self.detector, self.limits = detector, limits
        self.queue: asyncio.Queue = asyncio.Queue()

    async def predict(self, picture: np.ndarray, threshold: float) -> Result:
        answer = asyncio.get_running_loop().create_future()
        await self.queue.put((picture, threshold, answer))
        return await answer

    async def run(self) -> None:
        """Serves until it is cancelled."""
        while True:
            batch = [await self.queue.get()]
            await asyncio.sleep(self.limits.wait)
            while not self.queue.empty() and len(batch) < self.limits.batch:
                batch.append(self.queue.get_nowait())
            batch = [entry for entry in batch if not entry[2].done()]  # whose client is still there
            if batch:
                await self._serve(batch)

    async def _serve(self, batch: list[tuple[np.ndarray, float, asyncio.Future]]) -> None:
        pictures, thresholds, answers = zip(*batch, strict=True)
        try:
            # Each is cut at its own threshold afterwards. Among pictures of other sizes a score may move by a hair.
            results = await run_in_threadpool(
                self.detector.predict, list(pictures), min(thresholds), batch=len(pictures)
            )
        except Exception as error:
            logger.exception("a batch of %d pictures failed", len(batch))
            results = [error] * len(batch)
        for result, answer in zip(results, answers, strict=True):
            if answer.done():
                continue
            answer.set_exception(result) if isinstance(result, Exception) else answer.set_result(result)


def create_app(detector: Detector, limits: Limits = Limits()) -> FastAPI:
    """The server's application, for uvicorn or another server.

    POST /predict: a picture as the body; JSON, or a drawn JPEG by ``format=picture``. GET /health.
    """
    batcher, busy = Batcher(detector, limits), 0

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    app = FastAPI(title="paq_detr", lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "requests": busy, "device": detector.cfg.MODEL.DEVICE,
                "classes": list(detector.class_names)}  # fmt: skip

    @app.post("/predict", openapi_extra={"requestBody": {"required": True, "content": {name: {} for name in FORMATS}}})
    async def predict(
        request: Request,
        threshold: Annotated[float, Query(ge=0, le=1, description="the lowest score")] = 0.3,
        classes: Annotated[list[str] | None, Query(description="keep only these; may come several times")] = None,
        format: Literal["json", "picture"] = "json",
    ) -> Response:
        nonlocal busy
        if busy >= limits.requests:
            raise HTTPException(503, f"{busy} requests are being served; come again.", {"Retry-After": "1"})
        busy += 1
        try:
            wanted = _class_indices(detector, classes)
            kind = _format_of(request)
            body = await _body(request, limits)
            picture = await run_in_threadpool(read, body, kind, limits)
            result = chosen(await batcher.predict(picture, threshold), threshold, wanted)
            if format == "picture":
                return Response(await run_in_threadpool(drawn, result), media_type="image/jpeg")
            return Response(await run_in_threadpool(as_json, result, threshold), media_type="application/json")
        finally:
            busy -= 1

    return app


def _class_indices(detector: Detector, names: list[str] | None) -> list[int] | None:
    try:
        return detector.class_indices(names) if names else None
    except UserError as error:
        raise HTTPException(422, str(error)) from error


def _format_of(request: Request) -> str:
    name = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if name not in FORMATS:
        raise HTTPException(415, f"The Content-Type is {name or 'missing'}, must be one of {', '.join(FORMATS)}.")
    return FORMATS[name]


async def _body(request: Request, limits: Limits) -> bytes:
    """What the client sends, as far as the limits of size and time."""
    most = int(limits.megabytes * 1e6)
    too_large = HTTPException(413, f"The picture has more than {limits.megabytes:g} MB.")
    if int(request.headers.get("content-length") or 0) > most:
        raise too_large

    async def collect() -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise too_large
            parts.append(part)
        return b"".join(parts)

    try:
        return await asyncio.wait_for(collect(), limits.seconds)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"The picture did not come within {limits.seconds:g} s.") from None


def read(body: bytes, kind: str, limits: Limits) -> np.ndarray:
    """A picture as (H, W, 3) uint8 RGB, turned as its EXIF says.

    Only the decoder of its announced ``kind`` is tried, and only after its header has told its size.
    """
    try:
        with Image.open(io.BytesIO(body), formats=[kind]) as image:
            if image.width * image.height > limits.megapixels * 1e6:
                raise HTTPException(413, f"The picture is {image.width} x {image.height} pixels, may have "
                                         f"{limits.megapixels:g} million.")  # fmt: skip
            return as_rgb(ImageOps.exif_transpose(image))
    except HTTPException:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise HTTPException(400, f"The body cannot be read as {kind}.") from error


def chosen(result: Result, threshold: float, wanted: list[int] | None) -> Result:
    """The part of a result that a request asked for; its batch may have had a lower threshold."""
    keep = torch.from_numpy(result.scores >= threshold)
    if wanted is not None:
        keep &= torch.from_numpy(np.isin(result.classes, wanted))
    return Result(result.instances[keep], result.class_names, result.image)


def drawn(result: Result) -> bytes:
    file = io.BytesIO()
    result.draw().convert("RGB").save(file, "JPEG", quality=92)
    return file.getvalue()


def as_json(result: Result, threshold: float) -> bytes:
    found = []
    for row, name, box in zip(result.to_coco(), result.names, result.boxes.tolist(), strict=True):
        found.append({"class": name, "score": row["score"], "box": [round(value, 2) for value in box]})
        if "segmentation" in row:
            found[-1]["mask"] = row["segmentation"]  # COCO's run lengths
    height, width = result.size
    return json.dumps({"width": width, "height": height, "threshold": threshold, "detections": found}).encode()


def main() -> None:
    import uvicorn

    default = Limits()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", metavar="RUN_OR_WEIGHTS", help="folder that training wrote, or a weight file")
    parser.add_argument("--config", metavar="FILE", help="in place of the config.yaml beside the weights")
    parser.add_argument("--device", help="such as cuda:1 or cpu; default: the config's")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: other machines too (default: this one alone)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=default.batch, help="most pictures at once (default: %(default)s)")
    parser.add_argument("--max-mb", type=float, default=default.megabytes, help="of a body (default: %(default)s)")
    parser.add_argument("--max-megapixels", type=float, default=default.megapixels, help="(default: %(default)s)")
    options = parser.parse_args()
    limits = Limits(megabytes=options.max_mb, megapixels=options.max_megapixels, batch=options.batch)
    app = create_app(Detector(options.run, options.config, options.device), limits)
    uvicorn.run(app, host=options.host, port=options.port)


if __name__ == "__main__":
    sys.exit(run_cli(main, "server"))
