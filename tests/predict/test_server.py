# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import asyncio
import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from fastapi.testclient import TestClient  # noqa: E402

from examples.server import Limits, create_app  # noqa: E402

from .conftest import NAMES, picture  # noqa: E402

SMALL = Limits(megabytes=0.05, megapixels=0.01)


def encoded(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def post(client, body, kind="image/png", **query):
    return client.post("/predict", content=body, headers={"Content-Type": kind} if kind else {}, params=query)


@pytest.fixture
def client(detector):
    with TestClient(create_app(detector, SMALL), raise_server_exceptions=False) as client:
        yield client


def boxes(answer):
    return np.array([found["box"] for found in answer.json()["detections"]]).reshape(-1, 4)


def test_the_answer_is_what_the_detector_finds(client, detector):
    answer, result = post(client, encoded(picture()), threshold=0.5), detector.predict(picture(), 0.5)
    assert answer.status_code == 200 and len(result)
    found = answer.json()
    assert (found["height"], found["width"], found["threshold"]) == (64, 80, 0.5)
    assert [row["class"] for row in found["detections"]] == result.names
    np.testing.assert_allclose(boxes(answer), result.boxes, atol=0.01)
    np.testing.assert_allclose([row["score"] for row in found["detections"]], result.scores, atol=1e-6)


def test_classes_are_kept_by_name(client):
    answer = post(client, encoded(picture()), threshold=0, classes=["dog", "cat"])
    assert {row["class"] for row in answer.json()["detections"]} == {"dog", "cat"}


def test_a_drawn_picture_comes_back(client):
    answer = post(client, encoded(picture()), threshold=0.5, format="picture")
    image = Image.open(io.BytesIO(answer.content))
    assert answer.headers["content-type"] == "image/jpeg" and (image.format, image.size) == ("JPEG", (80, 64))


def test_exif_turns_the_picture(client):
    turned = Image.Exif()
    turned[0x112] = 6
    answer = post(client, encoded(picture(), "JPEG", exif=turned), "image/jpeg")
    assert (answer.json()["height"], answer.json()["width"]) == (80, 64)


WHOLE = encoded(picture())
NOISE = encoded(np.random.RandomState(0).randint(0, 256, (99, 99, 3)).astype(np.uint8), "BMP") * 2


@pytest.mark.parametrize(("body", "kind", "query", "code", "said"), [
    (WHOLE, "", {}, 415, "The Content-Type is missing, must be one of image/jpeg, "),
    (WHOLE, "text/html", {}, 415, "The Content-Type is text/html, must be"),
    (WHOLE, "image/jpeg", {}, 400, "The body cannot be read as JPEG."),
    (WHOLE[:-40], "image/png", {}, 400, "The body cannot be read as PNG."),
    (b"", "image/png", {}, 400, "The body cannot be read as PNG."),
    (NOISE, "image/bmp", {}, 413, "The picture has more than 0.05 MB."),
    (iter([NOISE]), "image/bmp", {}, 413, "The picture has more than 0.05 MB."),
    (encoded(picture(0, 100, 101)), "image/png", {}, 413, "The picture is 101 x 100 pixels, may have 0.01 million."),
    (WHOLE, "image/png", {"classes": "dgo"}, 422, "There is no class dgo (did you mean dog?)"),
    (WHOLE, "image/png", {"threshold": 40}, 422, "less than or equal to 1"),
    (WHOLE, "image/png", {"format": "gif"}, 422, "json"),
])  # fmt: skip
def test_what_is_wrong_is_said(client, body, kind, query, code, said):
    answer = post(client, body, kind, **query)
    assert answer.status_code == code and said in answer.text


def test_health(client, detector):
    assert client.get("/health").json() == {"status": "ok", "requests": 0, "device": "cpu", "classes": NAMES}


def test_too_many_are_told_to_come_again(detector):
    with TestClient(create_app(detector, Limits(requests=0))) as client:
        answer = post(client, WHOLE)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"


class Watched:
    """A detector whose calls are counted, the first ``failures`` of which fail."""

    def __init__(self, detector, failures=0):
        self.detector, self.failures, self.calls = detector, failures, []

    def __getattr__(self, name):
        return getattr(self.detector, name)

    def predict(self, images, threshold, batch):
        self.calls.append((len(images), threshold, batch))
        if len(self.calls) <= self.failures:
            raise RuntimeError("out of memory")
        return self.detector.predict(images, threshold, batch=batch)


def test_requests_that_come_together_go_through_the_model_together(detector):
    watched = Watched(detector)
    sent = [(picture(seed), 0.5 + seed / 100) for seed in range(3)]

    async def talk():
        app = create_app(watched, Limits(batch=2, wait=0.2))
        async with app.router.lifespan_context(app):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
                return await asyncio.gather(*(
                    client.post("/predict", content=encoded(pixels), headers={"Content-Type": "image/png"},
                                params={"threshold": threshold})
                    for pixels, threshold in sent
                ))  # fmt: skip

    answers = asyncio.run(talk())
    assert sorted((count, batch) for count, _, batch in watched.calls) == [(1, 1), (2, 2)]
    for answer, (pixels, threshold) in zip(answers, sent, strict=True):
        alone = detector.predict(pixels, threshold)
        assert len(alone)
        np.testing.assert_allclose(boxes(answer), alone.boxes, atol=0.01)


def test_after_a_failure_it_goes_on(detector):
    with TestClient(create_app(Watched(detector, failures=1)), raise_server_exceptions=False) as client:
        assert post(client, WHOLE).status_code == 500
        assert post(client, WHOLE).status_code == 200
        assert client.get("/health").json()["requests"] == 0
