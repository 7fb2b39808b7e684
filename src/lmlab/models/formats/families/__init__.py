"""Hugging Face architectures as a table: the features each has, what its configuration calls them, and what it calls
each tensor. Nothing else knows a family by its name.
"""

from lmlab.models.formats.families.dense import DENSE
from lmlab.models.formats.families.encoders import ENCODERS
from lmlab.models.formats.families.gemma import GEMMA
from lmlab.models.formats.families.gpt import GPT
from lmlab.models.formats.families.mixtures import MIXTURES

FAMILIES = (*DENSE, *GEMMA, *MIXTURES, *GPT, *ENCODERS)

__all__ = ["FAMILIES"]
