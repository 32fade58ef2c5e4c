"""Identifies the processes that write to a shared store, and checks whether they are still alive."""

import os
import socket

import psutil

SEPARATOR = " process "  # between the machine and the process id


def process_identity() -> str:
    """Identifies this process among all that use a store: by machine or container, process id and start time."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{socket.gethostname()} {space}{SEPARATOR}{os.getpid()} {psutil.Process().create_time():.2f}"


def is_alive(identity: str) -> bool:
    """Whether the identified process is alive on this machine or in this container."""
    if not is_local(identity):
        return False
    number, started = identity.rsplit(" ", 2)[1:]
    try:
        process = psutil.Process(int(number))
        return f"{process.create_time():.2f}" == started and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_abandoned(identity: str) -> bool:
    """Whether the identified process ran on this machine and is dead. Processes of other machines cannot be checked."""
    return is_local(identity) and not is_alive(identity)


def is_local(identity: str) -> bool:
    """Whether the identified process belongs to this machine or container."""
    machine, separator, _ = identity.partition(SEPARATOR)
    return bool(separator) and machine == process_identity().partition(SEPARATOR)[0]
