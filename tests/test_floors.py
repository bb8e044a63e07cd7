"""Each module imports only what stands on its own floor or below (design, section 3), read from the source text."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"fastselfie"},  # the version
    {"errors", "failing", "config", "randomness", "progress", "files"},
    {"kernels"},
    {"pipelines"},
    {"models"},
    {"pretext"},
    {"training"},
    {"evaluation", "report"},
    {"protocol"},
    {
        "cli",
        "commands",
        "importing",
        "recipes",
        "arguments",
        "protocol_arguments",
        "tool_arguments",
        "demo",
        "doctor",
        "__main__",
    },
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def modules() -> dict[str, Path]:
    """Name to file of everything that is installed."""
    folders = {"fastselfie": "fastselfie", "fastselfie.kernels": "kernels", "fastselfie.pipelines": "pipelines"}
    found = {}
    for package, folder in folders.items():
        for path in (ROOT / folder).rglob("*.py"):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in inner if part != "__init__")))] = path
    return found


def imports(text: str) -> Iterator[str]:
    """Every module that the text imports, wherever in it; ``from package import name`` also as ``package.name``."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def floor(module: str) -> int:
    """Raises KeyError for a module that has no floor yet: give it one above, and in the design."""
    parts = module.split(".")
    return FLOOR_OF[parts[1] if len(parts) > 1 else parts[0]]


def faults(module: str, text: str, known: set[str]) -> list[str]:
    """Imports of ``module`` that it must not have."""
    wrong = []
    for target in imports(text):
        if target.startswith(".") or target.split(".")[0] in ("kernels", "pipelines"):
            wrong.append(f"{module}: {target}: import it as fastselfie...")
        elif target.split(".")[0] == "fastselfie":
            while target not in known:  # a name inside a module
                target = target.rpartition(".")[0]
            if floor(target) > floor(module):
                wrong.append(f"{module}: {target} stands above")
    return wrong


MODULES = modules()


def test_all_folders_are_looked_at() -> None:
    assert {"fastselfie", "fastselfie.cli", "fastselfie.kernels.reference", "fastselfie.pipelines.view"} <= set(MODULES)
    assert {"fastselfie.models", "fastselfie.models.selfie", "fastselfie.training.loop"} <= set(MODULES)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_downwards(module: str) -> None:
    assert faults(module, MODULES[module].read_text(), set(MODULES)) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("fastselfie.kernels.x", "from fastselfie.pipelines.view import Batch"),
        ("fastselfie.models.x", "from fastselfie.training import loop"),
        ("fastselfie.models.x", "def f():\n    import fastselfie.pretext.selfie"),
        ("fastselfie.config", "from fastselfie import recipes"),
        ("fastselfie.training.x", "from fastselfie.evaluation.subsets import labelled_subset"),
        ("fastselfie.pipelines.x", "from kernels import patch_batch"),
        ("fastselfie.models.x", "from .resnet import trunk"),
    ],
)
def test_an_import_upwards_is_found(module: str, text: str) -> None:
    assert len(faults(module, text, set(MODULES))) == 1


def test_only_arguments_import_the_parser() -> None:
    users = {
        name for name, path in MODULES.items() if any(t.split(".")[0] == "tyro" for t in imports(path.read_text()))
    }
    assert users == {f"fastselfie.{name}" for name in ("arguments", "protocol_arguments", "tool_arguments")}


def test_recipes_know_settings_alone() -> None:
    targets = [target for target in imports(MODULES["fastselfie.recipes"].read_text()) if "fastselfie" in target]
    assert {target.rpartition(".")[0] for target in targets} == {"fastselfie.config", "fastselfie.errors"}


@pytest.mark.parametrize("module", ["fastselfie.arguments", "fastselfie.cli"])
def test_the_command_line_answers_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
