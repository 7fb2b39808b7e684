"""A real extension that can be told apart: a small model learns to recall at 256 tokens and is continued at 1,024.

    python benchmarks/prolong_recall.py [--variants auto keep ...] [--seeds 0 1 2] [--out DIR] [--steps 400 60]

Text of Python's library holds eight facts ("city Oslo"), one of 16 words each, at random places; at its end they are
asked for, twice each, and the answers alone are learned. A model of a million parameters learns that within a few
minutes, where it recalls nothing of plain text. The base is trained at 256 tokens once for a seed; every variant
continues it with its optimizer, for equally many tokens. What is told is the share of right answers on other text at
256, 512, 1,024 and 2,048 tokens, with 95 % intervals over texts, and of several seeds their mean with one over seeds.
Everything is done by `lmlab run`; it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from lmlab import stats
from lmlab.data import PackedRows, TokenizedCorpus, Tokenizer

KEYS: dict[str, str] = {
    "city": "Oslo Lima Cairo Delhi Quito Seoul Turin Accra Dakar Perth Leeds Osaka Paris Rome Bonn Kyoto",
    "color": "red blue green white black pink gray brown gold silver orange purple yellow beige ivory olive",
    "animal": "cat dog horse sheep goat lion tiger bear wolf fox mouse rabbit eagle crow shark whale",
    "fruit": "apple pear plum grape cherry lemon lime peach mango melon berry fig date banana kiwi papaya",
    "metal": "iron copper zinc tin lead nickel cobalt chrome steel brass bronze titan radium barium cesium lithium",
    "tool": "hammer saw drill wrench chisel plane axe knife spade rake ladder rope bolt screw nail clamp",
    "dish": "soup bread rice pasta salad pizza curry stew cake pie toast cheese butter honey jam sauce",
    "tree": "oak pine birch maple cedar elm ash willow palm poplar spruce larch beech alder hazel yew",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "auto": {},
    "keep": {"theta": "keep"},
    "long 34 %": {"long": 0.34},
    "long 100 %": {"long": 1.0},
    "no masks": {"masks": False},
    "only at 512": {"length": 512},
}
"""What differs from the recipe: base, share of long data, document masks, length of training."""
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
Floats = NDArray[np.float64]
SHORT, LONG, LENGTHS = 256, 1024, (256, 512, 1024, 2048)
_VOCABULARY, _ASKED = 1024, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, nargs=2, default=(400, 60), help="of the base, of each extension")
    parser.add_argument("--texts", type=int, default=32, help="by which recall is measured, at each length")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp())
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    found = [one_seed(out / f"seed-{seed}", seed, arguments) for seed in arguments.seeds]
    if len(found) > 1:
        print(
            f"\nmeans of {len(found)} seeds, with 95 % t-intervals over them; the last column: less than auto, at 2,048"
        )
        for name in found[0]:
            over = [stats.t_interval([each[name][length] for each in found]) for length in LENGTHS]
            print(f"{name:14}{''.join(f'{_shown(each):>22}' for each in over)}", end="")
            if name not in ("base", "auto") and "auto" in found[0]:
                lost = [each["auto"][LENGTHS[-1]] - each[name][LENGTHS[-1]] for each in found]
                print(f"{_shown(stats.t_interval(lost)):>24}", end="")
            print()
    print(f"load after: {os.getloadavg()[0]:.1f}")


def one_seed(out: Path, seed: int, arguments: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Train and measure the base and all variants: by name and length."""
    out.mkdir(parents=True, exist_ok=True)
    write_data(out, seed, arguments.texts)
    path = out / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(out, seed, arguments), sort_keys=False))
    before, start = os.times().children_user, time.process_time()
    done = subprocess.run([sys.executable, "-m", "lmlab", "run", str(path), "--out", str(out / "run")], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    print(f"\nseed {seed}; {os.times().children_user - before:.0f} processor seconds; share of answers recalled")
    print(f"{'':14}{''.join(f'{length:>22,}' for length in LENGTHS)}")
    found: dict[str, dict[int, float]] = {}
    for name in ("base", *arguments.variants):
        stage = "base" if name == "base" else f"extended_{slug(name)}"
        cells = [recall(out / "run", stage, length) for length in LENGTHS]
        found[name] = {length: cell.value for length, cell in zip(LENGTHS, cells, strict=True)}
        print(f"{name:14}{''.join(f'{_shown(cell):>22}' for cell in cells)}", flush=True)
    print(f"measured in {time.process_time() - start:.0f} s", flush=True)
    return found


def _shown(found: stats.Interval[float]) -> str:
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def slug(name: str) -> str:
    return name.replace(" ", "_").replace("%", "percent")


def write_data(out: Path, seed: int, texts: int) -> None:
    """The tokenizer, and conversations of every length, as JSON lines; held-out ones are about other files."""
    if (out / "data.done").exists():
        return
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path.read_text("utf-8", "replace") for path in sorted(root.glob("*.py")) if path.stat().st_size > 4000]
    chance = random.Random(seed)
    chance.shuffle(files)
    words = [f" {word}" for words in KEYS.values() for word in words.split()]
    facts = ["".join(f"\n{key}{chance.choice(words)}" for key in KEYS) for _ in range(2000)]
    tokenizer = Tokenizer.train([*files[:60], *facts, *(" ".join(words) for _ in range(300))], _VOCABULARY)
    tokenizer.save(out / "tokenizer", LONG)
    (out / "template.jinja").write_text(TEMPLATE)
    learned, other = files[: len(files) * 3 // 4], files[len(files) * 3 // 4 :]
    _write(out / "short.jsonl", tokenizer, learned, chance, SHORT, 2000)
    _write(out / "middle.jsonl", tokenizer, learned, chance, 512, 240)
    _write(out / "long.jsonl", tokenizer, learned, chance, LONG, 120)
    for length in LENGTHS:
        _write(out / f"heldout-{length}.jsonl", tokenizer, other, chance, length, texts)
    (out / "data.done").touch()


def _write(path: Path, tokenizer: Tokenizer, files: list[str], chance: random.Random, length: int, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            file.write(json.dumps({"messages": _conversation(tokenizer, files, chance, length)}) + "\n")


def _conversation(tokenizer: Tokenizer, files: list[str], chance: random.Random, length: int) -> list[dict[str, str]]:
    """A text with its facts, and questions about all of them, of `length` tokens or a few less."""
    values = {key: chance.choice(words.split()) for key, words in KEYS.items()}
    asked = [key for _ in range(_ASKED) for key in chance.sample(list(KEYS), len(KEYS))]
    facts = {key: f"\n{key} {value}\n" for key, value in values.items()}
    tail = sum(len(tokenizer.encode(f"\n{key} {values[key]}", "as_text")) + 1 for key in asked)
    room = length - tail - sum(len(tokenizer.encode(fact, "as_text")) for fact in facts.values()) - 8
    text = chance.choice(files)
    start = chance.randrange(max(1, len(text) - 6 * room))
    body = tokenizer.decode(tokenizer.encode(text[start : start + 6 * room], "as_text")[:room])
    lines = body.split(" ")
    for fact in chance.sample(list(facts.values()), len(facts)):
        lines.insert(chance.randrange(len(lines) + 1), fact)
    messages = []
    for number, key in enumerate(asked):
        before = " ".join(lines) if number == 0 else ""
        messages += [
            {"role": "user", "content": f"{before}\n{key}"},
            {"role": "assistant", "content": f" {values[key]}"},
        ]
    return messages


def recipe(out: Path, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The base, and every variant as a stage that continues it."""
    base_steps, steps = arguments.steps
    chat = {"template": str(out / "template.jinja")}
    stages: dict[str, Any] = {}
    for name in ("short", "middle", "long", *(f"heldout-{length}" for length in LENGTHS)):
        stages[name.replace("-", "_")] = {
            "kind": "tokenize_chat",
            "records": str(out / f"{name}.jsonl"),
            "tokenizer": str(out / "tokenizer"),
            "chat": chat,
        }
    model = {"vocab_size": _VOCABULARY, "num_layers": 4, "d_model": 128, "num_heads": 4, "init_std": 0.05}
    trainer = {"optimizer": {"learning_rate": 2e-3}, "schedule": {"warmup_fraction": 0.1}}
    stages["base"] = {
        "kind": "train",
        "tokens": "short",
        "seq_len": SHORT,
        "packing": "best_fit",
        "model": model | {"max_seq_len": SHORT},
        "trainer": trainer | {"steps": base_steps, "batch_size": 8},
    }
    for name in arguments.variants:
        change = VARIANTS[name]
        length, share = change.get("length", LONG), change.get("long", 0.6)
        long = {"tokens": "long" if length == LONG else "middle", "weight": share, "allow_repeats": True}
        mixture = {"long": long} | ({"short": {"tokens": "short", "weight": 1 - share}} if share < 1 else {})
        stages[f"extended_{slug(name)}"] = {
            "kind": "train",
            "start": "base",
            "start_optimizer": True,
            "window": {"max_seq_len": LONG, "rope_theta": change.get("theta", "auto")},
            "mixture": mixture,
            "packing": "best_fit",
            "document_masks": change.get("masks", True),
            "seq_len": length,
            "trainer": {
                "steps": steps,
                "batch_size": 2 * LONG // length,
                "balance_lengths": True,
                "optimizer": {"learning_rate": 1e-3},
                "schedule": {"warmup_fraction": 0.1},
            },
        }
    return {"name": "recall", "seed": seed, "stages": stages}


def recall(run: Path, stage: str, length: int) -> stats.Interval[float]:
    """The share of answers that are the likeliest tokens, and its interval over texts."""
    from lmlab.models import from_pretrained

    return with_interval(shares(from_pretrained(run / stage / "model").eval(), run, length))


def with_interval(values: Floats) -> stats.Interval[float]:
    """A mean, and its interval over texts."""
    return stats.bootstrap(lambda units: float(values[units].mean()), len(values), seed=0)


def shares(model: Any, run: Path, length: int, first: int = 0, count: int | None = None) -> Floats:
    """What share of the answers about each text a model recalls: of so many texts from number `first` on."""
    import torch

    model.config = model.config.model_copy(update={"max_seq_len": max(length, model.config.max_seq_len)})
    found = []
    for row in held_out(run, length)[first : None if count is None else first + count]:
        with torch.no_grad():
            logits = model(row["input_ids"], document_ids_BT=row["document_ids"]).logits_BTV
        found.append(float((logits.argmax(-1) == row["labels"])[answers(row, run)].double().mean()))
    return np.array(found)


def held_out(run: Path, length: int) -> list[dict[str, Any]]:
    """The texts of a length that nothing was learned from, as rows of one."""
    import torch

    rows = PackedRows(TokenizedCorpus(run / f"heldout_{length}"), length, "single")
    return [{name: torch.from_numpy(value)[None] for name, value in rows[n].items()} for n in range(len(rows))]


def answers(row: dict[str, Any], run: Path) -> Any:
    """Where the next token is one of an answer, and not the end of one, [1, T]."""
    end = TokenizedCorpus(run / "heldout_256").tokenizer.eos_id
    return (row["labels"] != -100) & (row["labels"] != end)


if __name__ == "__main__":
    main()
