"""Tokenizers: byte-level BPE trained here, or any that `tokenizers` has, from its files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from lmlab.data.chat.template import ChatTemplate, Message
from lmlab.data.special_tokens import Span, SpelledTokens
from lmlab.data.tokenizer_files import read_tokenizer
from lmlab.errors import UserError, reads
from lmlab.files import json_value, write_json, write_text

END_OF_TEXT = "<|endoftext|>"
SpecialTokens = Literal["as_text", "as_tokens"]
"""What a special token becomes that a text spells: text like any other, or the special token."""


class Tokenizer:
    """A `tokenizers.Tokenizer` with its special tokens.

    A document is encoded as [begin] tokens [end]; in the tokenizers trained here one token, `<|endoftext|>`, serves as
    both.

    Arguments:
        bos_token: the begin mark; None for a tokenizer that has none, whose end mark then serves.
        eos_token: the end mark.
        chat_template: one Jinja source, or several by name, of which `default` is meant where none is named.
        add_bos: the begin mark goes before every prompt.
        special_tokens: further ones by name, such as `unk_token`, for chat templates.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        bos_token: str | None,
        eos_token: str,
        chat_template: str | Mapping[str, str] | None = None,
        add_bos: bool = False,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.backend, self._add_bos = backend, add_bos
        named = {"bos_token": bos_token, "eos_token": eos_token}
        self.named_tokens = {**(special_tokens or {}), **{name: text for name, text in named.items() if text}}
        templates = {"default": chat_template} if isinstance(chat_template, str) else dict(chat_template or {})
        self.chat_template = ChatTemplate(templates, self.named_tokens) if templates else None
        self.bos_token, self.eos_token = bos_token or eos_token, eos_token
        self.bos_id, self.eos_id = self._id_of(self.bos_token), self._id_of(eos_token)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train a byte-level BPE: no unknown tokens, every text comes back exactly.

        Raises:
            UserError: the vocabulary is smaller than the 256 bytes and the special token.
        """
        if vocab_size < 257:
            raise UserError(f"vocab_size {vocab_size} is too small: 256 bytes and one special token need at least 257.")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        begin = [(END_OF_TEXT, backend.token_to_id(END_OF_TEXT))]
        backend.post_processor = processors.TemplateProcessing(single=f"{END_OF_TEXT} $A", special_tokens=begin)
        return cls(backend, END_OF_TEXT, END_OF_TEXT, special_tokens={"pad_token": END_OF_TEXT})

    @classmethod
    @reads("the directory of a tokenizer")
    def load(cls, directory: Path | str) -> Tokenizer:
        """Read `tokenizer.json`, and what stands beside it about special tokens and chat templates.

        Whatever the files hold, the tokenizer neither truncates nor pads.

        Raises:
            UserError: a file is missing, is not a tokenizer's, or contradicts another.
        """
        files = read_tokenizer(Path(directory))
        names = dict(files.special_tokens)
        bos, eos = names.pop("bos_token", None), names.pop("eos_token", END_OF_TEXT)
        return cls(files.backend, bos, eos, files.templates, files.add_bos, names)

    def save(self, directory: Path | str, max_seq_len: int | None = None) -> None:
        """Write the tokenizer in the layout that `transformers.AutoTokenizer` reads."""
        directory = Path(directory)
        write_text(directory / "tokenizer.json", self.backend.to_str(pretty=True))
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **self.named_tokens,
            "clean_up_tokenization_spaces": False,
        }
        if self._add_bos:
            settings["add_bos_token"] = True
        if max_seq_len is not None:
            settings["model_max_length"] = max_seq_len
        for name, source in (self.chat_template.sources if self.chat_template else {}).items():
            folder = directory if name == "default" else directory / "additional_chat_templates"
            write_text(folder / f"{'chat_template' if name == 'default' else name}.jinja", source)
        write_json(directory / "tokenizer_config.json", settings)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self.backend.get_vocab_size()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer's canonical JSON."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def encode(self, text: str, special_tokens: SpecialTokens = "as_tokens") -> list[int]:
        """Ids of a text, without begin and end.

        Arguments:
            special_tokens: what a special token becomes that is spelled in the text.
        """
        ids: list[int] = self.backend.encode(_unicode(text), add_special_tokens=False).ids
        if special_tokens == "as_text" and self._spells_special(text, ids):
            return self._spelled.encode_batch([text])[0]
        return ids

    def encode_prompt(self, text: str, special_tokens: SpecialTokens = "as_tokens") -> list[int]:
        """Ids of the beginning of a text, with the begin token if the tokenizer puts one there by itself, and without
        the end that some put behind every text; never empty.

        Arguments:
            special_tokens: what a special token becomes that is spelled in the text: those who write a prompt mean it,
                those who put a document into one do not.
        """
        if special_tokens == "as_text":
            kept = self.encode(text, "as_text")
            if kept != self.encode(text):
                return [*self.begin_ids, *kept]
        ids: list[int] = self.backend.encode(_unicode(text)).ids
        ids = ids[: len(ids) - self._ending]
        if not ids or (self._add_bos and ids[0] != self.bos_id):
            return [self.bos_id, *ids]
        return ids

    def encode_batch(self, texts: Sequence[str], special_tokens: SpecialTokens = "as_tokens") -> list[list[int]]:
        """Ids of many texts, in parallel, without begin and end.

        Arguments:
            special_tokens: what a special token becomes that is spelled in a text.
        """
        read = [_unicode(text) for text in texts]
        found = [encoding.ids for encoding in self.backend.encode_batch_fast(read, add_special_tokens=False)]
        if special_tokens == "as_text":
            # few texts spell one, and of these ids alone tell: the copy that keeps them text is made when it is needed
            spelled = [number for number, ids in enumerate(found) if self._spells_special(texts[number], ids)]
            kept = self._spelled.encode_batch([texts[number] for number in spelled]) if spelled else []
            for number, ids in zip(spelled, kept, strict=True):
                found[number] = ids
        return found

    def encode_with_offsets(
        self, text: str, special: Sequence[Span] | None = None
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text, without begin and end, and the characters [start, end) that each stands for, spaces
        included.

        Arguments:
            special: the spans of the text that are special tokens, in order; None for all that are spelled. What is
                spelled elsewhere stays text.
        """
        if special is None:
            encoding = self._untrimmed.encode(text, add_special_tokens=False)
            return encoding.ids, encoding.offsets
        written, places = self._spelled.write(text, special)
        encoding = self._spelled_untrimmed.encode(written, add_special_tokens=False)
        return encoding.ids, [(places[start], places[end]) for start, end in encoding.offsets]

    @cached_property
    def _untrimmed(self) -> tokenizers.Tokenizer:
        return _untrimmed(self.backend)

    @cached_property
    def _spelled(self) -> SpelledTokens:
        return SpelledTokens(self.backend, self.guarded_tokens)

    @cached_property
    def _spelled_untrimmed(self) -> tokenizers.Tokenizer:
        return _untrimmed(self._spelled.backend)

    @property
    def guarded_tokens(self) -> list[str]:
        """What text must not become unless it is meant: special tokens, and begin and end if they are not marked as
        special."""
        return list(dict.fromkeys([*self.special_tokens, self.bos_token, self.eos_token]))

    @cached_property
    def _guarded_ids(self) -> frozenset[int]:
        return frozenset(self._id_of(token) for token in self.guarded_tokens)

    def _spells_special(self, text: str, ids: Sequence[int]) -> bool:
        """Whether special tokens among the ids come from their names in the text."""
        found = self._guarded_ids.intersection(ids)
        # what the vocabulary lacks becomes the unknown token, without its name
        return bool(found - {self._unknown}) or (bool(found) and str(self.backend.id_to_token(self._unknown)) in text)

    @cached_property
    def _unknown(self) -> int:
        """The token that the model puts for what its vocabulary lacks; -1 for none."""
        model = json_value(self.backend.to_str())["model"]
        name = model.get("unk_token")
        found = self.backend.token_to_id(name) if name else model.get("unk_id")  # Unigram names an id
        return -1 if found is None else int(found)

    @cached_property
    def _ending(self) -> int:
        """How many tokens the tokenizer puts behind every text."""
        whole, inner = (self.backend.encode("a", add_special_tokens=special).ids for special in (True, False))
        starts = range(len(whole) - len(inner) + 1)
        begin = next((start for start in starts if whole[start : start + len(inner)] == inner), None)
        return 0 if begin is None or not inner else len(whole) - begin - len(inner)

    @cached_property
    def begin_ids(self) -> list[int]:
        """What the tokenizer puts before every text: the begin token, or nothing."""
        return [self.bos_id] if self.encode_prompt("a")[:1] == [self.bos_id] else []

    @cached_property
    def special_tokens(self) -> list[str]:
        """The texts of all special tokens, longest first."""
        return sorted(
            (token.content for token in self.backend.get_added_tokens_decoder().values() if token.special),
            key=lambda text: (-len(text), text),
        )

    def with_chat_template(self, source: str | Mapping[str, str]) -> Tokenizer:
        """The same tokenizer with another chat template, or several by name.

        Raises:
            UserError: the source is not a template.
        """
        named = dict(self.named_tokens)
        bos, eos = named.pop("bos_token", None), named.pop("eos_token")
        return Tokenizer(self.backend, bos, eos, source, self._add_bos, named)

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Ids of a conversation by the tokenizer's chat template (`ChatTemplate.render`).

        Raises:
            UserError: the tokenizer has no template, or the template refuses the messages.
        """
        if self.chat_template is None:
            raise UserError(
                "The tokenizer has no chat template.",
                "Use a model that was tuned to chat, or put a chat_template.jinja beside it.",
            )
        return self.encode(self.chat_template.render(messages, add_generation_prompt, **variables))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def token_bytes(self, id: int) -> bytes:
        """What a token stands for, which may be a part of a character; for a special token its name."""
        token = self.backend.id_to_token(id)
        if token is None:
            return b""  # an id that only pads the vocabulary
        if id in self._added:
            return token.encode()
        if self._byte_alphabet is not None:
            return bytes(self._byte_alphabet[character] for character in token)
        if found := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
            return bytes([int(found[1], 16)])
        return token.replace("\u2581", " ").encode()

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that `decode` leaves out."""
        return frozenset(id for id, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.backend.get_added_tokens_decoder())

    @cached_property
    def _byte_alphabet(self) -> dict[str, int] | None:
        """The characters that stand for bytes in a byte-level tokenizer; None for one of another kind."""
        if '"ByteLevel"' not in json.dumps(json_value(self.backend.to_str())["decoder"]):
            return None
        plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        moved = [byte for byte in range(256) if byte not in plain]
        return {chr(byte): byte for byte in plain} | {chr(256 + number): byte for number, byte in enumerate(moved)}

    def _id_of(self, token: str) -> int:
        id = self.backend.token_to_id(token)
        if id is None:
            raise UserError(
                f"The tokenizer has no token '{token}' to mark the end of a text.",
                "Set eos_token in tokenizer_config.json.",
            )
        return id


def _unicode(text: str) -> str:
    """A text that has an encoding: names of files and arguments of commands may hold bytes that are none."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"A text holds {text[error.start]!r} at character {error.start:,}, which is no character.",
                "It is not UTF-8: convert it first.",
            ) from None
    return text


def _untrimmed(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A tokenizer with offsets as they are; the post-processors of many leave out the spaces at a token's ends."""
    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    copy.post_processor = processors.ByteLevel(trim_offsets=False)
    return copy
