"""Commands that end in every way a process can, for the tests of what watches them."""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
import tempfile
import time

from deployml.runtime import crumbs
from deployml.runtime.files import Staging
from deployml.runtime.progress import Progress


def ends(arguments):
    return int(arguments[0])


def crashes(arguments):
    with Progress(enabled=False).stage("validate"):
        faulthandler._sigsegv()
    return 0


def is_killed(arguments):
    with Progress(enabled=False).stage("validate"):
        os.kill(os.getpid(), getattr(signal, arguments[1]))
    return 0


def crashes_after_a_stage(arguments):
    with Progress(enabled=False).stage("validate"):
        pass
    os.abort()


def crashes_with_a_draft(arguments):
    with Staging(arguments[1]) as staging:
        staging.write(os.path.basename(arguments[1]), b"half")
        os.abort()


def is_ended_with_a_scratch_folder(arguments):
    with (
        tempfile.TemporaryDirectory(prefix=crumbs.SCRATCH, dir=arguments[0]) as folder,
        crumbs.leave("scratch", folder),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    return 0


def crashes_at_the_end(arguments):
    atexit.register(os.abort)
    return 3


def waits(arguments):
    with open(arguments[0], "w") as file:
        file.write(str(os.getpid()))
    time.sleep(60)
    return 0
