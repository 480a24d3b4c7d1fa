"""Tar files by one rule for every reader: all that are there one after the other, and none that is cut short."""

import bz2
import gzip
import lzma
import tarfile

_BLOCK = 512  # bytes of a header, and of the zeros at an end


def unpacked(stream):
    """The stream, unpacked where it is packed by gzip, bzip2 or xz."""
    begin = stream.read(6)
    stream.seek(0)
    if begin.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=stream, mode="rb")
    if begin.startswith(b"BZh"):
        return bz2.BZ2File(stream)
    return lzma.LZMAFile(stream) if begin.startswith(b"\xfd7zXZ") else stream


class Tar:
    """The files in a seekable stream of a tar, already unpacked: {name: tarfile.TarInfo}, of one name the last.

    repeated: how many have the name of a later one. Raises tarfile.ReadError for a stream that is no tar or is cut
    short, which Python's tarfile takes for its end.
    """

    def __init__(self, stream):
        self.members, self._of, self.repeated, at = {}, {}, 0, 0
        while at is not None:
            stream.seek(at)
            archive = tarfile.TarFile(fileobj=stream)
            for member in archive:
                if member.isfile():
                    self.repeated += member.name in self.members
                    self.members[member.name], self._of[member.name] = member, archive
            if archive.offset == at and at:
                raise tarfile.ReadError("there is something else behind its end")
            at = _after_zeros(stream, archive.offset)

    def open(self, name):
        """A binary stream of a file."""
        return self._of[name].extractfile(self.members[name])


def _after_zeros(stream, at):
    """Where another tar begins behind the end of one; None where there is none. Raises ReadError without an end."""
    stream.seek(at)
    if len(block := stream.read(_BLOCK)) < _BLOCK or block.strip(b"\0"):
        raise tarfile.ReadError("it is damaged, or cut short")
    while block and not block.strip(b"\0"):
        at, block = at + len(block), stream.read(_BLOCK)
    return at if block else None
