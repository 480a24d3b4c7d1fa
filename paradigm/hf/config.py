"""config.json, read strictly: every entry is used, known to say nothing about what is computed, or refused by name."""

from paradigm.errors import UserError

# Of a file's origin, of training, of generation, of heads that classify: nothing that decides what a model computes.
IRRELEVANT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled _name_or_path architectures
    attn_implementation dtype finetuning_task id2label label2id model_type name_or_path num_labels output_attentions
    output_hidden_states output_past prefix problem_type return_dict task_specific_params tf_legacy_loss
    tokenizer_class torch_dtype torchscript transformers_version use_bfloat16 use_cache use_return_dict

    chunk_size_feed_forward gradient_checkpointing initializer_factor initializer_range classifier_dropout
    _num_labels cross_attention_hidden_size

    bad_words_ids begin_suppress_tokens bos_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id
    length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_scores pad_token_id remove_invalid_values repetition_penalty return_dict_in_generate sep_token_id
    suppress_tokens temperature top_k top_p typical_p
    """.split()
)
# Of every model, where it says nothing of its own. is_decoder: BERT's like then sees what came before alone.
_LIBRARY = {"is_encoder_decoder": False, "is_decoder": False, "add_cross_attention": False,
            "tie_encoder_decoder": False, "pruned_heads": {}}  # fmt: skip
_NEEDED = object()


class Config:
    """The entries of a config.json, or of one object in it; each that is read is marked, and `finish` refuses the rest.

    entries: dict. title: the family's, for error texts. path: of the file. where: the object in it, or "".
    """

    def __init__(self, entries, title, path="config.json", where="", irrelevant=()):
        if not isinstance(entries, dict):
            raise UserError(f"{path} describes no {title}: {where or 'it'} is {entries!r} and no table of settings")
        self.entries, self.title, self.path, self.where = entries, title, path, where
        self._known, self._parts = IRRELEVANT | set(irrelevant), []

    def get(self, name, default=_NEEDED, kind=None):
        """An entry; null is the default, as in the library, and for a switch is off.

        kind: type, or the default's; whole numbers count as numbers.

        Raises:
            UserError: it is needed and missing, or of another type; a whole number that is negative, or needed and 0.
        """
        self._known |= {name}
        value = self.entries.get(name)
        if value is None:
            if default is _NEEDED:
                raise UserError(f"{self.path} lacks {self._spelled(name)!r}, which a {self.title} needs")
            return False if isinstance(default, bool) and name in self.entries else default
        kind = kind or (int if default in (_NEEDED, None) else type(default))
        if not (type(value) is kind or (kind is float and type(value) is int)):
            self.refuse(name, f"it is one {kind.__name__} in them")
        if kind is int and value < (default is _NEEDED):
            self.refuse(name, f"it is at least {int(default is _NEEDED)} in them")
        return value

    def only(self, **supported):
        """Raises UserError unless each of these entries, where present, is what our models have."""
        for name, value in supported.items():
            self._known |= {name}
            found = self.entries.get(name)
            missing = found is None and (name not in self.entries or not isinstance(value, bool))
            if not missing and (found or False) != (value or False):
                self.refuse(name, f"they have {value!r}")

    def choose(self, name, default, table):
        """table[entry]; raises UserError that lists the table."""
        value = self.get(name, default)
        if value not in table:
            self.refuse(name, f"they have one of {', '.join(map(str, table))}")
        return table[value]

    def part(self, name, irrelevant=()):
        """The Config of an object inside; absent or null is an empty one."""
        self._known |= {name}
        where = self._spelled(name)
        part = Config(self.entries.get(name) or {}, self.title, self.path, where, irrelevant)
        self._parts.append(part)
        return part

    def refuse(self, name, why):
        value = self.entries.get(name)
        raise UserError(f"a {self.title} with {self._spelled(name)}={value!r} is not one of our models: {why}")

    def finish(self):
        """Raises UserError for an entry that nobody read and that is not known to be without effect; null is unset."""
        self.only(**{name: value for name, value in _LIBRARY.items() if name not in self._known})
        for name, value in self.entries.items():
            if name not in self._known and value is not None:
                self.refuse(name, "we do not know what this entry does")
        for part in self._parts:
            part.finish()

    def _spelled(self, name):
        return f"{self.where}.{name}" if self.where else name


def inverse(table):
    """ours -> theirs; of several that mean the same, the first."""
    return {ours: theirs for theirs, ours in reversed(table.items())}
