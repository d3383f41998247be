"""Previews of what the server computes: only for those who want them, few a second, and without effect on the image."""

import base64
import io
import json
import threading
import time
from typing import Any

from PIL import Image
from serve_running import QUICK, Served


def render(prompt: str, **more: Any) -> dict[str, Any]:
    asked = {"checkpoint": "tiny-sd1", "prompt": prompt, "seed": 3, **QUICK, "width": 128, "height": 128, "steps": 40}
    return {"kind": "render", "device": "cpu", "request": {**asked, **more}}


class Stream:
    """The server's events, read by a thread until a job is over."""

    def __init__(self, served: Served, **query: Any) -> None:
        self.told: list[tuple[float, str, Any]] = []
        self._served, self._query = served, query
        self._ready, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        assert self._ready.wait(20)

    def _listen(self) -> None:
        with self._served.http.stream("GET", "/api/v1/events", params=self._query) as stream:
            name = ""
            for line in stream.iter_lines():
                self._ready.set()
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    value = json.loads(line.removeprefix("data: "))
                    self.told.append((time.monotonic(), name, value))
                    if value.get("state") in ("done", "failed", "cancelled"):
                        return

    def of(self, number: int) -> list[tuple[float, Any]]:
        self._thread.join(120)
        return [(at, value) for at, name, value in self.told if name == "preview" and value["id"] == number]


def test_previews_come_to_those_who_want_them_and_leave_the_image_alone(served: Served) -> None:
    unwatched = Stream(served)
    plain = served.submit(render("watched"))
    assert unwatched.of(plain) == []
    watched = Stream(served, previews=1)

    number = served.submit(render("watched"))
    shown = watched.of(number)

    assert shown
    for _, value in shown:
        with Image.open(io.BytesIO(base64.b64decode(value["jpeg"]))) as image:
            assert (image.format, image.size) == ("JPEG", (256, 256))
    took = shown[-1][0] - shown[0][0]
    assert len(shown) <= 5 * took + 2, "at most five a second"
    one, other = (served.ended(each)["result"]["pictures"][0] for each in (plain, number))
    assert one["pixel_sha256"] == other["pixel_sha256"]


def test_a_client_of_automatic1111s_api_sees_the_current_image(served: Served) -> None:
    number = served.submit(render("polled", steps=1000))
    served.stepping(number)
    told = served.get("/sdapi/v1/progress", skip_current_image=True)
    assert told["current_image"] is None

    end = time.monotonic() + 60
    while (told := served.get("/sdapi/v1/progress"))["current_image"] is None:
        assert time.monotonic() < end
        time.sleep(0.1)

    with Image.open(io.BytesIO(base64.b64decode(told["current_image"]))) as image:
        assert image.size == (256, 256)
    assert served.get("/sdapi/v1/progress", skip_current_image=True)["current_image"] is None
    served.http.delete(f"/api/v1/jobs/{number}")
    served.ended(number)
    assert served.get("/sdapi/v1/progress")["current_image"] is None
