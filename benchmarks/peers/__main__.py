"""Builds all peers."""

from benchmarks.peers import build_all

for name, detail in build_all().items():
    print(f"{name} will be skipped: {detail}")
