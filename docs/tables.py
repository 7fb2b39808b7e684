"""Write what the manifests of the methods say into README.md and docs/index.md, between two marks, and the picture of
the house into docs/images/house.svg.

    python docs/tables.py            # writes
    python docs/tables.py --check    # only says whether something would change
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from lmlab.plugins import methods

sys.path.insert(0, str(Path(__file__).parent))
from picture import draw

ROOT = Path(__file__).parents[1]


def methods_table(pages: str) -> str:
    """The table of the methods; `pages` is what stands before the names of their pages."""
    rows = ["| question | method | command | published | here |", "|---|---|---|---|---|"]
    for method in methods().values():
        cells = (
            method.question,
            f"[{method.title}]({pages}{method.page}) ([{method.paper}]({method.url}))",
            f"`lmlab {method.command}`",
            method.published,
            method.reached,
        )
        rows.append(f"| {' | '.join(each.replace('|', '&#124;') for each in cells)} |")
    return "\n".join(rows)


def house() -> str:
    """A drawing of which rooms import which, from the code itself: an arrow for each pair of rooms, without those that
    follow from others.

    Raises:
        ValueError: rooms import each other in a circle.
    """
    import grimp

    graph = grimp.build_graph("lmlab")
    files = Counter(_room(name) for name in graph.modules)
    uses = {
        (_room(importer), _room(imported))
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
    }
    shown = {room for room, count in files.items() if count > 1 and room != "lmlab"} | {"cli", "door"}
    direct = {(a, b) for a, b in uses if a in shown and b in shown and a != b}
    reached = _closure(direct)
    if circle := sorted(a for a, b in reached if a == b):
        raise ValueError(f"rooms import each other in a circle: {', '.join(circle)}")
    arrows = {(a, b) for a, b in direct if not any((a, c) in reached and (c, b) in reached for c in shown - {a, b})}
    return draw(shown, arrows)


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def _closure(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    found = set(pairs)
    while more := {(a, d) for a, b in found for c, d in found if b == c} - found:
        found |= more
    return found


def filled(text: str, name: str, content: str, script: str = "tables") -> str:
    """A page with the content between its marks, which name the script that makes it.

    Raises:
        ValueError: it has no such marks.
    """
    first, last = f"<!-- {name}: made by docs/{script}.py -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(first)
    _, ended, after = rest.partition(last)
    if not (found and ended):
        raise ValueError(f"there is no '{first}' ... '{last}'")
    return f"{before}{first}\n{content}\n{last}{after}"


def pages() -> dict[Path, str]:
    """Each page as it is to be."""
    found: dict[Path, str] = {}
    contents = {
        "README.md": ("methods", methods_table("docs/")),
        "docs/index.md": ("methods", methods_table("")),
    }
    found[ROOT / "docs" / "images" / "house.svg"] = house()
    for name, (mark, content) in contents.items():
        found[ROOT / name] = filled((ROOT / name).read_text("utf-8"), mark, content)
    return found


def main() -> None:
    """Write or check."""
    stale = {path: text for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)} {'is not what the code says' if '--check' in sys.argv else 'written'}")
        if "--check" not in sys.argv:
            path.write_text(text, "utf-8")
    raise SystemExit(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    main()
