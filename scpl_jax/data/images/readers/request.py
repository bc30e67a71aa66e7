"""What is asked of a reader."""

from dataclasses import dataclass
from pathlib import Path

from scpl_jax.data.errors import DataError


@dataclass(frozen=True)
class Request:
    """A data set asked for by name.

    Attributes:
        name: name of the data set, as in `scpl_jax.data.DATASETS`.
        data_dir: folder (or file) with the data; None when the user named none.
        cache_dir: folder under which decoded images are kept; None for none.
        image_size: edge in pixels to which all images are resized; None leaves the reader's own size.
    """

    name: str
    data_dir: Path | None
    cache_dir: Path | None
    image_size: int | None

    def required_dir(self, content: str) -> Path:
        """The data directory of a data set that cannot do without one.

        Args:
            content: what the directory must hold, for the error.

        Raises:
            DataError: when the user named no directory.
        """
        if self.data_dir is None:
            raise DataError(f"`name` {self.name} needs `data_dir`, which was not given; set it to {content}.")
        return self.data_dir
