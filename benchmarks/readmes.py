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
MEASURED = {
    "README.md": "Measured on {day}: {cpu}, {cores} cores, {memory_gb} GB, {postgresql}, {kernel}.",
    "README.zh-CN.md": (
        "测量于 {day}：{cpu}，{cores} 个核心，{memory_gb} GB 内存，{postgresql}，{kernel}。"
    ),
}
TABLE = re.compile(
    r"(\]\(docs/(?:\w+/)?fanout\.svg\)\n\n)(?:\|.*\n)+(?:\n(?:Measured on|测量于) .*\n)?"
)


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


def measured(results: dict[str, Any], readme: str) -> str:
    """On which days, and on which machine, that of the last."""
    found = [results[row.result] for row in ROWS if row.result in results]
    if not found:
        return ""
    machine = max(found, key=lambda result: result["day"])["machine"]
    return (
        "\n"
        + MEASURED[readme].format(
            day=", ".join(sorted({result["day"] for result in found})),
            cpu=machine["cpu"].partition(",")[0],
            cores=machine["cores"],
            memory_gb=machine["memory_gb"],
            postgresql="PostgreSQL " + machine["postgresql"].split()[-1],
            kernel="Linux " + machine["kernel"].partition("-")[0],
        )
        + "\n"
    )


def rounded(value: float) -> str:
    """To three digits."""
    digits = 2 - math.floor(math.log10(value)) if value else 0
    return number(round(value, digits))


def write(results: dict[str, Any], root: Path) -> None:
    """Replace the table below the plot, with the day and the machine. Raises RuntimeError if a
    README has none.
    """
    for name in READMES:
        text, count = TABLE.subn(
            lambda found, name=name: (  # type: ignore[misc]
                found[1] + short_table(results, name) + measured(results, name)
            ),
            (root / name).read_text(),
        )
        if count != 1:
            raise RuntimeError(f"{name} has {count} tables below fanout.svg, not 1")
        (root / name).write_text(text)
