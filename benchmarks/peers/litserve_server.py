"""LitServe as its documentation has it: a LitAPI with batching, workers that decode and answer.

Raw bodies are no input of LitServe by itself (it reads JSON or a form); a dependency of FastAPI hands them over,
which is less work for it than a form.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).parent))

import litserve
from answering import Model, decode, decode64, setting
from fastapi import Depends, Request


async def body(request: Request) -> bytes:
    """The body as it came."""
    return await request.body()


class OfJson(litserve.LitAPI):
    """{"image": base64} to an answer."""

    def setup(self, device: str) -> None:  # noqa: ARG002 a CPU has one
        """Open the file, in each worker."""
        self.model = Model(setting("model"), int(setting("threads", "1")))

    def decode_request(self, request: Request) -> Any:
        """An image; LitServe has taken the JSON apart."""
        return decode64(request["image"])

    def batch(self, inputs: list[Any]) -> list[Any]:
        """They are stacked where they are answered."""
        return list(inputs)

    def unbatch(self, output: list[Any]) -> list[Any]:
        """They are apart already."""
        return output

    def predict(self, x: Any) -> Any:
        """Answers."""
        return self.model.answers(x) if isinstance(x, list) else self.model.answers([x])[0]

    def encode_response(self, output: Any) -> Any:
        """As it is."""
        return output


class OfBytes(OfJson):
    """A raw body to an answer."""

    def decode_request(self, request: Annotated[bytes, Depends(body)]) -> Any:
        """An image."""
        return decode(request)


def main() -> None:
    """Serve until killed."""
    kind = OfBytes if setting("kind") == "raw" else OfJson
    api = kind(max_batch_size=int(setting("batch", "1")), batch_timeout=float(setting("timeout", "0")))
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=int(setting("workers", "1")),
        fast_queue=setting("fast") == "1",
    )
    servers = setting("servers")
    server.run(
        host="127.0.0.1",
        port=int(setting("port")),
        num_api_servers=int(servers) if servers else None,
        log_level="error",
        access_log=False,
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
