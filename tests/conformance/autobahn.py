"""Run the Autobahn test suite against Brain's protocol class (echo.py); write conformance.md.

    python -m tests.conformance.autobahn FOLDER     FOLDER keeps the installed suite and its reports

The suite needs Python 2.7: the one of PYTHON2, of the path or of pyenv. The exit status is 1 if a
case failed that is not in DOCUMENTED, or if not all cases ran.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from tests.support import ROOT

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "explanation" / "conformance.md"

GROUPS = {
    "1": "framing",
    "2": "pings and pongs",
    "3": "reserved bits",
    "4": "opcodes",
    "5": "fragmentation",
    "6": "UTF-8",
    "7": "close handshake",
    "10": "a message in many small pieces",
}
LEFT_OUT = ["9.*", "12.*", "13.*"]
"""Speed, and compression, which Brain declines. There are no groups 8 and 11."""
CASES = 247

DOCUMENTED = {
    "7.1.5": "A close in the middle of a fragmented message is answered by 1002; the suite expects "
    "an echo of 1000. RFC 6455, section 5.5.1, lets the endpoint choose (“typically”); "
    "`websockets`, whose state machine this is, documents it.",
}
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}

PIP = [
    "-m",
    "pip",
    "install",
    "--quiet",
    "--disable-pip-version-check",
    "--no-deps",
    "--require-hashes",
]
WSTEST = (
    "import site, sys; site.addsitedir(sys.argv.pop(1)); "
    "from autobahntestsuite.wstest import run; run()"
)
"""With `addsitedir`, which reads `.pth` files: the namespace package zope needs its own."""

Cases: TypeAlias = dict[str, dict[str, Any]]


def python2() -> str:
    found = [os.environ.get("PYTHON2"), shutil.which("python2.7"), shutil.which("python2")]
    found += map(str, sorted(Path.home().glob(".pyenv/versions/2.7*/bin/python2.7"), reverse=True))
    for each in filter(None, found):
        # pyenv has a shim also for a version that is not installed.
        said = subprocess.run(
            [each, "-m", "pip", "--version"], capture_output=True, text=True, check=False
        )
        if "(python 2.7)" in said.stdout:
            return each
    raise SystemExit(
        "The Autobahn test suite needs CPython 2.7 with pip: `pyenv install 2.7`, or Debian "
        "bullseye's python2.7 and python-pip-whl. Name it: "
        "make conformance PYTHON2=/path/to/python2.7"
    )


def installed(folder: Path, python: str) -> Path:
    """The folder of the suite's packages, installed once for each version of requirements.txt."""
    wanted = (HERE / "requirements.txt").read_text()
    site, done = folder / "site", folder / "installed.txt"
    if not done.exists() or done.read_text() != wanted:
        print("installing the Autobahn test suite (a minute, once)", flush=True)
        shutil.rmtree(site, ignore_errors=True)
        subprocess.run(
            [python, *PIP, "--target", str(site), "-r", str(HERE / "requirements.txt")],
            check=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
        done.write_text(wanted)
    return site


def run(folder: Path) -> Cases:
    python = python2()
    site = installed(folder, python)
    reports = folder / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    with (
        (folder / "echo.log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "tests.conformance.echo"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as echo,
    ):
        assert echo.stdout is not None
        port = int(echo.stdout.readline() or "0")
        assert port, f"the echo server did not start: {folder / 'echo.log'}"
        spec = {
            "outdir": str(reports),
            "servers": [{"agent": "Brain", "url": f"ws://127.0.0.1:{port}/ws"}],
            "cases": ["*"],
            "exclude-cases": LEFT_OUT,
            "exclude-agent-cases": {},
        }
        (folder / "spec.json").write_text(json.dumps(spec))
        with (folder / "wstest.log").open("w") as out:
            subprocess.run(
                [
                    python,
                    "-c",
                    WSTEST,
                    str(site),
                    "-m",
                    "fuzzingclient",
                    "-s",
                    str(folder / "spec.json"),
                ],
                check=True,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=600,
            )
        assert echo.poll() is None, f"the echo server ended: {folder / 'echo.log'}"
        echo.terminate()
    said = (folder / "echo.log").read_text()
    assert not said, f"the echo server logged errors:\n{said}"
    cases: Cases = json.loads((reports / "index.json").read_text())["Brain"]
    return cases


def verdict(case: dict[str, Any]) -> str:
    """The worse of the verdicts on the messages and on the close."""
    words: tuple[str, str] = (case["behavior"], case["behaviorClose"])
    return next((word for word in words if word not in GOOD), words[0])


def page(verdicts: dict[str, str]) -> str:
    packages = dict(
        line.split(" ")[0].split("==")
        for line in (HERE / "requirements.txt").read_text().splitlines()[1:]
    )
    lines = [
        "# Conformance to RFC 6455",
        "",
        f"The Autobahn test suite ({packages['autobahntestsuite']}), against an echo server",
        "made of Brain's listener, HTTP protocol and connection,",
        f"with `websockets` {version('websockets')} and `uvloop` {version('uvloop')}.",
        "`make conformance` writes this page.",
        "",
        "| group | of | cases | passed | not strict | informational | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for group, what in GROUPS.items():
        mine = Counter(word for case, word in verdicts.items() if case.split(".")[0] == group)
        counts = [
            mine.total(),
            mine.pop("OK", 0),
            mine.pop("NON-STRICT", 0),
            mine.pop("INFORMATIONAL", 0),
            mine.total(),
        ]
        # The last is the rest.
        lines.append(f"| {group} | {what} | " + " | ".join(map(str, counts)) + " |")
    lines += [
        "",
        "Left out: 9 (speed), 12 and 13 (compression, which Brain declines:",
        "[decisions](decisions.md)).",
        "",
        "*Not strict* is a pass: the suite expects the answer sooner than RFC 6455 requires.",
        "*Informational* cases have no wrong answer.",
        "",
    ]
    for case, word in sorted(verdicts.items()):
        if word not in GOOD:
            lines.append(f"- **{case}** {word.lower()}. {DOCUMENTED.get(case, 'Not documented.')}")
        elif word == "NON-STRICT":
            lines.append(f"- {case}: not strict.")
    lines += [
        "",
        "The echo server differs from Brain in its answer to a message (Brain answers only `ping`)",
        "and in the bounds of a client's messages (Brain: 4 KiB a message, 20 frames a second).",
        "It sets them in its own process; Brain has no setting for them.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(exist_ok=True)
    verdicts = {case: verdict(found) for case, found in run(folder).items()}
    PAGE.write_text(page(verdicts))
    failed = {case for case, word in verdicts.items() if word not in GOOD}
    print(
        f"{len(verdicts)} cases, {len(failed)} failed: {', '.join(sorted(failed)) or 'none'}; "
        "docs/explanation/conformance.md is written"
    )
    if failed - DOCUMENTED.keys() or len(verdicts) != CASES:
        raise SystemExit(
            f"failed, and not documented: {sorted(failed - DOCUMENTED.keys())}; "
            f"{CASES} cases were expected"
        )


if __name__ == "__main__":
    main()
