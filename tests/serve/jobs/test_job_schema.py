"""Both servers against their own OpenAPI documents: valid documents, and no 500 under a fuzzer."""

import os
import subprocess
import sys
from dataclasses import replace

import openapi_spec_validator
import pytest

from ingot.serve.access.keys import KeyStore
from ingot.serve.endpoint import Access
from ingot.serve.jobs.openapi import describe_jobs
from ingot.serve.jobs.server import serve_jobs_in_thread
from ingot.serve.openapi import openapi
from ingot.serve.server import serve_in_thread

# Left out are two. That what fits a schema is accepted: no schema can say that the count of a
# tensor's values is the product of its shape. And that all else is refused: a header that nobody
# knows is ignored, as HTTP asks.
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance", "unsupported_method",
    "missing_required_header", "ignored_auth",
)  # fmt: skip


@pytest.fixture(params=["jobs", "infer"])
def server(request, endpoint, settings, doubler):
    """Give a server of either kind."""
    if request.param == "jobs":
        with serve_jobs_in_thread(endpoint, settings) as running:
            yield running
    else:
        with serve_in_thread(endpoint, doubler) as running:
            yield running


def fuzz(folder, url, *words):
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", url + "/openapi.json", "--seed", "1",
        "--checks", ",".join(CHECKS), "--suppress-health-check", "all", "--max-examples", "15",
        "--request-timeout", "20", "--no-color", *words,
    ]  # fmt: skip
    keep = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=keep, cwd=folder
    )


@pytest.mark.parametrize("describe", [describe_jobs, lambda one: openapi([one], version="1")])
def test_the_document_is_openapi_3_1(endpoint, describe):
    openapi_spec_validator.validate(describe(endpoint))


def test_a_fuzzer_that_reads_the_document_finds_nothing(server, tmp_path):
    # a deadline of a millisecond is rightly a 504, which a fuzzer takes for a failure
    done = fuzz(tmp_path, server.url, "--header", "ingot-timeout-ms: 60000")

    assert done.returncode == 0, done.stdout[-6000:]


def test_a_fuzzer_finds_nothing_behind_keys(endpoint, settings, tmp_path):
    key, _ = KeyStore(tmp_path / "keys.sqlite").create("fuzzer", ["*"])
    locked = replace(endpoint, access=Access(tmp_path / "keys.sqlite"))

    with serve_jobs_in_thread(locked, settings) as running:
        done = fuzz(tmp_path, running.url, "--header", f"Authorization: Bearer {key}")

    assert done.returncode == 0, done.stdout[-6000:]
