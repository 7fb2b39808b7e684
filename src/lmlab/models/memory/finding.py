"""What stands before a text, by its place: vectors of a file or a store, or the file of a memory."""

from __future__ import annotations

from pathlib import Path

from lmlab.errors import UserError
from lmlab.models.memory.files import is_memory, load_memory
from lmlab.models.memory.memory import Memory
from lmlab.models.prompts.soft_prompt import SoftPrompt
from lmlab.models.prompts.store import find_soft_prompt
from lmlab.models.transformer import Transformer


def find_context(place: str | Path, model: Transformer, *, trust: bool = False) -> SoftPrompt | Memory:
    """What stands for a text that was read before: a file of `save_soft_prompt` or `save_memory`, or a text of a store,
    as STORE/ID. A memory of vectors or plain chunks alone is given as a soft prompt.

    Arguments:
        model: that will read it, on whose device it is put.
        trust: also what this user did not write on this machine.

    Raises:
        UserError: there is no such thing, it is of other weights or of several texts, or others wrote it.
        LmlabError: it is damaged.
    """
    path = Path(place).expanduser()
    if not is_memory(path):
        found = find_soft_prompt(place, model, trust=trust)
        _require_one(place, len(found.vectors_BPD))
        if (width := found.vectors_BPD.shape[2]) != model.config.d_model:
            raise UserError(f"The vectors of '{place}' are {width} wide; the model is {model.config.d_model} wide.")
        return found
    memory = load_memory(path, model, trust=trust)
    _require_one(place, memory.batch_size)
    prompt = None if memory.rows is not None else memory.soft_prompt(model)
    return memory if prompt is None else prompt


def _require_one(place: str | Path, texts: int) -> None:
    if texts != 1:
        raise UserError(
            f"'{place}' holds what stands for {texts} texts, one for each row of a batch.",
            "Save them one by one, or read it from Python.",
        )
