"""The files of a source, wherever they lie: in folders, zips and tars, one container in another, plain or packed.

A container's contents are treated as a folder's: the same names are hidden, the same suffixes are read, and what is not
taken is counted by its kind. Packed by gzip, bzip2, xz or zstd (which needs the package zstandard, or pyarrow).
"""

import collections
import contextlib
import dataclasses
import fnmatch
import functools
import lzma
import os
import pathlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib

from paradigm import archives, tfds
from paradigm.errors import UserError
from paradigm.names import is_hidden, parts_of, splits_by_path, without_shard
from paradigm.storage import unreadable

PACKED = (".gz", ".bz2", ".xz", ".zst")
UNPACKS_TO = 4  # times its size: text shrinks to about a quarter
_TARS = (".tar", *(f".tar{p}" for p in PACKED))
_SHORT = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz", ".tzst": ".tar.zst"}
_IN_MEMORY = 64 << 20  # of a container in a container; a larger one is unpacked to a temporary file


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a source. path: of the file on the disk. inside: the members to open in it, one in another.

    name: below the source, members in their containers: 'part/b.zip/texts/1.txt'. size: bytes, as stored.
    """

    path: str
    name: str
    size: int
    inside: tuple[str, ...] = ()
    outer: str = ""  # the outermost container's name, if it is in one

    @property
    def member(self):
        """Its name below the outermost container; the name of a file that is in none."""
        return self.name[len(self.outer) + 1 :] if self.outer else self.name

    @property
    def names(self):
        """What a person may call it: its name, its name in the container, or the container's."""
        return (self.name, self.member, self.outer) if self.outer else (self.name,)


def ending(name):
    """'.jsonl.gz' of a.b.jsonl.gz, '.array_record' of x.array_record-00000-of-00001, '.txt' of notes.v2.txt."""
    suffixes = [s.lower().split("-")[0] for s in pathlib.PurePosixPath(name).suffixes[-2:]]
    found = "".join(suffixes) if suffixes[-1:] and suffixes[-1] in PACKED else "".join(suffixes[-1:])
    return _SHORT.get(found, found)


def unpacked_ending(name):
    """`ending` without what says how it is packed."""
    suffix = ending(name)
    return suffix.removesuffix(next((p for p in PACKED if suffix.endswith(p)), ""))


def is_packed(name):
    """Whether a file is packed by itself."""
    return ending(name).endswith(PACKED)


def is_container(name):
    return ending(name) == ".zip" or ending(name) in _TARS


def walk(root, wanted):
    """([File], Counter of what was left out, by kind) of a file or folder, in the order of names.

    wanted(File): whether a reader takes it, by its name or its first bytes. Raises UserError for a broken container.
    """
    root, found, left = pathlib.Path(root), [], collections.Counter()

    def take(file):
        if is_hidden(file.member if file.outer else file.name):
            left["hidden"] += 1
        elif is_container(file.name):
            for member in _members(file, left):
                take(member)
        elif not file.size:
            left["empty"] += 1
        elif wanted(file):
            found.append(file)
        else:
            left[ending(file.name) or "no suffix"] += 1

    if root.is_file():
        file = File(str(root), root.name, root.stat().st_size)
        if not is_container(root.name):
            return ([file] if file.size else []), left
        for member in _members(file, left):
            take(member)
        return found, +left
    for name, path in sorted(_below(root)):
        if path.is_file():
            take(File(str(path), name, path.stat().st_size))
        elif path.is_symlink() and not path.exists():
            left["broken links"] += 1
    return found, +left


def _below(root):
    """(name, path) of the files of a folder, those of linked folders too; links may go round in circles.

    Raises UserError for a folder that cannot be read: os.walk would leave it out without a word.
    """
    seen = set()
    for folder, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders[:] = []
            continue
        seen.add(real)
        folders.sort()
        yield from ((path.relative_to(root).as_posix(), path) for path in (pathlib.Path(folder, f) for f in files))


def splits_by_name(files):
    """{name: its split} of the Files that names of files or folders side by side, one of them train, say."""
    return splits_by_path(
        {file.name: [stem_of(part) for part in pathlib.PurePosixPath(file.name).parts] for file in files}
    )


def stem_of(name):
    """A name without its ending and the number of its shard: c4-train of c4-train.00001-of-01024.json.gz."""
    bare = name[: len(name) - len(ending(name))] if name.lower().endswith(ending(name)) else name
    return without_shard(bare)


def told(left):
    """'3 files of .png, 2 hidden files' of a Counter of what was left out; '' of nothing."""
    kinds = sorted(left.items(), key=lambda item: (-item[1], item[0]))
    what = lambda kind, n: f"{n:,} file{'s' * (n > 1)}"
    word = lambda kind, n: (
        f"{what(kind, n)} of {kind}" if kind.startswith(".")
        else f"{n:,} {kind}" if kind == "broken links"
        else f"{what(kind, n)} of no suffix" if kind == "no suffix"
        else f"{n:,} {kind} file{'s' * (n > 1)}"
    )  # fmt: skip
    return ", ".join(word(kind, n) for kind, n in kinds[:12]) + ", ..." * (len(kinds) > 12)


def matches(names, globs):
    """Whether one of some names matches one of some patterns, with commas between."""
    return any(name == glob or fnmatch.fnmatchcase(name, glob) for glob in patterns(globs) for name in names)


def patterns(globs):
    return [g.strip() for g in globs.split(",") if g.strip()]


def check_patterns(source, setting, globs, pieces):
    """Raises UserError for a pattern that matches none of the pieces' names, with some that there are."""
    for glob in patterns(globs):
        if not any(matches(p.names, glob) for p in pieces):
            names = list(dict.fromkeys(p.names[0] for p in pieces))
            some = ", ".join(names[:4]) + ", ..." * (len(names) > 4)
            raise UserError(f"source {source}: no file or split matches {setting}={glob!r}; it has {some or 'none'}")


def checksum(path):
    """Size and CRC of a file's first and last 32 MiB: a changed corpus is noticed without reading terabytes."""
    size, edge = os.path.getsize(path), 32 << 20
    with open(path, "rb") as file:
        crc = zlib.crc32(file.read(edge))
        if size > edge:
            file.seek(max(edge, size - edge))
            crc = zlib.crc32(file.read(), crc)
    return f"{size}:{crc:08x}"


# -------------------------------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def reading(place):
    """What may be wrong with a file, as one line that names it."""
    try:
        yield
    except (OSError, EOFError, RuntimeError, NotImplementedError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{place}: cannot be read ({tfds.first_line(error)}): mend it, or leave it out") from error
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(f"{place}: cannot be read ({tfds.first_line(error)}): mend it, or leave it out") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("zstandard", "zstd", "pyarrow"):
            raise
        raise UserError(f"{place}: cannot be read ({tfds.first_line(error)}): mend it, or leave it out") from error


def place_of(piece):
    """Where a File or a piece of one is, for a person: its path, and in containers the members' names."""
    return "/".join((str(piece.path), *piece.inside))


def open_file(path, inside=()):
    """A binary stream of what a file holds, unpacked; `inside` as of a File."""
    return _unpacked(_stored(path, inside), inside[-1] if inside else path)


def _stored(path, inside):
    if not inside:
        return open(path, "rb")
    archive = _archive(path, inside[:-1], _stamp(path))
    return archive.open(inside[-1])


def _stamp(path):
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=4)
def _archive(path, inside, stamp):
    """An open container. Kept open, since its table of contents would be read again for each of its members."""
    del stamp  # of another file by the same name
    name = inside[-1] if inside else path
    place = "/".join((path, *inside))
    what = "zip" if ending(name) == ".zip" else "tar"
    try:
        stream = _stored(path, inside)
        if ending(name).endswith(".zst"):
            stream = _spooled(_unpacked(stream, name))
        elif inside:
            stream = _spooled(stream)
        return archives.Zip(stream) if what == "zip" else archives.Tar(archives.unpacked(stream))
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{place}: cannot be read as a {what} archive ({tfds.first_line(error)}): pack or fetch it again"
        ) from error


def _spooled(stream):
    """A copy in which one may seek without unpacking from the beginning again."""
    copy = tempfile.SpooledTemporaryFile(_IN_MEMORY)
    with stream:
        shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return copy


def _members(file, left):
    """The Files in a container: of a zip in the order of names, of a tar as stored, since it is read in that order.

    Of several of one name the last is what is there; the others are counted in `left`. A name has slashes, whatever
    wrote it.
    """
    with reading(place_of(file)):
        archive = _archive(file.path, file.inside, _stamp(file.path))
        left["replaced"] += archive.repeated
        left["broken links"] += archive.lost
    for member in archive.members:
        name = "/".join((file.name, *parts_of(member)))
        yield File(file.path, name, archive.size(member), (*file.inside, member), file.outer or file.name)


def _unpacked(stream, name):
    kind = next((p for p in PACKED if ending(name).endswith(p)), "")
    return archives.unpacked(stream, kind, name)
