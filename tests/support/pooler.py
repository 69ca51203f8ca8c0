"""PgBouncer, if it is installed, between Brain and a PostgreSQL of the tests."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tests.support.patience import PATIENCE
from tests.support.ports import free_port

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
MISSING = "pgbouncer is not installed: apt install pgbouncer"

CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={target}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = 2
logfile = {folder}/log
"""


@contextmanager
def pooled(url: str, mode: str = "transaction") -> Iterator[str]:
    """The URL of the same database through a pooler. Its roles need no password."""
    assert PROGRAM is not None, MISSING
    parts = urlsplit(url)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="brain-pooler-") as name:
        folder = Path(name)
        folder.chmod(0o777)  # under root, it runs as `nobody`
        (folder / "users").write_text(f'"{parts.username}" ""\n')
        text = CONFIGURATION.format(target=parts.port, port=port, folder=folder, mode=mode)
        (folder / "ini").write_text(text)
        credentials = ["-u", "nobody"] if os.geteuid() == 0 else []
        process = subprocess.Popen(
            [PROGRAM, "-q", *credentials, folder / "ini"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until = time.monotonic() + PATIENCE
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    assert process.poll() is None, (folder / "log").read_text()
                    assert time.monotonic() < until
                    time.sleep(0.02)
            yield urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}"))
        finally:
            process.kill()
            process.wait()
