"""Tutors (Chevalier et al. 2024): what of a dialogue about a chapter is learned.

python examples/tutor.py
"""

from lmlab.methods.tutor import segments_of

record = {
    "mode": "openbook",
    "conversation": ["A parsec is 3.26 light-years.", "How far is a parsec?", "About 3.26 light-years."],
}
for segment in segments_of(record):
    print("learned" if segment.learned else "read   ", repr(segment.text("<s>", "</s>")))
