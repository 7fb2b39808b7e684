"""The recipes that come with lmlab, by name: a wheel has them inside, a copy of the repository beside its source."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from lmlab.errors import UserError, did_you_mean

_SUFFIX = ".yaml"


@lru_cache(maxsize=1)
def packaged_recipes() -> dict[str, Path]:
    """The files by their names, such as `demo` or `ladder-laptop`."""
    package = Path(__file__).parents[1]
    for folder in (package / "recipes", package.parents[1] / "recipes"):
        if found := sorted(folder.glob(f"*{_SUFFIX}")):
            return {path.stem: path for path in found}
    return {}


def recipe_file(place: str | Path) -> Path:
    """A file of the user's, or else the one of lmlab's that is named: `demo`, `demo.yaml` or `recipes/demo.yaml`.

    A folder of such a name, as of a run of that recipe, is no file.

    Raises:
        UserError: there is neither.
    """
    path = Path(place).expanduser()
    if path.exists() and not path.is_dir():
        return path
    known = packaged_recipes()
    named = path.suffix in ("", _SUFFIX) and path.parent in (Path(), Path("recipes"))
    if named and path.stem in known:
        return known[path.stem]
    if path.exists():
        return path  # a folder: whoever reads it says so
    hint = did_you_mean(path.stem, known) if named else "`lmlab recipes` lists those that come with lmlab."
    raise UserError(f"No such file: '{place}'.", hint)


def told(path: Path) -> str:
    """What the comment at the top of a recipe says it is for, in one sentence."""
    lines = []
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    return re.split(r"(?<=\.)\s+(?=[A-Z]|lmlab )|:?\s+(?=lmlab (?:run|ladder|olmoe) )", " ".join(lines), maxsplit=1)[0]
