"""The publishers' archives of the five corpora: their URLs, and the places of their members.

`fetch` gets one file, `unpack` opens one archive, `install` makes a corpus of it.
"""

import re
from dataclasses import dataclass

from midibert_ray.corpora.contents import Contents


class DownloadError(Exception):
    """A corpus that cannot be had; the message says why and what to do next."""


class PublisherUnreachableError(DownloadError):
    """The publisher's server does not answer or breaks off too often; another day or machine may have more luck."""


class ArchiveError(DownloadError):
    """An archive that is broken, lacks files, is not the publisher's, or asks for what it must not have."""


def megabytes(size: int) -> str:
    """A size in bytes as it is printed."""
    return f"{size / 1e6:,.1f} MB"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The archive of a corpus."""

    corpus: str
    url: str
    members: tuple[str, ...]
    """Patterns; a member is wanted if one matches the whole of its path below the archive's one top folder. It
    goes to the path below the corpus's top folder that the pattern's first group holds."""
    record: str = ""
    """Zenodo's record (JSON), which states size, md5 and licence."""
    sha256: str = ""
    """Digest of the archive, if its publisher states one."""
    contents: Contents | None = None
    """Its required contents; None: those of `contents.published`."""

    @property
    def checksums(self) -> dict[str, str]:
        """Algorithm -> digest, if its publisher states one beside the archive."""
        return {"sha256": self.sha256} if self.sha256 else {}

    def place(self, path: str) -> str | None:
        """Where a member goes below the corpus's top folder; None if it is not wanted."""
        inner = path.partition("/")[2]
        matches = (re.fullmatch(pattern, inner) for pattern in (*self.members, _TEXTS))
        return next((match[1] for match in matches if match), None)


_TEXTS = r"((?:README|LICEN[CS]E|CITATION)[^/]*)"


def _github(repository: str, commit: str) -> str:
    return f"https://codeload.github.com/{repository}/zip/{commit}"


SOURCES: dict[str, Source] = {
    source.corpus: source
    for source in (
        Source(
            corpus="pop909",
            url=_github("music-x-lab/POP909-Dataset", "d83e6edba6872a704f5d3b8b32f5cb540088dae6"),
            members=(r"POP909/(\d{3}/[^/]+\.(?:mid|txt)|index\.xlsx)",),
        ),
        Source(
            corpus="asap",
            url=_github("fosfrancesco/asap-dataset", "afc815c75c42e83a79c03feb6da8a35e77d4c6b8"),
            members=(r"((?:[^/]+/)+midi_score(?:\.mid|_annotations\.txt)|metadata\.csv)",),
        ),
        Source(  # a mirror: the authors keep it in a folder of Google Drive, which is no address of one archive
            corpus="pop1k7",
            url=_github("tanchihpin0517/dataset-pop1k7", "bd6c3cdd6212d215d247665e4b15741edaf67067"),
            members=(r"(midi_synchronized/src_\d+/\d+\.mid)",),
        ),
        Source(
            corpus="pianist8",
            url="https://zenodo.org/records/5089279/files/joann8512/Pianist8-v1.0.0.zip",
            record="https://zenodo.org/api/records/5089279",
            members=(r"(midi/[^/]+/[^/]+\.mid)",),
        ),
        Source(
            corpus="emopia",
            url="https://zenodo.org/records/5090631/files/EMOPIA_1.0.zip",
            record="https://zenodo.org/api/records/5090631",
            members=(r"(midis/[^/]+\.mid|label\.csv|metadata_by_song\.csv)",),
        ),
    )
}
"""The archives: commits and numbered records, which do not change."""
