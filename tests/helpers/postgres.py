"""A PostgreSQL of one's own: in a temporary folder, on a free port of this machine, stopped when done."""

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import psycopg


def programs() -> Path | None:
    """Where PostgreSQL's programs are; None where it is not installed, or root has no one to run it as."""
    found = shutil.which("pg_ctl")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    able = os.geteuid() != 0 or shutil.which("runuser") is not None
    return next((place for place in places if able and (place / "initdb").is_file()), None)


class Cluster:
    """A server that can be stopped and started."""

    def __init__(self, bin: Path):
        self.bin, self.root = bin, Path(tempfile.mkdtemp(prefix="sightline-postgresql-"))
        self.databases = 0
        if os.geteuid() == 0:
            shutil.chown(self.root, "postgres")
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self._run("initdb", "-D", self.root / "data", "-U", "sightline", "-A", "trust", "--no-sync")
        self.start()

    def _run(self, program, *words):
        command = [str(self.bin / program), *map(str, words)]
        command = ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command
        subprocess.run(command, check=True, cwd=self.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start(self):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.root} -F"
        self._run("pg_ctl", "-D", self.root / "data", "-w", "-l", self.root / "log", "-o", options, "start")

    def stop(self, mode="immediate"):
        self._run("pg_ctl", "-D", self.root / "data", "-w", "-m", mode, "stop")

    def database(self) -> str:
        """URL of a new, empty database."""
        self.databases += 1
        place = f"sightline:hidden-word@127.0.0.1:{self.port}"
        with psycopg.connect(f"postgresql://{place}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE d{self.databases}")
        return f"postgresql://{place}/d{self.databases}"

    def close(self):
        with suppress(subprocess.CalledProcessError):  # it may be stopped already
            self.stop()
        shutil.rmtree(self.root, ignore_errors=True)
