import stat
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Barrier

from ingot.core.files import read_secret


def test_a_secret_is_made_once_for_its_owner_only(tmp_path):
    path = tmp_path / "deep" / "key"

    first, again = read_secret(path, lambda: b"one"), read_secret(path, lambda: b"two")

    assert (first, again) == (b"one", b"one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_all_who_make_a_secret_at_once_get_the_same(tmp_path):
    path, numbers, together = tmp_path / "key", count(), Barrier(8)

    def make():
        together.wait(10)  # all of them have seen that there is none
        return str(next(numbers)).encode()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: read_secret(path, make), range(8)))

    assert set(found) == {path.read_bytes()}
