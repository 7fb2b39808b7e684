"""A memory: what stands for a text that was read before, however it was made.

- `embeds`: vectors that are read like embeddings of tokens (summary vectors, pooled states)
- `kv`: keys and values of every layer (`KVRows`)
- `mixed`: keys and values, vectors and chunks of plain tokens together

Shapes: B batch, P slots of a part, D model width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.models.fingerprint import known_fingerprint
from lmlab.models.layers.packed import remedy_of_other_weights
from lmlab.models.memory.rows import KVRows
from lmlab.models.prompts.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from lmlab.models.transformer import Transformer

Kind = Literal["embeds", "kv", "mixed"]


@dataclass(frozen=True, eq=False)
class Piece:
    """Vectors [B, P, D], or ids of plain tokens [B, P]; `valid_BP` is False for padding, None if there is none."""

    x: Tensor
    valid_BP: Tensor | None = None

    @property
    def is_text(self) -> bool:
        """Whether these are ids."""
        return self.x.dim() == 2

    def check(self) -> None:
        """Refuse what is neither vectors nor ids.

        Raises:
            UserError: another shape or type, or a mask that does not fit.
        """
        x, valid = self.x, self.valid_BP
        whole = not (x.is_floating_point() or x.dtype == torch.bool or x.is_complex())
        if x.dim() not in (2, 3) or not len(x) or (whole if x.dim() == 3 else not whole):
            raise UserError(f"A piece of a memory is vectors [B, P, D] or ids [B, P]: no {list(x.shape)} of {x.dtype}.")
        if valid is not None and (
            valid.dtype != torch.bool or valid.shape[1:] != x.shape[1:2] or len(valid) not in (1, len(x))
        ):
            raise UserError(f"The mask of a memory's piece is {list(valid.shape)}, and the piece {list(x.shape)}.")

    def valid(self) -> Tensor:
        """Which slots are real, [B, P]."""
        return self.x.new_ones(self.x.shape[:2], dtype=torch.bool) if self.valid_BP is None else self.valid_BP


@dataclass(frozen=True, eq=False)
class Memory:
    """What a model reads in place of a text: keys and values first, then the pieces in their order.

    Attributes:
        rows: keys and values of every layer.
        pieces: vectors and plain chunks, which are read like a prompt.
        positions: pieces take positions as tokens do; without, vectors have none, and plain chunks count as if there
            were no vectors (`SoftPrompt`).
        tokens_B: tokens of each source text.
        source_hash: of each source text's ids (`hash_of_ids`).
        model_hash: fingerprint of the weights that it is for; None while it is trained, when any are taken.
        about: what else is worth knowing, such as the kind of compressor and the attention kernel.
    """

    rows: KVRows | None = None
    pieces: tuple[Piece, ...] = ()
    positions: bool = True
    tokens_B: tuple[int, ...] = (0,)
    source_hash: tuple[str, ...] = ("",)
    model_hash: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """What it is made of."""
        if self.rows is None and not any(piece.is_text for piece in self.pieces):
            return "embeds"
        return "kv" if not self.pieces else "mixed"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name, as it is stored."""
        found: dict[str, Tensor] = {}
        if self.rows is not None:
            found = {
                "keys": self.rows.keys_LBKMH,
                "values": self.rows.values_LBKMH,
                "positions": self.rows.positions_LBKM,
                "next_position": self.rows.next_position_B,
            }
        for number, piece in enumerate(self.pieces):
            found[f"pieces.{number}.{'ids' if piece.is_text else 'vectors'}"] = piece.x
            if piece.valid_BP is not None:
                found[f"pieces.{number}.valid"] = piece.valid_BP
        return found

    @property
    def batch_size(self) -> int:
        """Number of memories, of which a batch of as many rows reads one each, or all rows the only one."""
        return max([1 if self.rows is None else self.rows.batch_size, *(len(piece.x) for piece in self.pieces)])

    @property
    def next_position(self) -> Tensor:
        """The position of the first token after it, [B]."""
        before = torch.zeros(1, dtype=torch.long) if self.rows is None else self.rows.next_position_B
        for piece in (each for each in self.pieces if self.positions or each.is_text):
            before = before.to(piece.x.device) + piece.valid().sum(1)
        return before

    @property
    def slots_B(self) -> Tensor:
        """Key-value positions that each memory takes in a layer: slots of pieces, and rows as the mean over heads and
        layers.
        """
        rows = self.rows
        held = torch.zeros(1) if rows is None else rows.counts_LBK().float().mean((0, 2))
        for piece in self.pieces:
            held = held.to(piece.x.device) + piece.valid().sum(1)
        return held

    @property
    def ratio(self) -> float:
        """Tokens of the source texts to each key-value position that is left; infinite if none is."""
        slots = float(self.slots_B.sum()) * len(self.tokens_B) / len(self.slots_B)
        return sum(self.tokens_B) / slots if slots else math.inf

    def check(self, model: Transformer) -> None:
        """Refuse what was made for another network.

        Raises:
            UserError: other layers, heads, width or weights; another vocabulary; numbers that are none.
        """
        if self.rows is not None:
            self.rows.check(model.config)
        for piece in self.pieces:
            piece.check()
            width, vocabulary = model.config.d_model, model.config.vocab_size
            if not piece.is_text and piece.x.shape[2] != width:
                raise UserError(f"The memory's vectors are {piece.x.shape[2]} wide; the model is {width} wide.")
            if piece.is_text and piece.x.numel() and not 0 <= int(piece.x.amin()) <= int(piece.x.amax()) < vocabulary:
                raise UserError(f"The memory's plain chunks have ids beyond the model's vocabulary of {vocabulary}.")
        if self.model_hash is not None and self.model_hash != known_fingerprint(model):
            raise UserError(
                "The memory was made for other weights: its numbers mean nothing to this model.",
                remedy_of_other_weights(model, "Load the model that it was made with, or compress the text again."),
            )

    def require_whole(self) -> None:
        """Refuse parts that are not of the same texts, which no code here makes.

        Raises:
            UserError: other numbers of texts, rows that stand behind what follows them, or numbers that are none.
        """
        for piece in self.pieces:
            piece.check()
        sizes = {len(piece.x) for piece in self.pieces} | ({self.rows.batch_size} if self.rows is not None else set())
        texts = {len(self.tokens_B), len(self.source_hash)}
        if len(sizes - {1}) > 1 or len(texts) != 1 or (sizes and not texts <= {1, max(sizes)}):
            raise UserError("The memory is not whole: its parts are of different texts.")
        if min(self.tokens_B) < 0:
            raise UserError("The memory says that it stands for fewer tokens than none.")
        if self.rows is not None:
            self.rows.require_whole()

    def soft_prompt(self, model: Transformer) -> SoftPrompt | None:
        """Its pieces as one prompt; plain chunks by the model's own table."""
        if not self.pieces or not sum(piece.x.shape[1] for piece in self.pieces):
            return None
        table = model.embedding.weight
        vectors = [model.embed(piece.x.to(table.device)) if piece.is_text else piece.x for piece in self.pieces]
        batch = max(map(len, vectors))
        joined = torch.cat([each.to(table.device, table.dtype).expand(batch, -1, -1) for each in vectors], 1)
        valid = None
        if any(piece.valid_BP is not None for piece in self.pieces):
            valid = torch.cat([piece.valid().expand(batch, -1).to(table.device) for piece in self.pieces], 1)
        text = None
        if not self.positions and any(piece.is_text for piece in self.pieces):
            sizes = torch.tensor([piece.x.shape[1] for piece in self.pieces])
            text = torch.tensor([piece.is_text for piece in self.pieces]).repeat_interleave(sizes).to(table.device)
        return SoftPrompt(joined, self.positions, valid, text_P=text)

    def select(self, rows: Sequence[int]) -> Memory:
        """These memories of the batch, in this order."""
        index = list(rows)
        pieces = tuple(
            Piece(each.x[index], None if each.valid_BP is None else each.valid_BP[index]) for each in self.pieces
        )
        return replace(
            self,
            rows=None if self.rows is None else self.rows.select(index),
            pieces=pieces,
            tokens_B=tuple(self.tokens_B[row] for row in index),
            source_hash=tuple(self.source_hash[row] for row in index),
        )

    @staticmethod
    def batch(parts: Sequence[Memory]) -> Memory:
        """The memories of several texts side by side, one for each row of a batch.

        Raises:
            UserError: they are of unlike kinds, or of unlike models.
        """
        first = parts[0]
        _require_alike(parts)
        if any(len(each.pieces) != len(first.pieces) or (each.rows is None) != (first.rows is None) for each in parts):
            raise UserError("Memories of unlike make cannot be read in one batch.", "Read them one by one.")
        pieces = tuple(_side_by_side([each.pieces[number] for each in parts]) for number in range(len(first.pieces)))
        return replace(
            first,
            rows=None if first.rows is None else KVRows.batch([each.rows for each in parts if each.rows is not None]),
            pieces=pieces,
            tokens_B=tuple(tokens for each in parts for tokens in each.tokens_B),
            source_hash=tuple(source for each in parts for source in each.source_hash),
        )

    @staticmethod
    def in_sequence(parts: Sequence[Memory], model: Transformer) -> Memory:
        """One memory of texts that stand one after the other. Order matters: keys of later texts move to positions
        behind those of earlier ones, and vectors follow each other.

        Raises:
            UserError: they are of unlike models or numbers of rows; pieces before keys and values; or keys that cannot
                move (`KVRows.shifted`).
        """
        _require_alike(parts)
        sizes = {each.batch_size for each in parts} - {1}
        if len(sizes) > 1:
            raise UserError(f"Memories of {' and '.join(map(str, sorted(sizes)))} rows do not follow each other.")
        began = False
        for each in parts:
            if each.rows is not None and began:
                raise UserError(
                    "Keys and values cannot follow vectors or plain chunks, which they have not seen.",
                    "Put memories of keys and values first.",
                )
            began = began or bool(each.pieces)
        rows = [each.rows for each in parts if each.rows is not None]
        batch = max(each.batch_size for each in parts)
        tokens = [each.tokens_B if len(each.tokens_B) == batch else each.tokens_B * batch for each in parts]
        hashes = [each.source_hash if len(each.source_hash) == batch else each.source_hash * batch for each in parts]
        return replace(
            parts[0],
            rows=KVRows.in_sequence(rows, model.config) if rows else None,
            pieces=tuple(piece for each in parts for piece in each.pieces),
            tokens_B=tuple(map(sum, zip(*tokens, strict=True))),
            source_hash=tuple(
                hashlib.sha256(" ".join(each).encode()).hexdigest() for each in zip(*hashes, strict=True)
            ),
        )


def hash_of_ids(ids: Sequence[int]) -> str:
    """SHA-256 of a text's token ids."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()


def _require_alike(parts: Sequence[Memory]) -> None:
    if not parts:
        raise UserError("There is no memory to join.")
    if len({each.model_hash for each in parts} - {None}) > 1:
        raise UserError("Memories for unlike weights cannot be joined.", "Compress all texts with one model.")
    if len({each.positions for each in parts if each.pieces}) > 1:
        raise UserError("Vectors with positions and vectors without cannot be joined.")


def _side_by_side(pieces: Sequence[Piece]) -> Piece:
    longest = max(each.x.shape[1] for each in pieces)
    xs, valids = [], []
    for each in pieces:
        missing = longest - each.x.shape[1]
        xs.append(torch.cat((each.x.new_zeros(len(each.x), missing, *each.x.shape[2:]), each.x), 1))
        valids.append(torch.cat((each.valid().new_zeros(len(each.x), missing), each.valid()), 1))
    valid = torch.cat(valids)
    return Piece(torch.cat(xs), None if bool(valid.all()) else valid)
