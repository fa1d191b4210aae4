"""What processes of a nursery do in the tests."""

import os
import sys
import time


def say(link, word, times=1):
    for _ in range(times):
        link.send((os.getpid(), word))


def echo(link):
    while True:
        try:
            link.send(link.recv())
        except (EOFError, OSError):
            return


def fail(link):
    raise RuntimeError("on purpose")


def sleep(link):
    time.sleep(600)


def loaded(link, module):
    link.recv()
    link.send(module in sys.modules)


def never(connection):
    connection.recv(1)  # its caller gives up and closes
