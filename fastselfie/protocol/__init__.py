"""The papers' evaluation as one command: subsets x seeds x {scratch, pretrained}, and what it comes to."""
