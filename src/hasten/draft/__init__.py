"""Drafters: whoever can guess the next tokens cheaply."""

from __future__ import annotations

from hasten.core.registry import Registry

DRAFTERS = Registry(
    kind="drafter",
    group="hasten.drafters",
    rows={
        "none": "hasten.draft.base:NoDrafter",
        "speculator": "hasten.draft.speculator:SpeculatorDrafter",
        "suffix": "hasten.draft.suffix:SuffixDrafter",
        "memory": "hasten.draft.memory:MemoryDrafter",
        "hierarchy": "hasten.draft.hierarchy:HierarchyDrafter",
        "lm": "hasten.draft.lm:LanguageModelDrafter",
        "foreign": "hasten.draft.foreign:ForeignDrafter",
        "prediction": "hasten.draft.prediction:PredictionDrafter",
        "recycling": "hasten.draft.recycling:RecyclingDrafter",
        "trie": "hasten.draft.trie:TrieDrafter",
    },
)
