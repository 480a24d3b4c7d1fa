"""Pictures in a column of Parquet or Arrow files, and what stands beside them: as the datasets library keeps them.

A cell is the bytes of a picture's file, or {"bytes": those, "path": ...}. Pictures are read where they lie, a row group
of them at a time, of which each process keeps the last few. Splits stand in the names of files and folders, as in
data/train-00000-of-00002.parquet, or else in a column `split`.
"""

import bisect
import collections
import contextlib
import os
import pathlib

from paradigm.errors import UserError
from paradigm.names import few, is_hidden, says_splits, split_of, splits_by_path, without_shard
from paradigm.records import class_names, named
from paradigm.tfds import first_line
from vision.files import check_bytes

SUFFIXES = (".parquet", ".arrow", ".feather")
CACHED = 256 << 20  # bytes of row groups that each process keeps
_GROUP_BYTES = 1 << 30  # of the pictures of one row group
_SPLIT = "split"


def files_in(path):
    """{name: path} of a Parquet or Arrow file, or of those below a folder that are not hidden."""
    path = pathlib.Path(path)
    if path.is_file():
        return {path.name: str(path)} if path.suffix.lower() in SUFFIXES else {}
    found = {f.relative_to(path).as_posix(): str(f) for f in sorted(path.rglob("*")) if f.suffix.lower() in SUFFIXES}
    return {name: f for name, f in found.items() if not is_hidden(name) and os.path.isfile(f)}


class Table:
    """A Parquet or Arrow file. fields: {column: its type}. ends: of its row groups. names: {column: of its classes}."""

    def __init__(self, path):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise UserError(f"{path} is Parquet or Arrow: to read it, pip install pyarrow") from error
        self.path, self.types = path, pyarrow.types
        with _told(path):
            if path.lower().endswith(".parquet"):
                self._parquet, self._table = pyarrow.parquet.ParquetFile(path), None
                groups = map(self._parquet.metadata.row_group, range(self._parquet.metadata.num_row_groups))
                schema, counts = self._parquet.schema_arrow, [group.num_rows for group in groups]
            else:
                mapped = pyarrow.memory_map(path)
                try:
                    self._table = pyarrow.ipc.open_file(mapped).read_all()
                except pyarrow.ArrowInvalid:  # a stream, as the datasets library writes it
                    mapped.seek(0)
                    self._table = pyarrow.ipc.open_stream(mapped).read_all()
                schema, counts = self._table.schema, [self._table.num_rows]
        self.fields = {field.name: field.type for field in schema}
        self.ends = [sum(counts[: k + 1]) for k in range(len(counts))]
        self.names = class_names(schema)

    def __len__(self):
        return self.ends[-1] if self.ends else 0

    def group(self, k, column):
        """The cells of a row group."""
        if self._table is not None:
            return self._table[column]
        return self._parquet.read_row_group(k, columns=[column], use_threads=False)[column]

    def values(self, column):
        """A column as Python has it, the numbers of classes as their names where the file names them."""
        with _told(self.path):
            found = [value for k in range(len(self.ends)) for value in self.group(k, column).to_pylist()]
        if names := self.names.get(column):
            return [named(value, names) for value in found]
        return found

    def holds_pictures(self, column):
        """Whether a column has the type of pictures."""
        kind, is_bytes = self.fields[column], lambda t: self.types.is_binary(t) or self.types.is_large_binary(t)
        if self.types.is_struct(kind):
            return any(kind[k].name == "bytes" and is_bytes(kind[k].type) for k in range(kind.num_fields))
        return is_bytes(kind)

    def check_groups(self, column):
        """UserError where the pictures of a row group would fill the memory."""
        for k in range(len(self.ends) if self._table is None else 0):
            group = self._parquet.metadata.row_group(k)
            chunks = map(group.column, range(group.num_columns))
            size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)
            if size > _GROUP_BYTES:
                raise UserError(
                    f"{self.path} has {size / 1e9:.1f} GB of pictures in one row group, all of which would be held in "
                    "memory: write it again with pyarrow.parquet.write_table(..., row_group_size=100)"
                )


@contextlib.contextmanager
def _told(path):
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pyarrow's own, OSError, MemoryError
        raise UserError(f"{path}: cannot be read ({first_line(error)}): fetch or write it again") from error


class Embedded:
    """The pictures of a column of some files, called FILE#ROW: what a vision.files.Folder is of files.

    root: where they are. files: {name: path}. max_pixels, recipe: as of an Archive.
    """

    def __init__(self, root, files, column, max_pixels, recipe="ImageData"):
        self.root, self.files, self.column = str(root), files, column
        self.max_bytes, self.recipe = 8 * max_pixels + (1 << 20), recipe
        self._opened = (None, {}, collections.OrderedDict())

    def __getstate__(self):
        return {**self.__dict__, "_opened": (None, {}, collections.OrderedDict())}

    def _of_process(self):
        if self._opened[0] != os.getpid():
            self._opened = (os.getpid(), {}, collections.OrderedDict())
        return self._opened[1:]

    def table(self, file):
        tables, _ = self._of_process()
        if file not in tables:
            tables[file] = Table(self.files[file])
        return tables[file]

    def names(self, file):
        return [f"{file}#{row}" for row in range(len(self.table(file)))]

    def list(self):
        return [(name, "") for file in self.files for name in self.names(file)], collections.Counter()

    def sample(self, names):
        """Nothing: the files' own bytes are looked at."""
        return []

    def place(self, name):
        file, _, row = name.rpartition("#")
        return f"{self.files[file]} record {int(row) + 1}"

    def read(self, name):
        file, _, row = name.rpartition("#")
        table, row = self.table(file), int(row)
        k = bisect.bisect_right(table.ends, row)
        cell = self._cells(file, k)[row - (table.ends[k - 1] if k else 0)].as_py()
        raw = cell.get("bytes") if isinstance(cell, dict) else cell
        if raw is None:
            raise ValueError("there is no picture in it")
        check_bytes(self, len(raw))
        return raw

    def _cells(self, file, k):
        """The cells of a row group; the last that were asked for are kept."""
        _, kept = self._of_process()
        if (file, k) not in kept:
            kept[file, k] = self.table(file).group(k, self.column)
            while len(kept) > 1 and sum(cells.nbytes for cells in kept.values()) > CACHED:
                kept.popitem(last=False)
        kept.move_to_end((file, k))
        return kept[file, k]


def is_embedded(path):
    """Whether there are such files at a path, the first of which has a column of pictures."""
    table = next((Table(file) for file in files_in(path).values()), None)
    return table is not None and any(map(table.holds_pictures, table.fields))


def open_embedded(path, field, setting, max_pixels, recipe="ImageData"):
    """The Embedded of the files at a path. field: of the pictures; where there is none of that name, the only column
    that may be it. setting: that names it.

    Raises UserError, with the columns that there are, where none or several may be it, or the files are not alike.
    """
    files = files_in(path)
    if not files:
        raise UserError(f"{path} holds no Parquet or Arrow file ({' '.join(SUFFIXES)})")
    first, found = None, None
    for name in files:
        table = Table(files[name])
        first = first or table
        there = [column for column in table.fields if table.holds_pictures(column)]
        own = field if field in there else there[0] if len(there) == 1 and field not in table.fields else None
        if own is None or own != (found or own):
            fix = f"choose with {setting}" if len(there) > 1 else "write the pictures' bytes into one"
            raise UserError(
                f"{table.path} has {'several columns' if len(there) > 1 else 'no column'} of pictures (bytes, or "
                f"{{bytes, path}}) for {setting}={field!r}; it has {few(f'{n} ({t})' for n, t in table.fields.items())}"
                f": {fix}"
            )
        if missing := first.fields.keys() ^ table.fields.keys():
            raise UserError(
                f"{first.path} and {table.path} have other columns ({few(sorted(missing))}): name the files of one "
                "data set"
            )
        found = own
        table.check_groups(own)
    return Embedded(path, files, found, max_pixels, recipe)


def splits_of_rows(container):
    """({file: [split of each row]}, what was taken as what)."""
    files, column = container.files, _split_column(container)
    words = {name: [*(p := pathlib.PurePosixPath(name)).parent.parts, without_shard(p.stem)] for name in files}
    by_file = splits_by_path(words)
    said = {name: {split_of(word) for word in path} - {None} for name, path in words.items()}
    if not by_file and len(files) > 1 and any(said.values()) and "train" not in set().union(*said.values()):
        raise UserError(
            f"{container.root} holds {few(files, 4)}, of which none is of train: add that, or name the file to train on"
        )
    if not by_file and column:
        said = {f: container.table(f).values(column) for f in files}
        return {f: [_split_said(v) for v in own] for f, own in said.items()}, f"splits from {column}"
    if left := [name for name in files if by_file and name not in by_file]:
        raise UserError(f"{container.root} holds {few(left, 4)} beside files of train, valid and test: move it away")
    counts = collections.Counter(by_file.values())
    note = "splits by the files' names: " + ", ".join(f"{n} of {split}" for split, n in counts.items())
    return {f: [by_file.get(f, "train")] * len(container.table(f)) for f in files}, note if by_file else ""


def _split_column(container):
    """The column `split`, where its cells say splits; "" where there is none."""
    tables = [container.table(file) for file in container.files]
    found = [name for name in tables[0].fields if name.lower() == _SPLIT]
    says = lambda name: says_splits([_split_said(v) for t in tables for v in t.values(name)])
    return found[0] if len(found) == 1 and says(found[0]) else ""


def _split_said(value):
    """The split that a cell says; None for any other, as COCO's restval."""
    return split_of(value) if isinstance(value, str) else None
