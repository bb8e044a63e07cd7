"""The wheel holds every module and works outside the checkout: an editable install hides what a wheel leaves out."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Where the folders of the checkout lie when installed.
INSTALLED = {"fastselfie": "fastselfie", "kernels": "fastselfie/kernels", "pipelines": "fastselfie/pipelines"}
IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
site = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(site))
import fastselfie
names = [m.name for m in pkgutil.walk_packages(fastselfie.__path__, "fastselfie.")]
for module in [fastselfie, *map(importlib.import_module, names)]:
    assert pathlib.Path(module.__file__).is_relative_to(site), module
print(len(names) + 1)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a commit of the checkout would hold; building there leaves no build folder here."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs the git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    copy = tmp_path_factory.mktemp("tree")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("bench/results/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("fastselfie-*.whl")
    return path


def expected_files(tree: Path) -> set[str]:
    report = ("frame.html.jinja", "macros.html.jinja", "page.html.jinja", "page.css")
    files = {"fastselfie/py.typed", "fastselfie/protocol/page.html.jinja", "fastselfie/protocol/page.css"}
    files |= {f"fastselfie/report/{name}" for name in report}
    for folder, installed in INSTALLED.items():
        files |= {f"{installed}/{path.relative_to(tree / folder).as_posix()}" for path in (tree / folder).rglob("*.py")}
    return files


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path, tree: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == expected_files(tree)
    assert {"fastselfie/kernels/reference.py", "fastselfie/pipelines/resident.py", "fastselfie/cli.py"} <= packed


def test_the_source_distribution_holds_all_but_hidden_files(tree: Path, tmp_path: Path) -> None:
    """Half the tests, which setuptools takes by itself, are none."""
    shutil.copytree(tree, tmp_path / "tree")
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path / "tree", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("fastselfie-*.tar.gz")
    with tarfile.open(path) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    files = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith((".", "build/", "fastselfie.egg-info/"))} <= packed


def test_the_wheel_installs_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        assert "fastselfie = fastselfie.cli:main" in archive.read(name).decode()


def test_the_wheel_imports_outside_the_checkout(wheel: Path, tree: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    command = [sys.executable, "-I", "-c", IMPORT_ALL, str(site)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    modules = [name for name in expected_files(tree) if name.endswith(".py")]
    assert int(done.stdout) == len(modules)
