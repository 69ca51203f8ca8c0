"""Brain with something taken out of it: a copy of its source, to be run by PYTHONPATH. It shows that a test can fail."""

import shutil
from pathlib import Path

import brain


def mutant(folder: Path, module: str, old: str, new: str) -> Path:
    """A copy in which `old`, which stands once in the module, such as `delivery.hub`,, is `new`. Returns what PYTHONPATH has to be."""
    source = folder / "src"
    shutil.copytree(
        Path(brain.__file__).parent, source / "brain", ignore=shutil.ignore_patterns("__pycache__")
    )
    path = source / "brain" / f"{module.replace('.', '/')}.py"
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {module}.py"
    path.write_text(text.replace(old, new))
    return source
