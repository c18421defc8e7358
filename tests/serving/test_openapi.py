"""Schemathesis over the whole description of a running service: no request breaks it."""

import json
import time
from shutil import copytree

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from helpers.malformed_images import whole
from helpers.service_process import listening, site_of_two
from sightline.serving import api_keys

OPERATIONS = {
    "GET /classes",
    "GET /drift",
    "GET /healthz",
    "GET /metrics",
    "GET /model",
    "GET /predictions",
    "GET /readyz",
    "GET /releases",
    "GET /review",
    "GET /review/images/{id}",
    "POST /feedback",
    "POST /predict",
    "POST /releases/{number}/promote",
    "POST /review/answers",
    "POST /review/next",
}

FEW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
"""Examples of each operation; the same every time."""

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return copytree(site_of_two(), tmp_path_factory.mktemp("openapi") / "site")


@pytest.fixture(scope="module")
def service(site):
    with listening(site) as service:
        yield service


@pytest.fixture(scope="module")
def description(service):
    document = json.loads(service.ask("GET", "/openapi.json")[2])
    return schemathesis.openapi.from_dict(_without_pairs(document))


def _without_pairs(node):
    """Schemathesis makes of ``prefixItems`` what it then refuses itself: pairs become lists of two."""
    if isinstance(node, list):
        return [_without_pairs(one) for one in node]
    if not isinstance(node, dict):
        return node
    kept = {name: _without_pairs(one) for name, one in node.items() if name != "prefixItems"}
    if "prefixItems" in node:
        kept |= {"items": {"anyOf": node["prefixItems"]}, "minItems": 2, "maxItems": 2}
    return kept


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")  # of Schemathesis itself
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_no_request_breaks_the_service(name, mode, description, service):
    """Requests as described, and wrong ones: the answer is as described, never a fault of ours."""
    method, path = name.split()

    @FEW
    @given(case=description[path][method].as_strategy(generation_mode=mode))
    def check(case):
        case.call_and_validate(base_url=service.url, checks=CHECKS)

    try:
        check()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # what takes nothing can be asked nothing wrong


def test_the_service_is_still_alive(service):
    """After all of that it answers an image, and no request was a fault of its own."""
    assert service.ask("POST", "/predict", whole()["jpeg"])[0] == 200
    assert '"event": "error"' not in service.output()


def test_the_description_names_every_route(description):
    found = {f"{one.ok().method.upper()} {one.ok().path}" for one in description.get_all_operations()}
    assert found == OPERATIONS


def test_the_description_marks_routes_that_need_a_key(site, service):
    """As soon as there is a key."""
    secret = api_keys.create_key(site, "reader", ("read",))
    time.sleep(0.1)  # a new key takes effect within 20 ms
    try:
        document = json.loads(service.ask("GET", "/openapi.json")[2])
        for path, methods in document["paths"].items():
            for one in methods.values():
                assert ("security" in one) == (path not in ("/healthz", "/readyz")), path
        assert service.ask("POST", "/predict", whole()["jpeg"])[0] == 401
        assert service.ask("GET", "/classes", X_API_Key=secret)[0] == 200
        assert service.ask("POST", "/predict", b"x", X_API_Key=secret)[0] == 403
    finally:
        api_keys.revoke_key(site, "reader")
