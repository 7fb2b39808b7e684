"""What stages give and take: a model, documents, tokens, a tokenizer, questions; and the one place that finds each.

A user names a stage's directory, a whole run, a checkpoint, a Hugging Face directory or a GGUF file; every command and
every stage that takes a model takes all of them, and the same holds for the other kinds.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from lmlab.errors import UserError, reads
from lmlab.files import read_json

if TYPE_CHECKING:
    import torch

    from lmlab.data import Tokenizer
    from lmlab.models import LoRAConfig, ModelConfig, Transformer

ADAPTERS = "adapters.json"
"""Beside checkpoints that hold adapters alone: where their base is (`base`), and their settings (`lora`)."""

_SHOWN = 5  # names in a message: enough to choose one, or to see what they are
_behind: ContextVar[frozenset[Path]] = ContextVar("behind", default=frozenset())
"""The notes of adapters whose bases are being looked for: one may stand on another, but not on itself."""


@dataclass(frozen=True)
class Artifact(ABC):
    """Something that a stage writes and another reads.

    Attributes:
        path: where it is.
    """

    path: Path
    called: ClassVar[str]

    @classmethod
    @reads("what is looked for there")
    def find(cls, place: str | Path) -> Self:
        """What lies at a place: the thing itself, the directory of a stage that gives it, or a run with one such stage.

        Raises:
            UserError: nothing of the kind is there, or a run has several.
        """
        path = Path(place).expanduser()
        if not path.exists():
            raise UserError(
                f"There is nothing at '{place}', where {cls.called} is needed.",
                "Give a local path; lmlab downloads nothing by itself.",
            )
        if (found := cls._at(path)) is not None:
            return found
        several = [(each, found) for each in _stages_of(path) if (found := cls._at(each)) is not None]
        if len(several) > 1:
            several = cls._preferred(several)
        if len(several) > 1:
            names = ", ".join(f"'{each}'" for each, _ in several[:_SHOWN])
            raise UserError(f"The run '{place}' holds {cls.called} in several stages: {names}.", "Name one of them.")
        if not several:
            if unfinished := _unfinished_of(path):
                raise UserError(
                    f"'{place}' does not hold {cls.called} yet: its stage '{unfinished}' has not finished.",
                    "Give the command that began it again: it goes on.",
                )
            raise UserError(f"'{place}' does not hold {cls.called}.", cls._remedy())
        return several[0][1]

    @classmethod
    @abstractmethod
    def _at(cls, path: Path) -> Self | None:
        """The artifact that a path or a stage's directory holds itself, without a look at the stages of a run."""

    @classmethod
    def _preferred(cls, several: list[tuple[Path, Self]]) -> list[tuple[Path, Self]]:
        return several

    @classmethod
    @abstractmethod
    def _remedy(cls) -> str:
        """What a user may name."""


def _stages_of(run: Path) -> list[Path]:
    """The directories of a run's stages, in the recipe's order; nothing for what is not a run."""
    if not (run / "manifest.json").is_file():
        return []
    manifest = read_json(run / "manifest.json")
    stages = manifest.get("stages") if isinstance(manifest, dict) else None
    return [run / str(name) for name in stages or () if (run / str(name)).is_dir()]


def _unfinished_of(place: Path) -> str | None:
    """The first stage of a run, or the stage whose directory it is, that has begun and not finished."""
    for each in (place, *_stages_of(place)):
        record = read_json(each / "stage.json") if (each / "stage.json").is_file() else None
        if isinstance(record, dict) and record.get("state") == "unfinished":
            return str(record.get("name") or each.name)
    return None


@dataclass(frozen=True)
class Model(Artifact):
    """A network with its weights, wherever they come from.

    Attributes:
        form: a directory in the layout of Hugging Face, a training checkpoint, or a GGUF file.
        checkpoint: the newest checkpoint of the training that made it, with the optimizer's state; None elsewhere, and
            where it holds adapters alone.
        base: the model beside which the checkpoint's adapters stand, if it holds adapters alone.
        lora: what adapters they are.
    """

    form: Literal["directory", "checkpoint", "gguf"]
    checkpoint: Path | None = None
    base: Model | None = None
    lora: LoRAConfig | None = None
    called: ClassVar[str] = "a model"

    @classmethod
    def _at(cls, path: Path) -> Model | None:
        if path.suffix == ".gguf" and path.is_file():
            return cls(path, "gguf")
        if not path.is_dir():
            return None
        if (path / "config.json").exists():
            return cls(path, "directory")
        if (path / "state.json").exists():
            return cls._from_checkpoint(path)
        newest = _newest_checkpoint(path / "checkpoints")
        exported = path / "model"
        if (exported / "config.json").exists() and (newest is None or not _newer(newest, exported)):
            adapters = newest is not None and (newest.parent / ADAPTERS).exists()
            return cls(exported, "directory", None if adapters else newest)
        if newest is not None:
            return cls._from_checkpoint(newest)
        if (path / "hf" / "config.json").exists():
            return cls(path / "hf", "directory")
        files = sorted(path.glob("*.gguf"))
        if len(files) > 1:
            names = ", ".join(file.name for file in files[:_SHOWN])
            raise UserError(f"'{path}' holds {len(files)} GGUF files: {names}.", "Name one of them.")
        return cls(files[0], "gguf") if files else None

    @classmethod
    def _from_checkpoint(cls, path: Path) -> Model:
        """The model of a checkpoint, also where that holds adapters alone."""
        from lmlab.config import validate
        from lmlab.models import LoRAConfig

        if not (note := path.parent / ADAPTERS).exists():
            return cls(path, "checkpoint", path)
        record = read_json(note)
        lora = validate(LoRAConfig, record["lora"], f"'{note}'")
        behind = _behind.get()
        if note.resolve() in behind:
            raise UserError(
                f"'{note}' names as its base a model that is itself based on it.", "Name the right one under 'base'."
            )
        token = _behind.set(behind | {note.resolve()})
        try:
            base = cls.find((note.parent / record["base"]).resolve())
        finally:
            _behind.reset(token)
        return cls(path, "checkpoint", None, base, lora)

    @classmethod
    def _preferred(cls, several: list[tuple[Path, Model]]) -> list[tuple[Path, Model]]:
        """An exported copy is the model of the stage that trained it, not another one."""
        trained = [each for each in several if each[1].path.name != "hf"]
        return trained or several

    @classmethod
    def _remedy(cls) -> str:
        return (
            "Name a model's directory (with config.json), a GGUF file, a training checkpoint, a stage that trains or"
            " exports, or a run with one."
        )

    @cached_property
    def config(self) -> ModelConfig:
        """The shape.

        Raises:
            UserError: its family is unknown, or it has what lmlab does not.
        """
        from lmlab.config import validate
        from lmlab.models import ModelConfig, read_config

        if self.base is not None and self.lora is not None:
            return self.lora.folded(self.base.config)
        if self.form == "checkpoint":
            shape = self.path.parent / "model.json"
            return validate(ModelConfig, read_json(shape), f"'{shape}'")
        return read_config(self.path)

    @property
    def source(self) -> Path:
        """The directory (or GGUF file) with tokenizer and settings; for a checkpoint, of the model to be exported."""
        return self.path.parent.parent / "model" if self.form == "checkpoint" else self.path

    def load(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        *,
        adapter: str | Path | None = None,
        num_labels: int | None = None,
        seed: int = 0,
        allow_pickle: bool = False,
    ) -> Transformer:
        """The network with its weights, in evaluation mode.

        Arguments:
            device: by name also `auto`.
            dtype: of the weights, by default fp32.
            adapter: LoRA adapters as `peft` stores them, to fold in.
            num_labels: give a language model a fresh scalar head with so many outputs in place of its own, drawn from
                `seed`.
            allow_pickle: also read pickled weights, as plain tensors only.
        """
        import torch

        from lmlab.hardware import select_device
        from lmlab.models import Transformer, add_lora, from_pretrained, load_lora, remove_lora, with_scalar_head

        device = select_device(device) if isinstance(device, str) else device
        if self.form == "checkpoint":
            from lmlab.train import load_checkpoint  # which takes a second of all that training needs with it

            if self.base is not None and self.lora is not None:
                model = self.base.load(allow_pickle=allow_pickle)
                add_lora(model, self.lora)
                load_checkpoint(self.path, model)
                remove_lora(model, merge=True)
            else:
                model = Transformer(self.config)
                load_checkpoint(self.path, model)
            if num_labels is not None:
                model = with_scalar_head(model, num_labels, seed)
            model = model.to(device=device, dtype=dtype or torch.float32).eval()
        else:
            options: dict[str, Any] = {"num_labels": num_labels, "seed": seed, "allow_pickle": allow_pickle}
            model = from_pretrained(self.path, device, dtype or torch.float32, **options)
        if adapter is not None:
            load_lora(model, Path(adapter), allow_pickle=allow_pickle)
            remove_lora(model, merge=True)
        return model

    def load_in(
        self, precision: str, device: torch.device | str = "cpu", *, adapter: str | Path | None = None
    ) -> Transformer:
        """The network to be read and not trained, in a precision (`lmlab.hardware.Precision`), and on a CPU laid out
        for writing texts (`lmlab.models.lay_out`).

        Raises:
            UserError: there is no such precision, or it is not for this model or device.
        """
        import torch

        from lmlab.config import PACKED
        from lmlab.hardware import select_dtype
        from lmlab.models import lay_out, pack_weights

        device = torch.device(device)
        packs = precision in PACKED
        # packed from the weights as they are stored, not from what bf16 leaves of them
        dtype = torch.float32 if packs and device.type == "cpu" else select_dtype(precision, device)
        model = self.load(device, dtype, adapter=adapter)
        if packs:
            pack_weights(model, "int8" if precision == "int8" else "int4")
        return lay_out(model) if device.type == "cpu" else model

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that belongs to it.

        Raises:
            UserError: none lies beside it.
        """
        return Vocabulary(self.source).load()

    def tokenizer_if_any(self) -> Tokenizer | None:
        """The tokenizer that belongs to it, or None: some models read ids that are no text."""
        return self.tokenizer() if self.form == "gguf" or (self.source / "tokenizer.json").exists() else None

    def end_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text, by the model's generation settings; none where they say nothing."""
        from lmlab.models import end_token_ids

        return end_token_ids(self.source) if self.source.is_dir() else ()

    def generation_defaults(self) -> dict[str, Any]:
        """Settings of sampling that the model's makers recommend; none where they say nothing."""
        from lmlab.models import generation_defaults

        return generation_defaults(self.source) if self.source.is_dir() else {}


def _newest_checkpoint(folder: Path) -> Path | None:
    from lmlab.train import checkpoints

    return next(reversed(checkpoints(folder)), None) if folder.is_dir() else None


def _newer(checkpoint: Path, exported: Path) -> bool:
    """Whether training went on after the export: the export is then not the model that the stage has come to."""
    return (checkpoint / "state.json").stat().st_mtime > (exported / "config.json").stat().st_mtime


@dataclass(frozen=True)
class Vocabulary(Artifact):
    """A tokenizer's files: `tokenizer.json` with its settings, or a GGUF file, which holds one too."""

    called: ClassVar[str] = "a tokenizer"

    @classmethod
    def _at(cls, path: Path) -> Vocabulary | None:
        if path.suffix == ".gguf" and path.is_file():
            return cls(path)
        places = [path, path / "tokenizer", path / "model", path / "hf"]
        if (path / "state.json").exists():  # a checkpoint: beside anything else, another model's may stand there
            places.append(path.parent.parent / "model")
        found = next((each for each in places if (each / "tokenizer.json").exists()), None)
        return None if found is None else cls(found)

    @classmethod
    def _preferred(cls, several: list[tuple[Path, Vocabulary]]) -> list[tuple[Path, Vocabulary]]:
        """Copies of one tokenizer, as a run has them beside tokens and models, are one."""
        texts = {(found.path / "tokenizer.json").read_bytes() for _, found in several}
        return several[:1] if len(texts) == 1 else several

    @classmethod
    def _remedy(cls) -> str:
        return "Name a directory with tokenizer.json: of a tokenizer, a model, tokenized text, or a run's stage."

    def load(self) -> Tokenizer:
        """Read it.

        Raises:
            UserError: it is not there, or is not a tokenizer.
        """
        from lmlab.data import Tokenizer

        if self.path.suffix != ".gguf":
            return Tokenizer.load(self.path)
        from lmlab.models.formats.gguf import convert_tokenizer

        with tempfile.TemporaryDirectory() as folder:
            convert_tokenizer(self.path, Path(folder))
            return Tokenizer.load(Path(folder))


@dataclass(frozen=True)
class Documents(Artifact):
    """Clean documents: `train.jsonl` and `heldout.jsonl` of a stage, or one file of JSON lines."""

    called: ClassVar[str] = "documents"

    @classmethod
    def _at(cls, path: Path) -> Documents | None:
        return cls(path) if path.is_file() or (path / "train.jsonl").exists() else None

    @classmethod
    def _remedy(cls) -> str:
        return "Name a stage that collects or selects, or a file of JSON lines with a text each."

    def split(self, name: Literal["train", "heldout"]) -> Path:
        """The file of a split; a single file is every split.

        Raises:
            UserError: the stage has no such split.
        """
        if self.path.is_file():
            return self.path
        file = self.path / f"{name}.jsonl"
        if not file.exists():
            raise UserError(f"'{self.path}' has no {file.name}.")
        return file


@dataclass(frozen=True)
class Tokens(Artifact):
    """Tokenized text: shards with a manifest, or sequences that were packed already (MDS)."""

    called: ClassVar[str] = "tokenized text"

    @classmethod
    def _at(cls, path: Path) -> Tokens | None:
        manifest = path / "manifest.json"
        if not manifest.is_file():
            return cls(path) if _are_packs(path) else None
        found = read_json(manifest)
        return cls(path) if isinstance(found, dict) and "shards" in found else None

    @classmethod
    def _remedy(cls) -> str:
        return "Make it with 'lmlab tokenize' or 'lmlab data pack', or name a stage that does."


def _are_packs(path: Path) -> bool:
    """Whether a folder is a data set of packed sequences, or its subfolders are."""
    if not path.is_dir() or not ((path / "index.json").is_file() or any(path.glob("*/index.json"))):
        return False
    from lmlab.data import is_packs

    return is_packs(path)


@dataclass(frozen=True)
class Questions(Artifact):
    """Ranked questions, which `lmlab.evals.read_questions` reads: `task.jsonl` of a stage, or a file of JSON lines."""

    called: ClassVar[str] = "a file of questions"

    @classmethod
    def _at(cls, path: Path) -> Questions | None:
        if path.is_file():
            return cls(path)
        return cls(path / "task.jsonl") if (path / "task.jsonl").exists() else None

    @classmethod
    def _remedy(cls) -> str:
        return "Name a stage that makes questions, or a file of JSON lines."
