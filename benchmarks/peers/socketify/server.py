"""socketify (Python on uWebSockets' C++ core) + LISTEN, with its own publish and subscribe.

As in its documentation: a topic that each client subscribes to when it opens, and `app.publish`.
Deflate and the idle timeout (pings) are off, which favours it. A slow client's messages wait up to
`max_backpressure`, which is so large here that none is dropped. socketify runs asyncio once per
millisecond, so a callback of the loop reads the notifications, all that wait in one turn.
"""

import os
import sys

import psycopg
from socketify import App, AppListenOptions, CompressOptions, OpCode

TOPIC = "runs"


def follow(app: App) -> None:
    connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    connection.execute("LISTEN runs")
    pg = connection.pgconn

    def read() -> None:
        pg.consume_input()
        while notification := pg.notifies():
            app.publish(TOPIC, notification.extra.decode(), OpCode.TEXT)

    app.loop.loop.add_reader(pg.socket, read)


def main(port: int) -> None:
    app = App()
    app.ws(
        "/ws",
        {
            "compression": CompressOptions.DISABLED,
            "idle_timeout": 0,
            "max_backpressure": 256 << 20,
            "open": lambda ws: ws.subscribe(TOPIC),
        },
    )
    app.listen(AppListenOptions(port=port, host="127.0.0.1"), lambda _: None)
    follow(app)
    print("ready", flush=True)
    app.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
