"""A filter of system calls for code that has no business with the kernel: a program of classic BPF (seccomp(2)).

What it denies fails with EPERM, a socket of a family that no network namespace holds with EAFNOSUPPORT. Numbers are
those of Linux's system call tables.
"""

from __future__ import annotations

import platform
import struct

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_* of linux/audit.h
# From 424 on Linux numbers its system calls alike on all architectures
_DENIED_EVERYWHERE = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
}
_DENIED = {
    "x86_64": {
        "ptrace": 101,
        "syslog": 103,
        "pivot_root": 155,
        "acct": 163,
        "mount": 165,
        "umount2": 166,
        "swapon": 167,
        "swapoff": 168,
        "reboot": 169,
        "init_module": 175,
        "delete_module": 176,
        "quotactl": 179,
        "kexec_load": 246,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "unshare": 272,
        "perf_event_open": 298,
        "open_by_handle_at": 304,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "finit_module": 313,
        "kexec_file_load": 320,
        "bpf": 321,
        "userfaultfd": 323,
        **_DENIED_EVERYWHERE,
    },
    "aarch64": {
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "quotactl": 60,
        "acct": 89,
        "unshare": 97,
        "kexec_load": 104,
        "init_module": 105,
        "delete_module": 106,
        "syslog": 116,
        "ptrace": 117,
        "reboot": 142,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "swapon": 224,
        "swapoff": 225,
        "perf_event_open": 241,
        "open_by_handle_at": 265,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "finit_module": 273,
        "bpf": 280,
        "userfaultfd": 282,
        "kexec_file_load": 294,
        **_DENIED_EVERYWHERE,
    },
}
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of linux/bpf_common.h: ld [k], jeq, jge, ret
# Of linux/seccomp.h; an error carries its number.
_ALLOW, _KILL, _EPERM, _EAFNOSUPPORT = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050061
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; the lower half of the argument
_SOCKET = {"x86_64": 41, "aarch64": 198}  # numbers of socket(2)
# Unix, IPv4, IPv6, netlink. Others reach past the network's namespace: vsock to the machine that this one runs in
_FAMILIES = (1, 2, 10, 16)
_X32 = 0x40000000  # calls of the x32 interface have other numbers for the same things


def seccomp_filter(machine: str | None = None) -> bytes | None:
    """The program as `bwrap --seccomp` reads it; None for a machine whose numbers are not known here."""
    machine = machine or platform.machine()
    if machine not in _DENIED:
        return None
    numbers = sorted(_DENIED[machine].values())
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    tests = [(_AT_LEAST, _X32)] if machine == "x86_64" else []
    tests += [(_EQUAL, number) for number in numbers]
    tests.append((_EQUAL, _SOCKET[machine]))
    for place, (kind, number) in enumerate(tests):
        is_socket = place == len(tests) - 1
        program.append((kind, len(tests) - place + is_socket, 0, number))
    families = [(_EQUAL, len(_FAMILIES) - place, 0, family) for place, family in enumerate(_FAMILIES)]
    program += [
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _EPERM),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *families,
        (_RETURN, 0, 0, _EAFNOSUPPORT),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *each) for each in program)
