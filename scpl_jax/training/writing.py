"""Files that a reader finds whole or not at all, on the disk when they are said to be; checksums; locks on folders."""

import contextlib
import datetime
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

from scpl_jax.training.run_error import RunError

_LOG = logging.getLogger(__name__)
# Checksums of a folder's files, in the format that ``sha256sum -c SHA256SUMS`` reads.
_SUMS = "SHA256SUMS"
_SUM = re.compile(r"([0-9a-f]{64})  (.+)\n")


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file to be written that gets its name when the block ends without an error, and is on the disk then.

    Args:
      path: the file; what is there already is replaced.
      mode: ``"wb"`` or ``"w"``.

    Raises:
      OSError: it can't be written; what was there before is still there.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring names that were given in a directory to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hindrance(folder: Path) -> str | None:
    """Why files can't be made in a folder, which is made if need be; None if they can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return reason_of(error)


def check_space(folder: Path, size: int) -> None:
    """Find out before writing whether a disk is too full, as far as one can: others may fill it meanwhile.

    Args:
      folder: where files are to be written.
      size: of all of them, in bytes.

    Raises:
      OSError: there is less space, or the folder is not there.

    Example:
      >>> check_space(Path("."), 1 << 60)
      Traceback (most recent call last):
      ...
      OSError: [Errno 28] no space left on the disk: 1152921504606.8 MB are needed, ... MB are free
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        amounts = f"{size / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"
        raise OSError(errno.ENOSPC, f"no space left on the disk: {amounts}")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader finds the old one or the new one, never a part."""
    with whole_file(path, "w") as file:
        json.dump(value, file, indent=2, allow_nan=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
      RunError: it can't be read or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} can't be read as JSON ({reason_of(error)}); start in a new `out_dir`") from error


def reason_of(error: BaseException) -> str:
    """What went wrong, in a few words."""
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]


def sums_of(folder: Path, part: Path) -> dict[str, str]:
    """SHA-256 of a file, or of every file below a folder ``part``: path within ``folder`` -> hexadecimal digits.

    The files are brought to the disk on the way, so that what a checksum vouches for outlives a loss of power too.

    Raises:
      OSError: one can't be read.
    """
    if part.is_file():
        return {str(part.relative_to(folder)): _digest(part)}
    sums: dict[str, str] = {}
    for path, _, names in os.walk(part):
        sums |= {str((Path(path) / name).relative_to(folder)): _digest(Path(path) / name) for name in names}
        sync_folder(Path(path))
    return sums


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path, sums: dict[str, str]) -> None:
    """Write the file of checksums.

    Raises:
      OSError: it can't be written.
    """
    with whole_file(folder / _SUMS, "w") as file:
        file.writelines(f"{digest}  {path}\n" for path, digest in sorted(sums.items()))


def damage(folder: Path) -> str | None:
    """What is wrong with a folder, in a few words: a file that is missing, changed or too much; None if it is whole.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "weights").write_bytes(bytes(8))
      >>> write_sums(folder, sums_of(folder, folder))
      >>> damage(folder)
      >>> _ = (folder / "weights").write_bytes(bytes(7))
      >>> damage(folder)
      'weights is not as it was written'
    """
    try:
        lines = (folder / _SUMS).read_text(errors="replace").splitlines(keepends=True)
    except OSError as error:
        return f"{_SUMS}: {reason_of(error)}"
    found = [_SUM.fullmatch(line) for line in lines]
    if not found or None in found:
        return f"{_SUMS} is not as it was written"
    expected = {match[2]: match[1] for match in found if match is not None}
    try:
        sums = sums_of(folder, folder)
    except OSError as error:
        return f"a file can't be read: {reason_of(error)}"
    sums.pop(_SUMS, None)
    for path in sorted(set(expected) | set(sums)):
        if path not in sums:
            return f"{path} is missing"
        if path not in expected:
            return f"{path} does not belong there"
        if sums[path] != expected[path]:
            return f"{path} is not as it was written"
    return None


class Lock:
    """Keeps a second process from writing into a directory.

    The operating system holds the lock and drops it with its process, however that ends; so what a dead process leaves
    behind is only the file, and the next one takes it over. It also holds on network file systems that support locks,
    between machines.

    Args:
      path: the lock's file; it is created, and removed when the lock is released.

    Raises:
      RunError: another process has it; the message tells which, and since when.
    """

    def __init__(self, path: Path):
        self._path = path
        self._handle = -1
        while self._handle < 0:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = os.pread(handle, 4096, 0)
                os.close(handle)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    where, why = path.parent, reason_of(error)
                    _LOG.warning("%s can't be locked (%s): see to it that no other run uses it", where, why)
                    return
                raise RunError(
                    f"{path.parent} is in use by {_describe(owner)}; wait until it ends, stop it, or choose another "
                    "directory"
                ) from None
            if _is_file(handle, path):
                self._handle = handle
            else:  # its owner removed it after we had opened it; locked now is what nobody else can find
                os.close(handle)
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}).encode()
        with contextlib.suppress(OSError):  # it only tells others who has the lock
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, owner, 0)

    def release(self) -> None:
        """Let others have it; also when it was released already."""
        if self._handle >= 0:
            if _is_file(self._handle, self._path):
                self._path.unlink()
            os.close(self._handle)
        self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _is_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _describe(owner: bytes) -> str:
    try:
        record = json.loads(owner)
        since = datetime.datetime.fromtimestamp(record["since"])
        age = max(time.time() - record["since"], 0)
        return f"process {int(record['pid'])} on {record['host']} since {since:%Y-%m-%d %H:%M:%S} ({_age(age)} ago)"
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        return "another process"


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
