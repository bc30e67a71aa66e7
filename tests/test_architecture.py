"""The map of the rooms is that of the code, and its command notices what has changed."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
DESIGN = Path("docs") / "design"


def draw(root: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / DESIGN / "rooms.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_map_is_that_of_the_code():
    done = draw(ROOT, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert (ROOT / DESIGN / "rooms.svg").stat().st_size < 100_000


def test_changes_are_noticed_and_drawn(tmp_path):
    shutil.copytree(ROOT / DESIGN, tmp_path / DESIGN)
    shutil.copytree(ROOT / "scpl_jax", tmp_path / "scpl_jax", ignore=shutil.ignore_patterns("__pycache__"))
    losses = tmp_path / "scpl_jax" / "losses" / "__init__.py"
    losses.write_text(losses.read_text() + "\n" * 1000)
    assert draw(tmp_path, "--check").returncode == 0  # lines are not compared

    attic = tmp_path / "scpl_jax" / "attic"
    attic.mkdir()
    changes = {
        attic / "__init__.py": '"""What nobody needs. Nothing else."""\n',  # a room
        losses: '"""Another sentence."""\n',
        attic / "trunk.py": "def open_it():\n    from scpl_jax import losses\n",  # an arrow
    }
    for path, text in changes.items():
        path.write_text(text)
        done = draw(tmp_path, "--check")
        assert done.returncode == 1
        assert done.stderr == "the map is not that of the code: run python docs/design/rooms.py\n"
        assert draw(tmp_path).returncode == 0
        assert draw(tmp_path, "--check").returncode == 0
    page = (tmp_path / DESIGN / "architecture.md").read_text()
    assert "| `attic` | What nobody needs. | 100 |\n" in page
    assert "Another sentence." in page
    assert "attic" in (tmp_path / DESIGN / "rooms.svg").read_text()
