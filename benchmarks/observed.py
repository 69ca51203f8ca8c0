"""`brain serve` that records each pause of the garbage collector.

Each pause is a line in the file BENCHMARK_PAUSES: generation, wall seconds, CPU seconds. It imports
nothing of the other benchmarks, so that served.py can start it anywhere.
"""

import gc
import os
import time

from brain.cli.commands import main

out = os.open(os.environ["BENCHMARK_PAUSES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
wall = cpu = 0.0


def observe(phase: str, info: dict[str, int]) -> None:
    global wall, cpu
    if phase == "start":
        wall, cpu = time.perf_counter(), time.thread_time()
    else:
        took, used = time.perf_counter() - wall, time.thread_time() - cpu
        os.write(out, f"{info['generation']} {took:.6f} {used:.6f}\n".encode())


gc.callbacks.append(observe)

if __name__ == "__main__":
    main()
