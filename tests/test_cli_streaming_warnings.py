"""Warnings while an answer streams: on lines of their own where both go to one place, and nowhere in the answer."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging
from hasten.cli.screen import Streaming

logging.basicConfig(format="hasten: %(message)s", level=logging.WARNING)
with Streaming() as answer:
    logging.warning("nothing stands here")
    answer.say("One")
    logging.warning("first")
    logging.warning("second")
    answer.say(" two\\n")
    answer.say("")
    logging.warning("third")
    answer.say("three")
    answer.say("")
    logging.warning("fourth")
    answer.say("\\n")
logging.warning("over")
"""
TOGETHER = """hasten: nothing stands here
One
hasten: first
hasten: second
 two
hasten: third
three
hasten: fourth

hasten: over
"""


def run(stderr: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=stderr, text=True, check=True, timeout=60)


def test_a_warning_begins_a_line() -> None:
    assert run(subprocess.STDOUT).stdout == TOGETHER


def test_an_answer_that_goes_elsewhere_is_as_it_was() -> None:
    done = run(subprocess.PIPE)
    assert done.stdout == "One two\nthree\n"
    assert done.stderr == "".join(
        f"hasten: {word}\n" for word in ("nothing stands here", "first", "second", "third", "fourth", "over")
    )
