"""Write docs/explanation/benchmarks.md, its plots, and a table in each README.

From benchmarks/results/*.json.

`python -m benchmarks.report`. With `--quick`, from and to benchmarks/build, without the READMEs.

A result is a document with `targets` and `jobs`. A job is a table: row → `figures`, each with min,
median and max, and ratios beside them. People write everything above the line `MARK` of the page;
that part stays.
"""

import importlib
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks import readmes
from benchmarks.machine import FAILED_RUN, QUICK_RESULTS, RESULTS
from benchmarks.peers import PEERS
from benchmarks.plan import ALONE, PLAN
from benchmarks.suite import number
from tests.support import ROOT

PAGE = "benchmarks.md"
MARK = "<!-- From here on written by `python -m benchmarks.report` -->"
ORDER = (*(step.name for step in PLAN), *ALONE)

Node: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Plot:
    file: str
    result: str
    job: str
    figure: str
    title: str
    unit: str
    """After each number."""


PLOTS = (
    Plot(
        "fanout.svg",
        "fanout",
        "most deliveries/s, in bursts",
        "per_second",
        "Most deliveries a second, one core",
        "/s",
    ),
    Plot(
        "cpu.svg",
        "latency",
        "1 000 clients × 100/s",
        "cpu_us",
        "Server's CPU per delivery, 1 000 clients × 100 changes/s",
        " µs",
    ),
    Plot(
        "latency.svg",
        "latency",
        "5 000 clients × 200/s",
        "p99",
        "UPDATE → client, 99th percentile, 5 000 clients × 200 changes/s",
        " ms",
    ),
    Plot(
        "steady.svg",
        "latency",
        "1 000 clients × 100/s",
        "p99",
        "UPDATE → client, 99th percentile, 1 000 clients × 100 changes/s",
        " ms",
    ),
    Plot(
        "memory.svg",
        "connections",
        "10 000 idle clients",
        "rss_kb",
        "Memory per idle connection, 10 000 clients",
        " KB",
    ),
    Plot(
        "storm.svg",
        "connections",
        "5 000 clients, storm",
        "told_s",
        "Restart with 5 000 clients: until all are connected and updated",
        " s",
    ),
    Plot(
        "writers.svg",
        "writers",
        "on disk",
        "tps",
        "Writers' transactions a second, on disk",
        "/s",
    ),
)


def tables(node: Node, path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Node]]]:
    """The tables in a result's jobs, each with its title."""
    rows = {
        name: each for name, each in node.items() if isinstance(each, dict) and "figures" in each
    }
    if rows:
        yield ", ".join(path), rows
    for name, each in node.items():
        if isinstance(each, dict) and name not in rows:
            yield from tables(each, (*path, name))


def spreads(row: Node) -> Iterator[tuple[str, dict[str, float]]]:
    """Name and value of each figure of a row, and of each ratio beside them."""
    for name, each in row.items():
        if isinstance(each, dict) and each.keys() >= {"min", "median", "max"}:
            yield name.replace("_", " "), each
        elif isinstance(each, dict):
            for inner, spread in spreads(each):
                yield inner if name == "figures" else f"{inner}: {name}", spread


def table(rows: dict[str, Node], columns: dict[str, str]) -> list[str]:
    """A table in Markdown. `columns`: title → figure; empty: all figures."""
    found = {name: dict(spreads(row)) for name, row in rows.items()}
    wanted = {
        title: figure.replace("_", " ")
        for title, figure in columns.items()
        if any(figure.replace("_", " ") in row for row in found.values())
    } or {title: title for row in found.values() for title in row}
    wanted |= {
        "Brain is better by" + f" ({title})": f"{figure}: ratio"
        for title, figure in list(wanted.items())
        if any(f"{figure}: ratio" in row for row in found.values())
    }
    lines = ["", "| | " + " | ".join(wanted) + " |", "|---" * (len(wanted) + 1) + "|"]
    for name, row in found.items():
        cells = [cell(figure, row.get(figure)) for figure in wanted.values()]
        lines.append(
            f"| {PEERS[name].title if name in PEERS else name} | " + " | ".join(cells) + " |"
        )
    return [*lines, ""]


def cell(figure: str, spread: dict[str, float] | None) -> str:
    if spread is None:
        return ""
    if figure == "behind":
        return "yes" if spread["max"] else "no"
    least, most = number(spread["min"]), number(spread["max"])
    times = " ×" if figure.endswith(": ratio") else ""
    around = "" if least == most else f" ({least} to {most})"
    return number(spread["median"]) + times + around


def described(name: str) -> tuple[str, str, str]:
    """A program's docstring as title, first sentence and rest, without the command."""
    doc = re.sub(
        rf"\s+`python -m benchmarks\.{name}[^`]*`\.?",
        "\n",
        importlib.import_module(f"benchmarks.{name}").__doc__ or "",
    )
    head, _, rest = doc.strip().partition("\n")
    title, _, what = head.strip().rstrip(".").partition(": ")
    return title, what[:1].upper() + what[1:], rest.strip()


def section(name: str, result: Node, docs: Path) -> list[str]:
    title, what, rest = described(name)
    lines = [f"## {title}", ""]
    lines += [what + ".", ""] if what else []
    lines += [rest, ""] if rest else []
    lines += [
        (
            f"`.venv/bin/{result['command']}`, {result['day']}, {_short(result['machine'])}; "
            "median (least to most) of the runs."
        ),
        "",
    ]
    lines += [
        f"![{plot.title}]({plot.file})"
        for plot in PLOTS
        if plot.result == name and (docs / plot.file).exists()
    ]
    for job, rows in tables(result["jobs"]):
        without = _without(result, job, rows)
        heading = f"**{job}**{without}" if job else without.removeprefix(": ")
        lines += ["", heading, *table(rows, result.get("columns", {}))]
    lines += [f"Failed: {what}: {detail}" for what, detail in result.get("failed", {}).items()]
    if not result["jobs"]:
        lines += [f"Skipped: {who}: {why}" for who, why in result.get("skipped", {}).items()]
    return [*lines, ""]


def _without(result: Node, job: str, rows: dict[str, Node]) -> str:
    """The servers that the table lacks, and why, as a part of its heading."""
    reasons = {
        who: f"cannot be built here ({why})" for who, why in result.get("skipped", {}).items()
    }
    for what, why in result.get("failed", {}).items():
        who, _, where = what.partition(": ")
        if who not in reasons or where == job:
            reasons[who] = f"failed ({why})"
    reasons |= result.get("absent", {}).get(job, {})
    reasons = {
        who: why
        for who, why in reasons.items()
        if who not in rows and not who.startswith(FAILED_RUN)
    }
    if not reasons:
        return ""
    titles = {who: PEERS[who].title if who in PEERS else who for who in reasons}
    return ": without " + "; ".join(f"{titles[who]}, which {why}" for who, why in reasons.items())


def _short(machine: Node) -> str:
    return (
        f"{machine['cpu'].partition(',')[0]}, {machine['cores']} cores, {machine['memory_gb']} GB"
    )


def reached(results: dict[str, Node]) -> list[str]:
    lines = [
        "## Figures to reach",
        "",
        "| what | figure | reached | | by | on |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for each in result.get("targets", []):
            verdict = "yes" if each["met"] else "**no**"
            figure = "not measured" if each["reached"] is None else number(each["reached"])
            lines.append(
                f"| {each['what']} | {each['rule']} | {figure} | {verdict} "
                f"| [{name}](#{_anchor(name)}) | {result['day']} |"
            )
    return [*lines, ""]


def _anchor(name: str) -> str:
    return described(name)[0].lower().replace(",", "").replace(" ", "-")


def machines(results: dict[str, Node]) -> list[str]:
    """Each that a result names, with the programs that ran on it."""
    found: dict[str, list[str]] = {}
    for name, result in results.items():
        known = {key: value for key, value in result["machine"].items() if key != "load_average"}
        text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in known.items())
        load = result["machine"]["load_average"]
        found.setdefault(text, []).append(f"{name} ({result['day']}, load average before {load})")
    lines = ["## The machine", ""]
    for text, names in found.items():
        lines += [f"{text}: {', '.join(names)}.", ""]
    return lines


def bars(title: str, values: dict[str, float], unit: str) -> str:
    """A bar for each value, as SVG for light and dark pages.

    The scale is logarithmic if the values differ by a factor of more than twenty.
    """
    most, least = max(values.values()), min(values.values())
    logarithmic = most / least > 20
    low = 10 ** math.floor(math.log10(least) - 0.3)

    def width(value: float) -> float:
        part = math.log(value / low) / math.log(most / low) if logarithmic else value / most
        return 360 * part

    height = 46 + 26 * len(values)
    scale = ", logarithmic" if logarithmic else ""
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" role="img" '
            'font-family="sans-serif" font-size="13">'
        ),
        f"<title>{_escaped(title)}</title>",
        "<style>text{fill:#222}.peer{fill:#9aa4b2}.brain{fill:#2f6fde}",
        (
            "@media(prefers-color-scheme:dark)"
            "{text{fill:#ddd}.peer{fill:#66707e}.brain{fill:#6ea0ff}}</style>"
        ),
        f'<text x="8" y="20" font-weight="bold">{_escaped(title)}{scale}</text>',
    ]
    for i, (name, value) in enumerate(values.items()):
        y, ours = 36 + 26 * i, "brain" if name.startswith("Brain") else "peer"
        lines += [
            f'<text x="272" y="{y + 14}" text-anchor="end">{_escaped(name)}</text>',
            f'<rect class="{ours}" x="280" y="{y}" width="{width(value):.1f}" height="18" rx="2"/>',
            f'<text x="{286 + width(value):.1f}" y="{y + 14}">{number(value)}{unit}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def draw(results: dict[str, Node], docs: Path) -> None:
    for plot in PLOTS:
        rows = results.get(plot.result, {}).get("jobs", {}).get(plot.job, {})
        values = {}
        for name, row in rows.items():
            title = PEERS[name].title if name in PEERS else name
            title = title.removesuffix(", one send() per client and message")
            if plot.figure in row["figures"]:
                values[title] = row["figures"][plot.figure]["median"]
        values = {title: value for title, value in values.items() if value > 0}
        if len(values) > 1:
            (docs / plot.file).write_text(bars(plot.title, values, plot.unit))


def write(folder: Path, docs: Path) -> None:
    results = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ORDER
        if (folder / f"{name}.json").exists()
    }
    if not results:
        raise SystemExit(f"there is nothing in {folder.relative_to(ROOT)}: `make bench` first")
    draw(results, docs)
    page = docs / PAGE
    by_hand = page.read_text().partition(MARK)[0] if page.exists() else "# Benchmarks\n\n"
    lines = [
        by_hand.rstrip(),
        "",
        MARK,
        "",
        *machines(results),
        *reached(results),
    ]
    for name, result in results.items():
        lines += section(name, result, docs)
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    page.write_text(text.rstrip() + "\n")
    if docs != folder:
        readmes.write(results, ROOT)
    print(f"written: {page}, from {', '.join(results)}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--quick"]:
        write(QUICK_RESULTS, QUICK_RESULTS)
    else:
        write(RESULTS, ROOT / "docs" / "explanation")
