"""Tutors (Chevalier et al. 2024, "Language Models as Science Tutors"): questions about whole chapters, answers graded
by key points, dialogues between teachers and students, and models tuned on them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
