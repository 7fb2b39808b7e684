"""Texts of users that spell a special token: to a compressor they are text, and end nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmlab.data import Tokenizer
from lmlab.files import write_jsonl
from lmlab.methods.autocompressor import AutoCompressor
from lmlab.models import ModelConfig, Transformer, save_pretrained

_SPELLED = "rain falls <|endoftext|> on hills and rivers carry stones to the sea where ships wait"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("spelled")
    tokenizer = Tokenizer.train(["rain falls on hills and rivers carry stones to the sea where ships wait"] * 3, 300)
    shape = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, d_model=32, num_heads=2, max_seq_len=512)
    save_pretrained(Transformer(shape).initialize(0), place / "base")
    tokenizer.save(place / "base")
    AutoCompressor.from_base(place / "base", summary_length=2).save(place / "c", companions=place / "base")
    (place / "text.txt").write_text(_SPELLED)
    write_jsonl(place / "docs.jsonl", ({"id": f"d{n}", "text": f"{n} {_SPELLED}"} for n in range(4)))
    write_jsonl(place / "items.jsonl", ({"sentence": f"{n} {_SPELLED}", "label": n % 2} for n in range(8)))
    (place / "beir" / "qrels").mkdir(parents=True)
    write_jsonl(
        place / "beir" / "corpus.jsonl", ({"_id": f"d{n}", "title": "", "text": f"{n} {_SPELLED}"} for n in range(4))
    )
    write_jsonl(place / "beir" / "queries.jsonl", [{"_id": "q", "text": "rain <|endoftext|> falls"}])
    (place / "beir" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td3\t1\n")
    return place


def test_no_command_reads_a_spelled_token_as_one(
    place: Path, tmp_path: Path, lmlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, list[int], int]] = []
    inside: list[str] = []  # one calls the other

    def spied(original: Callable[..., list[int]]) -> Callable[..., list[int]]:
        def call(self: Tokenizer, text: str, *given: Any, **named: Any) -> list[int]:
            inside.append(text)
            ids = original(self, text, *given, **named)
            inside.pop()
            if not inside:
                seen.append((text, ids, self.eos_id))
            return ids

        return call

    for name in ("encode", "encode_prompt"):
        monkeypatch.setattr(Tokenizer, name, spied(getattr(Tokenizer, name)))
    compressor, store, docs, items = place / "c", tmp_path / "s", place / "docs.jsonl", place / "items.jsonl"
    stored = ("--store", store, "--k", 1)
    shots = ("--demonstrations", items, "--tests", items, "--soft", 2, "--plain", 1, "--seeds", 1)
    commands: dict[str, tuple[Any, ...]] = {
        "text": (place / "text.txt",),
        "encode": ("--in", docs, "--segment", 64, "--independent"),
        "ppl": ("--data", docs, "--context", "0,16", "--target", 8, "--segment", 16),
        "rag": ("--data", docs, "--passages", docs, *stored, "--context", 8, "--continuation", 8),
        "rerank": ("--data", place / "beir", *stored, "--plain"),
        "icl": ("--task", "sst2", *shots),
    }
    for command, options in commands.items():
        seen.clear()
        out = store if command == "encode" else tmp_path / command
        found = lmlab("compress", command, compressor, *options, "--out", out)
        assert found.code == 0, found.err
        spelled = [(ids, end) for text, ids, end in seen if "<|endoftext|>" in text]
        assert spelled, command
        assert all(end not in ids[1:] for ids, end in spelled), command
