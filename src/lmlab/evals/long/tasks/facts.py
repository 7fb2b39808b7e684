"""Facts that are told in the words of a question, and in other words: the second can only be found by knowing what it
implies.
"""

from __future__ import annotations

from dataclasses import dataclass

NAMES = (
    "Yuki",
    "Diego",
    "Stuart",
    "Veronica",
    "Calvin",
    "Katie",
    "Mandy",
    "Gary",
    "Megan",
    "Caroline",
    "Ravi",
    "Ingrid",
)


@dataclass(frozen=True)
class Fact:
    """One fact of a person.

    Attributes:
        question: asks who it is.
        literal: says it in the question's words.
        implied: implies it, and shares no word of content with the question.
    """

    question: str
    literal: str
    implied: str


FACTS = (
    Fact("Who has been to France?", "{name} has been to France.", "{name} lives next to the Eiffel Tower."),
    Fact("Who has been to Egypt?", "{name} has been to Egypt.", "{name} works beside the pyramids of Giza."),
    Fact("Who has been to Italy?", "{name} has been to Italy.", "{name} rents a room by the Colosseum."),
    Fact("Who has been to Japan?", "{name} has been to Japan.", "{name} studies at a school in Kyoto."),
    Fact("Who has been to Russia?", "{name} has been to Russia.", "{name} sells books near the Kremlin."),
    Fact("Who cannot eat fish?", "{name} cannot eat fish.", "{name} is a strict vegan."),
    Fact("Who cannot drink milk?", "{name} cannot drink milk.", "{name} is lactose intolerant."),
    Fact("Who plays an instrument?", "{name} plays an instrument.", "{name} practices the violin daily."),
    Fact("Who has a dog?", "{name} has a dog.", "{name} walks a poodle every evening."),
    Fact("Who knows about medicine?", "{name} knows about medicine.", "{name} is a surgeon at the hospital."),
)
