"""API keys: shown once, stored as hashes, refused without a further reason."""

import hashlib
import hmac
import json
import subprocess
import sys
import time

import pytest

from sightline.errors import AuthError, ChoiceError, SightlineError
from sightline.serving import api_keys
from sightline.serving.api_keys import KEY_SCOPES, Keyring, Unauthorized, create_key, list_keys, revoke_key


def status(ring, secret, scope):
    with pytest.raises(AuthError) as refused:
        ring.authorize(secret, scope)
    assert isinstance(refused.value, Unauthorized)
    assert secret is None or secret not in str(refused.value) or not secret
    return refused.value.status


def test_a_key_is_stored_as_a_hash(tmp_path):
    secret = create_key(tmp_path, "camera-3", ["predict", "feedback"])
    assert secret.startswith("sl_")
    assert len(secret) == 3 + 43  # 32 bytes
    file = tmp_path / "keys.json"
    assert secret not in file.read_text()
    assert secret[3:] not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    (key,) = list_keys(tmp_path)
    assert (key.name, key.scopes, key.expires) == ("camera-3", ("predict", "feedback"), None)
    assert "sha256" not in key.as_json()
    assert create_key(tmp_path, "other", ["predict"]) != secret


@pytest.mark.parametrize("scope", KEY_SCOPES)
@pytest.mark.parametrize("held", KEY_SCOPES)
def test_a_key_allows_its_scope_and_admin_all(tmp_path, held, scope):
    secret = create_key(tmp_path, "one", [held])
    ring = Keyring(tmp_path)
    if held in (scope, "admin"):
        assert ring.authorize(secret, scope) == "one"
    else:
        assert status(ring, secret, scope) == 403


def test_malformed_keys_are_refused(tmp_path):
    ring = Keyring(tmp_path)
    assert ring.empty
    assert status(ring, None, "predict") == 401
    secret = create_key(tmp_path, "one", ["predict"])
    assert not ring.empty
    for wrong in (None, "", "sl_", secret[:-1], secret + "x", secret.upper(), "é" * 40, "\ud800", "x" * 100_000):
        assert status(ring, wrong, "predict") == 401
    assert ring.authorize(secret, "predict") == "one"


def test_every_key_is_compared_whole_for_any_secret(tmp_path, monkeypatch):
    secrets = [create_key(tmp_path, name, ["predict"]) for name in "abc"]
    ring, stored, compared = Keyring(tmp_path), {key.sha256 for key in list_keys(tmp_path)}, []

    def compare(one, two):
        compared.append((one, two))
        return hmac.compare_digest(one, two)

    monkeypatch.setattr(api_keys, "compare_digest", compare)
    for secret in (*secrets, secrets[0][:-1] + "x", "wrong"):
        known = secret in secrets
        assert (ring.authorize(secret, "predict") if known else status(ring, secret, "predict")) in (*"abc", 401)
        assert {one for one, _ in compared} == stored  # a match ends no search, so time shows nothing of its place
        assert {two for _, two in compared} == {hashlib.sha256(secret.encode()).hexdigest()}
        compared.clear()


def test_an_unreadable_key_file_lets_nobody_in(tmp_path):
    site = tmp_path / "site"
    secret = create_key(site, "one", ["read"])
    ring = Keyring(site)
    site.rename(tmp_path / "away")
    site.write_text("a file where the folder was")
    assert not ring.empty
    assert status(ring, secret, "read") == 401


def test_an_expired_key_is_refused(tmp_path):
    ring = Keyring(tmp_path)
    secret = create_key(tmp_path, "short", ["admin"], expires_days=0.5 / 86_400)
    assert ring.authorize(secret, "read") == "short"
    time.sleep(0.6)
    assert status(ring, secret, "read") == 401
    assert list_keys(tmp_path)[0].expired


def test_revoking_takes_effect_at_once(tmp_path):
    ring = Keyring(tmp_path)
    first, second = create_key(tmp_path, "first", ["predict"]), create_key(tmp_path, "second", ["predict"])
    assert ring.authorize(first, "predict") == "first"
    assert revoke_key(tmp_path, "first").name == "first"
    assert status(ring, first, "predict") == 401
    assert ring.authorize(second, "predict") == "second"
    with pytest.raises(ChoiceError, match=r"no key named 'secnd'. Did you mean 'second'"):
        revoke_key(tmp_path, "secnd")
    revoke_key(tmp_path, "second")
    assert not ring.empty  # the last key taken away opens no door
    assert status(ring, None, "read") == 401
    with pytest.raises(ChoiceError, match="There are none"):
        revoke_key(tmp_path, "second")


@pytest.mark.parametrize(
    ("name", "scopes", "days", "message"),
    [
        ("one", ["predct"], None, "no scope 'predct'. Did you mean 'predict'"),
        ("one", [], None, "A key needs a scope"),
        ("", ["read"], None, "is no name for a key"),
        ("a b", ["read"], None, "is no name for a key"),
        ("x" * 65, ["read"], None, "is no name for a key"),
        ("one", ["read"], 0, "--expires-days is 0"),
        ("one", ["read"], float("nan"), "--expires-days is nan"),
        ("taken", ["read"], None, "There is a key named 'taken' already"),
    ],
)
def test_invalid_names_scopes_and_days_are_refused(tmp_path, name, scopes, days, message):
    create_key(tmp_path, "taken", ["read"])
    with pytest.raises(ChoiceError, match=message):
        create_key(tmp_path, name, scopes, expires_days=days)
    assert [key.name for key in list_keys(tmp_path)] == ["taken"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 1, "keys": [{"name": "x"}]}', "is damaged"),
        ('{"format": 99, "keys": []}', "has format 99, newer"),
    ],
)
def test_a_damaged_key_file_lets_nobody_in(tmp_path, text, message):
    secret = create_key(tmp_path, "one", ["admin"])
    ring = Keyring(tmp_path)
    whole = (tmp_path / "keys.json").read_text()
    (tmp_path / "keys.json").write_text(text)
    with pytest.raises(SightlineError, match=message):
        Keyring(tmp_path)
    assert not ring.empty
    assert status(ring, secret, "predict") == 401
    (tmp_path / "keys.json").write_text(whole)
    assert ring.authorize(secret, "predict") == "one"


MAKERS = """
import os, sys
from sightline.serving import api_keys
from sightline.serving.api_keys import create_key
for name in "abc":  # three processes, after one import
    if not os.fork():
        for i in range(5): create_key(sys.argv[1], f"{name}-{i}", ["predict"])
        os._exit(0)
assert [os.wait()[1] for _ in "abc"] == [0, 0, 0]
"""


def test_concurrent_processes_lose_no_key(tmp_path):
    subprocess.run([sys.executable, "-c", MAKERS, tmp_path], check=True, timeout=120)
    assert {key.name for key in list_keys(tmp_path)} == {f"{name}-{i}" for name in "abc" for i in range(5)}


def test_keys_on_the_command_line(cli, tmp_path):
    made = json.loads(cli("keys", tmp_path, "make", "camera", "--scopes", "predict,feedback", "--json").out)
    assert Keyring(tmp_path).authorize(made["key"], "feedback") == "camera"
    shown = cli("keys", tmp_path, "make", "later", "--scopes", "read", "--expires-days", 30)
    assert "not shown again" in shown.out
    answer = cli("keys", tmp_path)
    assert answer.code == 0, answer.err
    assert "camera" in answer.out
    assert "never" in answer.out
    assert made["key"] not in answer.out
    assert json.loads(cli("keys", tmp_path, "revoke", "camera", "--json").out)["revoked"] == "camera"
    for words, message in (
        (("revoke", "camera"), "There is no key named 'camera'"),
        (("make",), "`make` needs the name of a key"),
        (("make", "x", "--scopes", "all"), "There is no scope 'all'"),
    ):
        refused = cli("keys", tmp_path, *words)
        assert (refused.code, message in refused.err) == (2, True), refused.err
