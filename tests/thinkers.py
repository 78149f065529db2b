"""Tiny models that think: templates that behave as those of reasoning models do, and engines that say what a test wrote down."""

from __future__ import annotations

import torch

from hasten.core.types import Batch, Sequence
from hasten.engine.engine import Engine

MARKS = ("<think>", "</think>")
TOOLS = "{% if tools %}<|begin|>tools\n{{ tools | tojson }}\nCall as <tool_call>{...}</tool_call><|im_end|>\n{% endif %}"
SAID = "<|begin|>{{ message.role }}\n{{ thought }}{{ message.content.split('</think>')[-1] }}<|im_end|>\n"
# The model opens its thought itself, unless it is told not to think; thoughts behind the last question are shown, earlier ones not.
OPENS_ITSELF = (
    TOOLS + "{% set asked = namespace(at=0) %}"
    "{% for message in messages %}{% if message.role == 'user' %}{% set asked.at = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}"
    "{% set thought = '<think>\n' + message.reasoning_content + '\n</think>\n\n' "
    "if message.reasoning_content and loop.index0 > asked.at else '' %}"
    + SAID
    + "{% endfor %}{% if add_generation_prompt %}<|begin|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# The prompt opens the thought; what was thought is never shown.
OPENED = (
    TOOLS + "{% for message in messages %}{% set thought = '' %}" + SAID + "{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n<think>\n{% endif %}"
)


class Script:
    """What a model wants to say, token by token, whatever it is asked: from now on the likeliest tokens are those of ``tokens``,
    and then the end. Sampling parameters, masks and drafts work as ever. For one request at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: list[int] = []
        self.asked: list[int] = []  # the tokens of the last prompt
        self._forward, self._add = engine.executor.forward, engine.scheduler.add
        engine.executor.forward = self._spoken  # type: ignore[method-assign]
        engine.scheduler.add = self._added  # type: ignore[method-assign]

    def say(self, *parts: str | int) -> None:
        """Texts, in which marks are tokens where the vocabulary has them, and single tokens."""
        encode = self.engine.tokenizer.encode
        self.tokens = [token for part in parts for token in ([part] if isinstance(part, int) else encode(part, add_bos=False))]

    def _added(self, siblings: list[Sequence]) -> None:
        self.asked = list(siblings[0].tokens)
        self._add(siblings)

    def _spoken(self, batch: Batch) -> torch.Tensor:
        logits = self._forward(batch).clone()
        rows = iter(range(len(logits)))
        for segment in batch.segments:
            depths = [*range(1 - len(segment.chain), 1), *segment.tree.depths()]
            for depth in depths[segment.first_logit :]:
                at = segment.context + len(segment.chain) + depth - len(self.asked)
                wanted = self.tokens[at] if at < len(self.tokens) else self.engine.tokenizer.eos_token_ids[0]
                logits[next(rows), wanted] += 1000.0
        return logits
