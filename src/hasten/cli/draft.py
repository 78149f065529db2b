"""``hasten draft``: the verbs that prepare drafters."""

from __future__ import annotations

from hasten.cli.main import LazyGroup, Row

VERBS = {
    "build": Row("hasten.cli.draft_build:build", "Make draft databases from the model's answers and from text."),
    "forget": Row("hasten.cli.draft_forget:forget", "Remove what was kept of past answers, and all else that was learnt."),
    "quantize": Row("hasten.cli.draft_quantise:quantize", "Make better, smaller weights of the draft model."),
    "train": Row("hasten.cli.draft_train:train", "Train a network that goes on from the model's own states."),
    "trim": Row("hasten.cli.draft_trim:trim", "Choose the ids that the draft model computes."),
}

draft = LazyGroup("draft", rows=VERBS, help="Prepare what guesses ahead: databases, and the draft model's weights and vocabulary.")
