"""Segments to tokens, labels and turns; records by the plain format or by any chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmlab.data import ChatConfig, ChatEncoder, Reject, Tokenizer
from lmlab.methods.tutor.dialogues.record import NothingLearned, UnfitRecord, kind_of, turns_of
from lmlab.methods.tutor.dialogues.segments import ASSISTANT, USER, Segment, Special, segments_of, split_dialogue
from lmlab.methods.tutor.dialogues.wording import chapter_part

IGNORED = -100
"""The label of a token that the loss does not count."""
Format = Literal["plain", "template"]


@dataclass(frozen=True)
class FormattedDialogue:
    """A dialogue as tokens.

    Attributes:
        ids: of all tokens.
        labels: the id of each token that is learned, and -100 elsewhere.
        segments: the number of the segment that each token belongs to.
        text: what it reads as, with special tokens spelled.
        turns_cut: segments that are left out at its end because it was too long.
    """

    ids: list[int]
    labels: list[int]
    segments: list[int]
    text: str
    turns_cut: int = 0

    @property
    def mask(self) -> list[int]:
        """1 at tokens that are learned."""
        return [int(label != IGNORED) for label in self.labels]


def encode_segments(segments: Sequence[Segment], tokenizer: Tokenizer, max_len: int | None = None) -> FormattedDialogue:
    """Each piece tokenized on its own.

    Arguments:
        max_len: most tokens; what is longer ends with the last segment that fits.

    Raises:
        NothingLearned: no token that is learned is left.
    """
    special = {Special.BEGIN: [tokenizer.bos_id], Special.END: [tokenizer.eos_id]}
    ids: list[int] = []
    labels: list[int] = []
    numbers: list[int] = []
    kept = 0
    for number, segment in enumerate(segments):
        found = [
            id
            for piece in segment.pieces
            for id in (special[piece] if isinstance(piece, Special) else tokenizer.encode(piece, "as_text"))
        ]
        if max_len is not None and len(ids) + len(found) > max_len:
            break
        ids += found
        labels += found if segment.learned else [IGNORED] * len(found)
        numbers += [number] * len(found)
        kept += 1
    if not any(segment.learned for segment in segments[:kept]):
        raise NothingLearned("no learned token" + ("" if kept == len(segments) else f" within {max_len} tokens"))
    text = "".join(each.text(tokenizer.bos_token, tokenizer.eos_token) for each in segments[:kept])
    return FormattedDialogue(ids, labels, numbers, text, len(segments) - kept)


def format_record(
    record: Mapping[str, Any],
    tokenizer: Tokenizer,
    max_len: int | None = None,
    seed: int = 0,
    format: Format = "plain",
) -> FormattedDialogue:
    """A record of TutorChat as tokens, with what is learned of it.

    Arguments:
        max_len: most tokens.
        seed: of the roles of exams.
        format: the plain format, or the tokenizer's chat template.

    Raises:
        UnfitRecord: nothing can be learned from it; its class says why.
        UserError: a template is asked for, and the tokenizer has none.
    """
    if format == "plain":
        return encode_segments(segments_of(record, seed), tokenizer, max_len)
    messages = [{"role": role, "content": text} for role, text in messages_of(record)]
    found = ChatEncoder(tokenizer, ChatConfig(max_len=max_len)).example({"messages": messages}, "the record")
    if isinstance(found, Reject):
        raise NothingLearned(found.reason)
    labels = [id if learned else IGNORED for id, learned in zip(found.ids, found.mask, strict=True)]
    text = tokenizer.backend.decode(found.ids, skip_special_tokens=False)
    return FormattedDialogue(found.ids, labels, [0] * len(labels), text, found.left_out)


def messages_of(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Roles and texts of a record, for chat templates; the chapter stands before the first question, in the words in
    which a tutor is asked about one.

    Raises:
        UnfitRecord: as `segments_of`.
    """
    kind, turns = kind_of(record), turns_of(record)
    if kind in ("openbook", "closedbook"):
        spoken = [("assistant" if n % 2 == 0 else "user", turn) for n, turn in enumerate(turns)]
        chapter, spoken = (turns[0], spoken[1:]) if kind == "openbook" else (None, spoken)
    else:
        roles = (ASSISTANT, USER) if kind == "teacherstart" else (USER, ASSISTANT)
        spoken = [(role.strip(" \n:"), turn) for role, turn in split_dialogue(turns[-1], kind, roles)]
        chapter = turns[0] if kind == "studentstart" and len(turns) > 1 else None
    if chapter is not None and spoken:
        spoken = [(spoken[0][0], chapter_part(chapter) + spoken[0][1]), *spoken[1:]]
    return spoken


__all__ = ["IGNORED", "Format", "FormattedDialogue", "UnfitRecord", "encode_segments", "format_record", "messages_of"]
