"""BentoML as its documentation has it: a service class, batchable or not; run by ``bentoml serve``.

PEER_MODE  batch: adaptive batching over a list, {"images": [base64]} or a form of files
           one:   one image a request, {"image": base64} or a file as the body
           asgi:  one image a request through a FastAPI app mounted in the service: raw bodies reach it unparsed
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import bentoml
from answering import Model, decode, decode64, setting
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

MODE, KIND = setting("mode", "batch"), setting("kind", "json")
BATCH, LATENCY = int(setting("batch", "32")), int(setting("latency", "60000"))
app = FastAPI()


class Opened:
    """What each of the services begins with."""

    def __init__(self) -> None:
        self.model = Model(setting("model"), int(setting("threads", "1")))


if MODE == "batch" and KIND == "json":

    class Body(Opened):
        """Base64 in JSON, in batches."""

        @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=LATENCY)
        def predict(self, images: list[str]) -> list[dict[str, Any]]:
            """Answers."""
            return self.model.answers([decode64(text) for text in images])

elif MODE == "batch":

    class Body(Opened):
        """Files in a form, in batches."""

        @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=LATENCY)
        def predict(self, images: list[Path]) -> list[dict[str, Any]]:
            """Answers."""
            return self.model.answers([decode(path.read_bytes()) for path in images])

elif MODE == "one" and KIND == "json":

    class Body(Opened):
        """Base64 in JSON."""

        @bentoml.api
        def predict(self, image: str) -> dict[str, Any]:
            """An answer."""
            return self.model.answers([decode64(image)])[0]

elif MODE == "one":

    class Body(Opened):
        """A file as the body."""

        @bentoml.api
        def predict(self, image: Path, /) -> dict[str, Any]:
            """An answer."""
            return self.model.answers([decode(image.read_bytes())])[0]

else:

    class Body(Opened):
        """A route of FastAPI."""

        @app.post("/predict")
        async def predict(self, request: Request) -> JSONResponse:
            """An answer."""
            data = await request.body() if KIND == "raw" else (await request.json())["image"]
            return JSONResponse(self.model.answers([decode(data) if KIND == "raw" else decode64(data)])[0])

    Body = bentoml.asgi_app(app, path="/")(Body)

Recogniser = bentoml.service(
    name="recogniser", workers=int(setting("workers", "1")), logging={"access": {"enabled": False}}
)(Body)
