"""Training a kind with the one trainer, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmlab.data import JoinedRows, Loader, PackedRows, TokenizedCorpus
from lmlab.distributed import world
from lmlab.errors import UserError
from lmlab.methods.autocompressor.fitting.config import CompressFitConfig
from lmlab.methods.autocompressor.fitting.files import go_on_from, learned_before, save_kind
from lmlab.methods.autocompressor.fitting.rows import ContinuationRows
from lmlab.methods.autocompressor.kinds.base import create
from lmlab.methods.autocompressor.kinds.trained import Trained, compression_step
from lmlab.runs import Model
from lmlab.stages.parts.training import final_figures
from lmlab.train import Trainer


def fit_kind(
    config: CompressFitConfig, start: Model, tokens: Path, directory: Path, *, seed: int = 0
) -> dict[str, Any]:
    """Train in a directory, going on from what an earlier attempt left there, and write `model/`.

    Raises:
        UserError: the tokens are another model's, context and continuation do not fit the window or the text, or the
            kind that is trained further has other settings.
    """
    if world().size > 1:
        raise UserError("compress_fit runs as one process.", "Start it without torchrun.")
    corpus = TokenizedCorpus(tokens)
    tokenizer, own = corpus.tokenizer, start.tokenizer_if_any()
    if own is not None and own.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"The tokens were made with another tokenizer than that of '{start.path}'.", "Tokenize the text again."
        )
    model = start.load()
    config.require_window(model.config.max_seq_len)
    length = config.context + config.continuation
    settings, learned = learned_before(config.compressor, config.settings, start, model)
    compressor = create(config.compressor, model, tokenizer=tokenizer, **({"seed": seed} | settings))
    assert isinstance(compressor, Trained)  # the configuration takes no other
    if learned:
        go_on_from(compressor, learned)
    rows = JoinedRows(PackedRows(corpus, length, "concat"))
    loop = config.trainer.in_steps(length, len(rows))
    loader = Loader(ContinuationRows(rows, config.context), loop.batch_size, seed)
    trainer = Trainer(compressor, compression_step, loader, loop, directory, tokens_per_row=length)
    summary = trainer.fit()
    tokenizer.save(directory / "model", model.config.max_seq_len)
    marks = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    save_kind(compressor, directory / "model", tokens=marks)
    return {**summary, **final_figures(directory)}
