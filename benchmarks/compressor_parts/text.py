"""Real text: what the last tokens of held-out texts gain from compressed segments before them."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEGMENTS = 4  # of a row
_LEAST = 4096  # bytes of a text that compressors learn from: about a row
_MOST_SOURCES = 60_000_000  # bytes of further sources, drawn by the hash of their paths
_LONG_LINE, _SHARED_LINES = 30, 0.1  # a source is a copy where so many of its long lines stand in held-out texts
_WARM_ROW, _WARM_BYTES = 256, 194  # four segments; 64 tokens of a vocabulary of 2,048 have so many
_NOT_CODE = {"test", "tests", "site-packages", "idlelib", "turtledemo", "lib2to3", "pydoc_data", "encodings"}
_LORA = {"rank": 16, "alpha": 16, "dropout": 0.0, "targets": ["query", "key", "value", "output"]}


@dataclass(frozen=True)
class TextSettings:
    """What is trained and measured.

    Attributes:
        start: the directory of a trained model that learns to compress by adapters; without, a small one is trained.
        kinds: accumulate (the method), replace (RMT), plain (the same steps without summaries, in rows of a segment).
        steps, base_steps: of each adaptation, and of the small model before it.
        warm_steps: of a compressor before all seeds, on texts whose every piece of 64 tokens stands there twice, in
            segments of 64, so that a summary is worth much in the segment after it; 0 for none.
        rows: of a step; `at_once` of them are run together.
        segment: tokens of a segment; a row has four of them.
        kappa: vectors of a segment.
        vector_scale: of final states that become vectors; `embedding` for one by the model's embeddings.
        layers, width, vocabulary: of the small model.
        sources: a directory of further Python sources that the models learn from.
        blocks: of a row's four segments; gradients stop at their borders.
        depth: segments that a gradient passes through wherever they stand, in place of blocks; 0 for blocks.
        optimizer, rate, base_rate, summary_rate: how, and the learning rates of the model (or its adapters), of the
            small model before, and of the summary tokens.
        domains: what is measured: papers, code.
        documents: most held-out texts of a domain.
    """

    start: Path | None
    kinds: tuple[str, ...]
    seeds: int
    steps: int
    base_steps: int
    warm_steps: int
    rows: int
    at_once: int
    segment: int
    kappa: int
    vector_scale: float | str
    layers: int
    width: int
    vocabulary: int
    sources: Path | None
    blocks: int
    depth: int
    optimizer: str
    rate: float
    base_rate: float
    summary_rate: float
    precision: str
    domains: tuple[str, ...]
    documents: int

    @property
    def row(self) -> int:
        """Tokens of a row."""
        return SEGMENTS * self.segment

    @property
    def contexts(self) -> tuple[int, ...]:
        """Tokens that are compressed before the last segment."""
        return tuple(number * self.segment for number in range(SEGMENTS))

    @property
    def shape(self) -> dict[str, int]:
        """The small model."""
        return {
            "vocab_size": self.vocabulary,
            "num_layers": self.layers,
            "d_model": self.width,
            "num_heads": self.width // 32,
            "num_kv_heads": 1,
            "max_seq_len": self.row + 128,
        }


def measure_text(out: Path, settings: TextSettings) -> None:
    """Train what is missing, measure each seed, and print the mean of the seeds with intervals over texts."""
    from lmlab.methods.autocompressor import AutoCompressor
    from lmlab.methods.autocompressor.measure.ppl import PplSettings, summarize, table
    from lmlab.runs import Recipe, run_recipe

    write_documents(out, settings.sources)
    run_recipe(Recipe.parse(_base_recipe(out, settings), "the benchmark"), out / "base")
    start = settings.start or out / "base" / "base"
    for seed in range(settings.seeds):
        run_recipe(Recipe.parse(_seed_recipe(out, settings, seed), "the benchmark"), out / f"seed-{seed}")
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(settings.seeds):
        run = out / f"seed-{seed}"
        models = {
            name: _plain(run / name) if name == "plain" else AutoCompressor.load(run / name) for name in settings.kinds
        }
        # what all plain tokens would give is told by the model before: one that learned to compress reads a segment
        lines = ["shuffled", "truncate"]
        lines += [line for line, kind in (("rmt", "replace"), ("base", "plain")) if kind in models]
        for domain, rows in _measure(out, f"seed-{seed}", settings, tuple(lines), models).items():
            print(f"seed {seed} {domain}: {json.dumps({n: round(v, 3) for n, v in _mean(rows).items()})}", flush=True)
            found.setdefault(domain, []).append({row["id"]: row for row in rows})
    before = _measure(out, "base", settings, (), {"accumulate": _plain(start)})
    at = PplSettings(settings.contexts, settings.segment, settings.segment)
    for domain, seeds in found.items():
        rows = [{"id": id, **_mean([each[id] for each in seeds])} for id in seeds[0]]
        told = summarize(rows, at)
        print(f"\n{domain}: {len(rows)} held-out texts, mean of {len(seeds)} seeds", flush=True)
        for row in table(told):
            print("  ".join(f"{cell:>30}" if i > 2 else f"{cell:>10}" for i, cell in enumerate(row)), flush=True)
        print("the model before it learned to compress, which reads all plain tokens:", flush=True)
        for row in table(summarize(before[domain], at)):
            print(
                "  ".join(f"{cell:>30}" if i > 2 else f"{cell:>10}" for i, cell in enumerate(row[1:4], 1)), flush=True
            )


def _measure(
    out: Path, name: str, settings: TextSettings, lines: tuple[Any, ...], models: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The losses of each held-out text, by domain; texts that were measured are not read again."""
    from lmlab.data import Tokenizer, read_documents
    from lmlab.files import read_jsonl
    from lmlab.methods.autocompressor.measure.ppl import ROWS, Measurement, PplSettings, measure_ppl

    tokenizer = Tokenizer.load(settings.start or out / "base" / "base" / "model")
    documents = list(read_documents(out / "heldout.jsonl"))
    others = {line: models[kind] for line, kind in (("rmt", "replace"), ("base", "plain")) if kind in models}
    measurement = Measurement(
        models["accumulate"],
        PplSettings(settings.contexts, settings.segment, settings.segment, lines, settings.documents),
        others,
    )
    found = {}
    for domain in settings.domains:
        texts = [(each.id, tokenizer.encode_prompt(each.text)) for each in documents if each.domain == domain]
        place = out / "measured" / "-".join((name, *lines)) / domain
        measure_ppl(measurement, texts, place)
        found[domain] = list(read_jsonl(place / ROWS))
    return found


def _plain(place: Path) -> Any:
    from lmlab.methods.autocompressor import AutoCompressor

    return AutoCompressor.from_base(place, summary_length=0, init="noise")


def _mean(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if name != "id"}


def write_documents(out: Path, sources: Path | None) -> None:
    """Papers, stories and Python's library; held out are 40 papers and every eighth package or module with all of its
    files. Further sources are learned from where they are no copies of what is held out.
    """
    from lmlab.files import write_jsonl

    out.mkdir(parents=True, exist_ok=True)
    if (out / "heldout.jsonl").exists():
        return
    papers, code, stories = list(_papers()), list(_code(Path(sysconfig.get_paths()["stdlib"]))), list(_stories())
    packages = sorted({row["group"] for row in code})
    held = set(packages[7::8])
    cut = len(papers) * 11 // 13
    long = [*papers[:cut], *(row for row in code if row["group"] not in held)]
    long = [row for row in long if len(row["text"].encode()) >= _LEAST]
    heldout = [*papers[cut:], *(row for row in code if row["group"] in held)]
    if sources is not None:
        long += _further(sources, heldout)
    twice = [row | {"text": _twice(row["text"])} for row in long]
    for name, rows in (("long", long), ("train", [*long, *stories]), ("heldout", heldout), ("twice", twice)):
        write_jsonl(out / f"{name}.jsonl", rows)
    print(f"{len(long)} long texts and {len(stories)} stories to learn from, {len(heldout)} texts held out", flush=True)


def _twice(text: str) -> str:
    """Pieces of about a short segment, each two times."""
    pieces = [text[at : at + _WARM_BYTES] for at in range(0, len(text), _WARM_BYTES)]
    return "".join(2 * piece for piece in pieces)


def _papers() -> Iterator[dict[str, Any]]:
    from lmlab.evals.long.texts import papers

    for number, paper in enumerate(papers()):
        yield {"id": f"paper-{number}", "text": paper.body, "domain": "papers", "group": f"paper-{number}"}


def _stories() -> Iterator[dict[str, Any]]:
    from lmlab.evals.tasks import olmes

    requests = olmes.read_requests(f"coqa/{olmes.variants('coqa')[0]}")
    stories = dict.fromkeys(str(request["doc"]["story"]) for request in requests)
    for number, story in enumerate(stories):
        yield {"id": f"story-{number}", "text": story, "domain": "stories", "group": f"story-{number}"}


def _code(root: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if not _NOT_CODE & set(inside.parts):
            text = path.read_text(encoding="utf-8", errors="replace")
            yield {"id": inside.as_posix(), "text": text, "domain": "code", "group": inside.parts[0]}


def _further(sources: Path, heldout: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Other packages' sources, without copies of held-out modules, which packages carry along."""
    known = {line for row in heldout for line in _long_lines(row["text"])}
    rows = [row for row in _code(sources) if len(row["text"].encode()) >= _LEAST]
    rows.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())
    found, size = list[dict[str, Any]](), 0
    for row in rows:
        lines = _long_lines(row["text"])
        if len(known & lines) <= _SHARED_LINES * len(lines) and size < _MOST_SOURCES:
            found.append(row | {"id": f"further/{row['id']}"})
            size += len(row["text"].encode())
    return found


def _long_lines(text: str) -> set[str]:
    return {line for line in map(str.strip, text.splitlines()) if len(line) >= _LONG_LINE}


def _trainer(settings: TextSettings, steps: int, rate: float, share: int = 1, summaries: bool = True) -> dict[str, Any]:
    groups = [{"match": "summary_embedding", "learning_rate": settings.summary_rate, "weight_decay": 0.0}]
    return {
        "steps": steps,
        "batch_size": share * settings.rows,
        "micro_batch_size": share * settings.at_once,
        "precision": settings.precision,
        "device": "cpu",
        "checkpoint_every": 50,
        "log_every": 25,
        "optimizer": {
            "name": settings.optimizer,
            "learning_rate": rate,
            "weight_decay": 0.01,
            "groups": groups if summaries else [],
        },
    }


def _base_recipe(out: Path, settings: TextSettings) -> dict[str, Any]:
    tokenizer = str(settings.start) if settings.start else "tokenizer"
    stages: dict[str, Any] = {}
    if not settings.start:
        stages["tokenizer"] = {
            "kind": "train_tokenizer",
            "documents": str(out / "train.jsonl"),
            "vocab_size": settings.vocabulary,
        }
        stages["tokens"] = {"kind": "tokenize", "documents": str(out / "train.jsonl"), "tokenizer": "tokenizer"}
    for name, documents in (("long_tokens", "long"), ("heldout_tokens", "heldout")):
        stages[name] = {"kind": "tokenize", "documents": str(out / f"{documents}.jsonl"), "tokenizer": tokenizer}
    if not settings.start:
        stages["base"] = {
            "kind": "train",
            "tokens": "tokens",
            "tokenizer": "tokenizer",
            "seq_len": settings.row,
            "max_epochs": 100,
            "model": settings.shape,
            "trainer": _trainer(settings, settings.base_steps, settings.base_rate, summaries=False),
        }
    if settings.warm_steps:
        stages["twice_tokens"] = {"kind": "tokenize", "documents": str(out / "twice.jsonl"), "tokenizer": tokenizer}
        stages["warm"] = _adaptation(
            settings,
            "twice_tokens",
            str(settings.start or "base"),
            settings.warm_steps,
            seq_len=_WARM_ROW,
            trainer=_trainer(settings, settings.warm_steps, settings.rate, settings.row // _WARM_ROW),
        )
    return {"name": "base", "seed": 0, "stages": stages}


def _adaptation(
    settings: TextSettings, tokens: str, start: str, steps: int, accumulate: bool = True, **more: Any
) -> dict[str, Any]:
    segments: dict[str, Any] = {"blocks": settings.blocks, "segments": SEGMENTS // settings.blocks, "random": False}
    scale = {} if settings.vector_scale == 1 else {"vector_scale": settings.vector_scale}
    if settings.depth:
        segments |= {"bptt": "sliding", "depth": settings.depth}
    return {
        "kind": "compress_train",
        "start": start,
        "tokens": tokens,
        "seq_len": settings.row,
        "segments": segments,
        "compressor": {"summary_length": settings.kappa, "accumulate": accumulate, **scale},
        "trainer": _trainer(settings, steps, settings.rate),
        **({"lora": _LORA} if settings.start else {}),
        **more,
    }


def _seed_recipe(out: Path, settings: TextSettings, seed: int) -> dict[str, Any]:
    plain = settings.start or out / "base" / "base"
    start = out / "base" / "warm" if settings.warm_steps else plain
    tokens = str(out / "base" / "long_tokens")
    heldout = {"heldout_tokens": str(out / "base" / "heldout_tokens"), "heldout_rows": 16}
    stages = {
        "accumulate": _adaptation(settings, tokens, str(start), settings.steps, **heldout),
        "replace": _adaptation(settings, tokens, str(start), settings.steps, accumulate=False, **heldout),
        "plain": {
            "kind": "train",
            "start": str(plain),
            "tokens": tokens,
            "seq_len": settings.segment,
            "max_epochs": 100,
            "trainer": _trainer(settings, settings.steps, settings.rate, SEGMENTS, summaries=False),
        },
    }
    return {"name": "text", "seed": seed, "stages": {name: stages[name] for name in settings.kinds}}
