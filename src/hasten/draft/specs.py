"""What may be asked for by name: which drafters there are, and which arguments a user may give each of them."""

from __future__ import annotations

from inspect import Parameter, signature

from hasten.core.config import MODEL_DRAFTERS
from hasten.core.errors import ConfigError
from hasten.core.registry import Spec, nearest
from hasten.draft import DRAFTERS

SHAPE_ARGUMENTS = ("tree", "width", "branching")
GROWN = (*MODEL_DRAFTERS, "speculator")  # whose trees have a shape
# Arguments that Hasten gives and no user, beside those without a default of the drafters above.
HANDED = {"lm": ("head", "commit"), "memory": ("vocabulary",), "hierarchy": ("vocabulary",)}
# Arguments that choose and load a draft model, and those of the drafter that lm becomes with one of another vocabulary.
OF_THE_MODEL = {"lm": ("model", "precision", "trim", "match"), "foreign": ("model", "precision")}


def check_specs(specs: list[Spec]) -> None:
    """Raises ConfigError for a name, an argument or a shape of trees that there is not."""
    for spec in specs:
        if spec.name == "auto":
            if spec.arguments:
                raise ConfigError(
                    "auto takes no arguments; name the drafter that should have them beside it, as in auto+lm(width=2)."
                )
            continue
        known = ["auto", *DRAFTERS.names()]
        if spec.name not in known:
            raise ConfigError(f"There is no drafter called '{spec.name}'{nearest(spec.name, known)}")
        _check_arguments(spec)


def _check_arguments(spec: Spec) -> None:
    taken = _arguments_of(spec.name)
    for name in spec.arguments:
        if taken is not None and name not in taken:
            which = f"it takes {', '.join(taken)}" if taken else "it takes none"
            raise ConfigError(f"The {spec.name} drafter has no argument '{name}'; {which}.")
    if spec.name in GROWN:
        from hasten.draft.growth import Shape

        Shape(**{name: value for name, value in spec.arguments.items() if name in SHAPE_ARGUMENTS})


def _arguments_of(name: str) -> list[str] | None:
    """What a user may give the drafter of that name, None where that is whatever there is."""
    parameters = signature(DRAFTERS.resolve(name)).parameters.values()
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    own = [each.name for each in parameters if name not in GROWN or each.default is not Parameter.empty]
    return [*(argument for argument in own if argument not in HANDED.get(name, ())), *OF_THE_MODEL.get(name, ())]
