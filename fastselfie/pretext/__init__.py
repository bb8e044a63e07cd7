"""Pretext tasks: each declares the view that it wants and maps a batch to a loss."""
