"""What a directory of the transformers library says beside its vocabulary: roles of special tokens, how text is split,
and the tokens that were added."""

import dataclasses
import json
import pathlib

from paradigm.errors import UserError

# The library's tokenizers of which the vocabulary tells all; others split a text or number its pieces in their own way.
CLASSES = {
    "merges.txt": "GPT2Tokenizer RobertaTokenizer BartTokenizer LEDTokenizer LongformerTokenizer CodeGenTokenizer",
    "vocab.txt": "BertTokenizer ElectraTokenizer DistilBertTokenizer MobileBertTokenizer ConvBertTokenizer "
    "SqueezeBertTokenizer LayoutLMTokenizer",
    ".model": "T5Tokenizer MT5Tokenizer LlamaTokenizer CodeLlamaTokenizer GemmaTokenizer",
}
_FRAMED = ("RobertaTokenizer", "BartTokenizer", "LEDTokenizer", "LongformerTokenizer")  # <s> a text </s>, unless told


@dataclasses.dataclass(frozen=True)
class Settings:
    """entries: of special_tokens_map.json and tokenizer_config.json. added: {id: a token's content and flags}, of
    tokenizer_config.json, or of added_tokens.json in older directories."""

    directory: pathlib.Path
    entries: dict
    added: dict

    @property
    def kind(self):
        """The library's class, or ""."""
        return str(self.entries.get("tokenizer_class") or "").removesuffix("Fast")

    def knows(self, name):
        """Whether the ids of its texts follow from such a file, one of CLASSES, and what was added."""
        return self.kind in ("", *CLASSES[name].split())

    def spelled(self, role):
        """The special token of a role, None where it has none; KeyError: nothing is said of it."""
        if f"{role}_token" not in self.entries and role in ("cls", "sep") and self.kind in _FRAMED:
            return {"cls": "<s>", "sep": "</s>"}[role]
        said = self.entries[f"{role}_token"]
        return said.get("content") if isinstance(said, dict) else said

    def refuse(self, file, why):
        alone = "name the file itself" if file.endswith(".model") else "copy it to where these are not"
        raise UserError(
            f"tokenizer: {self.directory / file} does not say the ids that the weights beside it were trained with, "
            f"{why}: have the transformers library's AutoTokenizer write tokenizer.json there, or {alone} for the ids "
            "that it gives alone"
        )


def settings(directory):
    """What lies in a directory. Raises UserError where it is damaged."""
    entries, read = {}, lambda name: json.loads((directory / name).read_text("utf-8"))
    try:
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (directory / name).is_file():
                entries |= read(name)
        added = {int(i): dict(token) for i, token in (entries.get("added_tokens_decoder") or {}).items()}
        if not added and (directory / "added_tokens.json").is_file():
            roles = json.dumps([said for name, said in entries.items() if name.endswith(("_token", "_tokens"))])
            for token, i in read("added_tokens.json").items():
                special = json.dumps(token) in roles
                added[int(i)] = {"content": token, "special": special, "normalized": not special}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"tokenizer: the settings in {directory} are damaged ({error})") from None
    return Settings(directory, entries, dict(sorted(added.items())))
