"""A session whose every answer takes longer; a module of its own, for instances import it."""

import time

from ingot.serve.jobs.settings import open_endpoint


class Slow:
    """A session whose every answer takes longer."""

    def __init__(self, session, work_s):
        self._session, self._work_s, self.config = session, work_s, session.config

    def run(self, feeds):
        """Answer, late."""
        time.sleep(self._work_s)
        return self._session.run(feeds)

    def executed(self):
        """Return what the network runs."""
        return self._session.executed()

    def close(self):
        """Free the network."""
        self._session.close()


def open_slow(endpoint, *, work_s):
    """Open the session of an endpoint and make it slow."""
    return Slow(open_endpoint(endpoint), work_s)
