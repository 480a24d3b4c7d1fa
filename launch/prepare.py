"""Turn a corpus into what training reads, token windows or records: ArrayRecord shards, a tokenizer and meta.json.

    python -m launch.prepare --source=stdlib --out=/tmp/stdlib --tokenizer=sentencepiece:8192
    python -m launch.prepare --source=novels.zip --out=/tmp/novels --valid_glob='valid/*' --exclude='test/*'
    python -m launch.prepare --source=tfds:c4/en --out=/data/c4 --tokenizer=t5.model --workers=32
    python -m launch.prepare --source=qa.jsonl --out=/tmp/qa --input='{question} context: {context}' --target='{answer}'
    python -m launch.prepare --source=sst2/ --out=/tmp/sst2 --kind=records   # its fields are sentence and label
    python -m launch.prepare --source=/nfs/c4 --out=/nfs/prepared --engine=beam -- --runner=FlinkRunner ...
    python -m launch.prepare --source=wnut17/ --out=/tmp/wnut17 --input='{tokens}' --label=tags --label_kind=tags

The bytes written do not depend on --workers or --engine. An interrupted preparation goes on when the same command is
given again. Training reads the directory by the gin binding TextData.source = "/tmp/stdlib" (records:
TextRecords.source); else it prepares its text by itself.
"""

from absl import flags

from launch.run import cli
from paradigm.errors import UserError
from t5like.data import TextData
from t5like.labels import KINDS
from t5like.records import TextRecords

_DEFAULT = TextData()
_WINDOWS_ONLY = ("window", "field", "extensions", "invalid_utf8")
_RECORDS_ONLY = ("input", "target", "label", "label_kind", "turns", "roles", "split", "group", "columns")
SOURCE = flags.DEFINE_string(
    "source",
    None,
    "stdlib, tfds:NAME, a file or a folder: of text, .jsonl, .json, .csv, .tsv, .parquet or .array_record, also packed "
    "(.gz, .bz2, .xz, .zst) and in .zip or .tar; of records the same without plain text.",
)
KIND = flags.DEFINE_enum(
    "kind", None, ["windows", "records"], "What to make of it: windows of tokens, or with --input records with fields."
)
INPUT = flags.DEFINE_string(
    "input",
    "",
    "Of records: a template of fields, as in '{question} context: {context}'; else plain names.",
)
TARGET = flags.DEFINE_string("target", "", "Of records: the same for the target; none unless given.")
LABEL = flags.DEFINE_string("label", "", "Of records: the field of what is known of each, such as its class.")
LABEL_KIND = flags.DEFINE_enum("label_kind", "class", KINDS, "Of records: what --label holds (t5like/labels.py).")
TURNS = flags.DEFINE_string("turns", "", "Of records: the field with a dialogue's turns; each reply is an example.")
ROLES = flags.DEFINE_list("roles", list(TextRecords.roles), "Of records: who speaks in a dialogue; the last replies.")
SPLIT = flags.DEFINE_string("split", "", "Of records: the field that says train, valid or test.")
GROUP = flags.DEFINE_string("group", "", "Of records: the field that those have alike which are held out together.")
COLUMNS = flags.DEFINE_list("columns", [], "Of records: names of the columns of files without a header.")
OUT = flags.DEFINE_string("out", None, "The directory to write. One that holds other data is refused.")
TOKENIZER = flags.DEFINE_string(
    "tokenizer",
    _DEFAULT.tokenizer,
    "bytes; sentencepiece:SIZE, bpe:SIZE or wordpiece:SIZE (learnt from the text); a SentencePiece model, "
    "tokenizer.json, merges.txt beside vocab.json, or vocab.txt; a directory with one of these or a saved tokenizer.",
)
EXTRA_IDS = flags.DEFINE_integer(
    "extra_ids",
    None,
    "Sentinels; those of a tokenizer's directory, else 100, and none above a tokenizer's file that is not like T5's.",
    0,
)
SPECIALS = flags.DEFINE_list("specials", [], "Ids to give the tokenizer, as in mask,cls,sep,bos.")
WINDOW = flags.DEFINE_integer(
    "window", 568, "Tokens a window: what the objective reads (568 fills the 512 inputs of T5's span corruption)."
)
VALID = flags.DEFINE_float(
    "valid", _DEFAULT.valid, "Share to hold out, of the text's bytes or of the records, by a hash; 0 for none."
)
VALID_GLOB = flags.DEFINE_string(
    "valid_glob", "", "Hold out the files of these names instead, as in 'valid/*'; a pattern must match one."
)
EXCLUDE = flags.DEFINE_string(
    "exclude", "", "Leave out the files of these names, as in 'test/*'; a pattern must match one."
)
FIELD = flags.DEFINE_string(
    "field", _DEFAULT.field, "Where the text stands in a record (jsonl, csv, tfds ...), as in text or doc.text."
)
EXTENSIONS = flags.DEFINE_list("extensions", list(_DEFAULT.extensions), "What is text inside a folder or an archive.")
INVALID_UTF8 = flags.DEFINE_string(
    "invalid_utf8", _DEFAULT.invalid_utf8, "'replace' bytes that are not UTF-8 and say how many, or 'refuse' the text."
)
WORKERS = flags.DEFINE_integer("workers", None, "Processes; one a core unless given.", lower_bound=1)
ENGINE = flags.DEFINE_enum(
    "engine", "local", ["local", "beam"], "This machine's processes, or Apache Beam; its flags follow after --."
)


def main(argv):
    if argv[1:] and ENGINE.value != "beam":
        raise UserError(f"'{argv[1]}' is not a flag: did you mean --source={argv[1]}? See --help")
    if not SOURCE.value:
        raise UserError("--source is required, as in --source=stdlib")
    if not OUT.value:
        raise UserError("--out is required, as in --out=/tmp/corpus")

    kind = KIND.value or ("records" if INPUT.value or TURNS.value else "windows")
    for name in _WINDOWS_ONLY if kind == "records" else _RECORDS_ONLY:
        if flags.FLAGS[name].present:
            instead = "leave it out" if kind == "records" else "give --input or --kind=records, or leave it out"
            raise UserError(f"--{name} says nothing of {kind}: {instead}")

    from launch.run import beam
    from t5like.prepare import prepare

    engine = beam.engine(argv[1:]) if ENGINE.value == "beam" else None

    shared = dict(
        source=SOURCE.value,
        tokenizer=TOKENIZER.value,
        valid=VALID.value,
        valid_glob=VALID_GLOB.value,
        exclude=EXCLUDE.value,
        extra_ids=EXTRA_IDS.value,
        specials=tuple(SPECIALS.value),
    )
    if kind == "records":
        recipe = TextRecords(
            input=INPUT.value,
            target=TARGET.value,
            label=LABEL.value,
            label_kind=LABEL_KIND.value,
            turns=TURNS.value,
            roles=tuple(ROLES.value),
            split=SPLIT.value,
            group=GROUP.value,
            columns=tuple(COLUMNS.value),
            **shared,
        )
    else:
        recipe = TextData(
            window=WINDOW.value,
            field=FIELD.value,
            extensions=tuple(EXTENSIONS.value),
            invalid_utf8=INVALID_UTF8.value,
            **shared,
        )
    prepare(recipe, OUT.value, workers=WORKERS.value, engine=engine)


if __name__ == "__main__":
    cli.run(main)
