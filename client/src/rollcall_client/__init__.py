"""The client of Rollcall: publishes a job's batches and item results, runs jobs, and listens for their end.

It shares the wire contract with the service and no code, so that it brings nothing of the service into the
environment of the job that installs it.
"""

from rollcall_client.batch import Batch
from rollcall_client.client import Rollcall
from rollcall_client.errors import (
    ApiError,
    ConfigurationError,
    DeliveryError,
    InvalidMessageError,
    RollcallError,
)
from rollcall_client.events import FinalizedEvent, ItemCounts, WriteCounts
from rollcall_client.messages import Policy

__version__ = "0.1.0"

__all__ = [
    "ApiError",
    "Batch",
    "ConfigurationError",
    "DeliveryError",
    "FinalizedEvent",
    "InvalidMessageError",
    "ItemCounts",
    "Policy",
    "Rollcall",
    "RollcallError",
    "WriteCounts",
    "__version__",
]
