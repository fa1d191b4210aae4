"""Both servers against their own OpenAPI documents: valid documents, and no 500 under a fuzzer."""

from dataclasses import replace

import openapi_spec_validator
import pytest
from schema_fuzzer import fuzz

from ingot.serve.access.keys import KeyStore
from ingot.serve.endpoint import Access
from ingot.serve.jobs.openapi import describe_jobs
from ingot.serve.jobs.server import serve_jobs_in_thread
from ingot.serve.openapi import openapi
from ingot.serve.server import serve_in_thread


@pytest.fixture(params=["jobs", "infer"])
def server(request, endpoint, settings, doubler):
    """Give a server of either kind."""
    if request.param == "jobs":
        with serve_jobs_in_thread(endpoint, settings) as running:
            yield running
    else:
        with serve_in_thread(endpoint, doubler) as running:
            yield running


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
