"""The command `brain`, run to its end."""

import os
import subprocess

from tests.support.patience import PATIENCE
from tests.support.served import BRAIN


def completed(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """A command that has ended, with these settings and no others."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("BRAIN_")
    }
    environment |= {f"BRAIN_{name.upper()}": str(value) for name, value in settings.items()}
    return subprocess.run(
        [*BRAIN, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def run(*arguments: str, code: int = 0, **settings: object) -> str:
    """All that a command prints. Its exit status must be `code`."""
    done = completed(*arguments, **settings)
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert "Traceback" not in output
    return output
