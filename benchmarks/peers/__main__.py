"""Build all peers."""

from benchmarks.peers import build_all

for name, reason in build_all().items():
    print(f"{name} will be skipped: {reason}")
