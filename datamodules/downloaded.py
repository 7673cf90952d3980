"""Data sets whose files torchvision downloads and reads, with one-line errors when a file is missing or broken."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchvision.datasets import VisionDataset

from netprism.datamodules.base import ImageDataModule, ImageTensors, Split


class DownloadedDataModule(ImageDataModule):
    """Images of a torchvision data set, kept in memory. Arguments are those of :class:`ImageDataModule`.

    A subclass names the torchvision class and its files, tells intact files from broken ones, and takes the images out.

    Raises:
        FileNotFoundError: from `prepare_data` or `setup`, if a file is missing and was not or could not be downloaded.
        OSError: A file is broken.
    """

    dataset: type[VisionDataset]

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that must be there, below `root`."""

    @abstractmethod
    def intact(self, file: Path) -> bool:
        """Whether a file is there, complete and unchanged."""

    @abstractmethod
    def tensors(self, dataset: Any) -> ImageTensors:  # noqa: ANN401 - torchvision's classes have no common typed face
        """Images and labels out of an instance of `dataset`."""

    def prepare_data(self) -> None:
        """Downloads what is missing, if `download` is set."""
        if self.download:
            with self._named_errors(download=True), self.one_node():
                self.dataset(self.root, download=True)

    def read(self, split: Split) -> ImageTensors:
        """Reads a split from the files; never downloads."""
        with self._named_errors(download=False):
            return self.tensors(self.dataset(self.root, train=split == "train"))

    @contextmanager
    def _named_errors(self, download: bool) -> Iterator[None]:
        # On broken files torchvision's readers raise RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError,
        # AssertionError, or an error of pickle, tarfile or zlib.
        try:
            yield
        except Exception as error:
            raise self._named(error, download) from error

    def _named(self, error: Exception, download: bool) -> OSError:
        files = self.files()
        folder = files[0].parent
        bad = next((file for file in files if not self.intact(file)), folder)
        name, copy = type(self).__name__, f"copy the files of {type(self).__name__} to {folder}"
        if bad.exists():
            return OSError(f"{name}: {bad} is broken; delete it and set download=True, or {copy}")
        if not download:
            return FileNotFoundError(f"{name}: {bad} is missing; set download=True, or {copy}")
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        return FileNotFoundError(f"{name}: {bad} is missing and no download succeeded ({cause}); {copy}")
