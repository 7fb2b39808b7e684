"""Where a training takes its weights from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lmlab.config import validate
from lmlab.errors import UserError
from lmlab.files import read_json
from lmlab.models import ModelConfig, Transformer, from_pretrained, read_config
from lmlab.train import checkpoints, load_checkpoint


@dataclass(frozen=True)
class Start:
    """Trained weights.

    Attributes:
        directory: of a model, or of a checkpoint.
        model: its shape.
        checkpoint: the directory again if it is a checkpoint, with the optimizer's state.
    """

    directory: Path
    model: ModelConfig
    checkpoint: Path | None

    @classmethod
    def find(cls, path: Path) -> Start:
        """The checkpoint at `path`, the newest below it, or the model there or in the folder `model`.

        Raises:
            UserError: there is none of them.
        """
        if (path / "config.json").exists():
            return cls(path, read_config(path), None)
        found = path if (path / "state.json").exists() else next(reversed(checkpoints(path / "checkpoints")), None)
        if found is None and (path / "model" / "config.json").exists():
            return cls.find(path / "model")
        if found is None:
            raise UserError(
                f"'{path}' holds neither a model nor a checkpoint.",
                "Name a stage 'train', one of its checkpoints, or a model's directory.",
            )
        shape = found.parent / "model.json"
        return cls(found, validate(ModelConfig, read_json(shape), f"'{shape}'"), found)

    @property
    def tokenizer_directory(self) -> Path:
        """Where the tokenizer is: with the model, or for a checkpoint in the folder that the model will be
        exported to.
        """
        return self.directory if self.checkpoint is None else self.directory.parent.parent / "model"

    def load(self, config: ModelConfig | None = None) -> Transformer:
        """The model with its weights, in fp32.

        Arguments:
            config: the shape that it must have.

        Raises:
            UserError: it has another shape.
        """
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
