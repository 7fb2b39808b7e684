"""The files of a tokenizer's directory: `tokenizer.json`, and what names its special tokens and chat templates.

Which file counts where several speak is as in `transformers`, version 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from lmlab.errors import UserError
from lmlab.files import read_mapping

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that every chat template may ask for."""

_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_OTHER_FORMS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt", "vocab.txt")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True)
class TokenizerFiles:
    """What a directory holds.

    Attributes:
        backend: neither truncates nor pads.
        special_tokens: name -> text, of those that have one: `bos_token` and the like, also a model's own.
        templates: chat templates by name; `default` is the one that is meant without a name.
        add_bos: the begin token goes before every text.
    """

    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    add_bos: bool = False


def read_tokenizer(directory: Path) -> TokenizerFiles:
    """Read a directory. Tokens that only the other files name are added to those of `tokenizer.json`.

    Raises:
        UserError: there is no `tokenizer.json`, a file does not hold what it should, or two files give a token
            different ids.
    """
    backend = _backend(directory)
    settings = _mapping(directory / _CONFIG)
    added: dict[int, tokenizers.AddedToken] = {}
    named: dict[str, Any] = dict(settings)
    if "added_tokens_decoder" in settings:
        added = _by_id(settings["added_tokens_decoder"], directory / _CONFIG)
    else:  # as written before version 4.34 of transformers
        named |= _mapping(directory / _MAP)
        for text, id in _mapping(directory / _ADDED).items():
            if not isinstance(id, int):
                raise UserError(f"'{directory / _ADDED}' gives the token '{text}' the id {id!r}, which is no number.")
            added[id] = tokenizers.AddedToken(text)
    special_tokens, others = _named(named)
    legacy = "added_tokens_decoder" not in settings  # whose tokens do not say themselves whether they are special
    names = {_text(value) for value in [*special_tokens.values(), *(others if legacy else [])]}
    for id, token in sorted(added.items()):
        token.special = token.special or token.content in names
        _add(backend, token, directory, id)
    for value in [*special_tokens.values(), *others]:
        _add(backend, _token(value, special=True), directory)
    return TokenizerFiles(
        backend,
        {name: str(_text(value)) for name, value in special_tokens.items()},
        _templates(directory, settings),
        settings.get("add_bos_token") is True,
    )


def _backend(directory: Path) -> tokenizers.Tokenizer:
    path = directory / "tokenizer.json"
    if not path.exists():
        others = [name for name in _OTHER_FORMS if (directory / name).exists()]
        if others:
            raise UserError(
                f"'{directory}' holds its tokenizer as {' and '.join(others)} only, which lmlab does not read.",
                "Let transformers write tokenizer.json: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR).",
            )
        raise UserError(
            f"'{directory}' holds no tokenizer.json.", "Name a directory that holds a tokenizer, such as a model's."
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for malformed files
        raise UserError(f"'{path}' is not a tokenizer: {error}.") from None
    # a file that is saved after use still holds what it was last used with, which was meant for that use alone
    backend.no_truncation()
    backend.no_padding()
    return backend


def _mapping(path: Path) -> dict[str, Any]:
    return read_mapping(path) if path.exists() else {}


def _by_id(value: Any, path: Path) -> dict[int, tokenizers.AddedToken]:
    try:
        return {int(id): _token(token) for id, token in value.items()}
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"'{path}': added_tokens_decoder cannot be read ({type(error).__name__}: {error}).") from None


def _token(value: Any, special: bool = False) -> tokenizers.AddedToken:
    """A token of one of the forms in which files give it: its text, or an object with flags."""
    value = value if isinstance(value, dict) else {"content": value}
    flags = {name: bool(value[name]) for name in _FLAGS if name in value}
    return tokenizers.AddedToken(str(value["content"]), special=special or bool(value.get("special")), **flags)


def _text(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _named(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The special tokens with a name, and the others, as the files give them."""
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens")
    own = {key: value for key, value in settings.items() if key.endswith("_token") and key not in NAMES}
    own |= extra if isinstance(extra, dict) else {}
    named = {name: settings.get(name) for name in NAMES} | own
    others = extra if isinstance(extra, list) else []
    return (
        {name: value for name, value in named.items() if _text(value) is not None},
        [value for value in others if _text(value) is not None],
    )


def _add(backend: tokenizers.Tokenizer, token: tokenizers.AddedToken, directory: Path, id: int | None = None) -> None:
    """Add a token unless it is there; make sure that it has the id that is expected."""
    if all(known.content != token.content for known in backend.get_added_tokens_decoder().values()):
        if token.special:
            backend.add_special_tokens([token])
        else:
            backend.add_tokens([token])
    found = backend.token_to_id(token.content)
    if id is not None and found != id:
        raise UserError(
            f"The files in '{directory}' disagree: the token '{token.content}' has the id {id} in one and {found} in"
            " another.",
            "Take all files of the tokenizer from one source.",
        )


def _templates(directory: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name; files go before `tokenizer_config.json`."""
    found = dict(_template_files(directory))
    if found:
        return found
    value = settings.get("chat_template")
    if isinstance(value, list):
        value = {each.get("name"): each.get("template") for each in value if isinstance(each, dict)}
    if isinstance(value, str):
        value = {"default": value}
    return {name: text for name, text in value.items() if isinstance(text, str)} if isinstance(value, dict) else {}


def _template_files(directory: Path) -> Iterator[tuple[str, str]]:
    default, folder = directory / "chat_template.jinja", directory / "additional_chat_templates"
    paths = {"default": default} if default.exists() else {}
    if folder.is_dir():
        paths |= {path.stem: path for path in sorted(folder.glob("*.jinja"))}
    for name, path in paths.items():
        try:
            yield name, path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"'{path}' is not UTF-8 (byte {error.start}).") from None
