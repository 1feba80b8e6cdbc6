"""jobs/download.py: from a server that breaks off and archives that mean ill to whole corpora, or to a clear error."""

import base64
import fcntl
import gzip
import hashlib
import io
import json
import shutil
import socket
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from midibert_ray.cli.main import execute
from midibert_ray.corpora import fetch, install
from midibert_ray.corpora.catalogue import CORPORA
from midibert_ray.corpora.contents import PUBLISHED, Contents, measure, published
from midibert_ray.corpora.fetch import Patience
from midibert_ray.corpora.sources import SOURCES, ArchiveError, DownloadError, PublisherUnreachableError, Source
from midibert_ray.corpora.unpack import Limits, unpack
from tests.server import Served, Server, serving

ROOT = Path(__file__).parents[2]
HASTE = Patience(timeout_s=5, pause_s=0)
PATH = "/files/joann8512/Pianist8-v1.0.0.zip"
TOP = "joann8512-Pianist8-ab9f541"
NAMES = tuple(published("pianist8").files)[:3]
PIECES = {f"midi/{name}": f"MThd {name}".encode() * 500 for name in NAMES}
"""What the archive holds below its top folder; pieces that the split lists name, with bytes of our own."""

Say = Callable[[], str]
Job = Callable[..., tuple[int, str]]


def allow(url: str, patch: pytest.MonkeyPatch) -> None:
    """Let plain http to this machine be fetched from, without a proxy."""
    patch.setattr(fetch, "ALLOWED", ("https://", url))
    patch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as started:
        allow(started.url + "/", monkeypatch)
        yield started


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Say:
    caplog.set_level("INFO")
    return lambda: caplog.text


def zipped(files: dict[str, bytes], top: str = TOP, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(f"{top}/{name}", content)
    return buffer.getvalue()


def tarred(members: dict[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def contents(files: dict[str, bytes] = PIECES) -> Contents:
    digests = {name.removeprefix("midi/"): hashlib.sha256(data).hexdigest()[:32] for name, data in files.items()}
    return Contents(digest="", bytes=sum(map(len, files.values())), files=digests)


def source(server: Server, **changes: object) -> Source:
    url = server.url + PATH
    return replace(SOURCES["pianist8"], url=url, record="", contents=contents(), **changes)  # type: ignore[arg-type]


def wanted(root: Path, *sources: Source) -> list[install.Item]:
    with pytest.MonkeyPatch.context() as patch:
        for source in sources:
            patch.setitem(SOURCES, source.corpus, source)
        return install.survey([source.corpus for source in sources], str(root), patience=HASTE)


def get(root: Path, *sources: Source) -> list[str]:
    return install.install(wanted(root, *sources), patience=HASTE)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestACorpus:
    """From a sound archive to a folder that tokenization reads."""

    @pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
    def test_lands_where_it_is_read_with_its_licence(
        self, kind: str, server: Server, tmp_path: Path, said: Say
    ) -> None:
        files = PIECES | {"README.md": b"read me", "LICENSE": b"be nice", "code/x.py": b"no", "midi/notes.txt": b"no"}
        members = {f"{TOP}/{name}": data for name, data in files.items()}
        content = zipped(files) if kind == "zip" else tarred(dict(members), "w:gz" if kind == "tar.gz" else "w:")
        server.files[PATH] = Served(content)
        assert get(tmp_path / "data", source(server)) == []
        found = tree(tmp_path / "data")
        record = json.loads(found.pop("Pianist8/SOURCE.json"))
        assert found == {f"Pianist8/{name}": data for name, data in files.items() if data != b"no"}
        assert record["licence"] == "not stated: research use only" and "MidiBERT-Piano" in record["citation"]
        assert record["archive"] == {
            "url": server.url + PATH,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        assert record["contents"]["files"] == 3 and record["differs"] == {"changed": [], "unknown": []}
        assert "licence not stated: research use only; cite Y.-H. Chou" in said()

    def test_a_second_run_does_nothing(self, server: Server, tmp_path: Path, said: Say) -> None:
        server.files[PATH] = Served(zipped(PIECES))
        assert get(tmp_path, source(server)) == []
        before, asked = tree(tmp_path), len(server.requests)
        assert get(tmp_path, source(server)) == []
        assert tree(tmp_path) == before and len(server.requests) == asked
        assert "pianist8: 3 files in" in said() and "nothing to do" in said()

    def test_one_that_fails_stops_no_other(self, server: Server, tmp_path: Path, said: Say) -> None:
        server.files[PATH] = Served(zipped(PIECES))
        gone = replace(SOURCES["emopia"], url=server.url + "/none", record="")
        assert get(tmp_path, gone, source(server)) == ["emopia"]
        assert (tmp_path / "Pianist8").is_dir() and not (tmp_path / "EMOPIA_1.0").exists()
        assert "/none is gone: 404" in said() and "By hand" in said()

    def test_of_other_bytes_is_a_warning_that_names_them(self, server: Server, tmp_path: Path, said: Say) -> None:
        server.files[PATH] = Served(zipped(PIECES | {f"midi/{NAMES[1]}": b"another edition"}))
        assert get(tmp_path, source(server)) == []
        assert f"not what the paper's copy holds, so numbers may differ: 1 changed, first {NAMES[1]}" in said()
        assert json.loads((tmp_path / "Pianist8/SOURCE.json").read_text())["differs"]["changed"] == [NAMES[1]]

    def test_that_lacks_files_is_refused(self, server: Server, tmp_path: Path, said: Say) -> None:
        server.files[PATH] = Served(zipped({name: PIECES[name] for name in list(PIECES)[1:]}))
        assert get(tmp_path, source(server)) == ["pianist8"]
        assert f"of the paper's 3 files 1 missing, first {NAMES[0]}" in said() and "the archive was removed" in said()
        assert tree(tmp_path) == {}

    def test_that_was_put_there_half_is_never_written_to(self, server: Server, tmp_path: Path, said: Say) -> None:
        server.files[PATH] = Served(zipped(PIECES))
        own = tmp_path / "Pianist8" / "midi" / NAMES[0]
        own.parent.mkdir(parents=True)
        own.write_bytes(PIECES[f"midi/{NAMES[0]}"])
        before = tree(tmp_path)
        assert get(tmp_path, source(server)) == ["pianist8"]
        assert tree(tmp_path) == before and not server.requests
        assert "2 missing" in said() and "move that folder away" in said()

    def test_an_archive_put_there_by_hand_is_taken(self, server: Server, tmp_path: Path) -> None:
        (tmp_path / "downloads").mkdir()
        (tmp_path / "downloads" / "pianist8.zip").write_bytes(zipped(PIECES))
        items = wanted(tmp_path, source(server))
        assert items[0].state == "archive there"
        assert install.install(items) == [] and not server.requests
        assert (tmp_path / "Pianist8" / "midi" / NAMES[0]).exists() and not (tmp_path / "downloads").exists()

    def test_an_archive_put_there_by_hand_is_kept_if_it_is_broken(
        self, server: Server, tmp_path: Path, said: Say
    ) -> None:
        (tmp_path / "downloads").mkdir()
        (tmp_path / "downloads" / "pianist8.zip").write_bytes(zipped(PIECES)[:-30])
        assert get(tmp_path, source(server)) == ["pianist8"]
        assert "broken or cut short" in said() and "delete it to have it fetched" in said()
        assert list(tree(tmp_path)) == ["downloads/pianist8.zip"]

    def test_what_a_killed_job_left_is_replaced(self, server: Server, tmp_path: Path) -> None:
        server.files[PATH] = Served(zipped(PIECES))
        left = tmp_path / ".Pianist8.being-made" / "midi" / NAMES[0]
        left.parent.mkdir(parents=True)
        left.write_bytes(b"half")
        assert get(tmp_path, source(server)) == []
        assert (tmp_path / "Pianist8" / "midi" / NAMES[0]).read_bytes() == PIECES[f"midi/{NAMES[0]}"]
        assert not (tmp_path / ".Pianist8.being-made").exists()

    def test_two_jobs_do_not_write_the_same(self, server: Server, tmp_path: Path, said: Say) -> None:
        server.files[PATH] = Served(zipped(PIECES))
        (tmp_path / "downloads").mkdir()
        with (tmp_path / "downloads" / "pianist8.lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert get(tmp_path, source(server)) == ["pianist8"]
        assert "another job is fetching it" in said() and not server.gets(PATH)

    @pytest.mark.parametrize("free", [0, 10_000])
    def test_a_full_disk_is_said_before_anything_is_fetched(
        self, free: int, server: Server, tmp_path: Path, said: Say, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.files[PATH] = Served(zipped(PIECES))
        disk = shutil.disk_usage(tmp_path)._replace(free=free + (64 << 20))  # which are left alone
        monkeypatch.setattr(install.shutil, "disk_usage", lambda _: disk)
        assert get(tmp_path, source(server)) == ["pianist8"]
        assert f"has room for {free / 1e6:.1f} MB, but pianist8 needs 0." in said() and "corpora.root" in said()
        assert tree(tmp_path) == {} and not server.gets(PATH)

    def test_a_disk_that_fills_while_unpacking_keeps_the_archive(
        self, server: Server, tmp_path: Path, said: Say, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.files[PATH] = Served(zipped(PIECES))

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(install, "unpack", full)
            assert get(tmp_path, source(server)) == ["pianist8"]
        assert "No space left on device" in said()
        assert list(tree(tmp_path)) == ["downloads/pianist8.zip"]
        assert get(tmp_path, source(server)) == [] and len(server.gets(PATH)) == 1


class TestAServer:
    """Sizes, checksums, and connections that break."""

    content = bytes(range(256)) * 4000

    def ask(self, server: Server, **options: object) -> fetch.Remote:
        return fetch.probe(server.url + PATH, patience=HASTE, **options)  # type: ignore[arg-type]

    def test_a_cut_connection_is_gone_on_with(self, server: Server, tmp_path: Path) -> None:
        server.files[PATH] = Served(self.content, cuts=[400_000, 300_000])
        fetch.fetch(self.ask(server), tmp_path / "x.zip", patience=HASTE)
        assert (tmp_path / "x.zip").read_bytes() == self.content and list(tree(tmp_path)) == ["x.zip"]
        gets = server.gets(PATH)
        assert [(get.range, get.if_range, get.status) for get in gets] == [
            (None, None, 200),
            ("bytes=400000-", '"one"', 206),
            ("bytes=700000-", '"one"', 206),
        ]
        assert sum(get.sent for get in gets) == len(self.content), "no byte twice"

    def test_a_date_will_do_where_there_is_no_tag(self, server: Server, tmp_path: Path) -> None:
        date = "Thu, 01 Jul 2021 10:00:00 GMT"
        server.files[PATH] = Served(self.content, etag="", headers={"Last-Modified": date}, cuts=[400_000])
        fetch.fetch(self.ask(server), tmp_path / "x.zip", patience=HASTE)
        assert (tmp_path / "x.zip").read_bytes() == self.content
        assert [(get.if_range, get.sent) for get in server.gets(PATH)] == [(None, 400_000), (date, 624_000)]

    def test_another_run_goes_on_where_one_gave_up(self, server: Server, tmp_path: Path) -> None:
        server.files[PATH] = Served(self.content, cuts=[100_000, 200_000])
        with pytest.raises(
            PublisherUnreachableError, match=r"broke off 2 times.* 0\.3 MB kept in .*the same command again"
        ):
            fetch.fetch(self.ask(server), tmp_path / "x.zip", patience=replace(HASTE, attempts=2))
        assert not (tmp_path / "x.zip").exists()
        fetch.fetch(self.ask(server), tmp_path / "x.zip", patience=HASTE)
        assert (tmp_path / "x.zip").read_bytes() == self.content
        assert server.gets(PATH)[-1].range == "bytes=300000-"
        assert sum(get.sent for get in server.gets(PATH)) == len(self.content)

    def test_a_part_that_is_all_is_not_fetched_again(self, server: Server, tmp_path: Path) -> None:
        server.files[PATH] = Served(self.content)
        (tmp_path / "x.zip.part").write_bytes(self.content)
        (tmp_path / "x.zip.part.json").write_text(json.dumps({"url": server.url + PATH, "validator": '"one"'}))
        fetch.fetch(self.ask(server), tmp_path / "x.zip", patience=HASTE)
        assert not server.gets(PATH) and (tmp_path / "x.zip").read_bytes() == self.content

    @pytest.mark.parametrize("served", [{"ranges": False}, {"etag": 'W/"weak"'}, {"etag": ""}])
    def test_without_ranges_or_a_strong_validator_it_begins_again(
        self, served: dict[str, object], server: Server, tmp_path: Path
    ) -> None:
        server.files[PATH] = Served(self.content, cuts=[500_000], **served)  # type: ignore[arg-type]
        fetch.fetch(self.ask(server), tmp_path / "x.zip", patience=HASTE)
        assert (tmp_path / "x.zip").read_bytes() == self.content
        assert [get.sent for get in server.gets(PATH)] == [500_000, len(self.content)]

    @pytest.mark.parametrize("if_range", [True, False])
    def test_a_file_that_changed_in_between_begins_again(self, if_range: bool, server: Server, tmp_path: Path) -> None:
        """Whether the server heeds If-Range or sends the rest of the new file for the old one."""
        server.files[PATH] = Served(self.content, cuts=[100_000])
        with pytest.raises(PublisherUnreachableError):
            fetch.fetch(self.ask(server), tmp_path / "x.zip", patience=replace(HASTE, attempts=1))
        server.files[PATH] = Served(self.content[::-1], etag='"two"', if_range=if_range)
        fetch.fetch(self.ask(server), tmp_path / "x.zip", patience=HASTE)
        assert (tmp_path / "x.zip").read_bytes() == self.content[::-1]

    def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(
        self, server: Server, tmp_path: Path
    ) -> None:
        server.files[PATH] = Served(self.content, statuses=[503, 429])
        fetch.fetch(self.ask(server), tmp_path / "x.zip", patience=HASTE)
        assert [get.status for get in server.gets(PATH)] == [503, 429, 200]
        server.files[PATH] = Served(self.content, statuses=[403] * 9)
        with pytest.raises(DownloadError, match="is refused: 403"):
            fetch.fetch(self.ask(server), tmp_path / "y.zip", patience=HASTE)
        assert len(server.gets(PATH)) == 4 and not (tmp_path / "y.zip").exists()

    @pytest.mark.parametrize("where", ["record", "Content-MD5", "hexadecimal", "ETag", "sha256"])
    def test_a_wrong_checksum_is_refused(self, where: str, server: Server, tmp_path: Path, said: Say) -> None:
        good, bad = zipped(PIECES), zipped(PIECES | {"README": b"tampered with"})
        md5, record = hashlib.md5(good), ""
        headers = {"Content-MD5": {"Content-MD5": base64.b64encode(md5.digest()).decode()}}
        headers["hexadecimal"] = {"Content-MD5": md5.hexdigest()}
        options = {"etag": f'"md5:{md5.hexdigest()}"'} if where == "ETag" else {}
        changes = {"sha256": hashlib.sha256(good).hexdigest()} if where == "sha256" else {}
        if where == "record":
            key, record = PATH.removeprefix("/files/"), server.url + "/record"
            entry = {"key": key, "size": len(bad), "checksum": f"md5:{md5.hexdigest()}"}
            listed = {"files": [{"key": "other"}, entry], "metadata": {"license": {"id": "cc-by-4.0"}}}
            server.files["/record"] = Served(json.dumps(listed).encode())
        asked = replace(source(server, **changes), record=record)
        for content, failed in ((bad, ["pianist8"]), (good, [])):
            server.files[PATH] = Served(content, headers=headers.get(where, {}), **options)
            if record:
                entry["size"] = len(content)
                server.files["/record"] = Served(json.dumps(listed).encode())
            assert get(tmp_path, asked) == failed
            assert (tmp_path / "Pianist8").exists() == (not failed)
            assert not (tmp_path / "downloads").exists()
        algorithm = "sha256" if where == "sha256" else "md5"
        assert f"has {algorithm} {hashlib.new(algorithm, bad).hexdigest()}, but the publisher states" in said()
        assert "run the same command again" in said()
        if record:
            assert "(Zenodo states cc-by-4.0)" in said()
            assert json.loads((tmp_path / "Pianist8/SOURCE.json").read_text())["licence_of_record"] == "cc-by-4.0"

    @pytest.mark.parametrize(
        "content", [b"", b"[]", b"{}", b'{"files": [{"key": "other"}]}', b'{"files": 3}', b"<html>"]
    )
    def test_a_record_that_tells_nothing_is_a_warning(
        self, content: bytes, server: Server, tmp_path: Path, said: Say
    ) -> None:
        server.files[PATH] = Served(self.content)
        server.files["/record"] = Served(content)
        remote = self.ask(server, record=server.url + "/record")
        assert remote.size == len(self.content) and not remote.checksums
        assert "does not tell the checksum" in said()

    def test_no_answer_to_head_and_no_length_are_borne(self, server: Server, tmp_path: Path) -> None:
        server.files[PATH] = Served(zipped(PIECES), head=False, length=False)
        items = wanted(tmp_path, source(server))
        assert "not stated" in install.table(items)
        assert install.install(items, patience=HASTE) == []

    def test_more_than_is_allowed_is_refused(self, server: Server, tmp_path: Path) -> None:
        for length in (True, False):
            server.files[PATH] = Served(self.content, length=length)
            with pytest.raises(DownloadError, match=r"more than the 0\.5 MB allowed"):
                fetch.fetch(self.ask(server), tmp_path / "x.zip", patience=replace(HASTE, most_bytes=500_000))
            assert not (tmp_path / "x.zip").exists()
        assert (tmp_path / "x.zip.part").stat().st_size <= 500_000

    def test_redirects_lead_to_allowed_addresses_only(self, server: Server, tmp_path: Path) -> None:
        server.files[PATH] = Served(b"", redirect=server.url + "/there")
        server.files["/there"] = Served(self.content, cuts=[1000])
        fetch.fetch(self.ask(server), tmp_path / "x.zip", patience=HASTE)
        assert (tmp_path / "x.zip").read_bytes() == self.content
        assert [request.method for request in server.requests] == ["HEAD", "HEAD"] + ["GET"] * 4
        for target in ("http://example.org/x", "ftp://example.org/x", "file:///etc/passwd", "//localhost/x"):
            server.files[PATH] = Served(b"", redirect=target)
            with pytest.raises(DownloadError, match=r"only https:// is allowed"):
                fetch.fetch(self.ask(server), tmp_path / "y.zip", patience=HASTE)
            assert list(tree(tmp_path)) == ["x.zip"]

    @pytest.mark.parametrize("url", ["http://127.0.0.1/x", "http://example.org/x", "ftp://x/y", "file:///x", "x"])
    def test_only_https_is_fetched(self, url: str, tmp_path: Path) -> None:
        with pytest.raises(DownloadError, match="only https:// is allowed"):
            fetch.probe(url)
        with pytest.raises(DownloadError, match="only https:// is allowed"):
            fetch.fetch(fetch.Remote(url=url), tmp_path / "x")

    def test_without_network_it_says_what_to_put_where(
        self, tmp_path: Path, said: Say, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{closed.getsockname()[1]}/x.zip"
            allow(url, monkeypatch)
            items = wanted(tmp_path, replace(SOURCES["pop909"], url=url))
        assert items[0].state == "unreachable" and "unreachable" in install.table(items)
        assert install.install(items, patience=HASTE) == ["pop909"]
        for words in (
            f"pop909: {url} cannot be reached",
            f"fetch {url}",
            f"save it as {tmp_path}/downloads/pop909.zip",
            f"so that {tmp_path}/POP909/001/001.mid and 1,729 more files are there",
            "Licence: MIT",
        ):
            assert words in said()
        assert not list(tmp_path.iterdir())


def link(kind: bytes = tarfile.SYMTYPE, name: str = f"{TOP}/midi/x.mid", to: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def zip_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(f"{TOP}/midi/x.mid")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def patched(content: bytes, offset: int, value: bytes) -> bytes:
    """A zip with other bytes in the central directory's last entry."""
    start = content.rindex(b"PK\x01\x02") + offset
    return content[:start] + value + content[start + len(value) :]


def long_header() -> bytes:
    """The beginning of a tar archive whose first extended header says that it has 8 GiB."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 8 << 30
    return info.tobuf(tarfile.GNU_FORMAT)


ZEROS = {"midi/x.mid": bytes(4 << 20)}
ONE = {"midi/x.mid": b"MThd" * 100}
MALICIOUS: dict[str, tuple[bytes, str]] = {
    "zip, absolute path": (zipped({"etc/x.mid": b""}, top=""), "leads out"),
    "zip, way up": (zipped({"../../midi/x.mid": b""}), "leads out"),
    "zip, way up in what is not wanted": (zipped({"../x": b""} | PIECES), "leads out"),
    "zip, backslash": (zipped({"midi\\..\\x.mid": b""}), "leads out"),
    "zip, drive": (zipped({"x.mid": b""}, top="C:"), "leads out"),
    "zip, NUL": (zipped({"midi/x.mid_y": b""}).replace(b"x.mid_y", b"x.mid\0y"), "leads out"),
    "zip, symbolic link": (zip_link(), "link or a device"),
    "zip, encrypted": (patched(zipped(ONE), 8, b"\1\0"), "is encrypted"),
    "zip, LZMA": (zipped(ONE, method=zipfile.ZIP_LZMA), "packed by method 14"),
    "zip, same file twice": (zipped({"midi/a/x.mid": b"", "midi/A/x.mid": b""}), "two members"),
    "zip, file and folder": (zipped({"midi/x/y.mid": b"", "midi/x": b""}), "two members"),
    "zip, bomb by ratio": (zipped(ZEROS), "times its packed size"),
    "zip, bomb by size": (zipped({"midi/x.mid": bytes(9 << 20)}, method=zipfile.ZIP_STORED), "more than is allowed"),
    "zip, bomb by number": (zipped({f"midi/{n}.mid": b"" for n in range(60)}), "60 members, 50 are allowed"),
    "zip, header that says less": (patched(zipped(ZEROS), 24, struct.pack("<L", 100)), "broken or cut short"),
    "zip, header that says more": (patched(zipped(ONE), 24, struct.pack("<L", 1 << 30)), "not the 1,073,741,824"),
    "zip, cut short": (zipped(PIECES)[:-100], "broken or cut short"),
    "zip, damaged": (zipped(ONE, method=zipfile.ZIP_STORED).replace(b"MThdMThd", b"MThdXXXX", 1), "Bad CRC-32"),
    "tar, absolute path": (tarred({"/etc/x.mid": b""}), "leads out"),
    "tar, way up": (tarred({f"{TOP}/midi/../../../x.mid": b""}), "leads out"),
    "tar, symbolic link": (tarred({"x": link()}), "link, a device"),
    "tar, link to a folder, then a file in it": (
        tarred({"x": link(name=f"{TOP}/midi", to="/"), f"{TOP}/midi/x.mid": b""}),
        "link, a device",
    ),
    "tar, hard link": (tarred({"x": link(tarfile.LNKTYPE)}), "link, a device"),
    "tar, device": (tarred({"x": link(tarfile.CHRTYPE)}), "link, a device"),
    "tar, fifo": (tarred({"x": link(tarfile.FIFOTYPE)}), "link, a device"),
    "tar, sparse file": (tarred({"x": link(tarfile.GNUTYPE_SPARSE)}), "sparse"),
    "tar, same file twice": (tarred({f"{TOP}/midi/é/x": b"", f"./{TOP}/midi/E\u0301/x": b""}), "two members"),
    "tar, bomb by ratio": (tarred({f"{TOP}/midi/x.mid": bytes(4 << 20)}), "times its packed size"),
    "tar, bomb by size": (tarred({f"{TOP}/x": bytes(9 << 20)}, "w:"), "more than is allowed"),
    "tar, bomb by number": (tarred({f"{TOP}/{n}": b"" for n in range(60)}), "more than 50 members"),
    "tar, bomb in a header": (gzip.compress(long_header() + bytes(4 << 20)), "times its packed size"),
    "tar, without its checksum": (tarred({f"{TOP}/midi/x.mid": b"MThd"})[:-8], "broken or cut short"),
    "tar, cut short": (tarred({f"{TOP}/midi/x.mid": bytes(range(256)) * 99})[:-20], "broken or cut short"),
    "neither": (b"<html>not found</html>", "broken or cut short"),
    "empty": (b"", "broken or cut short"),
}
LIMITS = Limits(members=50, member_bytes=5 << 20, total_bytes=8 << 20)


class TestAnArchive:
    """What must not be unpacked is not, and nothing is written beside the folder."""

    @pytest.mark.parametrize("case", MALICIOUS)
    def test_that_means_ill_is_refused(self, case: str, tmp_path: Path) -> None:
        content, words = MALICIOUS[case]
        (tmp_path / "deep" / "folder").mkdir(parents=True)
        (tmp_path / "x.zip").write_bytes(content)
        place = replace(SOURCES["pianist8"], members=(r"(midi/.+)",)).place
        with pytest.raises(ArchiveError, match=words) as caught:
            unpack(tmp_path / "x.zip", tmp_path / "deep" / "folder", place, LIMITS)
        assert str(tmp_path / "x.zip") in str(caught.value) or "midi" in str(caught.value)
        assert all(name.startswith(("x.zip", "deep/folder/")) for name in tree(tmp_path))
        assert sum(map(len, tree(tmp_path / "deep" / "folder").values())) <= LIMITS.total_bytes

    @pytest.mark.parametrize("case", ["zip, bomb by ratio", "tar, symbolic link", "zip, cut short"])
    def test_leaves_nothing_behind(self, case: str, server: Server, tmp_path: Path, said: Say) -> None:
        server.files[PATH] = Served(MALICIOUS[case][0])
        assert get(tmp_path, source(server)) == ["pianist8"]
        assert not list(tmp_path.iterdir())
        assert "the archive was removed" in said()

    def test_repository_paths_are_what_is_wanted(self) -> None:
        places = {
            "pop909": {"R/POP909/001/001.mid": "001/001.mid", "R/POP909/001/beat_audio.txt": "001/beat_audio.txt"},
            "asap": {
                "R/Bach/Fugue/bwv_846/midi_score.mid": "Bach/Fugue/bwv_846/midi_score.mid",
                "R/README.md": "README.md",
            },
            "pop1k7": {"R/midi_synchronized/src_001/0.mid": "midi_synchronized/src_001/0.mid"},
            "pianist8": {"R/midi/Bethel/x y.mid": "midi/Bethel/x y.mid"},
            "emopia": {"EMOPIA_1.0/midis/Q1_-x_0.mid": "midis/Q1_-x_0.mid", "EMOPIA_1.0/label.csv": "label.csv"},
        }
        others = {
            "pop909": ("R/POP909/001/versions/001-v1.mid", "R/pop-pickle.zip", "POP909/001/001.mid"),
            "asap": ("R/Bach/Fugue/bwv_846/Shi05M.mid",),
            "pop1k7": ("R/midi_analyzed/src_001/0.mid",),
            "pianist8": ("midi/Bethel/x.mid",),
            "emopia": ("__MACOSX/EMOPIA_1.0/midis/._Q1_x.mid", "EMOPIA_1.0/metadata/x.json"),
        }
        for name, source in SOURCES.items():
            assert {path: source.place(path) for path in places[name]} == places[name]
            assert not any(source.place(path) for path in others[name])


class TestTheJob:
    """jobs/download.py as a user starts it."""

    @pytest.fixture
    def job(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: Say) -> Job:
        def start(*words: str) -> tuple[int, str]:
            code = 0
            try:
                code = execute(["download", *words])
            except SystemExit as stop:
                code = int(stop.code or 0)
            return code, "".join(capsys.readouterr()) + said()

        return start

    def test_shows_what_it_would_do_then_does_it(
        self, job: Job, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.files[PATH] = Served(zipped(PIECES))
        monkeypatch.setitem(SOURCES, "pianist8", source(server))
        code, text = job("pianist8", f"corpora.root={tmp_path / 'data'}", "--dry-run")
        assert code == 0 and not server.gets(PATH) and not (tmp_path / "data").exists()
        line = next(line for line in text.splitlines() if line.startswith("pianist8"))
        assert "0.0 MB" in line and "3 files" in line and "to fetch" in line and "research use only" in line
        assert line.endswith(str(tmp_path / "data" / "Pianist8"))
        code, text = job("pianist8", f"corpora.root={tmp_path / 'data'}")
        assert code == 0 and (tmp_path / "data" / "Pianist8" / "midi" / NAMES[0]).exists(), text
        (tmp_path / "data" / "Pianist8" / "midi" / NAMES[0]).unlink()
        code, text = job("pianist8", f"corpora.root={tmp_path / 'data'}")
        assert code == 1 and f"1 missing, first {NAMES[0]}" in text

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["pop909"], "corpora.root='' is not allowed"),
            (["pop909", "corpora.root=s3://bucket/x"], "name the local folder"),
            (["pop90", "corpora.root=/nowhere"], "did you mean 'pop909'"),
            (["sample", "corpora.root=/nowhere"], "has no publisher"),
            (["folder:/x", "corpora.root=/nowhere"], "use pop909, asap, pop1k7, pianist8, emopia"),
        ],
    )
    def test_wrong_words_are_explained(self, words: list[str], told: str, job: Job) -> None:
        code, text = job(*words)
        assert code == 2 and told in text


@pytest.mark.corpora
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_corpus_packed_as_its_publisher_does_comes_out_equal(
    name: str, corpora_root: Path, server: Server, tmp_path: Path
) -> None:
    corpus = CORPORA[name]
    top = corpora_root / corpus.folder.split("/")[0]
    inner = "POP909/" if name == "pop909" else ""
    files = {path: data for path, data in tree(top).items() if path != "SOURCE.md"}
    texts = {path for path in files if "/" not in path and path.startswith(("README", "LICEN"))}
    members = {("" if path in texts else inner) + path: data for path, data in files.items()}
    server.files["/x"] = Served(zipped(members, method=zipfile.ZIP_STORED))
    local = replace(SOURCES[name], url=server.url + "/x", record="")
    assert get(tmp_path, local) == []
    assert measure(corpus, tmp_path / corpus.folder) == published(name)
    assert texts <= tree(tmp_path / top.name).keys()
