"""Damage to a valid file or directory, as the wild has it: `damage` changes one thing below a path and says what."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import yaml

JUNK: tuple[Any, ...] = (
    None,
    True,
    [],
    {},
    [[]],
    {"a": {"b": []}},
    "",
    "x",
    "[/bad]",
    "{{ x }}",
    "\x1b[31m\n",
    "é" * 300,
    "../../../etc/passwd",
    -1,
    0,
    1,
    10**30,
    2**63,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
    "1e3",
    "\ud800",
    ["x", 1, None],
    list(range(1000)),
)
YAML_TEXTS = (
    "name: {{ x }}\n",
    "? [a, b]\n: 1\n",
    "a: &a [*a]\n",
    "a: " + "[" * 3000 + "\n",
    "when: 2024-13-45\n",
    "n: " + "9" * 6000 + "\n",
    "\tname: x\n",
    "a: !!python/object:os.system {}\n",
    "x: &x {a: 1}\ny: {<<: *x}\n",
    "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)),
    "%YAML 9.9\n---\n",
    "- a\n- b\n",
    "",
    "null\n",
    "1: 2\n",
)
_TEXTS = {".json", ".jsonl", ".yaml", ".csv", ".txt", ".jinja", ".toml", ".md", ".py"}


def damage(place: Path, rng: random.Random) -> str:
    """Change one thing at or below `place`, which stays where it is unless it is its name that is changed."""
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    small = [path for path in files if path.suffix in _TEXTS] or files
    path = rng.choice(small if rng.random() < 0.8 else files)
    if place.is_dir() and rng.random() < 0.08:
        return _rename(path, rng)
    changes = [_bytes, _bytes, _whole]
    if path.suffix == ".json":
        changes += [_json] * 9
    elif path.suffix == ".jsonl":
        changes += [_jsonl] * 9
    elif path.suffix == ".yaml":
        changes += [_yaml] * 9
    return f"{path.relative_to(place.parent)}: {rng.choice(changes)(path, rng)}"


def _rename(path: Path, rng: random.Random) -> str:
    name = rng.choice(
        [b"\xff\xfe" + os.fsencode(path.suffix), b"a\nb\x1b[31m", b"[bold]" + os.fsencode(path.suffix), b" "]
    )
    path.rename(path.with_name(os.fsdecode(name)))
    return f"{path.name} renamed to {name!r}"


def _whole(path: Path, rng: random.Random) -> str:
    kind = rng.choice(["empty", "missing", "folder", "zeros", "text", "gzip", "link", "unreadable"])
    path.unlink()
    match kind:
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "zeros":
            path.write_bytes(bytes(5000))
        case "text":
            path.write_text("what is this?\n" * 5)
        case "gzip":
            path.write_bytes(gzip.compress(b"{}" * 50)[: rng.randrange(5, 25)])
        case "link":
            path.symlink_to(path.name)
        case "unreadable":
            path.write_bytes(b"{}")
            path.chmod(0)
    return kind


def _bytes(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    kind = rng.choice(["cut", "flip", "insert", "bom", "double", "utf-16"])
    at = rng.randrange(min(len(data), 4000) + 1)
    match kind:
        case "cut":
            del data[at:]
        case "flip":
            for _ in range(rng.choice([1, 5, 50])):
                if data:
                    data[rng.randrange(len(data))] = rng.randrange(256)
        case "insert":
            data[at:at] = rng.choice([b"\xff", b"\x00", b"\t", b'"', b"{", b"[" * 2000, b"}", b"\\ud800", b"9" * 5000])
        case "bom":
            data[:0] = b"\xef\xbb\xbf"
        case "double":
            data += data[:100_000]
        case "utf-16":
            data = bytearray(bytes(data).decode("latin-1").encode("utf-16"))
    path.write_bytes(data)
    return f"{kind} at {at}"


def _json(path: Path, rng: random.Random) -> str:
    try:
        value, told = _changed(json.loads(path.read_text("utf-8")), rng)
    except ValueError:
        return _bytes(path, rng)
    text = json.dumps(value, indent=1)
    if rng.random() < 0.05:
        text, told = text.replace("{", '{"a": 1, "a": 2,', 1), "a key twice"
    path.write_text(text)
    return told


def _jsonl(path: Path, rng: random.Random) -> str:
    lines = path.read_text("utf-8", "replace").splitlines()
    number = rng.randrange(min(len(lines), 5)) if lines else 0
    try:
        value, told = _changed(json.loads(lines[number]), rng)
    except (ValueError, IndexError):
        return _bytes(path, rng)
    lines[number] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n")
    return f"line {number + 1}: {told}"


def _yaml(path: Path, rng: random.Random) -> str:
    text = path.read_text("utf-8", "replace")
    if rng.random() < 0.25:
        chosen = rng.choice(YAML_TEXTS)
        path.write_text(rng.choice([chosen, text + chosen, chosen + text]))
        return f"yaml {chosen[:30]!r}"
    try:
        value, told = _changed(yaml.safe_load(text), rng)
    except (yaml.YAMLError, ValueError):
        return _bytes(path, rng)
    try:
        path.write_text(yaml.safe_dump(value, sort_keys=False))
    except UnicodeEncodeError:
        path.write_text(json.dumps(value))
    return told


def _changed(value: Any, rng: random.Random) -> tuple[Any, str]:
    """The value with one place in it replaced, removed, added, renamed or wrapped."""
    places = list(_places(value, ()))
    place = rng.choice(places[:400])
    junk = rng.choice(JUNK)
    if not place:
        return junk, f"all is {junk!r:.40}"
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    key = place[-1]
    kind = rng.choice(["replace", "replace", "replace", "remove", "add", "rename", "wrap", "deep", "text"])
    match kind:
        case "replace":
            parent[key] = junk
        case "remove":
            del parent[key]
        case "wrap":
            parent[key] = rng.choice([[parent[key]], {"x": parent[key]}])
        case "deep":
            for _ in range(rng.choice([40, 150])):
                parent[key] = [parent[key]]
        case "text":
            parent[key] = str(parent[key])
        case _ if isinstance(parent, dict) and kind == "rename":
            parent[rng.choice(["x", "[/bad]", key + "s"])] = parent.pop(key)
        case _ if isinstance(parent, dict):
            parent[rng.choice(["extra", "", "kind"])] = junk
        case _:
            parent.insert(0, junk)
    return value, f"{kind} {'.'.join(map(str, place))[:60]} {junk!r:.40}"


def _places(value: Any, above: tuple[Any, ...]) -> Any:
    yield above
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _places(inner, (*above, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:20]):
            yield from _places(inner, (*above, number))


def bad_argument(arguments: list[str], rng: random.Random) -> tuple[list[str], str]:
    """The arguments with one of them replaced by junk, removed or repeated."""
    place = rng.randrange(len(arguments))
    junk = rng.choice(
        ["", "[/bad]", "-1", "nan", "1e999", "9" * 400, "\x1b[31m", "\udcff", "{{x}}", "a=b", "/dev/null", "x" * 5000]
    )
    match rng.choice(["replace", "remove", "repeat", "set"]):
        case "replace":
            return [*arguments[:place], junk, *arguments[place + 1 :]], f"argument {place}: {junk!r:.30}"
        case "remove":
            return [*arguments[:place], *arguments[place + 1 :]], f"no argument {place}"
        case "repeat":
            return [*arguments[: place + 1], *arguments[place:]], f"argument {place} twice"
        case _:
            text = rng.choice(
                ["a.b.c=1", "stages=1", "seed=x", "=", "name={{ x }}", "stages.x.kind=[/bad]", ".=1", "a" * 3000]
            )
            return [*arguments, "--set", text], f"--set {text:.40}"


def copied(source: Path, target: Path) -> None:
    """A copy of a file or directory that may be damaged."""
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
