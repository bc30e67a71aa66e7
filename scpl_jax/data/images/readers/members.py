"""Finds the files of a published data set, in its tar archive or extracted from it."""

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from scpl_jax.data.errors import DataError
from scpl_jax.data.reading import is_file, is_folder, open_file, read_file


@dataclass(frozen=True)
class Members:
    """Named files that lie together in a folder or a tar archive.

    Attributes:
        place: the folder or the archive.
        wanted: base names of the files.
    """

    place: Path
    wanted: tuple[str, ...]

    @property
    def is_archive(self) -> bool:
        """Whether the files lie in a tar archive."""
        return is_file(self.place)

    @property
    def files(self) -> list[Path]:
        """The files on disk that the content depends on."""
        return [self.place] if self.is_archive else [self.place / name for name in self.wanted]

    def read(self) -> dict[str, bytes]:
        """Content of each wanted file; a tar archive is read as it is, and nothing is written to disk.

        Raises:
            DataError: when a file is missing, or the archive is damaged.
        """
        if self.is_archive:
            found = self._read_archive()
        else:
            found = {name: read_file(file) for name in self.wanted if is_file(file := self.place / name)}
        for name in self.wanted:
            if name not in found:
                raise DataError(f"{self.place} holds no {name}; fetch the official archive again.")
        return found

    def _read_archive(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        reading = "its first member"
        try:
            # Members come one after another, so a compressed archive is unpacked once only.
            with open_file(self.place) as file, tarfile.open(fileobj=file, mode="r|gz") as archive:
                for member in archive:
                    name = Path(member.name).name
                    if name not in self.wanted or not member.isfile():
                        continue
                    reading = f"its member {name}"
                    content = archive.extractfile(member)
                    assert content is not None  # a regular file has content
                    found[name] = content.read()
                    if len(found[name]) != member.size:
                        raise EOFError("the file ends too early")
                    reading = f"what follows its member {name}"
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise DataError(
                f"{self.place} is damaged at {reading} ({str(error).rstrip('.')}); fetch the official archive again."
            ) from error
        return found


def find_members(data_dir: Path, archive: str, folder: str, wanted: tuple[str, ...]) -> Members | None:
    """Look for a published data set.

    Args:
        data_dir: holds the archive or the folder extracted from it, or is one of the two itself.
        archive: file name of the archive.
        folder: name of the folder in the archive.
        wanted: base names of the files to read.

    Returns:
        The extracted folder if there is one, else the archive, else None.
    """
    if is_file(data_dir):
        return Members(data_dir, wanted) if data_dir.name == archive else None
    if is_folder(data_dir / folder):
        return Members(data_dir / folder, wanted)
    if data_dir.name == folder or any(is_file(data_dir / name) for name in wanted):
        return Members(data_dir, wanted)
    return Members(data_dir / archive, wanted) if is_file(data_dir / archive) else None
