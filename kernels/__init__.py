"""The operations around the trunk. Each has a plain PyTorch version in `reference`, which serves every device."""

from fastselfie.kernels.reference import location_head, location_scores, patch_batch

__all__ = ["location_head", "location_scores", "patch_batch"]
