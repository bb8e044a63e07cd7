"""One page about one or several runs: curves, tables, and the paper's figure 2."""
