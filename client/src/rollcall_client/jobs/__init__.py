"""Jobs: run a function for every item, and every item answers."""

from rollcall_client.jobs.job import CriticalError, Current, Job, current, job
from rollcall_client.jobs.outcomes import (
    Created,
    Failed,
    Outcome,
    Partial,
    Skipped,
    Succeeded,
    Unchanged,
    Updated,
)
from rollcall_client.jobs.progress import Progress
from rollcall_client.jobs.rates import Rate, Retry, time_bucket
from rollcall_client.jobs.results import JobResult, WorkerResult
from rollcall_client.jobs.running import DependencyError, run
from rollcall_client.jobs.stopping import JobStoppedError

__all__ = [
    "Created",
    "CriticalError",
    "Current",
    "DependencyError",
    "Failed",
    "Job",
    "JobResult",
    "JobStoppedError",
    "Outcome",
    "Partial",
    "Progress",
    "Rate",
    "Retry",
    "Skipped",
    "Succeeded",
    "Unchanged",
    "Updated",
    "WorkerResult",
    "current",
    "job",
    "run",
    "time_bucket",
]
