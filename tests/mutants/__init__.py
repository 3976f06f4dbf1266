"""Mutants: the product with one promise broken on purpose.

Each must turn a test red; one that survives names a test that is missing.

`catalogue` lists them, a file a room of the sources; `run` makes one and runs its tests; `python -m mutants` (in
`tests/`; `make mutants`) runs all.
"""
