"""Settings that would do nothing beside the others: who names one expects something of it."""

from __future__ import annotations

from fastselfie.config.checks import require
from fastselfie.config.pretraining import PretrainConfig
from fastselfie.config.run import RunConfig


def check_effect(config: RunConfig, default: RunConfig) -> None:
    """Refuse settings that are not those of ``default``, the recipe's, and have no effect.

    Not for settings that are read from a run's folder: it did what it did.

    Raises:
        UserError: names the first such setting and the one that leaves it nothing to do.
    """
    resized = config.crop == "resized"
    nothing_to_pad = "--crop resized pads nothing" if resized else "--pad 0 pads nothing" if config.pad == 0 else ""
    idle = {
        "min_area": "" if resized else "--crop pad takes whole images",
        "pad": nothing_to_pad if resized else "",
        "pad_mode": nothing_to_pad,
    }
    if isinstance(config, PretrainConfig):
        idle["knn_images"] = "" if config.knn_every else "without --knn-every there are no neighbours"
        idle["evaluate_every"] = "" if config.held_out else "--held-out 0 leaves nothing to evaluate on"
    for name, why in idle.items():
        value, flag = getattr(config, name), "--" + name.replace("_", "-")
        require(
            not why or value == getattr(default, name), f"{flag} {value}: has no effect, {why}; leave one of them out"
        )
