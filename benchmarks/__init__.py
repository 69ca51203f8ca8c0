"""Programs that measure Brain: `python -m benchmarks.NAME [--quick]`, or all by `make bench`."""
