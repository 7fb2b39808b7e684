"""What lmlab makes of a model directory beside what `transformers` makes of it: exact, refused, or wrong."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from random_directories import LENGTH, Drawn, random_ids

from lmlab.errors import LmlabError
from lmlab.models import KVCache, Transformer, from_pretrained, save_pretrained

TOLERANCE = 2e-4  # of the largest logit


@dataclass
class Outcome:
    """What came out.

    Attributes:
        refused: the sentence, if lmlab refused the directory.
        wrong: every difference.
    """

    refused: str | None = None
    wrong: list[str] = field(default_factory=list)

    def same(self, what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        """Note a difference."""
        error = float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))
        if not error <= TOLERANCE:
            self.wrong.append(f"{what} differs by {error:.1e}")


def load_theirs(directory: Path) -> Any:
    """The model as `transformers` reads it, in fp32; its fused kernels leave the caps on scores out."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    ).eval()


@torch.no_grad()
def compare(drawn: Drawn, directory: Path, seed: int) -> Outcome:
    """Read a directory with both, compare, write it with lmlab, and compare again."""
    try:
        ours = from_pretrained(directory)
    except LmlabError as error:
        found = Outcome(refused=str(error))
        if drawn.refused is not None and drawn.refused not in found.refused and drawn.refused != "lacks its head":
            found.wrong.append(f"refused for another reason than {drawn.refused}")
        return found
    if drawn.refused is not None:
        return Outcome(wrong=[f"read, although it {drawn.refused}"])
    found, theirs, ids = Outcome(), load_theirs(directory), random_ids(seed)
    full = theirs(ids).logits
    found.same("a batch", ours(ids).logits_BTV, full)
    compare_rows(found, ours, theirs, ids)
    compare_cache(found, ours, ids, full)
    written = directory.parent / "written"
    model_type = save_pretrained(ours, written)
    if model_type == "lmlab":
        found.wrong.append("no family was found to write it")
    else:
        found.same("what was written", load_theirs(written)(ids).logits, full)
    found.same("what was written and read", from_pretrained(written)(ids).logits_BTV, full)
    return found


def compare_rows(found: Outcome, ours: Transformer, theirs: Any, ids: torch.Tensor) -> None:
    """Padding on either side and packed documents: every text must come out as it does alone."""

    def alone(row: torch.Tensor) -> torch.Tensor:
        return copy.deepcopy(theirs)(row).logits  # its dynamic frequencies depend on what it has seen

    lengths = (LENGTH, 1, 9)
    for side in ("left", "right"):
        slots = torch.arange(LENGTH)
        mask = torch.stack([slots >= LENGTH - n if side == "left" else slots < n for n in lengths])
        logits = ours(ids * mask, attention_mask_BT=mask).logits_BTV
        for row in range(len(lengths)):
            found.same(f"padding on the {side}", logits[row][mask[row]], alone(ids[row][mask[row]][None])[0])
    documents = torch.tensor([[0] * 5 + [1] * (LENGTH - 5)])
    logits = ours(ids[:1], document_ids_BT=documents).logits_BTV
    found.same("packed documents", logits[:, :5], alone(ids[:1, :5]))
    found.same("packed documents", logits[:, 5:], alone(ids[:1, 5:]))


def compare_cache(found: Outcome, ours: Transformer, ids: torch.Tensor, full: torch.Tensor) -> None:
    """Tokens that go on from a cache, also from one that is shared."""
    scaling = ours.config.rope_scaling
    if scaling is not None and scaling.depends_on_length:
        return
    cache = KVCache(ours.config, len(ids), LENGTH)
    parts = [ours(piece, cache=cache).logits_BTV for piece in ids.split([5, 1, 1, 4, LENGTH - 11], 1)]
    found.same("a cache", torch.cat(parts, 1), full)
    prefix = KVCache(ours.config, 1, 6)
    ours(ids[:1, :6], cache=prefix, logits="none")
    shared = prefix.fork(2, LENGTH - 6)
    parts = [ours(piece.expand(2, -1), cache=shared).logits_BTV for piece in ids[:1, 6:].split([3, 1, LENGTH - 10], 1)]
    found.same("a shared beginning", torch.cat(parts, 1), full[:1, 6:].expand(2, -1, -1))
