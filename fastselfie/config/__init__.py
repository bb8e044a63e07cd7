"""Settings of a run: frozen dataclasses that cannot be built with values that make no sense.

Nothing here imports torch, so that the command line answers at once. Field names are the command line's
(``batch_size`` is ``--batch-size``); docstrings under the fields are its help.
"""

from fastselfie.config.checks import contrast, flag, label_share, require, require_local
from fastselfie.config.effect import check_effect, effective, idle
from fastselfie.config.finetuning import ENCODERS, RESNET36_ATTENTION, RESNET50, Encoder, FinetuneConfig
from fastselfie.config.model import EXPANSION, STAGE_WIDTHS, ModelConfig
from fastselfie.config.pretraining import (
    KNN_NEIGHBOURS,
    KNN_TEMPERATURE,
    POOLER_DEPTH,
    PretrainConfig,
    without_context,
)
from fastselfie.config.run import IMAGENET_MEAN, IMAGENET_STD, RunConfig

__all__ = [
    "ENCODERS", "EXPANSION", "IMAGENET_MEAN", "IMAGENET_STD", "KNN_NEIGHBOURS", "KNN_TEMPERATURE", "POOLER_DEPTH",
    "RESNET36_ATTENTION", "RESNET50", "STAGE_WIDTHS", "Encoder", "FinetuneConfig", "ModelConfig", "PretrainConfig",
    "RunConfig", "check_effect", "contrast", "effective", "flag", "idle", "label_share", "require", "require_local",
    "without_context",
]  # fmt: skip
