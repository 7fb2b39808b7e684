"""Settings of the method's stages and commands; they load nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from lmlab.config import NO_INFLUENCE, Config, FloatPrecision
from lmlab.endpoints.settings import EndpointSettings
from lmlab.hardware.settings import OnDevice
from lmlab.judging import AnswerJudgeConfig
from lmlab.judging.config import PriceTable
from lmlab.runs import Input, ModelInput, VocabularyInput

Book = Literal["open", "closed"]
Overflow = Literal["error", "truncate_middle", "skip"]


class AnswerConfig(OnDevice):
    """How a tutor is asked.

    Attributes:
        book: open shows the chapter with each question; closed asks those alone that can be understood without it.
        format: template is the chat template of the tokenizer; plain is what the published tutors were trained on.
        max_new_tokens: longest answer, in tokens.
        overflow: of a prompt beyond the window: error lists all of them before any answer, truncate_middle cuts the
            middle of the chapter and says so in the row, skip leaves the question out.
        window: tokens that prompt and answer may have together, by default the model's.
        rope_theta: another base of the rotary frequencies for it (auto, auto-ntk, keep, or a number).
        share: read the chapter once for all of its questions.
        batch_tokens: most tokens of prompts in one batch.
        limit: ask only the first questions.
        precision: fp32, bf16, or auto, the faster one here.
    """

    book: Book = "open"
    format: Literal["template", "plain"] = "template"
    max_new_tokens: PositiveInt = 800
    overflow: Overflow = "error"
    window: PositiveInt | None = None
    rope_theta: str | None = None
    share: Annotated[bool, NO_INFLUENCE] = True
    batch_tokens: Annotated[PositiveInt, NO_INFLUENCE] = 32_768
    limit: PositiveInt | None = None
    precision: FloatPrecision = "auto"


class EndpointConfig(EndpointSettings, PriceTable):
    """What may be asked of an endpoint, and what it must not be told.

    Attributes:
        redact: regular expressions; what they find in texts becomes [redacted] before an endpoint gets them.
    """

    redact: tuple[str, ...] = ()


class ScoreConfig(Config):
    """How figures are made of grades.

    Attributes:
        level: what share of intervals is to hold the truth.
        resamples: of the bootstrap over chapters.
        seed: of its draws.
        max_ungraded: more rows without a grade are told of, and end the command with code 3 (share of all rows).
    """

    level: float = Field(default=0.95, gt=0, lt=1)
    resamples: PositiveInt = 2000
    seed: int = 0
    max_ungraded: float = Field(default=0.02, ge=0, le=1)


class FormatConfig(Config):
    """How dialogues become tokens.

    Attributes:
        format: plain is what the published tutors were trained on; template is the chat template of the tokenizer.
        max_len: longest sequence in tokens; a longer one ends with the last turn that fits.
        folders: textbooks whose dialogues are taken, by the folder below `textbooks/`; stem stands for the eight of
            science, and none for all.
        seed: of the roles of exams and of mathematics.
        max_reject_fraction: stop when a larger share of the records cannot be learned from.
    """

    format: Literal["plain", "template"] = "plain"
    max_len: PositiveInt | None = None
    folders: tuple[str, ...] = ()
    seed: int = 0
    max_reject_fraction: float = Field(default=1.0, ge=0, le=1)


class MixConfig(FormatConfig):
    """Dialogues mixed with questions of mathematics, as MathMix is.

    Attributes:
        metamath: questions with their answers (`query` and `response`).
        join: so many of them are one sequence.
        shuffle_seed: of the order of mathematics, and of the mixture.
    """

    metamath: Input | None = None
    join: PositiveInt = 10
    shuffle_seed: NonNegativeInt = 42


class ChatGenerateConfig(Config):
    """How dialogues about chapters are written.

    Attributes:
        scheme: two models talk (two_llm), one request writes the whole dialogue (one_llm), or sentences of the chapter
            are quoted by rule, without a model (rule).
        kinds: openbook, closedbook, and of a single request also studentstart, teacherstart and generateexam.
        per_chapter: dialogues of each kind about a chapter.
        num_turns: turns that a dialogue of two models has at most.
        student_sees_chapter: whether the student has read the chapter; by default in open-book dialogues.
        rule_answers: of dialogues by rule: passage answers with several sentences that explain something, sentence
            with the one that says what a term is.
        max_words: longest chapter in words; a longer one is cut at the end of a paragraph.
        long_chapters: split makes dialogues about all parts of a longer one, of whole paragraphs, in place of its
            beginning alone.
        min_words: shorter chapters and parts are left out.
        max_tokens: longest turn in tokens; of a whole dialogue four times as many.
        temperature, top_p: of the draws of a model.
        seed: of the students and of the draws.
        stop_phrase: ends a dialogue of two models.
        min_turn_words: dialogues with a shorter turn are dropped.
        max_repetition: so many copies of one run of eight words in a dialogue drop it.
        decontaminate: files of questions; dialogues that share 13 words with one are dropped.
        near_duplicate: dialogues that share so large a share of their runs of five words with one before are dropped.
        heldout_fraction: share of the chapters whose dialogues are held out.
    """

    scheme: Literal["two_llm", "one_llm", "rule"] = "two_llm"
    kinds: tuple[Literal["openbook", "closedbook", "studentstart", "teacherstart", "generateexam"], ...] = ("openbook",)
    per_chapter: PositiveInt = 1
    num_turns: PositiveInt = 8
    student_sees_chapter: bool | None = None
    rule_answers: Literal["passage", "sentence"] = "passage"
    max_words: PositiveInt = 3000
    long_chapters: Literal["cut", "split"] = "cut"
    min_words: NonNegativeInt = 200
    max_tokens: PositiveInt = 512
    temperature: NonNegativeFloat = 0.8
    top_p: float = Field(default=0.95, gt=0, le=1)
    seed: int = 0
    stop_phrase: str = "[END]"
    min_turn_words: NonNegativeInt = 2
    max_repetition: PositiveInt = 8
    decontaminate: tuple[str, ...] = ()
    near_duplicate: float = Field(default=0.8, gt=0, le=1)
    heldout_fraction: float = Field(default=0.0, ge=0, lt=1)


class StudentConfig(Config):
    """A simulated student.

    Attributes:
        turns: times that the student speaks, at most.
        level: how much it knows.
        max_tokens: longest turn in tokens.
        seed: of the misconceptions.
    """

    turns: PositiveInt = 4
    level: Literal["beginner", "intermediate", "advanced"] = "beginner"
    max_tokens: PositiveInt = 256
    seed: int = 0


class TutorEvaluateConfig(Config):
    """A stage that asks a tutor, grades its answers and gives figures.

    Attributes:
        model: who answers.
        questions: a set of questions.
        against: an earlier stage of this kind, with which it is compared question by question.
        grading: who grades, and how; by default `coverage`, which asks nobody.
        answers: how the tutor is asked.
        scores: how figures are made.
    """

    model: ModelInput
    questions: Input
    against: Input | None = None
    grading: AnswerJudgeConfig = AnswerJudgeConfig()
    answers: AnswerConfig = AnswerConfig()
    scores: ScoreConfig = ScoreConfig()


class TutorDialoguesConfig(ChatGenerateConfig):
    """A stage that writes dialogues about the chapters of books.

    Attributes:
        chapters: a file, folder or glob of chapters.
        teacher: who writes: rule, local:DIRECTORY, openai:MODEL.
        student: the other one, by default the same.
        endpoint: what may be asked of an endpoint.
    """

    chapters: str
    teacher: str | None = None
    student: str | None = None
    endpoint: EndpointConfig = EndpointConfig()


class TutorMixConfig(MixConfig):
    """A stage that makes tokens of dialogues.

    Attributes:
        dialogues: an earlier stage, or records of TutorChat: JSON lines, Parquet, or a folder.
        tokenizer: whose tokens they become: a directory of a tokenizer or model.
        split: the dialogues of an earlier stage that are taken.
    """

    dialogues: Input | None = None
    tokenizer: VocabularyInput
    split: Literal["train", "heldout"] = "train"
