"""The laws under atheris, which searches for bytes that reach new code.

    python -m tests.fuzz.guided SECONDS              each law, in a process of its own
    python -m tests.fuzz.guided SECONDS LAW          one law

Bytes that break a law go to corpus/, where test_fuzz.py finds them: commit them with the fix. Bytes
that reached new code go to FUZZ_FOLDER (.fuzz), where the next run continues. Where atheris cannot
be installed, this program says so and does nothing.
"""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ.get("FUZZ_FOLDER", ".fuzz"))
MAX_BYTES = {"pgoutput": 2048, "request": 2048, "frames": 6000, "settings": 400}

SETTINGS = [
    b"HOST=127.0.0.1,::1\0PORT=5221",
    b"TABLE=a.b\0STATUS_MAP=x=queued,y=failed",
    b"DATABASE_URL=postgresql://u:p@h/d",
    b"ALLOWED_ORIGINS=https://a:1,null\0ALLOWED_HOSTS=a.b:1,[::1]",
    b"ALLOWED_NETWORKS=10.0.0.0/8,::1\0PING_INTERVAL=1e1",
]
OPTIONS = ["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=1"]


def seeds(law: str) -> list[bytes]:
    from tests.integration.server.test_websocket import BROKEN
    from tests.support.wire import closing, frame, request
    from tests.unit.postgres.test_pgoutput import GOLDEN

    match law:
        case "pgoutput":
            return list(GOLDEN)
        case "request":
            targets = (
                "/ws",
                "/ws?since=2026-01-01T00:00:00Z&run_id=a",
                "http://localhost/ws?snapshot=true&status=failed",
            )
            return [request(target) for target in targets] + [
                request() + frame(b"ping") + closing(1000)
            ]
        case "frames":
            return [data for data, _ in BROKEN.values() if len(data) < 6000] + [
                frame(b"ping") + frame(b"x", 9)
            ]
        case _:
            return SETTINGS


def guided(law: str, seconds: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["brain", "websockets"]):
        from tests.fuzz import laws

    folder = FOLDER / law
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(law)):
        (folder / f"seed-{number}").write_bytes(data)
    kept = laws.CORPUS / law
    kept.mkdir(exist_ok=True)  # git keeps no empty folder, and libFuzzer needs it
    limits = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_BYTES[law]}",
        f"-artifact_prefix={kept}/",
    ]
    atheris.Setup([sys.argv[0], str(folder), str(kept), *limits, *OPTIONS], laws.LAWS[law])
    atheris.Fuzz()


def main() -> None:
    seconds, *one = sys.argv[1:]
    if one:
        guided(one[0], int(seconds))
        return
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris is not available for this Python: only hypothesis and schemathesis have run")
        return
    broken = [
        law
        for law in MAX_BYTES
        if subprocess.run(
            [sys.executable, "-m", "tests.fuzz.guided", seconds, law], check=False
        ).returncode
    ]
    if broken:
        raise SystemExit(
            f"broken: {', '.join(broken)}; the bytes are in {Path(__file__).parent / 'corpus'}"
        )


if __name__ == "__main__":
    main()
