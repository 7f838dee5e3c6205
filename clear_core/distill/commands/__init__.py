"""What the subcommands of ``python -m clear_core.distill`` do."""
