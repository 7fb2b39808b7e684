"""Where jobs run; alone in its file, as configurations need its name and none of what starts processes."""

from typing import Literal

Backend = Literal["processes", "ray"]
