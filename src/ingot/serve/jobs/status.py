"""A job as its caller sees it."""

from datetime import UTC, datetime

from ingot.core.digest import Json
from ingot.serve.jobs.job import Job, JobState, NewJob


def show_job(job: Job) -> dict[str, Json]:
    """Return the JSON form of a job; times are ISO 8601 in UTC, null before they are known."""
    return {
        "job": job.id,
        "model": job.endpoint,
        "state": job.state.value,
        "id": job.caller_id or None,
        "attempt": job.attempt,
        "failures": job.failures,
        "lapses": job.lapses,
        "created": _time(job.created),
        "started": _time(job.started),
        "ended": _time(job.ended),
        "input_uri": job.input_uri or None,
        "output": job.output,
        "result_bytes": job.result_bytes,
        "note": job.note or None,
        "error": job.error or None,
        "notification": job.notice or None,
        **_urls(job.endpoint, job.id),
    }


def show_new(job: NewJob) -> dict[str, Json]:
    """Return what is known of a job at the moment it is accepted."""
    return {
        "job": job.id,
        "model": job.endpoint,
        "state": JobState.QUEUED.value,
        "id": job.caller_id or None,
        "input_uri": job.input_uri or None,
        "output": job.output,
        **_urls(job.endpoint, job.id),
    }


def job_path(endpoint: str, job: str) -> str:
    """Return the path of a job on its server."""
    return f"/v2/models/{endpoint}/jobs/{job}"


def _urls(endpoint: str, job: str) -> dict[str, Json]:
    path = job_path(endpoint, job)
    return {
        "status_url": path,
        "result_url": path + "/result",
        "events_url": path + "/events",
    }


def _time(seconds: float) -> str | None:
    if not seconds:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
