"""A model in the hand: its weights and its tokenizer, and what can be asked of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from lmlab.door import arguments
from lmlab.door.calls import told
from lmlab.errors import UserError

if TYPE_CHECKING:
    from lmlab.data import Tokenizer
    from lmlab.evals import Evaluator, Measurement
    from lmlab.models import Transformer
    from lmlab.runs import Model

_WIDEST = 2048  # tokens; attention to more than these costs memory and hardly lowers the bits of usual texts


@dataclass(frozen=True)
class LanguageModel:
    """A model with its tokenizer, as `load` gives it.

    Attributes:
        place: where it was found.
        network: the transformer, in evaluation mode.
        precision: in which it was read.
        adapter: what was folded into its weights.
    """

    place: Model
    network: Transformer
    tokenizer: Tokenizer
    precision: str = "fp32"
    adapter: Path | None = None

    def __post_init__(self) -> None:
        from lmlab.models import weights_state

        self.__dict__["_as_read"] = weights_state(self.network)  # an instance that is frozen has no other way

    @overload
    def generate(self, prompt: str, **settings: Any) -> str: ...

    @overload
    def generate(self, prompt: Sequence[str], **settings: Any) -> list[str]: ...

    def generate(self, prompt: str | Sequence[str], **settings: Any) -> str | list[str]:
        """Continue a text, or several; what is added, without the prompt.

        Arguments:
            settings: those of `lmlab.models.GenerationConfig`, such as `max_new_tokens=100`, `temperature=0.8`,
                `stop=("\\n",)`, `seed=0`; by default what the model's makers say, as in `lmlab generate`.

        Raises:
            UserError: a setting is wrong, or a text does not fit the model.
        """
        from lmlab.commands.models import CONTINUING, sampling
        from lmlab.stages.generate import complete_texts, generation_config

        prompts = arguments.texts(prompt, "prompt")
        given = _decoding(settings)
        config = generation_config(sampling(self.place, CONTINUING, given), self.place, self.tokenizer)
        if config.num_samples != 1:
            raise UserError("num_samples: one text is given for each prompt.", "Repeat the prompt, or change the seed.")
        found = [each[0].text or "" for each in complete_texts(self.network, self.tokenizer, prompts, config)]
        return found[0] if isinstance(prompt, str) else found

    def chat(self, messages: str | Sequence[Mapping[str, str]], **settings: Any) -> str:
        """The answer to a message, or to a conversation whose last message is a user's.

        Arguments:
            messages: a text, or messages with `role` (system, user, assistant) and `content`.
            settings: as in `generate`.

        Raises:
            UserError: the tokenizer has no chat template, the last message is not a user's, or the conversation does
                not fit the model.
        """
        return "".join(self.stream_chat(messages, **settings))

    def stream_chat(self, messages: str | Sequence[Mapping[str, str]], **settings: Any) -> Iterator[str]:
        """The answer of `chat`, piece by piece."""
        from lmlab.commands.chat import Conversation
        from lmlab.commands.models import chat_settings

        said = arguments.messages(messages)
        if said[-1]["role"] != "user":
            raise UserError("The last message of the conversation is not a user's.", "End it with role 'user'.")
        config = chat_settings(self.place, self.network, self.tokenizer, _decoding(settings))
        conversation = Conversation(self.network, self.tokenizer, config)
        conversation.messages = said[:-1]
        return conversation.reply(said[-1]["content"])

    def score(self, context: str, options: Sequence[str]) -> list[float]:
        """The natural-log probability of each option after a context.

        Raises:
            UserError: an option adds no token, or does not fit the model's window.
        """
        from lmlab.evals import Question, option_scores, rank_questions

        chosen = arguments.texts(options, "options", single=False)
        if not chosen:
            raise UserError("options: there is no option.", "Give a list of texts.")
        question = Question(id="question", context=arguments.text(context, "context"), options=chosen, gold=0)
        row = next(iter(rank_questions(self.evaluator.scorer, self.tokenizer, [question])))
        return [float(each) for each in option_scores(row, "none")]

    def measure(self, text: str | Sequence[str], window: int | None = None) -> dict[str, Measurement]:
        """`bits_per_byte`, `bits_per_token` and `perplexity` of a text, or of several, with standard errors over them.

        Arguments:
            window: the most tokens that the model sees at once, by default all that it can, up to 2,048.

        Raises:
            UserError: there is no text, or none but empty ones.
        """
        from lmlab.data import Document
        from lmlab.evals import measure_documents, perplexity_figures

        texts = arguments.texts(text, "text")
        if not any(texts):
            raise UserError("text: it is empty, so that there is nothing to measure.")
        documents = [Document(str(number), each) for number, each in enumerate(texts)]
        most = self.evaluator.scorer.max_seq_len
        seen = min(most, _WIDEST) if window is None else arguments.whole(window, "window", least=2)
        if seen > most:
            raise UserError(f"window: {seen} tokens are more than the model's {most}.")
        begins = self.evaluator.begins_windows
        rows = measure_documents(self.evaluator.scorer, self.tokenizer, documents, seen, begin_every=begins)
        return perplexity_figures(list(rows))

    def bits_per_byte(self, text: str | Sequence[str]) -> float:
        """Bits that the model needs for a byte of the text: comparable between models with other tokenizers."""
        return self.measure(text)["bits_per_byte"].value

    def perplexity(self, text: str | Sequence[str]) -> float:
        """Two to the bits of a token, which depends on the tokenizer."""
        return self.measure(text)["perplexity"].value

    @cached_property
    def evaluator(self) -> Evaluator:
        """What `lmlab.evals` measures, in the precision of the weights."""
        from lmlab.config import PACKED
        from lmlab.evals import Evaluator, ModelScorer

        precision = "bf16" if self.network.embedding.weight.dtype.itemsize == 2 else "fp32"  # 2 bytes: bf16
        if self.precision in PACKED:
            precision = self.precision
        return Evaluator(ModelScorer(self.network, precision), self.tokenizer, self.network, self.place.end_token_ids())

    def _as_stored(self) -> Path:
        """Where the same weights stand, for what reads them from there."""
        from lmlab.models import weights_state

        where = self.place.path
        if self.adapter is not None:
            raise UserError(
                f"The model has '{self.adapter}' folded in, and '{where}' has not.",
                "Fold it in on disk with lmlab convert --adapter, and name what that writes.",
            )
        if weights_state(self.network) != self.__dict__["_as_read"]:
            raise UserError(
                f"The weights in memory are no longer those of '{where}'.",
                "Save them with lmlab.models.save_pretrained(model.network, directory), and name that directory.",
            )
        return where


@told
def load(place: str | Path, *, precision: str = "fp32", adapter: str | Path | None = None) -> LanguageModel:
    """A model with its tokenizer, on the GPU where there is one.

    Arguments:
        place: a Hugging Face directory, a GGUF file, a checkpoint, a stage's directory, or a run.
        precision: of the weights: `fp32`, `bf16`, `auto` (the faster one here), or `int8` or `int4` on a CPU.
        adapter: LoRA adapters as `peft` stores them, to fold in.

    Raises:
        UserError: nothing of the kind is there.
    """
    from lmlab.commands.models import load_model

    found, kind = arguments.place_or_none(adapter, "adapter"), arguments.text(precision, "precision")
    return LanguageModel(*load_model(arguments.place(place, "place"), kind, found), kind, found)


def loaded(model: LanguageModel | str | Path) -> LanguageModel:
    """A model that may be given by its place."""
    return model if isinstance(model, LanguageModel) else load(model)


def _decoding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of decoding; one stop stands for several."""
    found: dict[str, Any] = arguments.plain(settings)
    return found | {"stop": (found["stop"],)} if isinstance(found.get("stop"), str) else found
