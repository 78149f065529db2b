"""The account of a request as JSON: all that it says of each answer."""

from __future__ import annotations

import json

from hasten.core.results import Answer, Completion, Speculation, Speed, Timing, Usage
from hasten.core.types import TokenLogprob


def completion(*answers: Answer) -> Completion:
    return Completion(
        id="request-0",
        model="tiny",
        precision="fp32",
        exact=True,
        answers=list(answers),
        usage=Usage(3, 4, 1, 2),
        timing=Timing(0.0, 0.1, 0.2),
        speed=Speed(None, None),
        speculation=Speculation(),
        cut_by="max_tokens",
    )


FIRST = Answer(0, "a", [1], "length", ["suffix"], [TokenLogprob(1, -0.5, ((1, -0.5),))], None, "hm")
SECOND = Answer(1, "b", [2], "stop", ["model"], [TokenLogprob(2, -0.25)], "STOP", "so")


def test_nothing_of_any_answer_is_left_out() -> None:
    told = completion(FIRST, SECOND).to_json()
    assert json.loads(json.dumps(told)) == told
    assert told["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "cached_tokens": 1, "thought_tokens": 2}
    assert told["cut_by"] == "max_tokens"
    first, second = told["answers"]
    assert first == {"index": 0} | {name: told[name] for name in first if name != "index"}
    assert first["logprobs"] == [{"token": 1, "logprob": -0.5, "top": [{"token": 1, "logprob": -0.5}]}]
    assert second == {
        "index": 1,
        "text": "b",
        "thought": "so",
        "tokens": [2],
        "finish_reason": "stop",
        "stop_string": "STOP",
        "provenance": ["model"],
        "logprobs": [{"token": 2, "logprob": -0.25, "top": []}],
    }


def test_one_answer_stands_alone() -> None:
    told = completion(Answer(0, "a", [1], "stop", ["model"])).to_json()
    assert (told["text"], told["thought"], told["stop_string"]) == ("a", "", None)
    assert not {"answers", "logprobs"} & set(told)
