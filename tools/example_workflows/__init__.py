"""Writes ``example_workflows/`` and ``subgraphs/``: the graphs, and a picture for each."""
