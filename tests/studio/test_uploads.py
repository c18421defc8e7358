"""Uploads in pieces: they survive anything, end whole or not at all, and never leave their folder."""

import hashlib
import os
import time

import pytest

from sightline.errors import DataError, OutputError
from sightline.studio.uploads import UploadConflict, UploadLimits, Uploads

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def uploads(tmp_path):
    return Uploads(tmp_path / "uploads", UploadLimits(reserve_bytes=0))


def test_pieces_become_the_file(uploads, tmp_path):
    upload = uploads.declare("photos.ZIP", len(CONTENT), by="ada")
    for start in range(0, len(CONTENT), 3000):
        piece = CONTENT[start : start + 3000]
        assert uploads.write(upload.id, start, piece).received == start + len(piece)
    path = uploads.finish(upload.id, tmp_path / "site" / "images", sha256=SHA256)
    assert path == tmp_path / "site" / "images.zip"
    assert path.read_bytes() == CONTENT
    assert uploads.list() == []
    assert list(uploads.folder.iterdir()) == []


def test_an_upload_goes_on_after_a_restart_and_in_another_tab(uploads, tmp_path):
    upload = uploads.declare("a.zip", len(CONTENT), by="ada")
    uploads.write(upload.id, 0, CONTENT[:5000])
    other = Uploads(uploads.folder, uploads.limits)  # nothing but the disk is shared
    again = other.declare("a.zip", len(CONTENT), by="ada")
    assert (again.id, again.received) == (upload.id, 5000)
    with pytest.raises(UploadConflict, match="begins at byte 5,000, not 0") as found:
        other.write(again.id, 0, CONTENT[:5000])
    assert found.value.received == 5000
    other.write(again.id, 5000, CONTENT[5000:])
    assert other.finish(again.id, tmp_path / "x", sha256=SHA256).read_bytes() == CONTENT
    assert other.declare("a.zip", len(CONTENT), by="ada").received == 0  # the same name later is another upload


def test_what_is_missing_or_wrong_is_not_finished(uploads, tmp_path):
    upload = uploads.declare("a.tar", len(CONTENT))
    uploads.write(upload.id, 0, CONTENT[:-1])
    with pytest.raises(UploadConflict, match=r"1 bytes of .a\.tar. are missing"):
        uploads.finish(upload.id, tmp_path / "x", sha256=SHA256)
    with pytest.raises(DataError, match="more bytes than the 10,240 that were announced"):
        uploads.write(upload.id, len(CONTENT) - 1, b"ab")
    uploads.write(upload.id, len(CONTENT) - 1, b"!")
    with pytest.raises(DataError, match="its checksum is wrong"):
        uploads.finish(upload.id, tmp_path / "x", sha256=SHA256)
    assert not (tmp_path / "x.tar").exists()
    with pytest.raises(DataError, match="not here any more"):
        uploads.get(upload.id)


def test_a_checksum_that_was_announced_counts(uploads, tmp_path):
    upload = uploads.declare("a.zip", 3, sha256=hashlib.sha256(b"abc").hexdigest())
    uploads.write(upload.id, 0, b"abd")
    with pytest.raises(DataError, match="checksum is wrong"):
        uploads.finish(upload.id, tmp_path / "x", sha256=hashlib.sha256(b"abd").hexdigest())


@pytest.mark.parametrize(
    ("name", "size", "match"),
    [
        ("photos.rar", 10, "not a zip or tar"),
        ("photo.jpg", 10, "not a zip or tar"),
        ("", 10, "not a zip or tar"),
        ("x" * 300 + ".zip", 10, "not a zip or tar"),
        ("a.zip", 0, "from one byte to"),
        ("a.zip", 10**12, "from one byte to 50 GB"),
    ],
)
def test_what_is_not_taken_is_refused_before_a_byte_is_sent(uploads, name, size, match):
    with pytest.raises(DataError, match=match):
        uploads.declare(name, size)


@pytest.mark.parametrize("name", ["../../evil.zip", "..\\..\\evil.zip", "/etc/evil.zip"])
def test_a_name_is_never_a_path(uploads, tmp_path, name):
    upload = uploads.declare(name, 3)
    uploads.write(upload.id, 0, b"abc")
    path = uploads.finish(upload.id, tmp_path / "safe", sha256=hashlib.sha256(b"abc").hexdigest())
    assert upload.name == "evil.zip"
    assert path == tmp_path / "safe.zip"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["safe.zip"]


@pytest.mark.parametrize("id", ["..", "../../etc", "", "a" * 16 + "/x", "A" * 16])
def test_an_id_is_never_a_path(uploads, id):
    with pytest.raises(DataError, match="not here any more"):
        uploads.get(id)
    uploads.discard(id)  # does nothing
    with pytest.raises(DataError, match="not here any more"):
        uploads.write(id, 0, b"x")


def test_a_full_disk_keeps_what_has_arrived(tmp_path):
    free = [20_000]
    uploads = Uploads(tmp_path / "uploads", UploadLimits(reserve_bytes=1000), lambda _: free[0])
    upload = uploads.declare("a.zip", len(CONTENT))
    with pytest.raises(OutputError, match="no room"):  # the first one's bytes are promised
        uploads.declare("b.zip", 9000)
    uploads.write(upload.id, 0, CONTENT[:4000])
    free[0] = 3000
    with pytest.raises(OutputError, match="what has arrived is kept"):
        uploads.write(upload.id, 4000, CONTENT[4000:8000])
    free[0] = 20_000
    assert uploads.write(upload.id, 4000, CONTENT[4000:]).received == len(CONTENT)


def test_abandoned_uploads_expire_and_their_number_is_bounded(tmp_path):
    uploads = Uploads(tmp_path / "uploads", UploadLimits(reserve_bytes=0, max_open=2, expire_seconds=3600))
    old, new = uploads.declare("a.zip", 10), uploads.declare("b.zip", 10)
    with pytest.raises(DataError, match="2 uploads are unfinished"):
        uploads.declare("c.zip", 10)
    long_ago = time.time() - 3700
    os.utime(uploads.part(old.id), (long_ago, long_ago))
    assert [upload.id for upload in uploads.list()] == [new.id]
    assert uploads.declare("c.zip", 10).name == "c.zip"


def test_two_tabs_do_not_mix_their_pieces(uploads):
    from filelock import FileLock

    upload = uploads.declare("a.zip", 10)
    with FileLock(uploads.part(upload.id).with_name(".lock")), pytest.raises(UploadConflict, match="Another tab"):
        Uploads(uploads.folder).write(upload.id, 0, b"abc")
    assert uploads.get(upload.id).received == 0
