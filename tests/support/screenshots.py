"""Make the pictures of the docs: `python -m tests.support.screenshots`.

The Chinese ones need a font, such as that of Debian's fonts-noto-cjk.
"""

import random
from typing import Any

import psycopg
from playwright.sync_api import Browser

from tests.support import ROOT
from tests.support.browser import chromium, live_page
from tests.support.postgres import execute, running
from tests.support.served import Brain, served
from tests.support.template import ROLE, TEMPLATE, with_template

FOLDER = ROOT / "docs" / "images"
TASKS = ("import-invoices", "train-ranker", "nightly-report", "reindex-search", "sync-crm")
AGENTS = ("agent-berlin", "agent-beijing", "agent-3")
ERRORS = (
    "connection to warehouse refused: timed out after 30 s",
    "ValueError: invoice 2026-1183 has no currency",
)


def seed(url: str) -> None:
    chance = random.Random(11)
    with psycopg.connect(url, autocommit=True) as connection:
        for number in range(60):
            status = chance.choices(("queued", "running", "completed", "failed"), (0, 10, 6, 3))[0]
            status = "queued" if number > 57 else status
            ago = 5 + (60 - number) ** 2 * chance.uniform(0.5, 1.5)
            ended = ago * chance.uniform(0.1, 0.8) if status in ("completed", "failed") else None
            started = None if status == "queued" else ago
            progress = {"queued": None, "completed": 100}.get(status, chance.randrange(5, 98))
            connection.execute(
                "INSERT INTO runs VALUES (%s, %s, %s, %s, %s, now() - make_interval(secs => %s), "
                "now() - make_interval(secs => %s), %s)",
                (
                    f"{chance.choice(TASKS)}-{4100 + number}",
                    status,
                    progress,
                    f"task-{chance.randrange(100, 999)}",
                    chance.choice(AGENTS),
                    started,
                    ended,
                    chance.choice(ERRORS) if status == "failed" else None,
                ),
            )


def take(browser: Browser, brain: Brain, url: str, name: str, *keys: str, **context: Any) -> None:
    origin = f"http://localhost:{brain.port}"
    with live_page(browser, origin, "?quiet=6", **context) as page:
        page.is_("live")
        page.tab.wait_for_timeout(4000)
        # All but a few change, and these become quiet.
        execute(
            url,
            "UPDATE runs SET progress = least(progress + 1, 99) "
            "WHERE status = 'running' AND right(id, 1) NOT IN ('3', '8')",
        )
        page.press(*keys)
        page.tab.wait_for_timeout(4000)
        page.tab.screenshot(path=FOLDER / f"page-{name}.png")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with running() as empty:
        server = with_template(empty)
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        seed(url)
        with served(database_url=url) as brain, chromium() as browser:
            size = {"width": 1180, "height": 640}
            take(browser, brain, url, "light", viewport=size)
            take(browser, brain, url, "dark", *"4jj", "Enter", viewport=size, color_scheme="dark")
            take(browser, brain, url, "chinese", viewport=size, locale="zh-CN")
            phone = {"width": 390, "height": 720}
            take(browser, brain, url, "phone", viewport=phone, device_scale_factor=2)


if __name__ == "__main__":
    main()
