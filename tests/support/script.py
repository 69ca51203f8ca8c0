"""The command `brain` on the PATH of a shell, where it is a fork too (tests/support/prefork.py).

It is a script that hands its arguments, environment, folder and streams to a thread of this
process. The thread starts the command, whose `sys.argv[0]` is what the shell called. The script
passes on each signal that it gets, and ends as the command ends:

    shell
      └── script    waits for the status; if it is killed, the thread kills the command
    thread
      └── brain     writes to the streams of the script
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Final

from tests.support import prefork

REAL: Final = Path(sys.prefix) / "bin" / "brain"

_SCRIPT: Final = """\
import os, signal, socket, sys

server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
early, command = [], 0

def pass_on(number, frame):
    if command:
        os.kill(command, number)
    else:
        early.append(number)

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, pass_on)
variables = [b"=".join(each) for each in os.environb.items()]
words = [os.getcwdb(), b"%d" % len(variables), *variables, *map(os.fsencode, sys.argv)]
socket.send_fds(server, [b"\\0".join(words)], [0, 1, 2])
command = int(server.recv(64))
for number in early:
    os.kill(command, number)
status = int(server.recv(64))
if status < 0:
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@cache
def folder() -> Path:
    """Where `brain` is, for a PATH: that of the virtual environment if nothing is forked."""
    if not prefork.installed():
        return REAL.parent
    made = Path(tempfile.mkdtemp(prefix="brain-script-"))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(made / "socket"))
    listener.listen()
    (made / "brain").write_text(
        f"#!{sys.executable} -SEs\n{_SCRIPT.format(address=str(made / 'socket'))}"
    )
    (made / "brain").chmod(0o755)
    threading.Thread(target=_accept, args=[listener], name="script", daemon=True).start()
    _made.append((made, listener))
    return made


_made: list[tuple[Path, socket.socket]] = []


def close() -> None:
    """Remove the folder."""
    for made, listener in _made:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        shutil.rmtree(made)
    _made.clear()
    folder.cache_clear()


def _accept(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # close()
            return
        threading.Thread(target=_serve, args=[connection], name="brain", daemon=True).start()


def _serve(connection: socket.socket) -> None:
    with connection:
        request, streams, _, _ = socket.recv_fds(connection, prefork.REQUEST, 3)
        if not request:  # killed before it asked
            return
        try:
            process = _started(request.split(b"\0"), streams)
        finally:
            for each in streams:
                os.close(each)
        reporter = threading.Thread(target=_report, args=[connection, process], daemon=True)
        reporter.start()
        connection.recv(1)  # until the script has ended
        process.kill()  # unless it has reported its end
        reporter.join()


def _report(connection: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    """Send the command's process id, and its status when it ends."""
    with contextlib.suppress(OSError):  # the script has been killed
        connection.send(b"%d" % process.pid)
    status = process.wait()
    with contextlib.suppress(OSError):
        connection.send(b"%d" % status)


def _started(words: list[bytes], streams: list[int]) -> "subprocess.Popen[bytes]":
    where, count = words[0], int(words[1])
    environment = dict(each.split(b"=", 1) for each in words[2 : 2 + count])
    program, *arguments = words[2 + count :]
    forked = prefork.like_ours({os.fsdecode(k): os.fsdecode(v) for k, v in environment.items()})
    command = [os.fsencode(sys.executable), program] if forked else [os.fsencode(REAL)]
    return subprocess.Popen(
        [*command, *arguments],
        stdin=streams[0],
        stdout=streams[1],
        stderr=streams[2],
        env=environment,
        cwd=where,
        start_new_session=True,  # Ctrl-C in the shell reaches it through the script alone
    )
