"""Several nodes, and several workers: the parts of `python -m benchmarks.nodes`."""
