"""Prepared TensorFlow data sets, read without TensorFlow. tensorflow_datasets is imported when one is opened."""

import functools
import os

from paradigm.errors import UserError
from paradigm.storage import expand


@functools.cache
def builder(name):
    """The builder of a data set by its name or its directory.

    Raises UserError if the package is missing, if the name is unknown, or if the data are not there.
    """
    try:
        import tensorflow_datasets as tfds  # an extra; it needs no TensorFlow to read
    except ImportError as error:
        raise UserError(f'tfds:{name} needs tensorflow-datasets: pip install -e ".[data]" in the checkout') from error
    try:
        place = expand(name)
        found = tfds.builder_from_directory(str(place)) if place.is_dir() else tfds.builder(name)
        prepared = place.is_dir() or found.is_prepared()
    except Exception as error:  # tfds lists every data set it knows here; the first line says enough
        raise UserError(f"tfds:{name} cannot be opened ({first_line(error)})") from error
    if not prepared:
        raise UserError(
            f"tfds:{name} is not prepared in {found.data_dir}: set TFDS_DATA_DIR to where it is, or run "
            f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()"
        )
    return found


def parse(name, raw, encoded):
    """The features of one stored example, as numpy; the image `encoded` stays the bytes of its file."""
    import tensorflow_datasets as tfds

    return builder(name).info.features.deserialize_example_np(raw, decoders={encoded: tfds.decode.SkipDecoding()})


def array_records(path, **options):
    """A reader of an ArrayRecord file, with these of its options. Raises UserError if it is none."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0", **options)
    except RuntimeError as error:
        raise UserError(f"{path}: cannot be read as ArrayRecord ({first_line(error)})") from error
    if not reader.num_records():  # it is patient with anything that is not its own
        raise UserError(f"{path}: cannot be read as ArrayRecord (there is no record in it)")
    return reader


def is_tfrecord(path):
    """Whether a file of a data set is of TensorFlow's own format, which is read from its beginning on."""
    return ".tfrecord" in os.path.basename(path)


def first_line(error):
    """What an exception says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
