"""Records what pgoutput says of a list of statements, for test_pgoutput.py.

    python -m tests.unit.postgres.golden.record [VERSION …]

writes pgoutput-VERSION.txt: a line `# statement`, and below it a line of hex for each message.
"""

import sys
from pathlib import Path

import psycopg

from tests.support.postgres import VERSIONS, running

HERE = Path(__file__).parent


BEFORE = [
    "CREATE TYPE mood AS ENUM ('fine', 'bad')",
    "CREATE TABLE runs (id text PRIMARY KEY, status text, progress float8, error text, mood mood)",
    "ALTER TABLE runs ALTER error SET STORAGE EXTERNAL",
    "CREATE TABLE whole (id int, t text)",
    "ALTER TABLE whole REPLICA IDENTITY FULL",
    "CREATE TABLE wide (id int PRIMARY KEY, {})".format(
        ", ".join(f"c{i} int DEFAULT {i}" for i in range(300))
    ),
    "CREATE TABLE other (id int)",
    "CREATE PUBLICATION p FOR TABLE runs, whole, wide",
    "SELECT pg_create_logical_replication_slot('s', 'pgoutput')",
    "SELECT pg_replication_origin_create('elsewhere')",
]
STATEMENTS = [
    "INSERT INTO runs VALUES ('a', 'queued', NULL, repeat('é', 1200), 'fine')",
    "UPDATE runs SET status = 'running', progress = 33.3 WHERE id = 'a'",
    "UPDATE runs SET id = 'b' WHERE id = 'a'",
    "DELETE FROM runs",
    "INSERT INTO whole VALUES (1, NULL), (2, E'\\\\ \\n € 😀')",
    "UPDATE whole SET t = 'x' WHERE id = 1",
    "DELETE FROM whole WHERE id = 1",
    "INSERT INTO wide (id) VALUES (7)",
    "TRUNCATE runs, wide",
    "ALTER TABLE runs ADD extra text DEFAULT 'e', DROP COLUMN progress",
    "INSERT INTO runs VALUES ('c', '', NULL, 'bad', 'more')",
    "INSERT INTO other VALUES (1)",
    "SELECT pg_logical_emit_message(true, 'prefix', 'in a transaction')",
    "SELECT pg_logical_emit_message(false, 'prefix', 'outside of one')",
    "SELECT pg_replication_origin_session_setup('elsewhere')",
    "INSERT INTO runs (id) VALUES ('from elsewhere')",
]
CHANGES = """
SELECT data FROM pg_logical_slot_get_binary_changes(
    's', NULL, NULL, 'proto_version', '1', 'publication_names', 'p', 'messages', 'true')
"""


def record(version: int) -> None:
    with running(version) as server, psycopg.connect(server.url(), autocommit=True) as conn:
        for statement in BEFORE:
            conn.execute(statement.encode())
        lines = []
        for statement in STATEMENTS:
            conn.execute(statement.encode())
            lines.append(f"# {statement}")
            lines += [bytes(data).hex() for (data,) in conn.execute(CHANGES)]
    (HERE / f"pgoutput-{version}.txt").write_text("\n".join(lines) + "\n")


for version in map(int, sys.argv[1:] or VERSIONS):
    record(version)
    print(f"recorded PostgreSQL {version}")
