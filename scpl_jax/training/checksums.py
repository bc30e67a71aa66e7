"""Checksums of a folder's files, in the format that ``sha256sum -c SHA256SUMS`` reads."""

import hashlib
import os
import re
from pathlib import Path

from scpl_jax.training.writing import reason_of, sync_folder, whole_file

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)\n")


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
    with whole_file(folder / NAME, "w") as file:
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
        lines = (folder / NAME).read_text(errors="replace").splitlines(keepends=True)
    except OSError as error:
        return f"{NAME}: {reason_of(error)}"
    found = [_LINE.fullmatch(line) for line in lines]
    if not found or None in found:
        return f"{NAME} is not as it was written"
    expected = {match[2]: match[1] for match in found if match is not None}
    try:
        sums = sums_of(folder, folder)
    except OSError as error:
        return f"a file can't be read: {reason_of(error)}"
    sums.pop(NAME, None)
    for path in sorted(set(expected) | set(sums)):
        if path not in sums:
            return f"{path} is missing"
        if path not in expected:
            return f"{path} does not belong there"
        if sums[path] != expected[path]:
            return f"{path} is not as it was written"
    return None
