"""Networks. They know tensors, not batches."""
