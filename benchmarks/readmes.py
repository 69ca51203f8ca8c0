"""The table of figures in each README, in its language."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.suite import number

COLUMNS = {
    "brain": "Brain",
    "socketify": "socketify (uWebSockets, C++)",
    "centrifugo": "Centrifugo",
    "node_ws": "Node.js `ws` + LISTEN",
    "fastapi": "FastAPI + LISTEN",
}


@dataclass(frozen=True)
class Row:
    """Of the table in the READMEs."""

    english: str
    chinese: str
    result: str
    job: str
    figure: str
    unit: str = ""


ROWS = (
    Row(
        "most deliveries a second, to 1 000 clients",
        "每秒最多推送的消息数，1 000 个客户端",
        "fanout",
        "most deliveries/s, in bursts",
        "per_second",
    ),
    Row(
        "UPDATE → client, 99th percentile, 1 000 clients × 100 changes/s",
        "从 UPDATE 到客户端的第 99 百分位延迟，1 000 个客户端 × 每秒 100 次变更",
        "latency",
        "1 000 clients × 100/s",
        "p99",
        " ms",
    ),
    Row(
        "the same, 5 000 clients × 200 changes/s",
        "同上，5 000 个客户端 × 每秒 200 次变更",
        "latency",
        "5 000 clients × 200/s",
        "p99",
        " ms",
    ),
    Row(
        "memory of an idle connection, of 10 000",
        "每个空闲连接占用的内存，共 10 000 个连接",
        "connections",
        "10 000 idle clients",
        "rss_kb",
        " KB",
    ),
)
READMES = {
    "README.md": ("english", "fell behind", "not measured"),
    "README.zh-CN.md": ("chinese", "跟不上", "未测量"),
}
TABLE = re.compile(r"(\]\(docs/(?:\w+/)?fanout\.svg\)\n\n)(?:\|.*\n)+")


def short_table(results: dict[str, Any], readme: str) -> str:
    """The figures that decide, in the language of a README."""
    language, behind, absent = READMES[readme]
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in ROWS:
        of = results.get(row.result, {}).get("jobs", {}).get(row.job, {})
        cells = [getattr(row, language)]
        for name in COLUMNS:
            figures = of.get(name, {}).get("figures", {})
            if row.figure not in figures:
                fell = name in results.get(row.result, {}).get("absent", {}).get(row.job, {})
                cells.append(behind if fell else absent)
            elif figures.get("behind", {}).get("max") and row.figure == "p99":
                cells.append(behind)
            else:
                cells.append(rounded(figures[row.figure]["median"]) + row.unit)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def rounded(value: float) -> str:
    """To three digits."""
    digits = 2 - math.floor(math.log10(value)) if value else 0
    return number(round(value, digits))


def write(results: dict[str, Any], root: Path) -> None:
    """Replace the table below the plot. Raises RuntimeError if a README has none."""
    for name in READMES:
        text, count = TABLE.subn(
            lambda found, name=name: found[1] + short_table(results, name),  # type: ignore[misc]
            (root / name).read_text(),
        )
        if count != 1:
            raise RuntimeError(f"{name} has {count} tables below fanout.svg, not 1")
        (root / name).write_text(text)
