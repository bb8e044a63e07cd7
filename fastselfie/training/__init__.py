"""The training loop and what it stands on. Knows tasks through `Loss`, pipelines through `batch`."""
