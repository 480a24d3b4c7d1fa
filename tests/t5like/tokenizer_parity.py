"""Tiny tokenizers of the kinds that released models have, and what the transformers library encodes with their files.

    python -m tests.t5like.tokenizer_parity        needs transformers, and writes goldens/tokenizers.json

Beside the ids the goldens hold the files, learnt here: a byte-level BPE as GPT-2's (vocab.json, merges.txt), a
SentencePiece BPE with a dummy prefix and byte fallback as Llama's (tokenizer.model), and BERT's WordPiece (vocab.txt).
"""

import base64
import io
import json
import pathlib
import tempfile

GOLDEN = pathlib.Path(__file__).parent / "goldens" / "tokenizers.json"
TEXTS = [
    "",
    "Hello world, it's 2024!",
    "  two leading and  two inner spaces ",
    "\tdef f(x):\n\t\treturn x\n\n\n",
    "na\u00efve cafe\u0301 \u1e69\u0323",
    "\U0001f642 \U0001f469\u200d\U0001f467 flags \U0001f1eb\U0001f1ee",
    "\u65e5\u672c\u8a9e\u3068\u4e2d\u6587, \ud55c\uad6d\uc5b4",
    " ",
    "\n",
    "word\u00a0joined\u2028line",
]
FILES = {"gpt2": ("vocab.json", "merges.txt"), "llama": ("tokenizer.model",), "bert": ("vocab.txt",)}


def write_files(name, golden, directory):
    for file in FILES[name]:
        (directory / file).write_bytes(base64.b64decode(golden["files"][name][file]))


def learn():
    """name -> {file: its bytes}, learnt from a few English sentences."""
    import sentencepiece
    from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer

    corpus = [f"the {a} {b} sat on the mat in {n}, naive as it's said" for a in ("old", "red") for b in ("cat", "dog")
              for n in range(50)] + ["def f(x):\n\treturn x\n", "hello world", "caf\u00e9 na\u00efve"]  # fmt: skip
    gpt2 = ByteLevelBPETokenizer()
    gpt2.train_from_iterator(corpus, vocab_size=400, special_tokens=["<|endoftext|>"])
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, model_type="bpe", vocab_size=360, byte_fallback=True,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, minloglevel=2,
    )  # fmt: skip
    bert = BertWordPieceTokenizer(lowercase=True)
    bert.train_from_iterator(corpus, vocab_size=200)
    found = {"llama": {"tokenizer.model": model.getvalue()}}
    for name, library in (("gpt2", gpt2), ("bert", bert)):
        with tempfile.TemporaryDirectory() as directory:
            library.save_model(directory)
            found[name] = {file: pathlib.Path(directory, file).read_bytes() for file in FILES[name]}
    return found


def main():
    import transformers

    files = learn()
    kinds = {
        "gpt2": transformers.GPT2Tokenizer,
        "llama": transformers.LlamaTokenizer,
        "bert": transformers.BertTokenizer,
    }
    ids, roles = {}, {}
    for name, kind in kinds.items():
        with tempfile.TemporaryDirectory() as directory:
            for file, content in files[name].items():
                pathlib.Path(directory, file).write_bytes(content)
            library = kind.from_pretrained(directory)
            if name == "llama":
                # What the released tokenizer.json of Llama 2 has; the conversion of 5.x reads a leading space as the
                # dummy prefix, as Llama's own SentencePiece does not.
                from tokenizers import normalizers

                steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
                library.backend_tokenizer.normalizer = normalizers.Sequence(steps)
                library.backend_tokenizer.pre_tokenizer = None
            ids[name] = [library.encode(text, add_special_tokens=False) for text in TEXTS]
            names = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")
            have = {r: getattr(library, f"{r}_token_id", None) for r in names}
            if name == "gpt2":
                have = {r: have[r] for r in ("bos", "eos")}  # its unknown token is the same, and never needed
            if name == "llama":
                have = {r: have[r] for r in ("bos", "eos", "unk")}
            roles[name] = {r: i for r, i in have.items() if i is not None}
    encoded = {n: {f: base64.b64encode(c).decode() for f, c in parts.items()} for n, parts in files.items()}
    GOLDEN.parent.mkdir(exist_ok=True)
    golden = {"version": transformers.__version__, "texts": TEXTS, "ids": ids, "roles": roles, "files": encoded}
    GOLDEN.write_text(json.dumps(golden, indent=0, ensure_ascii=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
