"""Tutors: what the command line, recipes and the documentation's tables know of the method."""

from lmlab.plugins import Method

METHOD = Method(
    title="Tutors",
    question="Can a model help a student with a whole chapter, and how does one make it better at that?",
    paper="Chevalier et al. 2024",
    url="https://arxiv.org/abs/2402.11111",
    command="tutor",
    cli="lmlab.methods.tutor.cli:app",
    help="Tutors: grade them on whole chapters, build their dialogues, tune them (TutorEval, TutorChat).",
    page="methods/tutor.md",
    published="Llemma-7B-32K-MathMix: 50.0 open book, 45.6 closed book, by GPT-4",
    reached="instead: reading a chapter once for four questions takes 3.5 times less work (SmolLM2)",
    extras=("judge",),
    stages={
        "tutor_evaluate": "lmlab.methods.tutor.stages:TutorEvaluate",
        "tutor_dialogues": "lmlab.methods.tutor.stages:TutorDialogues",
        "tutor_mix": "lmlab.methods.tutor.stages:TutorMix",
    },
    tasks={
        "tutoreval": "lmlab.methods.tutor.task:TutorEval",
        "tutoreval_closedbook": "lmlab.methods.tutor.task:TutorEvalClosedBook",
    },
)
