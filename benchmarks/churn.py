"""Churn: whether memory grows while 100 000 clients come and go.

`python -m benchmarks.churn [--quick]`.

1 000 clients connect, all are closed, and 1 000 others connect, a hundred times. Brain's memory
while a thousand are connected is compared with that after the first ten rounds, in which the heap
finds its size. (`make soak` does more, for longer: half requests, lagging clients, changes.)
"""

from functools import partial
from statistics import median

from benchmarks import machine
from benchmarks.load import Load, Options
from benchmarks.trial import OTHER_CORES, SERVER_CORE

MAX_GROWTH = 1.01
WARM = 10


def churn(url: str, clients: int, rounds: int) -> dict[str, float]:
    with machine.brain(url, cores=SERVER_CORE) as brain:
        pid = brain.process.pid
        with Load(Options(brain.port, "/ws", clients), cores=OTHER_CORES) as load:
            load.check_connected()
            samples = [machine.rss_bytes(pid)]
            seconds = load.connected["seconds"]
            for _ in range(rounds - 1):
                load.ask("again")
                load.check_connected()
                seconds += load.connected["seconds"]
                samples.append(machine.rss_bytes(pid))
    warm, last = median(samples[WARM : 2 * WARM]), median(samples[-WARM:])
    return {
        "connections": float(rounds * clients),
        "accepted_per_second": rounds * clients / seconds,
        "first_mb": samples[0] / 2**20,
        "warm_mb": warm / 2**20,
        "last_mb": last / 2**20,
        "last_of_warm": last / warm,
        "last_of_first": last / samples[0],
    }


def main() -> None:
    options = machine.options(__doc__, runs=2)
    clients, rounds = (100, 30) if options.quick else (1_000, 100)
    job = f"{clients * rounds} connections"
    with machine.database(cores=OTHER_CORES) as url:
        found = machine.interleaved(options.runs, {job: partial(churn, url, clients, rounds)})
    figures = machine.spreads(found[job])
    growth = figures["last_of_warm"]["median"]
    document = {
        "jobs": {job: {"runs": found[job], "figures": figures}},
        "targets": [
            machine.target(f"memory after {job}, of that after a tenth", growth, most=MAX_GROWTH)
        ],
    }
    machine.write("churn", document, quick=options.quick)


if __name__ == "__main__":
    main()
