"""The endpoint that a tutorial ends with: FastAPI, onnxruntime, no queue and no batching; uvicorn runs it."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import uvicorn
from answering import Model, decode, decode64, setting
from fastapi import Body, FastAPI, Request
from fastapi.concurrency import run_in_threadpool

app = FastAPI()
MODEL = Model(setting("model"), int(setting("threads", "1")))


def answer(data: bytes) -> Any:
    """One image, on a thread of the pool."""
    return MODEL.answers([decode(data)])[0]


if setting("kind") == "raw":

    @app.post("/predict")
    async def predict(request: Request) -> Any:
        """An answer."""
        return await run_in_threadpool(answer, await request.body())

else:

    @app.post("/predict")
    def predict(image: str = Body(embed=True)) -> Any:
        """An answer."""
        return MODEL.answers([decode64(image)])[0]


if __name__ == "__main__":
    workers = int(setting("workers", "1"))
    target = "naive_server:app" if workers > 1 else app
    uvicorn.run(
        target, host="127.0.0.1", port=int(setting("port")), workers=workers, access_log=False, log_level="error"
    )
