"""LISTEN, and publish each change by Centrifugo's HTTP API.

As its documentation advises for many messages: all notifications that wait go into one `batch`.
"""

import http.client
import os
import select
import sys

import psycopg

MOST = 1000
"""Commands in one batch."""
HEADERS = {"X-API-Key": "benchmark", "Content-Type": "application/json"}


def main(port: int) -> None:
    connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    connection.execute("LISTEN runs")
    pg = connection.pgconn
    api = http.client.HTTPConnection("127.0.0.1", port)
    print("publishing", flush=True)
    while True:
        select.select([pg.socket], [], [])
        pg.consume_input()
        while commands := waiting(pg):
            body = b'{"commands":[' + b",".join(commands) + b"]}"
            api.request("POST", "/api/batch", body, HEADERS)
            answer = api.getresponse()
            text = answer.read()
            if answer.status != 200 or b'"error"' in text:
                raise SystemExit(f"{answer.status}: {text[:500]!r}")


def waiting(pg: psycopg.pq.abc.PGconn) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < MOST and (notification := pg.notifies()):
        found.append(b'{"publish":{"channel":"runs","data":' + notification.extra + b"}}")
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]))
