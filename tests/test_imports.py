"""A module imports only from rooms above it."""

import ast
import subprocess
import sys
from pathlib import Path

import scpl_jax

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
COMMANDS = ("contrastive", "convolutions", "memory", "overhead", "simulate", "throughput")
# Old names of commands, which hand over to the new ones.
MOVED = {("experiments", f"{name}.py") for name in COMMANDS}


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
    modules = [path for path in PACKAGE.rglob("*.py") if (path.parent.name, path.name) not in MOVED]
    names = [path.name for path in modules if path.name != "__init__.py"]
    assert [name for name in sorted(set(names)) if names.count(name) > 1] == []


def test_importing_the_library_loads_no_heavy_optional_package():
    code = (
        "import sys, scpl_jax, scpl_jax.data; "
        "heavy = ('tensorflow', 'tensorflow_datasets', 'sklearn', 'matplotlib', 'tensorboardX'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
