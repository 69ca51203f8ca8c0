"""What tests and benchmarks share: servers, clients and proxies, all of them real."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""
