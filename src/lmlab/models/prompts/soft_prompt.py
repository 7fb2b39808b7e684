"""Soft prompts: vectors that stand before a text in place of tokens.

Learned ones steer a frozen model (prompt tuning, Lester et al. 2021; `prompt_tuning`); summary vectors stand for a text
that the model has read before (AutoCompressors, Chevalier et al. 2023, section 3).

Shapes: B batch, P vectors of a prompt, T tokens of the text, S slots of a row with both, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lmlab.errors import LmlabError, UserError
from lmlab.files import atomic_file
from lmlab.models.fingerprint import known_fingerprint
from lmlab.models.formats.tensor_file import read_tensors
from lmlab.models.forward.output import at_positions
from lmlab.models.forward.tokens import Tokens
from lmlab.models.layers.packed import remedy_of_other_weights
from lmlab.models.prompts.signing import UNTRUSTED, digest_of, is_own, mark_of

_FORMAT = "lmlab soft prompt 1"


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """Vectors before a text, used like embeddings of tokens.

    Attributes:
        vectors_BPD: one prompt for each row, [B, P, D], or one for all, [1, P, D]. P may be 0.
        positions: the vectors take the first positions, and the text those after them. Without, the vectors have no
            position (nothing is added from a learned table, nothing is rotated) and the text counts from 0, as in
            AutoCompressors with learned positions.
        valid_BP: False for vectors that no token may see, such as padding before a prompt that is shorter than others
            of the batch; None if there are none.
        budget: how many positions are kept for the prompt, however long it is: the text begins after them, and vectors
            beyond so many take the first ones again. None for as many as there are vectors.
        text_P: True for slots that hold embeddings of plain tokens, which take positions, as the text after them does,
            where the vectors beside them have none. None if there are none; with `positions` it says nothing.

    Raises:
        ValueError: a budget for vectors without positions, or of none.
    """

    vectors_BPD: Tensor
    positions: bool = True
    valid_BP: Tensor | None = None
    budget: int | None = None
    text_P: Tensor | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and (not self.positions or self.budget < 1):
            raise ValueError("a soft prompt with a budget of positions has positions, and a budget of at least 1")

    @staticmethod
    def of(prompts: Sequence[Tensor], *, positions: bool = True) -> SoftPrompt:
        """The prompts [P, D] of several rows, of any lengths."""
        longest = max(len(prompt) for prompt in prompts)
        padded = [torch.cat((prompt.new_zeros(longest - len(prompt), prompt.shape[1]), prompt)) for prompt in prompts]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=prompts[0].device)
        valid = torch.arange(longest, device=lengths.device) >= longest - lengths[:, None]
        return SoftPrompt(torch.stack(padded), positions, None if bool(valid.all()) else valid)

    @property
    def length(self) -> int:
        """P, padding included."""
        return self.vectors_BPD.shape[1]

    @property
    def positions_taken(self) -> int:
        """How many positions of the model's window stand before the text."""
        if not self.positions:
            return 0 if self.text_P is None else int(self.text_P.sum())
        return self.length if self.budget is None else self.budget

    def before(self, tokens: Tokens) -> tuple[Tokens, TextPlaces]:
        """The rows with the prompt before each text, and where the text's own tokens then stand.

        In a row that is padded on the left, the prompt stands between the padding and the text, so that padding stays
        at the ends of rows; in a packed row, it stands before each document, which then gives what it gives alone.

        Raises:
            ValueError: the prompt has another width than the model, or another number of rows than the batch.
        """
        rows, width = len(tokens.x_BTD), tokens.x_BTD.shape[2]
        if self.vectors_BPD.dim() != 3 or self.vectors_BPD.shape[2] != width or len(self.vectors_BPD) not in (1, rows):
            raise ValueError(
                f"a soft prompt for {rows} rows of width {width} is [1 or {rows}, P, {width}], not"
                f" {list(self.vectors_BPD.shape)}"
            )
        if self.budget is not None and tokens.position_ids_BT is None:
            tokens = replace(tokens, position_ids_BT=tokens.positions().expand(rows, -1) + self.budget)
        elif not self.positions or tokens.position_ids_BT is not None:
            places_BT = tokens.positions()
            if tokens.position_ids_BT is None and (text_BP := self._text()) is not None:
                places_BT = places_BT + text_BP.sum(1, keepdim=True)
            tokens = replace(tokens, position_ids_BT=places_BT.expand(rows, -1))
        if tokens.document_ids_BT is None and tokens.valid_BT is None and self.valid_BP is None:
            return self._at_the_front(tokens), TextPlaces(self.length)
        return self._before_each_text(tokens)

    def _at_the_front(self, tokens: Tokens) -> Tokens:
        """All rows are texts without padding."""
        x_BTD = tokens.x_BTD
        vectors_BPD = self.vectors_BPD.to(x_BTD.dtype).expand(len(x_BTD), -1, -1)
        position_ids_BS = types_BS = None
        if tokens.position_ids_BT is not None:
            position_ids_BS = torch.cat((self._position_ids(x_BTD).expand(len(x_BTD), -1), tokens.position_ids_BT), 1)
        if tokens.type_ids_BT is not None:
            types = tokens.type_ids_BT
            types_BS = torch.cat((types.new_zeros(len(x_BTD), self.length), types.expand(len(x_BTD), -1)), 1)
        x_BSD = torch.cat((vectors_BPD, x_BTD), 1)
        return replace(tokens, x_BTD=x_BSD, position_ids_BT=position_ids_BS, type_ids_BT=types_BS)

    def _before_each_text(self, tokens: Tokens) -> tuple[Tokens, TextPlaces]:
        x_BTD, length = tokens.x_BTD, self.length
        rows, text_length, device = len(x_BTD), tokens.length, x_BTD.device
        texts_BT, begins_BT = _texts(tokens)
        slot_BT = torch.arange(text_length, device=device) + length * begins_BT.cumsum(1)
        slots = text_length + length * int(begins_BT.sum(1).max())
        # which of [prompt; text] stands in each slot; what is left over is padding, which may be any vector
        source_BS = torch.zeros(rows, slots, dtype=torch.long, device=device)
        text_BS = torch.full((rows, slots), -1, dtype=texts_BT.dtype, device=device)
        source_BS.scatter_(1, slot_BT, (length + torch.arange(text_length, device=device)).expand(rows, -1))
        text_BS.scatter_(1, slot_BT, texts_BT)
        row_N, begin_N = begins_BT.nonzero(as_tuple=True)
        place_NP = slot_BT[row_N, begin_N][:, None] - length + torch.arange(length, device=device)
        source_BS[row_N[:, None], place_NP] = torch.arange(length, device=device)
        of_prompt_NP = texts_BT[row_N, begin_N][:, None].expand(-1, length)
        if self.valid_BP is not None:
            of_prompt_NP = of_prompt_NP.masked_fill(~self.valid_BP.expand(rows, -1)[row_N], -1)
        text_BS[row_N[:, None], place_NP] = of_prompt_NP

        def take(of_prompt_BP: Tensor, of_text_BT: Tensor) -> Tensor:
            return torch.cat((of_prompt_BP.expand(rows, -1), of_text_BT.expand(rows, -1)), 1).gather(1, source_BS)

        both_BSD = torch.cat((self.vectors_BPD.to(x_BTD.dtype).expand(rows, -1, -1), x_BTD), 1)
        position_ids, types = tokens.position_ids_BT, tokens.type_ids_BT
        packed = tokens.document_ids_BT is not None
        lengthened = replace(
            tokens,
            x_BTD=at_positions(both_BSD, source_BS),
            document_ids_BT=text_BS if packed else None,
            valid_BT=None if packed else text_BS >= 0,
            position_ids_BT=None if position_ids is None else take(self._position_ids(x_BTD), position_ids),
            type_ids_BT=None if types is None else take(types.new_zeros(1, length), types),
        )
        return lengthened, TextPlaces(length, slot_BT)

    def _text(self) -> Tensor | None:
        """Which slots hold plain tokens that take positions where vectors have none, [B or 1, P]."""
        if self.positions or self.text_P is None:
            return None
        text_BP = self.text_P.to(self.vectors_BPD.device)[None]
        return text_BP if self.valid_BP is None else text_BP & self.valid_BP

    def _position_ids(self, like: Tensor) -> Tensor:
        """Of the prompt's own slots, [B or 1, P]."""
        if not self.positions:
            text_BP = self._text()
            if text_BP is None:
                return torch.full((1, self.length), -1, device=like.device)
            return torch.where(text_BP, text_BP.long().cumsum(1) - 1, -1)
        if self.valid_BP is None:
            places_BP = torch.arange(self.length, device=like.device)[None]
        else:
            places_BP = (self.valid_BP.long().cumsum(1) - 1).clamp(min=0)
        return places_BP if self.budget is None else places_BP % self.budget


@dataclass(frozen=True)
class TextPlaces:
    """Where the tokens of the text stand in rows that a soft prompt has lengthened.

    Attributes:
        first: the slot of the first token, where all follow it.
        slot_BT: the slot of each token, where they do not.
    """

    first: int
    slot_BT: Tensor | None = None

    def of_text(self, x_BSD: Tensor) -> Tensor:
        """What belongs to the text, [B, T, D]."""
        return x_BSD[:, self.first :] if self.slot_BT is None else at_positions(x_BSD, self.slot_BT)


def _texts(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """The number of the text that each token belongs to, -1 for padding, and where texts begin; both [B, T]."""
    if tokens.document_ids_BT is None:
        if tokens.valid_BT is None:
            texts_BT = torch.zeros(tokens.x_BTD.shape[:2], dtype=torch.long, device=tokens.x_BTD.device)
        else:
            texts_BT = tokens.valid_BT.long() - 1
        real_BT = texts_BT >= 0
        return texts_BT, real_BT & (real_BT.cumsum(1) == 1)  # padding between tokens begins no second text
    texts_BT = tokens.document_ids_BT.expand(len(tokens.x_BTD), -1)
    if tokens.valid_BT is not None:
        texts_BT = texts_BT.masked_fill(~tokens.valid_BT, -1)
    begins_BT = texts_BT >= 0
    begins_BT[:, 1:] &= texts_BT[:, 1:] != texts_BT[:, :-1]
    return texts_BT, begins_BT


def save_soft_prompt(prompt: SoftPrompt, path: Path | str, model: nn.Module) -> None:
    """Write a prompt as safetensors, with the fingerprint of the model whose vectors they are."""
    tensors = {"vectors": prompt.vectors_BPD.detach().cpu().contiguous()}
    if prompt.valid_BP is not None:
        tensors["valid"] = prompt.valid_BP.cpu().contiguous()
    if prompt.text_P is not None:
        tensors["text"] = prompt.text_P.cpu().contiguous()
    about = {"format": _FORMAT, "positions": str(prompt.positions).lower(), "model": known_fingerprint(model)}
    if prompt.budget is not None:
        about["budget"] = str(prompt.budget)
    about["mark"] = mark_of(digest_of(tensors, about))
    with atomic_file(Path(path)) as file:
        file.write(save(tensors, about))


def load_soft_prompt(path: Path | str, model: nn.Module, *, trust: bool = True) -> SoftPrompt:
    """Read a prompt, onto the device of the model that it was made for.

    Arguments:
        trust: read what this user did not write on this machine, too: vectors can tell a model anything, unseen.

    Raises:
        UserError: there is no such file, it holds no soft prompt, it was made for other weights, or others wrote it.
        LmlabError: it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no soft prompt '{path}'.")
    tensors, about = read_tensors(path, "Copy or make the soft prompt again.")
    if about.get("format") != _FORMAT or "vectors" not in tensors:
        raise UserError(f"'{path}' holds no soft prompt of lmlab.")
    if about.get("model") != known_fingerprint(model):
        raise UserError(
            f"The soft prompt '{path}' was made for another model: its vectors mean nothing to these weights.",
            remedy_of_other_weights(model, "Load the model that it was made for, or make the soft prompt again."),
        )
    if not trust and not is_own(digest_of(tensors, about), about.get("mark")):
        raise UserError(f"The soft prompt '{path}' was not written by you on this machine.", UNTRUSTED)
    try:
        prompt = _prompt_of(tensors, about, next(model.parameters()).device)
    except (KeyError, ValueError):
        raise LmlabError(
            f"The soft prompt '{path}' is damaged: its parts do not fit each other.", "Copy it or make it again."
        ) from None
    if not bool(torch.isfinite(prompt.vectors_BPD).all()):
        raise LmlabError(f"The soft prompt '{path}' holds vectors that are not finite.", "Make it again.")
    return prompt


def _prompt_of(tensors: dict[str, Tensor], about: dict[str, str], device: torch.device) -> SoftPrompt:
    vectors, valid, text = tensors["vectors"], tensors.get("valid"), tensors.get("text")
    if vectors.dim() != 3 or not len(vectors) or not vectors.is_floating_point():
        raise ValueError("no vectors")
    rows = (1, len(vectors))
    if valid is not None and (valid.dtype != torch.bool or valid.shape[1:] != vectors.shape[1:2]):
        raise ValueError("no mask")
    if valid is not None and len(valid) not in rows:
        raise ValueError("a mask of other rows")
    if text is not None and (text.dtype != torch.bool or text.shape != vectors.shape[1:2]):
        raise ValueError("no marks of plain tokens")
    return SoftPrompt(
        vectors.to(device),
        {"true": True, "false": False}[about["positions"]],
        None if valid is None else valid.to(device),
        int(about["budget"]) if "budget" in about else None,
        None if text is None else text.to(device),
    )
