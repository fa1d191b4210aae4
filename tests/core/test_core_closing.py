"""What is closed at the end of a block."""

import pytest

from ingot.core.closing import Closing


class Kept(Closing):
    closed = 0

    def close(self):
        self.closed += 1


def test_a_block_gives_the_thing_itself_and_closes_it_once():
    thing = Kept()

    with thing as inside:
        before = thing.closed

    assert (inside is thing, before, thing.closed) == (True, 0, 1)


def test_it_is_closed_when_the_block_fails_and_the_error_goes_on():
    thing = Kept()

    with pytest.raises(ZeroDivisionError), thing:
        raise ZeroDivisionError

    assert thing.closed == 1


def test_whoever_does_not_say_how_cannot_be_closed():
    with pytest.raises(NotImplementedError):
        Closing().close()
