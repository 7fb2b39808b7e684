"""Control groups, by which Linux limits what processes may take: of a container, a service or a user.

Files are as in Linux's cgroups(7): "number:controllers:path", where version 2 names no controllers. A container may see
its own group as the root, whatever its path is.
"""

from __future__ import annotations

from pathlib import Path

_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def limits(controller: str, unified: str, own: str) -> list[str]:
    """What the files of a limit say, of the group of this process and of all that it lies within; those that cannot be
    read are left out.

    Arguments:
        controller: of version 1, such as "memory".
        unified: the file of version 2.
        own: the file of version 1.
    """
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    files = [_GROUPS / unified, _GROUPS / controller / own]
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        root, name = (_GROUPS, unified) if not controllers else (_GROUPS / controller, own)
        if not controllers or controller in controllers.split(","):
            group = root / path.lstrip("/")
            files += [each / name for each in (group, *group.parents) if each.is_relative_to(root)]
    found = []
    for file in files:
        try:
            found.append(file.read_text(encoding="ascii").strip())
        except (OSError, UnicodeDecodeError):
            continue
    return found
