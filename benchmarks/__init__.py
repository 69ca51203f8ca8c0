"""Programs that measure Brain: `python -m benchmarks.NAME [--quick]`, or all of them by `make bench`."""
