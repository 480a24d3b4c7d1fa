"""Small data sets of pairs in every container, for the tests of pairs."""

import io
import json
import tarfile

from multimodal.data import PairData
from tests.vision.pictures import encoded, folder, pixels, zipped


def opened(source, cache_dir=None, **settings):
    return PairData(source=str(source), **settings).build(cache_dir, progress=False)


def records(prepared, split="train"):
    source = prepared.source(split)
    return [source[i] for i in range(len(source))]


def table(root, header, *lines, name="pairs.tsv"):
    """The path of a tsv file."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(line) + "\n" for line in (header, *lines)))
    return path


def plain(root, count=8):
    """A table of `count` pictures with a caption each, in a folder."""
    folder(root, {f"{i}.png": pixels(i) for i in range(count)})
    return table(root, ("image", "caption"), *((f"{i}.png", f"caption {i}") for i in range(count)))


def designers(root):
    """Twelve concepts, two to a family, drawn by a and b (but for the last of b) and by c."""
    names = [f"{i:02d}" for i in range(12)]
    for k, designer in enumerate("abc"):
        files = {f"{name}.png": pixels(100 * k + i) for i, name in enumerate(names)}
        if designer == "b":
            del files["11.png"]
        zipped(root / f"{designer}.zip", files)
    lines = [(name, f"thing {i}", "one|two" if i % 2 else "", f"family {i // 2}") for i, name in enumerate(names)]
    return table(root, ("key", "name", "tags", "family"), *lines)


DESIGNERS = {
    "image": "key",
    "image_suffix": ".png",
    "images": ["a.zip", "b.zip"],
    "text": ["{name}", "{name}: {tags}"],
    "separator": "|",
    "group": "family",
}


def tar(path, *members):
    """The path of a tar file of (name, bytes | TarInfo) members."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


def shard(path, first, count):
    """A tar file of pairs first, first + 1 ...: pictures and texts."""
    members = []
    for i in range(first, first + count):
        members += [(f"x/{i:04d}.png", encoded(pixels(i))), (f"x/{i:04d}.txt", f"caption {i}\n".encode())]
    return tar(path, *members)
