import pytest


@pytest.mark.parametrize("more", [(), ("--async",)])
def test_an_open_console_off_loopback_is_refused(run, released, more):
    done = run("serve", "tiny@prod", "--console", "--host", "0.0.0.0", "--dry-run", *more)

    assert done.code == 2
    assert "Serve with --keys" in done.err


def test_a_console_with_keys_may_be_anywhere(run, released):
    done = run("serve", "tiny@prod", "--console", "--keys", "--host", "0.0.0.0", "--dry-run")

    assert done.code == 0
