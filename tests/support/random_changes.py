"""Random changes of a table of runs, through one connection."""

import random

import psycopg

STATUSES = ("queued", "running", "completed", "failed")


def write_randomly(url: str, chance: random.Random, *, changes: int, ids: int) -> None:
    """INSERT, UPDATE and DELETE runs `run-000` to `run-<ids>`, each in a transaction of its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(changes):
            run_id = f"run-{chance.randrange(ids):03}"
            match chance.randrange(6):
                case 0:
                    query, values = b"DELETE FROM runs WHERE id = %s", [run_id]
                case 1:
                    query, values = (
                        b"INSERT INTO runs (id) VALUES (%s) ON CONFLICT DO NOTHING",
                        [run_id],
                    )
                case 2:
                    status = chance.choice(STATUSES)
                    query, values = b"UPDATE runs SET status = %s WHERE id = %s", [status, run_id]
                case _:
                    progress = str(chance.randrange(100))
                    query = b"UPDATE runs SET progress = %s::float8 WHERE id = %s"
                    values = [progress, run_id]
            connection.execute(query, values)
