"""Draw the map of the rooms from their imports: ``python docs/design/rooms.py``, after a change of rooms or imports.

It writes ``rooms.svg`` and the table in ``architecture.md``, which lie next to this file. With ``--check`` it writes
nothing, and ends with status 1 if a room, its sentence or an arrow is not that of the code. It compares no line counts.
"""

import ast
import html
import re
import sys
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "scpl_jax"
BEGIN, END = "<!-- made by docs/design/rooms.py -->\n", "<!-- until here -->\n"
WIDTH, HEIGHT, ROW = 124, 34, 84  # of a box, and from one row to the next
# Every folder of the package is a room, and so is every module next to the folders.
ROOMS = {path.parent.name: path.parent for path in sorted(PACKAGE.glob("*/__init__.py"))}
ROOMS |= {path.stem: path for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"}


@cache
def imports(room: str) -> frozenset[str]:
    """Other rooms that a room imports, anywhere in its files."""
    names = []
    for path in ROOMS[room].rglob("*.py") if ROOMS[room].is_dir() else [ROOMS[room]]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names += [f"{node.module}.{alias.name}" for alias in node.names]
    return frozenset({name.split(".")[1] for name in names if name.startswith("scpl_jax.")} & {*ROOMS} - {room})


@cache
def below(room: str) -> frozenset[str]:
    """All rooms that a room needs, in one step or in several."""
    return imports(room).union(*map(below, imports(room)))


@cache
def height(room: str) -> int:
    """Number of rooms on the longest way down."""
    return max((1 + height(other) for other in imports(room)), default=0)


def rows() -> dict[str, int]:
    """The row of each room, 0 at the bottom; a room that no other imports is at the top."""
    used = frozenset().union(*map(imports, ROOMS))
    return {room: height(room) if room in used else max(map(height, ROOMS)) for room in ROOMS}


def arrows() -> list[list[tuple]]:
    """The imports that do not follow from others: each a chain of points, (row, room) at the ends, one for each row."""
    pairs = [(a, b) for a in ROOMS for b in sorted(imports(a)) if not any(b in below(c) for c in imports(a))]
    row = rows()
    return [[(row[a], a), *((i, a, b) for i in range(row[a] - 1, row[b], -1)), (row[b], b)] for a, b in pairs]


def spread(goal: dict[tuple, float]) -> dict[tuple, float]:
    """The points of a row near their goals, in the order of the goals, and so far apart that no box touches another."""
    line = sorted(goal, key=lambda p: (goal[p], str(p)))
    apart = [0, *((len(p) == 2) + (len(q) == 2) for p, q in pairwise(line))]
    offset = [sum(apart[: i + 1]) * (WIDTH / 2 + 12) for i in range(len(line))]
    free = [goal[p] - by for p, by in zip(line, offset, strict=True)]
    up, down = accumulate(free, max), [*accumulate(free[::-1], min)][::-1]
    return {p: (a + b) / 2 + by for p, a, b, by in zip(line, up, down, offset, strict=True)}


def places(chains: list[list[tuple]]) -> dict[tuple, float]:
    """Where points lie from left to right: near those that they are linked to; rooms without links come last."""
    linked: dict[tuple, list] = {}
    for one, other in (pair for chain in chains for pair in pairwise(chain)):
        weight = 20 if len(one) == len(other) else 1  # a long arrow bends only where it begins and ends
        linked.setdefault(one, []).extend([other] * weight)
        linked.setdefault(other, []).extend([one] * weight)
    x = dict.fromkeys(linked, 0.0)
    for sweep in range(400):
        for row in sorted({row for row, *_ in x}, reverse=sweep % 2 == 0):
            x |= spread({p: sum(x[q] for q in linked[p]) / len(linked[p]) for p in x if p[0] == row})
    for room, row in rows().items():
        x.setdefault((row, room), max((x[p] for p in x if p[0] == row), default=0) + WIDTH + 24)
    return {point: place - min(x.values()) + WIDTH / 2 + 20 for point, place in x.items()}


def picture() -> str:
    """The rooms as boxes, each above those that it imports, as SVG."""
    chains, top = arrows(), max(rows().values())
    x = places(chains)
    y = {point: 20 + ROW * (top - point[0]) for point in x}
    lines, boxes = [], []
    for chain in chains:
        path = f"M{x[chain[0]]:.0f} {y[chain[0]]}"
        for a, b in pairwise(chain):
            path += f"V{y[a] + HEIGHT}C{x[a]:.0f} {y[a] + 60} {x[b]:.0f} {y[b] - 26} {x[b]:.0f} {y[b]}"
        lines.append(f'<path d="{path}m-4 -9l4 9l4 -9"/>')
    for point in (point for point in x if len(point) == 2):
        title, left = html.escape(sentence(ROOMS[point[1]])), f"{x[point] - WIDTH / 2:.0f}"
        box = f'x="{left}" y="{y[point]}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#dbeafe" stroke="#1d4ed8"'
        name = f'<text x="{x[point]:.0f}" y="{y[point] + 22}">{ROOMS[point[1]].name}</text>'
        boxes.append(f"<g><title>{title}</title><rect {box}/>{name}</g>")
    wide, high = max(x.values()) + WIDTH / 2 + 20, max(y.values()) + HEIGHT + 20
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high}" font-family="Helvetica, Arial, sans-serif" \
font-size="15" role="img" aria-label="The rooms of scpl_jax, each above those that it imports.">
<rect width="100%" height="100%" fill="#fff"/>
<g stroke="#333" stroke-width="1.3" fill="none">
{chr(10).join(lines)}
</g>
<g fill="#111" text-anchor="middle">
{chr(10).join(boxes)}
</g>
</svg>
"""


def sentence(room: Path) -> str:
    """The first sentence of a room's docstring, as Markdown."""
    path = room / "__init__.py" if room.is_dir() else room
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "."
    return re.sub(r":\w+:`|``", "`", " ".join(re.split(r"(?<=\.)\s", text)[0].split()))


def table() -> str:
    """The rooms from top to bottom, each with its sentence and its length."""
    text = "| room | what lives there | lines |\n|---|---|---|\n"
    for room, _ in sorted(rows().items(), key=lambda item: (-item[1], item[0])):
        path = ROOMS[room]
        for part in [path, *sorted(inner.parent for inner in path.glob("*/__init__.py"))]:
            files = part.glob("*.py") if part.is_dir() else [part]
            count = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
            text += f"| `{part.relative_to(PACKAGE)}` | {sentence(part)} | {max(round(count, -2), 100):,} |\n"
    return text


def main() -> int:
    """Write picture and table, or check them."""
    drawn, page = HERE / "rooms.svg", HERE / "architecture.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    old, after = rest.split(END)
    if "--check" not in sys.argv:
        drawn.write_text(picture(), encoding="utf-8")
        page.write_text(before + BEGIN + table() + END + after, encoding="utf-8")
        return 0
    old, new = (re.sub(r" [\d,]+ \|\n", "\n", text) for text in (old, table()))
    if old == new and drawn.exists() and drawn.read_text(encoding="utf-8") == picture():
        return 0
    sys.stderr.write("the map is not that of the code: run python docs/design/rooms.py\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
