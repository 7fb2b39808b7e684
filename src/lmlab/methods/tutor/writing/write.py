"""Dialogues about chapters, in a folder: resumable, paid for once, and each with what it was made by."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmlab.data import Reject
from lmlab.data.chapters.chapter import Chapter, split_at_paragraphs
from lmlab.data.chapters.source import read_chapters
from lmlab.endpoints import Backend, ChatRequest, Endpoint, Estimate, Reply, answer, estimate, make_backend
from lmlab.errors import UserError
from lmlab.evals.rows import Row, RowFile
from lmlab.files import sha256_json, write_json, write_jsonl
from lmlab.methods.tutor.config import ChatGenerateConfig
from lmlab.methods.tutor.dialogues.encode import UnfitRecord
from lmlab.methods.tutor.dialogues.record import Kind
from lmlab.methods.tutor.dialogues.segments import segments_of
from lmlab.methods.tutor.endpoints import UNANSWERED, without_private
from lmlab.methods.tutor.writing.gates import Gates
from lmlab.methods.tutor.writing.roles import (
    BEGIN,
    drawn_character,
    one_request,
    prompts_hash,
    student_system,
    teacher_system,
)
from lmlab.methods.tutor.writing.rule import rule_dialogue
from lmlab.progress import progress
from lmlab.runs import Results

ROWS, REPLIES = "rows.jsonl", "replies.sqlite"
_AT_ONCE = 64  # dialogues whose turns are asked for together; a killed command has the others whole
_OF_TWO: tuple[Kind, ...] = ("openbook", "closedbook")
_OF_ONE: tuple[Kind, ...] = ("studentstart", "teacherstart", "generateexam")


@dataclass
class Dialogue:
    """A dialogue under way.

    Attributes:
        turns: what was said, the first speaker's first; of a dialogue in one piece that piece.
        stop_reason: None as long as it goes on.
    """

    id: str
    kind: Kind
    chapter: Chapter
    number: int
    character: str
    turns: list[str] = field(default_factory=list)
    stop_reason: str | None = None
    usage: Counter[str] = field(default_factory=Counter)
    cost_usd: float | None = 0.0

    @property
    def teacher_speaks(self) -> bool:
        """Whether the next turn is the teacher's."""
        return len(self.turns) % 2 == (1 if self.kind == "openbook" else 0)


class WritingAccount(Results):
    """What became of the dialogues.

    Attributes:
        chapters: that were read; `chapters_left_out` were no chapters, by the reason.
        kept, heldout: dialogues, by kind.
        dropped: by the gate.
        cost_usd: None where the price is not known.
    """

    chapters: int
    chapters_left_out: dict[str, int]
    kept: dict[str, int]
    heldout: dict[str, int]
    dropped: dict[str, int]
    tokens: dict[str, int]
    cost_usd: float | None
    generator: str
    prompt_hash: str


def write_about(
    place: str,
    config: ChatGenerateConfig,
    teacher: Endpoint | None,
    directory: str | Path,
    student: Endpoint | None = None,
    backends: tuple[Backend | None, Backend | None] = (None, None),
    redact: tuple[str, ...] = (),
) -> WritingAccount:
    """Write dialogues about the chapters of a file or folder: `train.jsonl` and `heldout.jsonl` in TutorChat's form,
    `dropped.jsonl` and `generate.json`.

    Arguments:
        teacher: who writes; None for dialogues by rule.
        student: the other one, by default the same.
        backends: who answers, in place of those that the endpoints name.
        redact: what these regular expressions find is not sent.

    Raises:
        UserError: there are no chapters, or kinds that the scheme has not; or as the client.
        BudgetExceeded, EndpointUnavailable, Interrupted: as `lmlab.endpoints.answer`; everything that came is kept.
    """
    directory = Path(directory)
    chapters, left_out = _chapters(place, config)
    jobs = dialogues_for(chapters, config)
    speakers = _Speakers(config, teacher, student, backends, directory / REPLIES, redact)
    key = sha256_json([config.model_dump(mode="json"), speakers.names, prompts_hash(), *redact])[:16]
    rows = RowFile(directory / ROWS)
    done = {
        id: row for id, row in rows.done().items() if row.get("made_by") == key and row["stop_reason"] not in UNANSWERED
    }
    left = [job for job in jobs if job.id not in done]
    with progress("write", len(left), "dialogues") as advance:
        for start in range(0, len(left), _AT_ONCE):
            block = left[start : start + _AT_ONCE]
            speakers.write(block)
            for job in block:
                rows.append(_row(job, speakers, config, key))
                advance(1)
    rows.close()
    found = {id: row for id, row in rows.done().items() if row.get("made_by") == key}
    made = [found[job.id] for job in jobs if job.id in found]
    write_jsonl(rows.path, made)
    for part in directory.glob("rows.part-*.jsonl"):
        part.unlink()
    num_chapters = len({each.path for each in chapters})  # of which there may be parts
    return _kept(made, {job.id: job.chapter for job in jobs}, config, directory, num_chapters, left_out, speakers)


def estimate_writing(
    place: str, config: ChatGenerateConfig, teacher: Endpoint, directory: Path
) -> tuple[int, Estimate]:
    """How many dialogues there will be, and what their first requests will cost at least; nothing is sent."""
    jobs = dialogues_for(_chapters(place, config)[0], config)
    speakers = _Speakers(config, teacher, None, (None, None), directory / REPLIES)
    turns = config.num_turns if config.scheme == "two_llm" else 1
    requests = [speakers.request(job) for job in jobs for _ in range(1)]
    found = estimate(teacher, requests, directory / REPLIES)
    return len(jobs) * turns, found


def dialogues_for(chapters: Sequence[Chapter], config: ChatGenerateConfig) -> list[Dialogue]:
    """The dialogues that there are to be, by chapter.

    Raises:
        UserError: a kind that the scheme has not.
    """
    allowed = {"two_llm": _OF_TWO, "one_llm": _OF_ONE, "rule": ("openbook",)}[config.scheme]
    if wrong := [kind for kind in config.kinds if kind not in allowed]:
        raise UserError(
            f"The scheme {config.scheme} has no dialogues of the kind '{wrong[0]}'.", f"It has: {', '.join(allowed)}."
        )
    found = []
    for chapter in chapters:
        content = hashlib.sha256(chapter.text.encode()).hexdigest()[:16]
        for kind in config.kinds:
            for number in range(config.per_chapter):
                id = sha256_json([chapter.path, content, kind, number])[:16]
                character = drawn_character(config.seed, id)
                found.append(Dialogue(id, kind, chapter, number, character))
    return found


def _chapters(place: str, config: ChatGenerateConfig) -> tuple[list[Chapter], dict[str, int]]:
    left_out: Counter[str] = Counter()
    chapters = []
    split = config.long_chapters == "split"
    for each in read_chapters(place, min_words=config.min_words, max_words=None if split else config.max_words):
        if isinstance(each, Reject):
            left_out["too short" if "(min_words)" in each.reason else each.reason.partition(":")[0]] += 1
        else:
            parts = split_at_paragraphs(each, config.max_words) if split else [each]
            chapters += [part for part in parts if part.num_words >= config.min_words]
    if not chapters:
        told = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise UserError(
            f"'{place}' holds no chapter of {config.min_words} words or more ({told}).", "Lower --min-words."
        )
    return chapters, dict(left_out)


class _Speakers:
    """Lets dialogues go on, one turn of all at a time."""

    def __init__(
        self,
        config: ChatGenerateConfig,
        teacher: Endpoint | None,
        student: Endpoint | None,
        backends: tuple[Backend | None, Backend | None],
        cache: Path,
        redact: tuple[str, ...] = (),
    ) -> None:
        if config.scheme != "rule" and teacher is None:
            raise UserError(
                f"The scheme {config.scheme} needs a model that writes.", "Name one: --teacher local:DIRECTORY."
            )
        self.config, self.cache, self.redact = config, cache, redact
        self.teacher, self.student = teacher, student or teacher
        made = [
            backend or (make_backend(each) if each is not None and each.backend == "local" else None)
            for backend, each in zip(backends, (teacher, student), strict=True)
        ]
        self._backends = made if student is not None else [made[0], made[0]]

    @property
    def names(self) -> list[str]:
        """Who plays the teacher, and who the student."""
        pair = [self.teacher] if self.config.scheme == "one_llm" else [self.teacher, self.student]
        return ["rule" if each is None else f"{each.backend}:{each.model}" for each in pair]

    def write(self, jobs: Sequence[Dialogue]) -> None:
        """Bring dialogues to their ends."""
        if self.config.scheme == "rule":
            for job in jobs:
                job.turns = self._by_rule(job)
                job.stop_reason = "rule" if job.turns else "nothing is defined"
            return
        most = 1 if self.config.scheme == "one_llm" else self.config.num_turns
        for _ in range(most):
            for teacher in (True, False):
                going = [job for job in jobs if job.stop_reason is None and len(job.turns) < most]
                speaking = [job for job in going if self._is_teachers(job) == teacher]
                self._ask(speaking, teacher)
        for job in jobs:
            job.stop_reason = job.stop_reason or "num_turns"

    def _by_rule(self, job: Dialogue) -> list[str]:
        config = self.config
        return rule_dialogue(job.chapter, config.seed, job.number, config.num_turns, config.rule_answers) or []

    def _is_teachers(self, job: Dialogue) -> bool:
        return self.config.scheme == "one_llm" or job.teacher_speaks

    def _ask(self, jobs: Sequence[Dialogue], teacher: bool) -> None:
        endpoint = self.teacher if teacher else self.student
        if not jobs or endpoint is None:
            return

        def take(number: int, reply: Reply) -> None:
            self._take(jobs[number], reply, teacher)

        requests = [without_private(self.request(job), self.redact) for job in jobs]
        answer(endpoint, requests, take, self.cache, self._backends[0 if teacher else 1])

    def request(self, job: Dialogue) -> ChatRequest:
        """What is asked for the next turn of a dialogue."""
        config, subject = self.config, _subject(job.chapter)
        options: dict[str, Any] = {"temperature": config.temperature, "top_p": config.top_p, "seed": _seed(config, job)}
        if config.scheme == "one_llm":
            text = one_request(job.kind, job.character, config.num_turns, job.chapter.text)
            # all turns come in one answer
            return ChatRequest(({"role": "user", "content": text},), max_tokens=4 * config.max_tokens, **options)
        sees = config.student_sees_chapter if config.student_sees_chapter is not None else job.kind == "openbook"
        if job.teacher_speaks:
            system = teacher_system(subject, job.chapter.text, leads=job.kind == "closedbook")
        else:
            chapter = job.chapter.text if sees else None
            system = student_system(subject, job.character, config.stop_phrase, chapter)
        # each side hears the other as its user, and begins where there is nothing to answer yet
        said = [
            {"role": "assistant" if (len(job.turns) - place) % 2 == 0 else "user", "content": turn}
            for place, turn in enumerate(job.turns)
        ]
        if not said or said[0]["role"] == "assistant":
            begin = BEGIN["teacher" if job.teacher_speaks else "student"]
            said = [{"role": "user", "content": begin}, *said]
        return ChatRequest(({"role": "system", "content": system}, *said), max_tokens=config.max_tokens, **options)

    def _take(self, job: Dialogue, reply: Reply, teacher: bool) -> None:
        job.usage.update(prompt=reply.usage.prompt, completion=reply.usage.completion)
        job.cost_usd = None if reply.paid_usd is None or job.cost_usd is None else job.cost_usd + reply.paid_usd
        if reply.status != "ok" or reply.text is None:
            job.stop_reason = reply.status if reply.status != "context_length_exceeded" else "context_length"
            return
        text, stop, _ = reply.text.partition(self.config.stop_phrase)
        if text := text.strip():
            job.turns.append(text)
        if stop:
            job.stop_reason = "stop_phrase"
        elif not text:
            job.stop_reason = "empty"


def _row(job: Dialogue, speakers: _Speakers, config: ChatGenerateConfig, key: str) -> Row:
    """The record of a dialogue in the form of TutorChat, with what it was made by."""
    turns = list(job.turns)
    if job.kind in _OF_TWO and turns and len(turns) % 2 == (1 if job.kind == "openbook" else 0):
        turns.pop()  # of the student, whom nobody answers any more
    single = job.kind in _OF_ONE
    conversation = turns if job.kind == "closedbook" else [job.chapter.text, *turns]
    folder = f"textbooks/{job.chapter.domain}/{job.chapter.book}"
    names = speakers.names
    return {
        "id": job.id,
        "conversation": conversation,
        "mode": "singleturn" if single else job.kind,
        "name": f"singleturn_{job.kind}" if single else f"{job.kind}_{config.scheme}",
        "stop_reason": job.stop_reason,
        "textbook_folder": folder,
        "path_to_chapter": job.chapter.path,
        "speak0": names[-1] if job.kind == "openbook" else names[0],
        "speak1": names[0] if job.kind == "openbook" else names[-1],
        "num_turns": len(turns),
        "character": job.character,
        "generator": " and ".join(dict.fromkeys(names)),
        "prompt_hash": prompts_hash(),
        "seed": config.seed,
        "usage": dict(job.usage),
        "cost_usd": job.cost_usd if job.usage else None,
        "made_by": key,
    }


def _kept(
    rows: Sequence[Row],
    chapters: dict[str, Chapter],
    config: ChatGenerateConfig,
    directory: Path,
    num_chapters: int,
    left_out: dict[str, int],
    speakers: _Speakers,
) -> WritingAccount:
    """Put rows through the gates, and write what is kept and what is dropped."""
    gates = Gates(config)
    parts: dict[str, list[Row]] = {"train": [], "heldout": [], "dropped": []}
    dropped: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {"train": Counter(), "heldout": Counter()}
    for row in rows:
        kind: Kind = next(each for each in (*_OF_TWO, *_OF_ONE) if each in (row["mode"], row["name"].split("_")[-1]))
        turns = row["conversation"] if kind == "closedbook" else row["conversation"][1:]
        if not turns and config.scheme == "rule":
            continue  # chapters define what they define: there is nothing that was dropped
        reason = gates.reason(kind, turns, chapters[row["id"]].text) if turns else f"empty: {row['stop_reason']}"
        if reason is not None:
            dropped[reason.partition(":")[0]] += 1
            parts["dropped"].append({**row, "reason": reason})
            continue
        part = "heldout" if _is_heldout(row["path_to_chapter"], config) else "train"
        kinds[part][kind] += 1
        parts[part].append({**row, "processed_conversation": _processed(row)})
    for name, found in parts.items():
        write_jsonl(directory / f"{name}.jsonl", found)
    costs = [row["cost_usd"] for row in rows if row["usage"]]
    tokens: Counter[str] = Counter()
    for row in rows:
        tokens.update(row["usage"])
    account = WritingAccount(
        chapters=num_chapters,
        chapters_left_out=left_out,
        kept=dict(kinds["train"]),
        heldout=dict(kinds["heldout"]),
        dropped=dict(dropped),
        tokens=dict(tokens),
        cost_usd=sum(costs) if costs and None not in costs else None,
        generator=" and ".join(dict.fromkeys(speakers.names)),
        prompt_hash=prompts_hash(),
    )
    write_json(directory / "generate.json", account.to_json())
    return account


def _processed(row: Row) -> str:
    """What is learned from, with the marks that the published records spell."""
    try:
        return "".join(each.text("<s>", "</s>") for each in segments_of(row, row["seed"]))
    except UnfitRecord:
        return ""


def _is_heldout(path: str, config: ChatGenerateConfig) -> bool:
    """Whether the dialogues about a chapter are held out: a draw by its path alone."""
    drawn = int.from_bytes(hashlib.sha256(f"{config.seed}:{path}".encode()).digest()[:8])
    return drawn < config.heldout_fraction * 2**64


def _subject(chapter: Chapter) -> str:
    known = {"phys": "physics", "bio": "biology", "chem": "chemistry", "geo": "geoscience", "eng": "engineering",
             "math": "mathematics", "med": "medicine", "stats": "statistics", "text": "science"}  # fmt: skip
    return known.get(chapter.domain, chapter.domain)


def _seed(config: ChatGenerateConfig, job: Dialogue) -> int:
    """Another one for each turn of each dialogue, so that equal questions need not have equal answers."""
    return int.from_bytes(hashlib.sha256(f"{config.seed}:{job.id}:{len(job.turns)}".encode()).digest()[:4])


def told(account: WritingAccount) -> Iterator[str]:
    """What became of the dialogues, in sentences."""
    kept = ", ".join(f"{count:,} {kind}" for kind, count in account.kept.items()) or "none"
    yield f"{account.chapters:,} chapters; kept: {kept}, and {sum(account.heldout.values()):,} held out."
    if account.dropped:
        yield "Dropped: " + ", ".join(f"{count:,} by {gate}" for gate, count in account.dropped.items()) + "."
    if account.chapters_left_out:
        yield "No chapters: " + ", ".join(f"{n:,} {reason}" for reason, n in account.chapters_left_out.items()) + "."
    if account.cost_usd is not None:
        yield f"Cost: ${account.cost_usd:.4f}."
