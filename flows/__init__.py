"""The doors: Prefect flows and the command line. The only package that imports Prefect; its telemetry is off first.

Whoever comes in by a door, Prefect's engine included, leaves the variables outside that would tie the process to a core, and
needs no proxy to speak to its own machine.
"""

import os

from flows.server.proxies import spare_loopback
from pipeline.thread_variables import forget

forget(os.environ)
spare_loopback(os.environ)

os.environ.setdefault("DO_NOT_TRACK", "1")  # the client's, which reports while it is imported
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")  # the server's
