"""What all kinds of compression have in common: a text of token ids becomes a memory that a model reads in its place.

Shapes: B texts, T tokens of a text, Q tokens of a query.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from lmlab.config import validate
from lmlab.data import Tokenizer
from lmlab.errors import UserError, did_you_mean
from lmlab.methods.autocompressor.kinds.config import KindConfig
from lmlab.models import KVRows, Memory, Transformer, hash_of_ids, kernel_of, known_fingerprint, read_rows
from lmlab.words import counted


def slots_for(tokens: int, ratio: float, sinks: int = 0) -> int:
    """How many positions are kept of a text: at least one and the sinks, however short it is, and never more than it
    has.
    """
    # a hair less, so that 512 / 4 is not rounded up by what binary fractions cannot say
    return min(tokens, max(1, sinks, math.ceil(tokens / ratio - 1e-9)))


class Compressor(nn.Module):
    """One kind of compression, for one model.

    Arguments:
        model: what reads the memories, and unless a kind says otherwise also writes them.
        config: an object of the kind's `Config`.
        tokenizer: for kinds whose prompts are words; they do without where there is none.

    Attributes:
        kind: its name.
        learns: it must be trained before it is worth anything.
        trains_each: it trains for each text, which takes minutes.
        keeps_all: it keeps the whole text, whatever the ratio.
    """

    kind: ClassVar[str] = ""
    learns: ClassVar[bool] = False
    trains_each: ClassVar[bool] = False
    keeps_all: ClassVar[bool] = False
    Config: ClassVar[type[KindConfig]] = KindConfig

    def __init__(self, model: Transformer, config: KindConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        if not model.config.causal or not model.config.lm_head:
            raise UserError("Compression needs a causal language model, and this is none.")
        self.model, self.config, self.tokenizer = model, config, tokenizer

    def fit(self, *arguments: Any, **named: Any) -> Compressor:
        """Learn; a kind without anything to learn is as it is."""
        return self

    def forget(self) -> None:
        """Drop what is kept of the last text, as before the first one."""
        _read.pop(self.model, None)

    def memory(self, ids_1T: Tensor, query_1Q: Tensor | None, ratio: float) -> Memory:
        """The memory of one text without padding; hashes and lengths are added by `compress`."""
        raise NotImplementedError

    @torch.no_grad()
    def compress(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None = None,
        query_BQ: Tensor | None = None,
        *,
        ratio: float | None = None,
    ) -> Memory:
        """Compress texts.

        Arguments:
            input_ids_BT: their tokens.
            attention_mask_BT: False (or 0) marks padding, on either side.
            query_BQ: what will be asked, one for all or one for each; kinds that do not look at it ignore it. -1 is
                padding.
            ratio: in place of the configuration's.

        Returns:
            one memory for each, in the model's evaluation mode, bound to its weights.

        Raises:
            UserError: an empty text, ids beyond the vocabulary, a mask or queries that do not fit the texts, or more
                tokens than the model's window holds.
        """
        texts = _texts(input_ids_BT, attention_mask_BT, self.model)
        if query_BQ is not None:
            query_BQ = _queries(query_BQ, len(texts), self.model)
        ratio = self.config.ratio if ratio is None else validate(KindConfig, {"ratio": ratio}, "ratio").ratio
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            found = []
            for row, text in enumerate(texts):
                query = None if query_BQ is None else query_BQ[row % len(query_BQ)]
                query_1Q = None if query is None else query[query >= 0][None]
                one = self.memory(text[None], query_1Q, ratio)
                about = {"compressor": self.kind, "kernel": kernel_of(self.model)}
                found.append(
                    replace(
                        one,
                        tokens_B=(len(text),),
                        source_hash=(hash_of_ids(text.tolist()),),
                        model_hash=known_fingerprint(self.model),
                        about={**one.about, **about},
                    )
                )
        finally:
            for module, training in modes:  # the model may be in another mode than the compressor
                module.training = training
        return found[0] if len(found) == 1 else Memory.batch(found)


def _texts(ids_BT: Tensor, mask_BT: Tensor | None, model: Transformer) -> list[Tensor]:
    ids_BT = ids_BT.to(model.embedding.weight.device)
    if ids_BT.dim() != 2 or not len(ids_BT) or ids_BT.is_floating_point():
        raise UserError(f"Texts to compress are ids [B, T]; these are {list(ids_BT.shape)}, {ids_BT.dtype}.")
    if mask_BT is not None and mask_BT.shape != ids_BT.shape:
        raise UserError(f"The mask has the shape {list(mask_BT.shape)}, and the texts {list(ids_BT.shape)}.")
    texts = list(ids_BT) if mask_BT is None else [ids[mask.bool()] for ids, mask in zip(ids_BT, mask_BT, strict=True)]
    for number, text in enumerate(texts):
        if not len(text):
            raise UserError(f"Text {number} has no tokens.", "Leave it out.")
        if not 0 <= int(text.min()) <= int(text.max()) < model.config.vocab_size:
            raise UserError(f"Text {number} has ids beyond the model's vocabulary of {model.config.vocab_size}.")
        if len(text) > model.config.max_seq_len:
            raise UserError(
                f"Text {number} has {counted(len(text), 'tokens')}; the model reads {model.config.max_seq_len}.",
                "Compress it in parts, and join them with Memory.in_sequence.",
            )
    return texts


def _queries(query_BQ: Tensor, texts: int, model: Transformer) -> Tensor:
    """Queries, one for all texts or one for each."""
    if query_BQ.dim() != 2 or len(query_BQ) not in (1, texts) or query_BQ.is_floating_point():
        raise UserError(f"Queries of {texts} texts are ids [1 or {texts}, Q]; these are {list(query_BQ.shape)}.")
    if query_BQ.numel() and int(query_BQ.max()) >= model.config.vocab_size:
        raise UserError(f"A query has ids beyond the model's vocabulary of {model.config.vocab_size}.")
    return query_BQ.to(model.embedding.weight.device)


_read: weakref.WeakKeyDictionary[Transformer, tuple[tuple[object, ...], KVRows]] = weakref.WeakKeyDictionary()


def read_once(model: Transformer, ids_1T: Tensor) -> KVRows:
    """The rows of the last text that was read, so that kinds that begin alike read it once."""
    key = (known_fingerprint(model), model.attention_backend, tuple(ids_1T[0].tolist()))
    found = _read.get(model)
    if found is None or found[0] != key:
        found = _read[model] = (key, read_rows(model, ids_1T))
    return found[1]


_kinds: dict[str, Callable[..., Compressor]] = {}
C = TypeVar("C", bound=type[Compressor])


def register(kind: str) -> Callable[[C], C]:
    """Offer a class under a name."""

    def offer(made: C) -> C:
        assert kind not in _kinds, kind
        made.kind = kind
        _kinds[kind] = made
        return made

    return offer


def kinds() -> dict[str, type[Compressor]]:
    """All kinds by name, those of files that were added to this folder included."""
    package = importlib.import_module(__package__)
    for found in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{found.name}")
    return dict(sorted(_kinds.items()))  # type: ignore[arg-type]


def create(kind: str, model: Transformer, *, tokenizer: Tokenizer | None = None, **settings: Any) -> Compressor:
    """A compressor by name; several names joined by + are applied one after the other.

    Arguments:
        settings: fields of the kind's configuration.

    Raises:
        UserError: there is no such kind, or a setting is impossible.
    """
    if "+" in kind:
        from lmlab.methods.autocompressor.kinds.prune import Composed

        parts = [create(each, model, tokenizer=tokenizer, **settings) for each in kind.split("+")]
        return Composed(model, parts, KindConfig(ratio=parts[0].config.ratio))
    made = _named(kind)
    return made(model, validate(made.Config, settings, f"compression {kind}"), tokenizer)


def settings_of(kind: str, settings: Mapping[str, Any], *, learns: bool) -> KindConfig:
    """The settings of a kind, before there is a model.

    Arguments:
        learns: it must be one that is trained once for all texts; else one that is not.

    Raises:
        UserError: there is no such kind, it learns where it must not or the reverse, or a setting is impossible.
    """
    made = _named(kind)
    if made.learns is not learns:
        raise UserError(
            f"'{kind}' learns nothing." if learns else f"'{kind}' must be trained before it is compared.",
            "Compare it as it is: lmlab compress compare" if learns else "Train it, and compare it by --trained.",
        )
    return validate(made.Config, dict(settings), f"compression {kind}")


def require_untrained(name: str) -> None:
    """See that a kind, or kinds joined by +, can be compared as it is.

    Raises:
        UserError: there is no such kind, or one must be trained before.
    """
    for part in name.split("+"):
        settings_of(part, {}, learns=False)


def _named(kind: str) -> type[Compressor]:
    known = kinds()
    if kind not in known:
        raise UserError(f"There is no kind of compression '{kind}'.", did_you_mean(kind, list(known)))
    return known[kind]


def chosen(kinds_asked: Sequence[str]) -> list[str]:
    """Kinds by name, in the order asked; `all` is all that need no training at all.

    Raises:
        UserError: there is no such kind.
    """
    known = kinds()
    names = [
        name
        for asked in kinds_asked
        for name in (
            [each for each in known if not (known[each].learns or known[each].trains_each)]
            if asked == "all"
            else [asked]
        )
    ]
    for name in names:
        for part in name.split("+"):
            if part not in known:
                raise UserError(f"There is no kind of compression '{part}'.", did_you_mean(part, list(known)))
    return list(dict.fromkeys(names))
