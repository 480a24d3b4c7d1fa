"""Files of a folder or an archive, by their names, without those that are hidden."""

import collections
import dataclasses
import hashlib
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib

from paradigm import archives
from paradigm.errors import UserError
from paradigm.names import DANGLING, HIDDEN, REPLACED, is_hidden, kind_of
from paradigm.storage import unreadable
from vision.decode_image import suffixes

SAMPLED = 256  # files whose content is looked at to tell a folder from another one of the same names and sizes ...
SAMPLE_BYTES = 1 << 18  # ... and how much of each


def is_picture(name):
    """Whether a file's name is that of a picture which can be read here."""
    return name.lower().endswith(suffixes())


def sample_of(path, begin=0, count=SAMPLE_BYTES):
    """A hash of some bytes of a file; of none where it cannot be read, which is told when it is to be."""
    try:
        with open(path, "rb") as file:
            file.seek(begin)
            return hashlib.sha256(file.read(count)).hexdigest()[:32]
    except OSError:
        return "unreadable"


def spread(count, chosen):
    """At most `chosen` of range(count), spread evenly, both ends among them."""
    chosen = min(count, chosen)
    return sorted({round(k * (count - 1) / max(1, chosen - 1)) for k in range(chosen)})


@dataclasses.dataclass(frozen=True)
class Folder:
    """Files below a directory, by their names from there on."""

    root: str

    def read(self, name):
        with open(os.path.join(self.root, name), "rb") as file:
            return file.read()

    def place(self, name):
        return os.path.join(self.root, name)

    def list(self):
        """(sorted [(name, size)] of every file, {what is left out: how many})."""
        seen, found, without = set(), [], collections.Counter()
        for folder, folders, files in os.walk(self.root, onerror=unreadable, followlinks=True):
            real = os.path.realpath(folder)
            without[HIDDEN] += sum(map(is_hidden, [*folders, *files])) * (real not in seen)
            folders[:] = [] if real in seen else sorted(f for f in folders if not is_hidden(f))
            if real not in seen:  # links may go round in circles
                found += [os.path.join(folder, f) for f in files if not is_hidden(f)]
            seen.add(real)
        stats = [(path, os.stat(path)) for path in found if os.path.isfile(path)]
        without[DANGLING] = len(found) - len(stats)
        rows = [(os.path.relpath(path, self.root), f"{s.st_size}") for path, s in stats]
        return sorted((name.replace(os.sep, "/"), size) for name, size in rows), without

    def sample(self, names):
        """What changes with the contents of some of these files, beside their sizes."""
        return [f"{names[k]} {sample_of(self.place(names[k]))}" for k in spread(len(names), SAMPLED)]


class Tar:
    """Members of a tar file, plain or packed (gzip, bzip2, xz, zstd): then each process unpacks it once, to a nameless
    file of its own. max_pixels, recipe: as of an Archive."""

    def __init__(self, root, max_pixels, recipe="ImageData"):
        self.root, self.max_bytes, self.recipe = root, 8 * max_pixels + (1 << 20), recipe
        self._opened = (None, None, None)  # (process, file, the archives.Tar of it)

    def __getstate__(self):
        return {**self.__dict__, "_opened": (None, None, None)}

    def _open(self):
        if self._opened[0] != os.getpid():
            try:
                file = stored = open(self.root, "rb")
                if (stream := archives.unpacked(stored, name=self.root)) is not stored:
                    file = tempfile.TemporaryFile()
                    shutil.copyfileobj(stream, file)
                    file.flush()
                archive = archives.Tar(file)
            except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
                raise UserError(
                    f"{self.root} cannot be read as a tar file ({error}): pack or fetch it again"
                ) from error
            self._opened = os.getpid(), file, archive
        return self._opened[1:]

    def read(self, name):
        file, archive = self._open()
        member = archive.members[name]
        check_bytes(self, member.size)
        return os.pread(file.fileno(), member.size, member.offset_data)

    def place(self, name):
        return f"{self.root} ({name})"

    def list(self):
        """(sorted [(name, size)] of every file, {what is left out: how many})."""
        archive = self._open()[1]
        return listed(archive, lambda member: f"{member.size}")

    def sample(self, names):
        """What changes with the contents of some of these files, beside their sizes."""
        some = [names[k] for k in spread(len(names), SAMPLED)]
        return [f"{name} {hashlib.sha256(self.read(name)[:SAMPLE_BYTES]).hexdigest()[:32]}" for name in some]


def listed(archive, stamp):
    """What `list` gives of an archives.Tar or Zip. stamp: of a member, what changes with its contents."""
    names = [(name, stamp(member)) for name, member in archive.members.items() if not is_hidden(name)]
    without = {HIDDEN: len(archive.members) - len(names), REPLACED: archive.repeated, DANGLING: archive.lost}
    return sorted(names), collections.Counter(without)


def check_bytes(files, size):
    """ValueError for what would unpack to more than a picture."""
    if size > files.max_bytes:
        raise ValueError(
            f"it unpacks to {size:,} bytes, more than any picture of {files.recipe}.max_pixels: remove it, or raise "
            "that if it is no decompression bomb"
        )


def open_container(path, max_pixels, recipe="ImageData"):
    """The Folder, Archive or Tar of a path; None where it is none."""
    if os.path.isdir(path):
        return Folder(str(path))
    if zipfile.is_zipfile(path):
        return Archive(str(path), max_pixels, recipe)
    return Tar(str(path), max_pixels, recipe) if os.path.isfile(path) and is_tar(path) else None


def is_tar(path):
    """Whether a file is a tar, or by its name is meant to be one."""
    return tarfile.is_tarfile(path) or re.search(r"\.(tar(\.\w+)?|tgz|tbz2|txz|tzst)$", str(path).lower()) is not None


class Archive:
    """Members of a zip file. Each process opens it for itself; nothing is written anywhere.

    max_pixels: of a picture, which bounds the bytes of a member. recipe: the class whose setting that is.
    """

    def __init__(self, root, max_pixels, recipe="ImageData"):
        self.root, self.max_bytes, self.recipe = root, 8 * max_pixels + (1 << 20), recipe
        self._opened = (None, None)  # (process, the archives.Zip)

    def __getstate__(self):
        return {**self.__dict__, "_opened": (None, None)}

    def _zip(self):
        process, archive = self._opened
        if process != os.getpid():  # a fork shares the file's position with its parent
            archive = archives.Zip(self.root)
            self._opened = (os.getpid(), archive)
        return archive

    def read(self, name):
        check_bytes(self, self._zip().size(name))
        with self._zip().open(name) as file:
            return file.read()

    def place(self, name):
        return f"{self.root} ({name})"

    def list(self):
        """(sorted [(name, what changes with the contents)] of every file, {what is left out: how many})."""
        archive = self._zip()
        if locked := next((name for name, i in archive.members.items() if i.flag_bits & 1), None):
            raise UserError(f"{self.place(locked)} is encrypted: pack the pictures again without a password")
        return listed(archive, lambda info: f"{info.file_size} {info.CRC:08x}")

    def sample(self, names):
        """Nothing: an archive has a checksum of each member."""
        return []


def kinds_left_out(names):
    """{kind: number} of files that are no pictures."""
    return collections.Counter(kind_of(name) for name in names if not is_picture(name))
