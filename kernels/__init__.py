"""The operations around the trunk: Triton kernels on a CUDA device, plain PyTorch elsewhere."""

from fastselfie.kernels.dispatch import using
from fastselfie.kernels.operations import channel_sums, location_head, patch_batch, patch_tokens
from fastselfie.kernels.reference import location_scores

__all__ = ["channel_sums", "location_head", "location_scores", "patch_batch", "patch_tokens", "using"]
