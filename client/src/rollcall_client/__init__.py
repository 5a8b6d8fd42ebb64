"""The client of Rollcall: publishes a job's batches and item results.

It shares the wire contract with the service and no code, so that it brings nothing of the service into the
environment of the job that installs it.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
