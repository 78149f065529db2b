"""What runs before generated code, in its process: limits, then a filter on system calls that nothing later can take off.

Started by ``sandbox`` as a script of its own; imports nothing of Hasten. Standard input holds one JSON line: limits, program.
Standard output gets the secret when the program came to its end, else a line that says why not; what the program itself prints goes
nowhere. Refused to it (EPERM): sockets, other programs and processes, threads, signals, every change of files, opening files for
writing. Files that the user may read can still be read, but nothing of them can leave the process.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import struct
import sys

# Numbers of refused calls, in the kernel's tables of both processors.
REFUSED = {
    "x86_64": (
        *(41, 42, 43, 44, 45, 46, 47, 49, 50, 53, 288, 299, 307),  # sockets
        *(56, 57, 58, 59, 322, 435),  # clone, fork, vfork, execve, execveat, clone3
        *(62, 101, 200, 234, 310, 311, 424, 434, 438),  # kill, ptrace, other processes' memory and descriptors
        *(76, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94, 132, 133, 188, 189, 190, 235),  # changes of files
        *(258, 259, 260, 261, 263, 264, 265, 266, 268, 280, 316, 452),
        *(155, 161, 165, 166, 272, 308, 428, 429, 430, 431, 432, 433, 442),  # mounts and name spaces
        *(160, 302),  # limits
        *(248, 249, 250, 298, 303, 304, 319, 321, 323, 425, 426, 427, 437),  # keys, handles, memfd, bpf, io_uring, openat2
    ),
    "aarch64": (
        *(198, 199, 200, 201, 202, 203, 206, 207, 211, 212, 242, 243, 269),
        *(220, 221, 281, 435),
        *(117, 129, 130, 131, 270, 271, 424, 434, 438),
        *(5, 6, 7, 33, 34, 35, 36, 37, 38, 45, 52, 53, 54, 55, 88, 276, 452),
        *(39, 40, 41, 51, 97, 268, 428, 429, 430, 431, 432, 433, 442),
        *(164, 261),
        *(217, 218, 219, 241, 264, 265, 279, 280, 282, 425, 426, 427, 437),
    ),
}
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
OPENING = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}  # call, and which argument holds the flags
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # REFUSE carries EPERM
SET_NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2


def program_of_filter(machine: str) -> bytes:
    """The filter as BPF instructions: code, jump if true, jump if false, operand."""
    out = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, ARCHITECTURE[machine]), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    if machine == "x86_64":
        out += [(AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, REFUSE)]  # the other table of numbers, of 32-bit pointers
    for number in REFUSED[machine]:
        out += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    for number, argument in OPENING[machine]:
        out += [(EQUAL, 0, 4, number), (LOAD, 0, 0, 16 + 8 * argument), (ANY_BIT, 0, 1, WRITING), (RETURN, 0, 0, REFUSE)]
        out.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in [*out, (RETURN, 0, 0, ALLOW)])


def limit(seconds: int, memory: int) -> None:
    """Processor time and memory; no files of any size, few descriptors, no core files."""
    limits = ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0))
    for what, most in (*limits, (resource.RLIMIT_NOFILE, 16), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))


def lock() -> None:
    """Put the filter on. Raises OSError where the kernel has none: then nothing may run."""
    library = ctypes.CDLL(None, use_errno=True)
    code = program_of_filter(platform.machine())
    kept = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(kept))
    if library.prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or library.prctl(SET_SECCOMP, FILTER, header, 0, 0):
        raise OSError(ctypes.get_errno(), "this kernel offers no filter of system calls")


def main() -> None:
    asked = json.loads(sys.stdin.readline())
    secret = asked["secret"]
    told = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    limit(asked["seconds"], asked["memory"])
    try:
        lock()
        exec(compile(asked["program"], "<generated>", "exec"), {"__name__": "__generated__"})
        said = secret
    except SystemExit:
        said = "it left early"
    except BaseException as problem:
        said = f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
    os.write(told, said.encode("utf-8", "replace"))
    os._exit(0)


if __name__ == "__main__":
    main()
