"""Packed files, tars and zips by one rule for every reader: all streams and tars that are there one after the other,
and none that is damaged, cut short, or followed by something else; links lead where they would in a folder."""

import bz2
import contextlib
import gzip
import io
import lzma
import posixpath
import stat
import tarfile
import zipfile

from paradigm.errors import UserError

_BLOCK = 512  # bytes of a header, and of the zeros at an end
_CHUNK = 1 << 16  # bytes unpacked at a time
_MARKS = {
    ".gz": b"\x1f\x8b",
    ".bz2": b"BZh",
    ".xz": b"\xfd7zXZ\0",
    ".zst": b"\x28\xb5\x2f\xfd",
}  # what begins with which


def unpacked(stream, kind=None, name=""):
    """The seekable stream, unpacked by a kind: .gz, .bz2, .xz or .zst; None: the one that its first bytes say, if any.

    name: for the UserError where zstd cannot be read here. Reading raises OSError, EOFError, zlib.error or LZMAError.
    """
    if kind is None:
        begin = stream.read(6)
        stream.seek(0)
        kind = next((kind for kind, mark in _MARKS.items() if begin.startswith(mark)), "")
    if kind == ".gz":
        return gzip.GzipFile(fileobj=stream, mode="rb")
    if kind == ".zst":
        with contextlib.suppress(ImportError):
            import pyarrow

            return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, "r"), "zstd"))
    new = {".bz2": bz2.BZ2Decompressor, ".xz": lzma.LZMADecompressor, ".zst": lambda: _Frame(name)}.get(kind)
    if new is None:
        return stream
    mark = b"" if kind == ".zst" else _MARKS[kind]  # of which a frame that says nothing may follow another
    return io.BufferedReader(_Unpacked(stream, new, mark), _CHUNK)


class _Unpacked(io.RawIOBase):
    """What the streams of a file unpack to. Python's bz2 and lzma end in silence at what is none of their streams."""

    def __init__(self, stream, new, mark):
        self._stream, self._new, self._mark = stream, new, mark
        self._begin()

    def _begin(self):
        self._stream.seek(0)
        self._at, self._of, self._raw = 0, None, b""

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        """By unpacking: all of it anew for what lies before."""
        if whence == io.SEEK_END:
            while self.read(_CHUNK):
                pass
        at = offset + (0 if whence == io.SEEK_SET else self._at)
        if at < self._at:
            self._begin()
        while self._at < at and self.read(min(_CHUNK, at - self._at)):
            pass
        return self._at

    def readinto(self, buffer):
        data = b""
        while not data and self._feed():
            data = self._of.decompress(self._raw, len(buffer))
            self._raw = self._of.unused_data
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _feed(self):
        """Whether there is more to unpack: `_of` then takes `_raw` next."""
        if self._of is not None and not self._of.eof:
            self._raw = self._stream.read(_CHUNK) if self._of.needs_input else b""
            if self._of.needs_input and not self._raw:
                raise EOFError("it is cut short")
            return True
        first = self._of is None
        more = raw = self._raw or self._stream.read(_CHUNK)
        while more and not (raw := more if first else more.lstrip(b"\0")):
            more = self._stream.read(_CHUNK)
        if first and not raw:
            raise EOFError("it is empty")
        if not first and raw[: len(self._mark)] != self._mark[: len(raw)]:
            raise OSError("something else stands behind its end")
        self._raw, self._of = raw, self._new() if raw else self._of
        return bool(raw)


class _Frame:
    """zstandard's decompressor of one frame as bz2 has its own: so many bytes at a time."""

    def __init__(self, name):
        try:
            import zstandard
        except ImportError as error:
            raise UserError(f"{name} is packed by zstd: to read it, pip install zstandard") from error
        self._of, self._left = zstandard.ZstdDecompressor().decompressobj(), b""
        self._errors = zstandard.ZstdError

    def decompress(self, raw, size):
        try:
            self._left += self._of.decompress(raw) if raw else b""
        except self._errors as error:
            raise OSError(str(error)) from error
        data, self._left = self._left[:size], self._left[size:]
        return data

    needs_input = property(lambda self: not self._left)
    eof = property(lambda self: self._of.eof and not self._left)
    unused_data = property(lambda self: self._of.unused_data if self._of.eof else b"")


class Tar:
    """The files in a seekable stream of a tar, already unpacked: {name: tarfile.TarInfo}, of one name the last. A link
    to one of them is that file once more.

    repeated: how many have the name of a later one. lost: how many links lead to none of its files. Raises
    tarfile.ReadError for a stream that is no tar or is cut short, which Python's tarfile takes for its end.
    """

    def __init__(self, stream):
        self.members, self._of, self.repeated, links, at = {}, {}, 0, {}, 0
        while at is not None:
            stream.seek(at)
            archive = tarfile.TarFile(fileobj=stream)
            for member in archive:
                if member.isfile():
                    self.repeated += member.name in self.members
                    self.members[member.name], self._of[member.name] = member, archive
                elif member.islnk():  # from the archive's root on
                    links[member.name] = member.linkname
                elif member.issym():
                    links[member.name] = posixpath.join(posixpath.dirname(member.name), member.linkname)
            if archive.offset == at and at:
                raise tarfile.ReadError("there is something else behind its end")
            at = _after_zeros(stream, archive.offset)
        found = _followed(links, self.members)
        self.lost = len(links) - len(found)
        for held in (self.members, self._of):
            held |= {name: held[target] for name, target in found.items()}

    def open(self, name):
        """A binary stream of a file."""
        return self._of[name].extractfile(self.members[name])

    def size(self, name):
        return self.members[name].size


class Zip:
    """The same of a zip: {name: zipfile.ZipInfo} in the order of names, whatever wrote it."""

    def __init__(self, stream):
        self._of = zipfile.ZipFile(stream)
        infos = [i for i in self._of.infolist() if not i.filename.endswith(("/", "\\"))]
        there = {i.filename: i for i in sorted(infos, key=lambda i: i.filename)}
        self.repeated = len(infos) - len(there)
        kept = lambda i: stat.S_ISLNK(i.external_attr >> 16) and i.file_size < _CHUNK and not i.flag_bits & 1
        links = {name: self._of.read(info).decode("utf-8", "replace") for name, info in there.items() if kept(info)}
        files = {name: info for name, info in there.items() if name not in links}
        found = _followed({n: posixpath.join(posixpath.dirname(n), to) for n, to in links.items()}, files)
        self.lost = len(links) - len(found)
        self.members = {n: there[found.get(n, n)] for n in there if n in files or n in found}

    def open(self, name):
        """A binary stream of a file."""
        return self._of.open(self.members[name].filename)

    def size(self, name):
        return self.members[name].file_size


def _followed(links, files):
    """{link: the file that it leads to, by way of others maybe} of {link: path}, without those that lead to none."""
    if not links:  # as of nearly all: the names of a million files need no other form
        return {}
    there = {posixpath.normpath(name): name for name in (*links, *files)}
    found = {}
    for name in links:
        target, seen = name, set()
        while target in links and target not in seen:
            seen.add(target)
            target = there.get(posixpath.normpath(links[target]))
        if target in files:
            found[name] = target
    return found


def _after_zeros(stream, at):
    """Where another tar begins behind the end of one; None where there is none. Raises ReadError without an end."""
    stream.seek(at)
    if len(block := stream.read(_BLOCK)) < _BLOCK or block.strip(b"\0"):
        raise tarfile.ReadError("it is damaged, or cut short")
    while block and not block.strip(b"\0"):
        at, block = at + len(block), stream.read(_BLOCK)
    return at if block else None
