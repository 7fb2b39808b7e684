"""What a model is told that plays a teacher or a student, or writes both."""

from __future__ import annotations

import random

from lmlab.files import sha256_json
from lmlab.judging import fenced
from lmlab.methods.tutor.dialogues.record import Kind

TEACHER = (
    "You are a teacher of {subject} who talks with a student about a chapter of a textbook. What you say is correct,"
    " and where something does not follow from the chapter and you are not sure of it, you say so. You explain in"
    " steps that the student can follow, build on what the student has understood, and encourage. You never invent a"
    " reference, a name, a year or a number. Say one turn at a time, in a few short paragraphs, and write nothing of"
    " the student."
)
LEADS = (
    " You lead the lesson: you introduce one idea after the other, ask short questions, and take up what comes back."
)
STUDENT = (
    "You are a student of {subject}. You talk with your teacher about a chapter of a textbook. {character} Say one"
    " turn at a time, in one to four sentences, as a student would speak, and write nothing of the teacher. When you"
    " have no more questions, say good-bye and end with {stop}."
)
CHARACTERS = {
    "curious": "You are curious: you want to know why things are so, and what follows from them.",
    "confused": "You are confused by a step that others find easy, and say what you do not understand.",
    "wrong": "You have understood one thing wrongly, and argue from it until you are shown the mistake.",
    "proof": "You do not take things for granted: you ask for a proof, or for the evidence.",
    "example": "You understand best by examples, and ask for one with numbers or names.",
    "application": "You want to know what it is good for, and ask where it is used.",
}
"""What students are like; one is drawn for each dialogue."""
CHAPTER = "The chapter:\n{chapter}"
BEGIN = {"student": "Ask your first question about the chapter.", "teacher": "Begin the lesson."}
ONE_LLM = {
    "studentstart": (
        "Write a dialogue between a student, who begins, and a teacher, about the chapter below. {character} The"
        " teacher answers correctly and in steps, encourages, and invents no references. Write {turns} turns. Begin"
        " each turn of the student with STUDENT: and each of the teacher with TEACHER:, and put ### before and after"
        " the whole dialogue."
    ),
    "teacherstart": (
        "Write a lesson as a dialogue between a teacher, who begins and leads, and a student, about what the chapter"
        " below says. {character} Nobody speaks of the chapter itself: whoever reads the lesson does not have it. The"
        " teacher is correct, goes on in steps, and invents no references. Write {turns} turns. Begin each turn of"
        " the teacher with TEACHER: and each of the student with STUDENT:, and put ### before and after the whole"
        " dialogue."
    ),
    "generateexam": (
        "Write an exam on what the chapter below says: {turns} questions of rising difficulty, each with a full and"
        " correct answer that explains its steps. Whoever reads the exam does not have the chapter. Begin each"
        " question with QUESTION: and each answer with ANSWER:, and put ### before and after all of them."
    ),
}


def prompts_hash() -> str:
    """What tells one wording from another."""
    return sha256_json([TEACHER, LEADS, STUDENT, CHARACTERS, CHAPTER, BEGIN, ONE_LLM])[:16]


def drawn_character(seed: int, key: str) -> str:
    """The name of a character, by the seed and the dialogue alone."""
    return random.Random(f"{seed}:{key}").choice(sorted(CHARACTERS))


def teacher_system(subject: str, chapter: str, leads: bool) -> str:
    """The system message of a teacher, who sees the chapter."""
    return f"{TEACHER.replace('{subject}', subject)}{LEADS if leads else ''}\n\n{_chapter(chapter)}"


def student_system(subject: str, character: str, stop: str, chapter: str | None) -> str:
    """The system message of a student, who sees the chapter or not."""
    text = STUDENT.replace("{subject}", subject).replace("{character}", CHARACTERS[character]).replace("{stop}", stop)
    return text if chapter is None else f"{text}\n\n{_chapter(chapter)}"


def one_request(kind: Kind, character: str, turns: int, chapter: str) -> str:
    """The one message by which a model writes a whole dialogue."""
    text = ONE_LLM[kind].replace("{turns}", str(turns)).replace("{character}", _of_student(character))
    return f"{text}\n\n{_chapter(chapter)}"


def _chapter(chapter: str) -> str:
    return CHAPTER.replace("{chapter}", fenced(chapter))


def _of_student(character: str) -> str:
    """What a student is like, in the third person."""
    text = CHARACTERS[character]
    for mine, theirs in (
        ("You are", "The student is"),
        ("You have", "The student has"),
        ("You do", "The student does"),
    ):
        text = text.replace(mine, theirs)
    text = text.replace("You understand", "The student understands").replace("You want", "The student wants")
    for mine, theirs in ((": you ask", ": it asks"), (": you want", ": it wants"), ("you do not", "it does not")):
        text = text.replace(mine, theirs)
    return text.replace("you are", "it is")
