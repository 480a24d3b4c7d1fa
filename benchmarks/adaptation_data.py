"""The records of benchmarks.adaptation, each a function of where the data are as they were published.

Two folders of records are written for each task, for tuning and for the page: `valid` of the one is the validation
split, of the other the test split.
"""

import io
import json
import re
import zipfile

HELD_OUT = 500  # English sentences of a parallel text, for each of the two splits


def write(root, name, train, splits):
    """train: records. splits: {"valid" | "test": records}."""
    for split, rows in splits.items():
        folder = root / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, lines in (("train", train), ("valid", rows)):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            if not (kept := folder / f"{file}.jsonl").exists() or kept.read_text() != text:
                kept.write_text(text)


def clinc150(folder, root):
    """CLINC150 without what is out of its scope: [text, intent] pairs as records."""
    records = {
        split: [{"text": text, "label": label} for text, label in rows]
        for split, rows in json.loads((folder / "data_full.json").read_text()).items()
    }
    write(root, "clinc150", records["train"], {"valid": records["val"], "test": records["test"]})


def wnut17(folder, root):
    """WNUT-17: lines of a word and its tag, an empty line between sentences, as records."""
    splits = {}
    for split in ("train", "dev", "test"):
        sentences = [[]]
        for line in (folder / f"{split}.conll").read_text().splitlines():
            if line.strip():
                sentences[-1].append(line.split("\t"))
            else:
                sentences.append([])
        splits[split] = [{"words": [w for w, _ in s], "tags": [t for _, t in s]} for s in sentences if s]
    write(root, "wnut17", splits["train"], {"valid": splits["dev"], "test": splits["test"]})


def snips(folder, root):
    """SNIPS: a request and its intent. No split is for validation: every tenth of train is."""
    lines = lambda split: map(json.loads, (folder / f"{split}.jsonl").read_text().splitlines())
    records = lambda split: [{"text": row["text"], "label": row["intent"]} for row in lines(split)]
    train = records("train")
    rest = [row for i, row in enumerate(train) if i % 10]
    write(root, "snips", rest, {"valid": train[::10], "test": records("test")})


def choices(path):
    """(the labels of a file of records, the same in words: AddToPlaylist is 'add to playlist')."""
    labels = sorted({json.loads(line)["label"] for line in path.read_text().splitlines()})
    return tuple(labels), tuple(re.sub(r"(?<!^)(?=[A-Z])", " ", label).lower() for label in labels)


def tatoeba(path, root):
    """Sentence pairs of a table with columns en and sv. What is held out is so by the English side, with all that it
    may be in Swedish: the last sentences in the order of their hashes."""
    import hashlib

    header, *rows = (line.split("\t") for line in path.read_text("utf-8").splitlines())
    english, swedish = header.index("en"), header.index("sv")
    sides = {}
    for row in rows:
        sides.setdefault(row[english], []).append(row[swedish])
    order = sorted(sides, key=lambda side: hashlib.sha256(side.encode()).digest())
    train = [{"en": side, "sv": text} for side in order[: -2 * HELD_OUT] for text in sides[side]]
    held = [{"en": side, "sv": sides[side][0], "all": sides[side]} for side in order[-2 * HELD_OUT :]]
    write(root, "tatoeba", train, {"valid": held[:HELD_OUT], "test": held[HELD_OUT:]})


def scitldr(path, root):
    """SciTLDR: the sentences of an abstract, and one summary of a sentence or several."""
    splits = {}
    with zipfile.ZipFile(path) as archive:
        for split in ("train", "dev", "test"):
            with archive.open(f"{split}.jsonl") as file:
                rows = [json.loads(line) for line in io.TextIOWrapper(file, "utf-8") if line.strip()]
            clean = lambda text: " ".join(text.split())
            splits[split] = [
                {"abstract": clean(" ".join(row["source"])), "summary": clean(row["target"][0]),
                 "all": list(map(clean, row["target"]))}
                for row in rows
            ]  # fmt: skip
    write(root, "scitldr", splits["train"], {"valid": splits["dev"], "test": splits["test"]})
