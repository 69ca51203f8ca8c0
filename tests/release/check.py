"""Whether HEAD can be released: `make release-check`. Prints each rule, and why it does not hold.

It needs no network: what is installed here, in the locked versions, fills the environments in which
the wheel is tried.
"""

import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from subprocess import CalledProcessError

from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tests.release.wheelhouse import Environment, fill
from tests.support import ROOT

LOCKS = {
    "requirements.lock": (("embedded", "nodes"), "run"),
    "requirements-server.lock": (("nodes",), "run"),
    "requirements-dev.lock": (("embedded", "nodes"), "dev"),
}
"""Lock → the extras and the dependency group that it pins."""


def git(tree: Path, *arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=tree, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def written(tree: Path) -> str:
    text = (tree / "src" / "brain" / "__init__.py").read_text()
    (found,) = re.findall(r'^__version__ = "(.*)"$', text, re.MULTILINE)
    return str(found)


# The rules: each yields sentences that say what to do


def committed(tree: Path) -> Iterator[str]:
    if changed := git(tree, "status", "--porcelain"):
        yield f"commit or remove what is not committed: {', '.join(changed.split()[1::2])}"


def version(tree: Path) -> Iterator[str]:
    text = written(tree)
    try:
        ours = Version(text)
    except InvalidVersion:
        yield f"__version__ is a version of PEP 440, such as 0.2.0, not {text!r}"
        return
    if str(ours) != text or ours.local or ours.dev is not None:
        yield f"__version__ is one to be published, such as 0.2.0, not {text!r}"


def changelog(tree: Path) -> Iterator[str]:
    text = written(tree)
    sections = re.split(r"^## ", (tree / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    names = [section.partition("\n")[0] for section in sections]
    if names[:1] != ["[Unreleased]"] or sections[0].partition("\n")[2].strip():
        yield "CHANGELOG.md begins with an empty [Unreleased]: rename the present one"
    ours = [name for name in names if name.startswith(f"[{text}]")]
    found = re.fullmatch(r"\[[^]]+\] - (\d{4}-\d\d-\d\d)", ours[0]) if ours else None
    if found is None:
        yield f"CHANGELOG.md has a section '## [{text}] - {date.today():%Y-%m-%d}'"  # noqa: DTZ011
    elif date.fromisoformat(found[1]) > date.today():  # noqa: DTZ011 - the day of who releases
        yield f"the day of {ours[0]} in CHANGELOG.md is not in the future"


def tag(tree: Path) -> Iterator[str]:
    text = written(tree)
    tags = {name.removeprefix("v") for name in git(tree, "tag", "--list", "v*").split()}
    if text in tags:
        there = git(tree, "rev-parse", f"v{text}^{{commit}}")
        if there != git(tree, "rev-parse", "HEAD"):
            yield f"v{text} is the tag of another commit, {there[:9]}: raise __version__"
        return
    if later := [name for name in tags if Version(name) >= Version(text)]:
        yield f"__version__ {text} is above those that have a tag: {', '.join(sorted(later))}"


def project(tree: Path) -> Iterator[str]:
    urls = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["urls"]
    reserved = sorted(name for name, url in urls.items() if ".example/" in url)
    if reserved:
        yield f"name the public repository in [project.urls]: {', '.join(reserved)} are reserved"


def pins(lock: Path) -> tuple[dict[str, Version], list[str]]:
    """Name → version; and the names without a hash."""
    found: dict[str, Version] = {}
    bare: list[str] = []
    for entry in re.split(r"\n(?=\S)", lock.read_text()):
        pinned = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\\s]+)", entry)
        if pinned:
            found[canonicalize_name(pinned[1])] = Version(pinned[2])
            if "--hash=sha256:" not in entry:
                bare.append(pinned[1])
    return found, bare


def demanded(
    document: dict[str, object], extras: tuple[str, ...], group: str
) -> Iterator[Requirement]:
    project = document["project"]
    groups = document["dependency-groups"]
    assert isinstance(project, dict)
    assert isinstance(groups, dict)
    texts = [*project["dependencies"], *groups[group]]
    for extra in extras:
        texts.extend(project["optional-dependencies"][extra])
    for text in texts:
        if isinstance(text, dict):
            texts.extend(groups[text["include-group"]])
            continue
        wanted = Requirement(text)
        if wanted.name == project["name"]:
            texts.extend(
                t for each in wanted.extras for t in project["optional-dependencies"][each]
            )
        else:
            yield wanted


def locks(tree: Path) -> Iterator[str]:
    document = tomllib.loads((tree / "pyproject.toml").read_text())
    versions: dict[str, tuple[Version, str]] = {}
    for name, (extras, group) in LOCKS.items():
        pinned, bare = pins(tree / name)
        for each in bare:
            yield f"{name} has no hash of {each}: make lock"
        for wanted in demanded(document, extras, group):
            ours = pinned.get(canonicalize_name(wanted.name))
            if ours is None or not wanted.specifier.contains(ours, prereleases=True):
                yield f"{name} pins {wanted.name} to {ours}, which is not {wanted}: make lock"
        for each, ours in pinned.items():
            other, where = versions.setdefault(each, (ours, name))
            if other != ours:
                yield f"{each} is {ours} in {name} and {other} in {where}: make lock"


def build(tree: Path, folder: Path) -> Iterator[str]:
    """Twice, from clean clones: into `folder`, and beside it."""
    for into in (folder / "dist", folder / "again"):
        run = subprocess.run(
            [tree / ".ci" / "dist", into, sys.executable],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            yield f"it does not build: {(run.stdout + run.stderr).strip()[-500:]}"
            return
    for path in (folder / "dist").iterdir():
        if path.read_bytes() != (folder / "again" / path.name).read_bytes():
            yield f"two builds of {path.name} differ"


def metadata(folder: Path) -> Iterator[str]:
    (archive,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as source:
        (name,) = [
            each for each in source.getnames() if each.count("/") == 1 and each.endswith("PKG-INFO")
        ]
        document = source.extractfile(name)
        assert document is not None
        text = document.read()
    try:
        parsed = Metadata.from_email(text, validate=True)
    except ExceptionGroup as errors:
        yield from (
            f"an index does not accept the metadata: {error}" for error in errors.exceptions
        )
        return
    links = re.findall(r"\]\(((?!https?:|#)[^)]+)\)", parsed.description or "")
    if links:
        yield f"an index shows the README without its files: {', '.join(links[:5])}"


def installation(folder: Path) -> Iterator[str]:
    """Without an index: the client alone, and the server."""
    wheelhouse = folder / "dist"
    fill(wheelhouse, "websockets", "pydantic", "brain-runs[server]")
    try:
        client = Environment(folder / "client", wheelhouse)
        client.install("brain-runs")
        server = Environment(folder / "server", wheelhouse)
        server.install("brain-runs[server]")
    except CalledProcessError as error:
        yield f"pip does not install it: {error.stderr.strip()[-500:]}"
        return
    ended = client.run("python", "-c", "from brain import Runs, wait, watch")
    if ended.returncode:
        yield f"the client cannot be imported: {ended.stderr.strip()[-300:]}"
    ended = client.run("brain", "serve")
    if ended.returncode != 2 or "'brain-runs[server]'" not in ended.stderr:
        yield f"without its extra, `brain serve` does not name it: {ended.stderr.strip()[-300:]}"
    ended = server.run("brain", "--version")
    if ended.returncode:
        yield f"`brain --version` fails: {ended.stderr.strip()[-300:]}"


def report(name: str, rule: Callable[[Path], Iterator[str]], subject: Path) -> bool:
    problems = list(rule(subject))
    print(f"  {'FAILED' if problems else 'ok':7} {name}", flush=True)
    for each in problems:
        print(f"          {each}")
    return not problems


def main(tree: Path = ROOT) -> None:
    passed = [
        report("everything is committed", committed, tree),
        report("the version", version, tree),
        report("the changelog", changelog, tree),
        report("the tag", tag, tree),
        report("the project's addresses", project, tree),
        report("the locks", locks, tree),
    ]
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder)
        passed.append(report("two builds, the same bytes", lambda into: build(tree, into), built))
        if passed[-1]:
            passed.append(report("the metadata", metadata, built))
            passed.append(report("the installation", installation, built))
    if not all(passed):
        raise SystemExit(1)
    print(f"brain-runs {written(tree)} can be released: docs/how-to/releasing.md says how")


if __name__ == "__main__":
    main()
