"""The project's own rules: what is packaged is what is there, imports stay lean, the files agree with each other."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
ROOTS: dict[str, str] = SETUPTOOLS["package-dir"]  # import name -> folder

# Whatever evaluates, gates and serves must start without torch; so must the command line.
WITHOUT_TORCH = (
    "fimaq.cli.main",
    "fimaq.deploy",
    "fimaq.deploy.serve",
    "fimaq.toolchain",
    "fimaq.toolchain.artifact",
    "fimaq.toolchain.data",
    "fimaq.toolchain.errors",
    "fimaq.toolchain.evaluate",
    "fimaq.toolchain.preprocess",
    "fimaq.toolchain.progress",
    "fimaq.toolchain.recipe",
    "fimaq.toolchain.runtime",
    "fimaq.toolchain.spec",
)


def packaged_files() -> list[Path]:
    """Files below the package folders, relative to the root, less what running leaves behind."""
    found = (path for folder in ROOTS.values() for path in (ROOT / folder).rglob("*") if path.is_file())
    return [path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts]


def import_name(path: Path) -> str:
    """``toolchain/nn`` -> ``fimaq.toolchain.nn``."""
    name = {folder: name for name, folder in ROOTS.items()}[path.parts[0]]
    return ".".join((name, *path.parts[1:]))


def project_files() -> list[Path]:
    """Text files that are, or are about to be, under version control."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is no list of the project's files to go through")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()]


def test_every_package_folder_is_listed() -> None:
    folders = {import_name(path.parent) for path in packaged_files() if path.name == "__init__.py"}
    assert sorted(SETUPTOOLS["packages"]) == sorted(folders)


def test_every_data_file_is_covered_by_a_glob() -> None:
    missed = []
    for path in packaged_files():
        if path.suffix == ".py":
            continue
        package = next(folder for folder in path.parents if (ROOT / folder / "__init__.py").exists())
        globs = SETUPTOOLS["package-data"].get(import_name(package), [])
        inside = path.relative_to(package)
        if not any(len(Path(glob).parts) == len(inside.parts) and fnmatch(str(inside), glob) for glob in globs):
            missed.append(str(path))
    assert missed == []


def test_the_wheel_holds_every_file(tmp_path: Path) -> None:
    # A copy, since setuptools leaves build/ and an egg-info folder where it builds.
    source = tmp_path / "source"
    for path in [*packaged_files(), Path("pyproject.toml"), Path("README.md"), Path("LICENSE")]:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, source / path)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    subprocess.run(
        [*command, "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)], check=True
    )

    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        assert wheel.read(metadata.replace("METADATA", "licenses/LICENSE")) == (ROOT / "LICENSE").read_bytes()
        assert b"fimaq-tool = fimaq.cli.main:main" in wheel.read(metadata.replace("METADATA", "entry_points.txt"))
    expected = {f"{import_name(path.parent).replace('.', '/')}/{path.name}" for path in packaged_files()}
    assert {name for name in names if ".dist-info/" not in name} == expected


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_import_is_lean(module: str) -> None:
    script = f"import sys, {module}; print(*sorted({{'torch', 'torchvision', 'timm'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert ran.stdout.split() == []


def test_packages_import_each_other_by_their_installed_names() -> None:
    # From the root, ``import toolchain`` works and loads a second copy, whose classes are not the first one's.
    # ruff's banned-api says so everywhere else; in these folders it takes a relative import for the banned one.
    bare = []
    for path in packaged_files():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            bare += [f"{path}:{node.lineno}" for name in names if name.split(".")[0] in ROOTS.values()]
    assert bare == []


def test_the_lock_satisfies_the_project_file() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}

    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    unmet = []
    for requirement in map(Requirement, wanted):
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is None or pin not in requirement.specifier:
            unmet.append(f"{requirement}: locked {pin}")
    assert unmet == []


def test_versions_agree() -> None:
    version = PROJECT["project"]["version"]
    assert importlib.metadata.version(PROJECT["project"]["name"]) == version
    headings = re.findall(r"^## \[(.+?)\](?: - (.+))?$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == ("Unreleased", "") or headings[0][0] == version


def test_no_file_names_the_machine_it_was_written_on() -> None:
    # Put together here, so that this file does not find itself.
    words = ("/wo" + "rk/", "/ro" + "ot/", "file:/" + "//", "--find-" + "links", "index-" + "url")
    private = re.compile("|".join(words))
    found = []
    for path in project_files():
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if private.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_every_ignore_names_its_rule_and_gives_a_reason() -> None:
    # ``# noqa: RULE  reason`` or ``# type: ignore[rule]  # reason``; one reason serves a file's later ones of that rule.
    mark = re.compile(r"#\s*(?:noqa|type:\s*ignore)")
    named = re.compile(r"#\s*(?:noqa: ([A-Z]+\d+(?:, ?[A-Z]+\d+)*)|type: ignore\[([\w, -]+)\])(\W+\w+)?")
    found = []
    for path in project_files():
        if path.suffix != ".py" or path == Path(__file__).resolve():
            continue
        reasoned = set()
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if not mark.search(line):
                continue
            match = named.search(line)
            rules = match and (match[1] or match[2])
            if match and match[3]:
                reasoned.add(rules)
            if rules not in reasoned:
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []
