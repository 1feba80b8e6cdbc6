"""Inputs of a job: one file of music, or all below a folder, on a disk or in a bucket."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyarrow import fs

from midibert_ray import storage
from midibert_ray.corpora.labels import MUSIC_SUFFIXES
from midibert_ray.settings.validators import require, require_address
from midibert_ray.tokenizing.listing import File, list_files


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Files of music (MIDI, MusicXML) below one folder."""

    uri: str
    """Of the folder, absolute."""
    files: Mapping[str, File] = field(repr=False)
    """By name below the folder, sorted."""
    alone: bool = False
    """True where the one file was named, not the folder."""
    unlisted: Mapping[str, str] = field(default_factory=dict)
    """Folders (with a slash at the end) and files of music that could not be looked at, with the reason."""


def list_inputs(uri: str) -> Inputs:
    """The files that `input=` names: the file itself, under any name, or MIDI and MusicXML files below a folder.

    Raises:
        ConfigError: for no input, and an address that cannot be used.
        FileNotFoundError: where nothing is there.
        PermissionError: where the folder may not be listed.
        ValueError: for a folder without such files.
    """
    require(bool(uri), "input", uri, "a MIDI file, or a folder or bucket of them, such as input=/music/mine")
    require_address("input", uri)
    storage.require_bucket("input", uri)
    uri = storage.resolve(uri)
    system, path = storage.filesystem(uri)
    about = system.get_file_info(path)
    if about.type is fs.FileType.NotFound:
        raise FileNotFoundError(f"input={storage.without_query(uri)}: there is no such file or folder")
    if about.is_file:
        name = storage.basename(uri)
        folder = storage.without_query(uri).removesuffix(f"/{name}") or "/"
        query = uri[len(storage.without_query(uri)) :]
        return Inputs(uri=folder + query, alone=True, files={name: File(int(about.size), about.mtime_ns, name)})
    try:
        listing = list_files(uri)
    except PermissionError as error:
        raise PermissionError(f"input={uri}: no permission to list it; grant it, or name another") from error
    files = {name: file for name, file in sorted(listing.files.items()) if name.lower().endswith(MUSIC_SUFFIXES)}
    if not files:
        raise ValueError(
            f"input={storage.without_query(uri)} has no music below it (*{', *'.join(MUSIC_SUFFIXES)}); name its folder"
        )
    unlisted = {name: why for name, why in listing.unlisted.items() if name.lower().endswith(("/", *MUSIC_SUFFIXES))}
    return Inputs(uri=uri, files=files, unlisted=unlisted)
