"""What measures: kernels, pipelines, the training step, whole runs. `results` holds what was measured."""
