"""What runs before generated code, in its process: limits, then a filter on system calls that nothing later can take off.

Started by ``sandbox`` as a script of its own; imports nothing of Hasten. Standard input holds one JSON line: limits, program.
Standard output gets the secret when the program came to its end, else a line that says why not; what the program itself prints goes
nowhere. It may compute, look at files and open them for reading. All else is refused (EPERM): sockets, other programs and
processes, threads, signals to others, shared memory, every change of files, controls of devices. Files that the user may read can
still be read, but nothing of them leaves the process, except in the line that says why it failed.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import platform
import resource
import struct
import sys

# Numbers of the calls that are let through, in the kernel's tables of both processors. Whatever is not named is refused, so that
# calls which this list has never heard of are.
ALLOWED = {
    "x86_64": (
        *(0, 1, 3, 8, 17, 19, 20, 32, 33, 292),  # read, write, close, lseek, dup
        *(
            4,
            5,
            6,
            21,
            78,
            79,
            80,
            89,
            137,
            138,
            217,
            262,
            267,
            269,
            332,
            439,
        ),  # look at files and folders, change one's own folder
        *(9, 10, 11, 12, 25, 26, 27, 28, 149, 150, 324),  # memory
        *(13, 14, 15, 34, 36, 37, 38, 127, 131, 219),  # signals and timers of its own
        *(158, 202, 218, 273, 274, 334),  # what threads rest on, though no second one can be made
        *(39, 63, 95, 96, 97, 98, 99, 100, 102, 104, 107, 108, 110, 111, 115, 121, 124, 140, 143, 145, 186, 204, 309),  # who am I
        *(24, 35, 201, 228, 229, 230, 318),  # time, rest, random numbers
        *(7, 22, 23, 270, 271, 290, 291, 293),  # pipes and waiting for them
        *(60, 231),  # exit
    ),
    "aarch64": (
        *(23, 24, 57, 62, 63, 64, 65, 66, 67),
        *(17, 43, 44, 48, 49, 61, 78, 79, 80, 291, 439),
        *(214, 215, 216, 222, 226, 227, 228, 229, 232, 233, 283),
        *(102, 103, 128, 132, 134, 135, 136, 139),
        *(96, 98, 99, 100, 293),
        *(120, 121, 123, 141, 153, 155, 156, 158, 160, 163, 165, 166, 168, 172, 173, 174, 175, 176, 177, 178, 179),
        *(101, 113, 114, 115, 124, 169, 278),
        *(19, 20, 59, 72, 73),
        *(93, 94),
    ),
}
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
OPENING = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}  # call, and which argument holds the flags
CONTROL = {"x86_64": 72, "aarch64": 25}  # fcntl: copies and flags of descriptors, not whom they signal
HARMLESS = (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # REFUSE carries EPERM
SET_NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2


def program_of_filter(machine: str) -> bytes:
    """The filter as BPF instructions: code, jump if true, jump if false, operand."""
    out = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, ARCHITECTURE[machine]), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    if machine == "x86_64":
        out += [(AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, REFUSE)]  # the other table of numbers, of 32-bit pointers
    for number in ALLOWED[machine]:
        out += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    for number, argument in OPENING[machine]:
        out += [(EQUAL, 0, 4, number), (LOAD, 0, 0, 16 + 8 * argument), (ANY_BIT, 0, 1, WRITING), (RETURN, 0, 0, REFUSE)]
        out.append((RETURN, 0, 0, ALLOW))
    out += [(EQUAL, 0, 2 + 2 * len(HARMLESS), CONTROL[machine]), (LOAD, 0, 0, 16 + 8)]
    for command in HARMLESS:
        out += [(EQUAL, 0, 1, command), (RETURN, 0, 0, ALLOW)]
    out.append((RETURN, 0, 0, REFUSE))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in [*out, (RETURN, 0, 0, REFUSE)])


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
