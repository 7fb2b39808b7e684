from .dialogues.encode import FormattedDialogue, encode_segments, format_record
from .dialogues.mix import write_dialogues
from .dialogues.segments import segments_of

__all__ = ["FormattedDialogue", "encode_segments", "format_record", "segments_of", "write_dialogues"]
