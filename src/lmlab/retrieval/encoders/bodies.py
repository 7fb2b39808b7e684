"""The networks inside encoders: from token ids or from embeddings to hidden states of tokens.

Shapes: B texts, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lmlab.errors import UserError, missing_extra, reads


class Body(Protocol):
    """A network that gives hidden states of tokens.

    Attributes:
        max_positions: the longest text it can read; None for any.
    """

    module: nn.Module
    max_positions: int | None

    @property
    def embedding_VD(self) -> Tensor:
        """The table that is looked up first, before anything that the network does to its rows."""
        ...

    def hidden(self, ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Hidden states [B, T, D] of token ids."""
        ...

    def hidden_of_all(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Hidden states of all tokens: those that no token sees have states too, and see the others."""
        ...

    def hidden_of_embeddings(self, embeddings_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """The same of rows of the table, [B, T, D], which may be changed: differentiable."""
        ...


class CoreBody:
    """A network of our own model class."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.max_positions: int | None = module.config.max_seq_len

    @property
    def embedding_VD(self) -> Tensor:
        """The table of words."""
        return self.module.embedding.weight[: self.module.config.vocab_size]

    def hidden(self, ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Hidden states."""
        return self.module(ids_BT, attention_mask_BT=mask_BT, logits="none").hidden_BTD

    def hidden_of_all(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Hidden states of all tokens. In packed attention tokens that are padding would have none."""
        length = ids_BT.shape[1]
        visible_BTT = mask_BT.bool()[:, None].expand(-1, length, -1)
        if self.module.config.causal:
            visible_BTT = visible_BTT & torch.ones(length, length, dtype=torch.bool, device=ids_BT.device).tril()
        places_BT = torch.arange(length, device=ids_BT.device).expand_as(ids_BT)
        return self.module(ids_BT, visible_BTS=visible_BTT, position_ids_BT=places_BT, logits="none").hidden_BTD

    def hidden_of_embeddings(self, embeddings_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Hidden states of embeddings. What a family multiplies its embeddings by comes after the lookup."""
        scale = self.module.config.embedding_scale
        if scale != 1:
            embeddings_BTD = embeddings_BTD * torch.tensor(scale, dtype=embeddings_BTD.dtype)
        return self.module(inputs_embeds_BTD=embeddings_BTD, attention_mask_BT=mask_BT, logits="none").hidden_BTD


class TransformersBody:
    """A network of the package `transformers`, for families that our model class does not have."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.max_positions: int | None = _positions(module)

    @property
    def embedding_VD(self) -> Tensor:
        """The table of words."""
        return self.module.get_input_embeddings().weight

    def hidden(self, ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Hidden states."""
        mask = torch.ones_like(ids_BT) if mask_BT is None else mask_BT.long()
        return self.module(input_ids=ids_BT, attention_mask=mask).last_hidden_state

    def hidden_of_all(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Hidden states."""
        return self.hidden(ids_BT, mask_BT)

    def hidden_of_embeddings(self, embeddings_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Hidden states of embeddings."""
        shape, device = embeddings_BTD.shape[:2], embeddings_BTD.device
        mask = torch.ones(shape, dtype=torch.long, device=device) if mask_BT is None else mask_BT.long()
        return self.module(inputs_embeds=embeddings_BTD, attention_mask=mask).last_hidden_state


def _positions(module: nn.Module) -> int | None:
    """The longest text that a network's table of positions has rows for.

    RoBERTa and those who follow it (MPNet, CamemBERT, Longformer, LUKE, ...) count from the row behind that of padding,
    so that `max_position_embeddings`, which is the table's length, is above what they read.
    """
    most: int | None = getattr(module.config, "max_position_embeddings", None)
    tables = [
        each
        for name, each in module.named_modules()
        if name.endswith("position_embeddings") and isinstance(each, nn.Embedding) and each.padding_idx is not None
    ]
    behind = [each.num_embeddings - int(each.padding_idx or 0) - 1 for each in tables]
    return min([*behind, *([] if most is None else [most])], default=None)


class StaticBody:
    """A table of vectors and nothing else: the states of tokens are their rows."""

    def __init__(self, table_VD: Tensor) -> None:
        self.module: Any = nn.Embedding.from_pretrained(table_VD, freeze=True)
        self.max_positions: int | None = None

    @property
    def embedding_VD(self) -> Tensor:
        """The table."""
        return self.module.weight

    def hidden(self, ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        """The rows."""
        return self.module(ids_BT)

    def hidden_of_all(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The rows."""
        return self.module(ids_BT)

    def hidden_of_embeddings(self, embeddings_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """The rows as they are given."""
        return embeddings_BTD


@reads("a model's directory")
def load_body(directory: Path, device: str) -> Body:
    """The network of a directory: ours where its family is one that our model class has, else that of `transformers`.

    No code of the directory is run, and nothing is downloaded.

    Raises:
        UserError: neither can read it.
    """
    from lmlab.models import read_settings

    settings = read_settings(directory)
    if settings.get("model_type") == "dpr":
        return TransformersBody(_dpr(directory, settings).to(device))
    try:
        from lmlab.models import from_pretrained

        return CoreBody(_freeze(from_pretrained(directory, device)))
    except UserError as error:
        if "is not supported" not in error.message:
            raise
    try:
        import transformers
    except ImportError:
        raise missing_extra("transformers", f"The encoder '{directory}'") from None
    module = transformers.AutoModel.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    return TransformersBody(_freeze(module.to(device)))


def _dpr(directory: Path, settings: dict[str, Any]) -> nn.Module:
    """The BERT inside one of the two encoders of DPR (Karpukhin et al. 2020), whose vector is the first token's."""
    import transformers

    names = settings.get("architectures") or ["DPRContextEncoder"]
    if names[0] not in ("DPRContextEncoder", "DPRQuestionEncoder"):
        raise UserError(f"'{directory}' holds {names[0]}, which is no encoder of DPR.")
    model = getattr(transformers, names[0]).from_pretrained(directory, local_files_only=True)
    inner = model.ctx_encoder if names[0] == "DPRContextEncoder" else model.question_encoder
    return _freeze(inner.bert_model)


def _freeze(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


def body_hash(body: Body) -> str:
    """A short digest of a network's weights."""
    from lmlab.models import weights_fingerprint

    return hashlib.sha256(weights_fingerprint(body.module).encode()).hexdigest()[:16]
