"""The composition root: CLI, settings, processes."""
