"""Who may enter the studio, for how long, and from which page."""

import hashlib
import json
import re
import time

import pytest

from helpers.studio_client import TOKEN, Reader, open_studio, post, sign_in
from sightline.serving.api_keys import KEYS_FILE, create_key, revoke_key

PAGES = ("/studio", "/studio/jobs")


@pytest.fixture
def site(tmp_path):
    return tmp_path / "site"


def moment(client):
    client.service.keyring._checked_at = 0  # the key file is read again


def test_nobody_enters_without_signing_in(site):
    with open_studio(site, signed_in=False) as client:
        for path in (*PAGES, "/studio/nowhere"):
            answer = client.get(path)
            assert answer.status_code == 401
            assert "Latest jobs" not in answer.text
        assert post(client, "/studio/run/improve").status_code == 401
        assert not (site / "studio" / "jobs").exists()


def test_a_key_opens_a_session_that_a_script_cannot_read(site):
    with open_studio(site, signed_in=False) as client:
        secret = create_key(site, "anna", ["read"])
        moment(client)
        answer = sign_in(client, secret)
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "path=/studio" in cookie
        assert secret.lower() not in cookie
        assert client.get("/studio").status_code == 200
        stored = "".join(path.read_text() for path in (site / "studio" / "sessions").iterdir())
        value = re.search(r"=([\w-]+)", answer.headers["set-cookie"])[1]
        assert secret not in stored
        assert value not in stored


def test_a_wrong_key_is_refused_and_the_page_says_so(site):
    with open_studio(site) as client:
        client.cookies.clear()
        answer = sign_in(client, "sl_" + "x" * 43)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        assert "no key of this site" in answer.text


def test_a_revoked_key_is_out_at_once(site):
    with open_studio(site) as client:
        assert client.get("/studio/jobs").status_code == 200
        revoke_key(site, "anna")
        moment(client)
        answer = client.get("/studio/jobs")
        assert answer.status_code == 401
        assert "was revoked" in answer.text
        assert post(client, "/studio/run/improve").status_code == 401


def test_an_expired_key_is_named(site):
    with open_studio(site) as client:
        held = json.loads((site / KEYS_FILE).read_text())
        held["keys"][0]["expires"] = time.time() - 1
        (site / KEYS_FILE).write_text(json.dumps(held))
        moment(client)
        answer = client.get("/studio")
        assert answer.status_code == 401
        assert "The key 'anna' has expired" in Reader(answer.text).text


def test_the_token_of_the_terminal_signs_in_once(site):
    with open_studio(site, signed_in=False) as client:
        assert client.get("/studio/sign-in?token=guess").status_code == 401
        assert client.get("/studio").status_code == 401
        assert client.get(f"/studio/sign-in?token={TOKEN}").status_code == 200
        assert client.get("/studio").status_code == 200
        client.cookies.clear()
        again = client.get(f"/studio/sign-in?token={TOKEN}")
        assert again.status_code == 401
        assert "used already" in again.text
    with open_studio(site, signed_in=False, loopback_only=False, open=True) as client:
        assert client.get("/studio").status_code == 401  # to other machines a token opens nothing


def test_a_session_survives_a_restart_and_ends_when_one_signs_out(site):
    with open_studio(site) as client:
        cookies = dict(client.cookies)
    with open_studio(site, signed_in=False) as client:
        client.cookies.update(cookies)
        assert client.get("/studio").status_code == 200
        assert post(client, "/studio/sign-out").status_code == 303
        client.cookies.update(cookies)
        assert client.get("/studio").status_code == 401


ELSEWHERE = (
    {"Origin": "http://evil.example"},
    {"Origin": "http://localhost:9"},
    {"Origin": "https://localhost"},
    {"Origin": "null"},
    {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "cross-site"},
    {},
)


def test_another_page_changes_nothing(site):
    with open_studio(site) as client:
        for headers in ELSEWHERE:
            answer = post(client, "/studio/run/improve", headers=headers)
            assert answer.status_code == 403, headers
            assert post(client, "/studio/sign-out", headers=headers).status_code == 403
        assert not (site / "studio" / "jobs").exists()
        assert client.get("/studio").status_code == 200
        assert post(client, "/studio/run/nothing", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 404


def test_a_scope_allows_its_pages_only(site):
    with open_studio(site, scopes=["read"]) as client:
        assert client.get("/studio/jobs").status_code == 200
        answer = post(client, "/studio/run/improve")
        assert answer.status_code == 403
        assert "scope admin" in answer.text
        for path in (
            "/live/drift/0",
            "/jobs/20260101-000000-abcdef/sheet",
            "/review/images/x",
        ):  # images of people
            assert client.get(f"/studio{path}").status_code == 403, path
        links = {held["href"] for held in Reader(client.get("/studio").text).every("a")}
        assert "/studio/jobs" in links
        assert "/studio/review" not in links
        for name, scope in (("reviewer", "review"), ("camera", "feedback")):
            secret = create_key(site, name, [scope])
            moment(client)
            client.cookies.clear()
            sign_in(client, secret)
            assert client.get("/studio/jobs").status_code == 403
            home = client.get("/studio")
            if scope == "review":
                assert home.headers["location"] == "/studio/review"
            else:
                assert home.status_code == 403
                assert "needs read, review or admin" in Reader(home.text).text


def test_every_page_has_a_strict_policy_and_nothing_inline(site):
    with open_studio(site) as client:
        for path in (*PAGES, "/studio/live", "/studio/sign-in", "/studio/nowhere"):
            answer = client.get(path)
            parts = (part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
            policy = dict(parts)
            assert policy["default-src"] == "'none'"
            assert policy["frame-ancestors"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == "'self'"
            assert "unsafe" not in str(policy)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["referrer-policy"] == "same-origin"
            read = Reader(answer.text)
            assert not read.every("style")
            assert all("src" in one for one in read.every("script"))
            for tag, held in read.tags:
                assert not [name for name in held if name.startswith(("on", "hx-on")) or name == "style"], tag
                for name in ("src", "href", "action", "hx-get", "hx-post"):
                    assert (held.get(name) or "/").startswith(("/", "#", "data:,")), (tag, held)


def test_the_sign_in_page_leads_back_to_the_studio_only(site):
    with open_studio(site, signed_in=False) as client:
        secret = create_key(site, "anna", ["admin"])
        moment(client)
        for onward in ("https://evil.example", "//evil.example", "/predict", "/studio/jobs"):
            answer = post(client, "/studio/sign-in", key=secret, next=onward)
            (refresh,) = Reader(answer.text).every("meta", **{"http-equiv": "refresh"})
            assert refresh["content"] == f"0;url={onward if onward == '/studio/jobs' else '/studio'}"


HTMX_SHA256 = "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130"
"""Of htmx.min.js in htmx.org 4.0.1 of the npm registry."""


def test_the_first_page_is_small_and_its_files_are_kept_by_the_browser(site):
    with open_studio(site) as client:
        page = client.get("/studio", headers={"Accept-Encoding": "gzip"})
        assert page.headers["content-encoding"] == "gzip"
        read = Reader(page.text)
        links = [one["src"] for one in read.every("script")]
        links += [one["href"] for one in read.every("link", rel="stylesheet")]
        assert len(links) >= 4
        sizes = [int(page.headers["content-length"])]
        for link in links:
            answer = client.get(link, headers={"Accept-Encoding": "gzip"})
            assert answer.status_code == 200
            assert "immutable" in answer.headers["cache-control"]
            sizes.append(int(answer.headers["content-length"]))
            if "htmx" in link:
                assert hashlib.sha256(answer.content).hexdigest() == HTMX_SHA256
        assert sum(sizes) < 60_000
        assert client.get("/studio/static/nothing.js").status_code == 404
        assert client.get("/studio/static/..%2f..%2f__init__.py").status_code == 404
