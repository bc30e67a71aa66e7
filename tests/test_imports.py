"""A module imports only from rooms above it."""

import ast
import subprocess
import sys
from pathlib import Path

import scpl_jax
from scpl_jax.moved import MOVED

PACKAGE = Path(scpl_jax.__file__).parent
# Each room with the rooms it may import from, besides itself.
ROOMS: dict[str, set[str]] = {
    "kernels": set(),
    "losses": {"kernels"},
    "models": {"kernels"},
    "objectives": {"losses", "models"},
    "stages": {"kernels", "losses", "objectives"},
    "pipeline": {"kernels", "losses", "objectives", "stages"},
    "data": set(),
    "training": {"pipeline", "stages", "data"},
    "analysis": {"losses", "pipeline", "stages", "training"},
    "simulation": {"pipeline", "stages"},
    "cli": {"kernels", "models", "objectives", "stages", "pipeline", "data", "training"},
}
ROOMS["benchmarks"] = {*ROOMS, "benchmarks"}
ROOMS["experiments"] = {*ROOMS} - {"benchmarks", "simulation"}


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("scpl_jax.")}


def test_imports_point_one_way():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {room}"
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE
        for home in [path.relative_to(PACKAGE).parts[0]]
        for room in imported_rooms(path) - ROOMS[home] - {home}
    ]
    assert wrong == []


def test_every_module_has_a_name_of_its_own():
    names = [path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert [name for name in sorted(set(names)) if names.count(name) > 1] == []


def test_modules_are_found_under_their_old_names_with_a_line_of_warning():
    code = (
        "import importlib, sys; from scpl_jax.moved import MOVED; "
        "there = [name for name in MOVED if '.torch_' not in name]; "
        "print(len(there), all(importlib.import_module(a) is importlib.import_module(MOVED[a]) for a in there)); "
        "from scpl_jax.data.words import clean; import scpl_jax.data.text.words as now; "
        "print(now.clean is clean, now.__spec__.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"{len(MOVED) - 2} True", "True scpl_jax.data.text.words"], done.stderr
    warnings = done.stderr.splitlines()
    assert len(warnings) == len(MOVED) - 2
    assert (
        "warning: scpl_jax.data.words is now scpl_jax.data.text.words; the old name goes with the next" in done.stderr
    )


def test_importing_the_library_loads_no_heavy_optional_package():
    code = (
        "import sys, scpl_jax, scpl_jax.data; "
        "heavy = ('tensorflow', 'tensorflow_datasets', 'sklearn', 'matplotlib', 'tensorboardX'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
