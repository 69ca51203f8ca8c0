"""Programs that measure Brain: `python -m benchmarks.NAME [--quick]`; `make bench` runs all."""
