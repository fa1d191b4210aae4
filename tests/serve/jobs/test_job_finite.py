"""A job whose numbers are not finite, where the endpoint takes finite ones only."""

import json
from dataclasses import replace

import httpx
from job_words import JOBS, request_of
from outside import wait_for

from ingot.serve.jobs.server import serve_jobs_in_thread


def test_jobs_are_refused_at_once_inline_and_fail_with_the_reason_from_a_file(
    endpoint, settings, inputs
):
    finite = replace(endpoint, finite_only=True)
    bad = request_of(1.0, 2.0)
    bad["inputs"][0]["data"] = [1.0, None]
    (inputs / "bad.json").write_text(json.dumps(bad))

    with (
        serve_jobs_in_thread(finite, settings) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=20) as web,
    ):
        inline = web.post(JOBS, json=bad)
        web.post(JOBS, json={"input_uri": str(inputs / "bad.json")})
        job = wait_for(
            lambda: next((j for j in web.get(JOBS).json()["jobs"] if j["state"] == "dead"), None)
        )

    words = "Input 'x' must be finite; got nan at index [0, 1]"
    assert inline.status_code == 400
    assert words in inline.json()["detail"]
    assert words in job["error"]
