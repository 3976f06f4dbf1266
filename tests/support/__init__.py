"""What tests that run real processes have in common: nodes, processes that attach to them, rows that can be recomputed."""
