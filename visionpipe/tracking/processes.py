"""Which process writes something into a store that many use, and whether it still lives."""

import os
import socket

import psutil

SEPARATOR = " process "  # between the machine and the number


def process_identity() -> str:
    """This process among all that use a store: its machine or container, its number, and when it began."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{socket.gethostname()} {space}{SEPARATOR}{os.getpid()} {psutil.Process().create_time():.2f}"


def is_alive(identity: str) -> bool:
    """Whether the process of this identity is one of this machine or container, and runs."""
    if not is_here(identity):
        return False
    number, began = identity.rsplit(" ", 2)[1:]
    try:
        process = psutil.Process(int(number))
        return f"{process.create_time():.2f}" == began and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_abandoned(identity: str) -> bool:
    """Whether the process of this identity was one of this machine and is dead. Of others nobody here knows."""
    return is_here(identity) and not is_alive(identity)


def is_here(identity: str) -> bool:
    machine, separator, _ = identity.partition(SEPARATOR)
    return bool(separator) and machine == process_identity().partition(SEPARATOR)[0]
