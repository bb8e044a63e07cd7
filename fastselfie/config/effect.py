"""Settings that would do nothing beside the others: who names one expects something of it."""

from __future__ import annotations

from fastselfie.config.checks import flag, require
from fastselfie.config.pretraining import PretrainConfig
from fastselfie.config.run import RunConfig


def check_effect(config: RunConfig, default: RunConfig) -> None:
    """Refuse settings that are not those of ``default``, the recipe's, and have no effect.

    Not for settings that are read from a run's folder: it did what it did.

    Raises:
        UserError: names the first such setting and the one that leaves it nothing to do.
    """
    resized = config.crop == "resized"
    pads_nothing = ""
    if resized:
        pads_nothing = "--crop resized pads nothing; leave it out or take --crop pad"
    elif config.pad == 0:
        pads_nothing = "--pad 0 pads nothing; leave one of them out"
    idle = {
        "min_area": "" if resized else "--crop pad takes whole images; leave it out or take --crop resized",
        "pad": pads_nothing if resized else "",
        "pad_mode": pads_nothing,
    }
    if isinstance(config, PretrainConfig):
        if not config.knn_every:
            idle["knn_images"] = "without --knn-every there are no neighbours; leave it out or add that"
        if not config.held_out:
            idle["evaluate_every"] = "--held-out 0 leaves nothing to evaluate on; leave one of them out"
    for name, why in idle.items():
        value = getattr(config, name)
        require(not why or value == getattr(default, name), f"{flag(name)} {value}: has no effect, {why}")
