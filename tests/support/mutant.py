"""A copy of Brain's source with one change, run by PYTHONPATH. It shows that a test can fail."""

import ast
import shutil
from pathlib import Path

import brain


def mutant(folder: Path, module: str, old: str, new: str) -> Path:
    """Copy the source, and replace `old` by `new` in a module such as `delivery.hub`.

    Both are in the normal form of `ast.unparse`, without comments and line breaks, where `old` must
    occur once. Returns the value for PYTHONPATH.
    """
    source = folder / "src"
    shutil.copytree(
        Path(brain.__file__).parent, source / "brain", ignore=shutil.ignore_patterns("__pycache__")
    )
    path = source / "brain" / f"{module.replace('.', '/')}.py"
    text = ast.unparse(ast.parse(path.read_text()))
    assert text.count(old) == 1, f"{module} has {text.count(old)} times: {old!r}"
    path.write_text(text.replace(old, new))
    return source
