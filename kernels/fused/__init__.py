"""The Triton kernels, one file an operation. Importing a file here needs Triton; `fastselfie.kernels` does not."""
