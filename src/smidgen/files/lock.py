"""One folder, one process: the second is told who holds it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from smidgen.errors import UsageError
from smidgen.files.writing import writing

try:
    import fcntl
except ImportError:  # not POSIX: nothing is held there
    fcntl = None

LOCK = ".lock"


class Held(UsageError):
    """Another process has the folder; the message says which."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """This process alone writes to the folder, which is made if it is not there. The system lets go
    of it when the process ends, however it does.

    Raises: Held with the holder if another process has it; SmidgenError if the disk refuses.
    """
    absent = [part for part in (folder, *folder.parents) if not part.exists()]
    with _locked(folder) as file:
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
                for part in absent:  # where nothing came of it
                    part.rmdir()


def _locked(folder: Path) -> TextIO:
    """The folder's lock file, open and locked; of one that its holder removed in between, another.

    Raises: as `held`.
    """
    while True:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / LOCK).open("a+", encoding="utf-8")
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with file:
                file.seek(0)
                holder = file.read(200).strip() or "another process"
            raise Held(
                f"{folder} is held by {holder}; wait until it ends, or give another output"
            ) from error
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat()):
                return file
        file.close()
