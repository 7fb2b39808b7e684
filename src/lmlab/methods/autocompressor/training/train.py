"""Training a compressor with the one trainer, and what it writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from torch import nn

from lmlab.data import JoinedRows, Loader, PackedRows, Rows, TokenizedCorpus, Tokenizer
from lmlab.distributed import world
from lmlab.errors import UserError
from lmlab.files import write_json
from lmlab.methods.autocompressor.compressor.files import (
    SETTINGS,
    CheckpointNote,
    load_compressor,
    save_compressor,
)
from lmlab.methods.autocompressor.compressor.model import AutoCompressor
from lmlab.methods.autocompressor.config import CompressorConfig
from lmlab.methods.autocompressor.training.config import CompressTrainConfig
from lmlab.methods.autocompressor.training.step import CompressorStep
from lmlab.models import add_lora, remove_lora, save_lora
from lmlab.runs import Model
from lmlab.stages.parts.adapters import refuse_shares
from lmlab.stages.parts.training import final_figures, heldout_evaluation
from lmlab.train import Trainer, load_weights, whole_tensors


def train_compressor(
    config: CompressTrainConfig,
    start: Model,
    tokens: Path,
    directory: Path,
    *,
    heldout_tokens: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Train in a directory, going on from what an earlier attempt left there, and write `model/`.

    Returns:
        the summary of the loop, and the last figures on held-out rows.

    Raises:
        UserError: the tokens are another model's, or do not make rows.
        SegmentError: rows, segments and window do not fit each other.
    """
    corpus = TokenizedCorpus(tokens, verify=world().is_main)
    tokenizer = corpus.tokenizer
    compressor = compressor_to_train(config, start, tokenizer, seed)
    if config.lora is not None:
        refuse_shares(config.lora)
        add_lora(compressor.model, config.lora.plain, seed)
    compressor.summary_embedding_ND.requires_grad_(compressor.summary_length > 0)
    rows = JoinedRows(PackedRows(corpus, config.seq_len, config.packing))
    step = CompressorStep(config.segments, nested=compressor.config.nested)
    step.check(compressor.model.config, compressor.config, config.seq_len)
    loop = config.trainer.in_steps(config.seq_len, len(rows))
    place = world()
    trainer = Trainer(
        compressor,
        step,
        Loader(rows, loop.batch_size, seed, *loop.parallel.data_place(place)),
        loop,
        directory,
        None if heldout_tokens is None else _heldout(config, heldout_tokens, tokenizer),
        tokens_per_row=config.seq_len,
    )
    if place.is_main:
        tokenizer.save(directory / "model", compressor.model.config.max_seq_len)
        note = CheckpointNote(
            compressor=compressor.config,
            shape=compressor.model.config,
            lora=None if config.lora is None else config.lora.plain,
            base=os.path.relpath(start.path, directory / "checkpoints"),
        )
        write_json(directory / "checkpoints" / SETTINGS, note.model_dump(mode="json"))
    summary = trainer.fit()
    _export(config, trainer.model, start, tokenizer, directory, seed)
    return {**summary, **final_figures(directory)}


def compressor_to_train(config: CompressTrainConfig, start: Model, tokenizer: Tokenizer, seed: int) -> AutoCompressor:
    """The compressor before its first step: a fresh one on a plain model, or one that compresses already.

    Raises:
        UserError: the tokenizer is another one, or a compressor of another kind lies there.
    """
    own = start.tokenizer_if_any()
    if own is not None and own.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"The tokens were made with another tokenizer than that of '{start.path}'.", "Tokenize the text again."
        )
    settings = config.compressor.model_copy(
        update={
            "trained_segments": config.segments.total,
            "summary_init": config.compressor.summary_init or f"{config.summary_init} {config.init_noise:g}",
        }
    )
    if start.source.is_dir() and (start.source / SETTINGS).exists():
        compressor = load_compressor(start.path)
        if compressor.summary_length != settings.summary_length:
            raise UserError(
                f"compressor.summary_length {settings.summary_length}: the compressor in '{start.path}' has"
                f" {compressor.summary_length}.",
                "Set it to that.",
            )
        learned = compressor.config.vector_scale
        asked = settings.vector_scale
        if "vector_scale" in config.compressor.model_fields_set and asked not in ("embedding", learned):
            raise UserError(
                f"compressor.vector_scale {asked:g}: the compressor in '{start.path}' has {learned:g}.",
                "Set it to that, or leave it out.",
            )
        compressor.config = settings.model_copy(
            update={"summary_init": compressor.config.summary_init, "vector_scale": learned}
        )
        return compressor
    model = start.load()
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"The tokens reach up to {tokenizer.vocab_size}; the model has {model.config.vocab_size}.")
    compressor = AutoCompressor(model, CompressorConfig.model_validate(settings.model_dump()))
    compressor.initialize_summary(config.summary_init, config.init_noise, tokenizer.eos_id, seed)
    return compressor


def _heldout(config: CompressTrainConfig, tokens: Path, tokenizer: Tokenizer) -> Any:
    """The loss by segment, of fixed lengths, on rows that are spread over a held-out corpus."""
    corpus = TokenizedCorpus(tokens)
    corpus.check_tokenizer(tokenizer)
    rows = JoinedRows(PackedRows(corpus, config.seq_len, config.packing))
    count = min(config.heldout_rows, len(rows))
    chosen = cast(Rows, [rows[number * len(rows) // count] for number in range(count)])
    return heldout_evaluation(CompressorStep(config.segments), chosen, config.trainer.rows_at_once)


def _export(
    config: CompressTrainConfig, model: nn.Module, start: Model, tokenizer: Tokenizer, directory: Path, seed: int
) -> None:
    """Write `model/` and, with adapters, `adapters/`, as one process sees them."""
    whole = whole_tensors(model)
    if not world().is_main:
        return
    copy = compressor_to_train(config, start, tokenizer, seed)
    if config.lora is not None:
        add_lora(copy.model, config.lora.plain, seed)
    load_weights(copy, whole, str(directory))
    if config.lora is not None:
        save_lora(copy.model, directory / "adapters", base=str(start.path))
        remove_lora(copy.model, merge=True)
    tokens = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    save_compressor(copy, directory / "model", tokens=tokens)
