"""Where a training takes its weights from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lmlab.config import validate
from lmlab.errors import UserError
from lmlab.files import read_json
from lmlab.models import LoRAConfig, ModelConfig, Transformer, add_lora, from_pretrained, read_config, remove_lora
from lmlab.train import checkpoints, load_checkpoint

ADAPTERS = "adapters.json"
"""Beside checkpoints that hold adapters alone: where their base is (`base`), and their settings (`lora`)."""


@dataclass(frozen=True)
class Start:
    """Trained weights.

    Attributes:
        directory: of a model, or of a checkpoint.
        model: its shape.
        checkpoint: the directory again if it is a checkpoint of a whole model, with the optimizer's state.
        base: the model beside which the checkpoint's adapters stand, if it holds adapters alone.
        lora: what adapters they are.
    """

    directory: Path
    model: ModelConfig
    checkpoint: Path | None
    base: Start | None = None
    lora: LoRAConfig | None = None

    @classmethod
    def find(cls, path: Path) -> Start:
        """The checkpoint at `path`, the newest below it, or the model there or in the folder `model`.

        Raises:
            UserError: there is none of them.
        """
        if (path / "config.json").exists():
            return cls(path, read_config(path), None)
        found = path if (path / "state.json").exists() else next(reversed(checkpoints(path / "checkpoints")), None)
        if found is not None and (found.parent / ADAPTERS).exists():
            merged = (path / "model" / "config.json").exists()
            return cls.find(path / "model") if merged else cls._with_adapters(found)
        if found is None and (path / "model" / "config.json").exists():
            return cls.find(path / "model")
        if found is None:
            raise UserError(
                f"'{path}' holds neither a model nor a checkpoint.",
                "Name a stage 'train', one of its checkpoints, or a model's directory.",
            )
        shape = found.parent / "model.json"
        return cls(found, validate(ModelConfig, read_json(shape), f"'{shape}'"), found)

    @classmethod
    def _with_adapters(cls, checkpoint: Path) -> Start:
        record = read_json(checkpoint.parent / ADAPTERS)
        lora = validate(LoRAConfig, record["lora"], f"'{checkpoint.parent / ADAPTERS}'")
        base = cls.find(checkpoint.parent / record["base"])
        return cls(checkpoint, lora.folded(base.model), None, base, lora)

    @property
    def tokenizer_directory(self) -> Path:
        """Where the tokenizer is: with the model, or for a checkpoint in the folder that the model will be
        exported to.
        """
        of_model = self.checkpoint is None and self.base is None
        return self.directory if of_model else self.directory.parent.parent / "model"

    def load(self, config: ModelConfig | None = None) -> Transformer:
        """The model with its weights, adapters folded in, in fp32.

        Arguments:
            config: the shape that it must have.

        Raises:
            UserError: it has another shape.
        """
        if self.base is not None and self.lora is not None:
            model = self.base.load()
            add_lora(model, self.lora)
            load_checkpoint(self.directory, model)
            remove_lora(model, merge=True)
            return model
        if self.checkpoint is not None:
            model = Transformer(self.model)
            load_checkpoint(self.checkpoint, model)
            return model
        if config is not None and config != self.model:
            changed = [name for name, value in config if value != getattr(self.model, name)]
            raise UserError(
                f"The model in '{self.directory}' differs from the one that is asked for in: {', '.join(changed)}.",
                "Leave out 'model'.",
            )
        return from_pretrained(self.directory)
