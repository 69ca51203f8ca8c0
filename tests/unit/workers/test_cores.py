"""How many workers `auto` means."""

import os
from pathlib import Path

import pytest

from brain.workers.cores import cores

MACHINE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine(folder: Path, **limits: str) -> int:
    """The cores of a process in the group a/b. A limit is that of a group, by its path."""
    (folder / "a" / "b").mkdir(parents=True)
    for name, text in limits.items():
        folder.joinpath(*name.split("_"), "cpu.max").write_text(text)
    membership = folder / "cgroup"
    membership.write_text("1:name=systemd:/elsewhere\n0::/a/b\n")
    return cores(membership, folder)


def test_without_a_limit_all_cores_of_the_machine_count(tmp_path: Path) -> None:
    assert machine(tmp_path, a_b="max 100000\n") == MACHINE
    assert cores(tmp_path / "absent", tmp_path) == MACHINE


@pytest.mark.parametrize("limit", ["50000 100000", "100000 100000"])
def test_the_limit_of_a_container_counts(tmp_path: Path, limit: str) -> None:
    assert machine(tmp_path, a_b=f"{limit}\n") == 1


def test_the_limit_of_a_group_above_counts(tmp_path: Path) -> None:
    assert machine(tmp_path, a="20000 100000\n", a_b="max 100000\n") == 1


def test_a_part_of_a_core_is_one(tmp_path: Path) -> None:
    assert machine(tmp_path, a_b="100001 100000\n") == min(2, MACHINE or 1)


def test_a_limit_above_the_machine_changes_nothing(tmp_path: Path) -> None:
    assert machine(tmp_path, a_b="640000000 100000\n") == MACHINE


def machine_v1(folder: Path, controllers: str, **quotas: str) -> int:
    """The same with cgroups of the first version, which a machine may mount beside the second."""
    root = folder / controllers
    (root / "a" / "b").mkdir(parents=True)
    for name, quota in quotas.items():
        group = root.joinpath(*name.split("_")) if name != "root" else root
        (group / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (group / "cpu.cfs_period_us").write_text("100000\n")
    membership = folder / "cgroup"
    membership.write_text(f"3:cpuset:/elsewhere\n2:{controllers}:/a/b\n0::/\n")
    return cores(membership, folder)


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({"a_b": "-1", "a": "-1"}, MACHINE),
        ({"a_b": "50000"}, 1),
        ({"a_b": "-1", "a": "100000"}, 1),
        ({"root": "100000"}, 1),  # in a container, whose own group is the root
        ({"a_b": "640000000"}, MACHINE),
    ],
)
def test_so_does_a_limit_of_the_first_version_of_cgroups(
    tmp_path: Path, controllers: str, quotas: dict[str, str], expected: int
) -> None:
    assert machine_v1(tmp_path, controllers, **quotas) == expected
