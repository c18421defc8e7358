"""What the service needs of uvicorn beyond its documented settings: names that a new version might lose."""

import inspect

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sightline.serving.worker import BoundedHttpProtocol, QuietServer

OVERRIDDEN = (
    *("connection_made", "data_received", "connection_lost", "pause_writing", "resume_writing"),
    *("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body", "on_message_complete"),
    *("on_response_complete", "timeout_keep_alive_handler", "send_400_response"),
)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_uvicorn_still_has_the_overridden_methods(name):
    ours, theirs = getattr(BoundedHttpProtocol, name), getattr(HttpToolsProtocol, name)
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)


def test_uvicorn_still_has_the_names_that_are_used():
    assert callable(HttpToolsProtocol.timeout_keep_alive_handler)
    assert list(inspect.signature(HttpToolsProtocol.send_400_response).parameters) == ["self", "msg"]
    source = inspect.getsource(HttpToolsProtocol.__init__)
    for name in ("loop", "transport", "cycle", "timeout_keep_alive", "timeout_keep_alive_task"):
        assert f"self.{name}" in source
    assert "capture_signals" in inspect.getsource(uvicorn.Server.serve)
    assert issubclass(QuietServer, uvicorn.Server)
    assert callable(uvicorn.Server.handle_exit)
