"""Where the parameters of two towers lie: the text tower's table and the heads, then what image models have."""

from vision import partition

PARTITION_RULES = (
    (
        r"(text|encoder|captioner)/embed/embedding$",
        (None, "fsdp"),
    ),  # [V, D]; looked up by row, so the vocabulary stays whole
    (r"text/sources/embedding$", (None, "fsdp")),  # [data sets, D]
    (r"logits/kernel$", ("fsdp", "tensor")),  # [D, V]
    (r"encoder/patches/kernel$", (None, "fsdp")),  # [P, D]
    (r"query$", ()),  # [1, queries, D] of a pooler
    (r"_head/project/kernel$", ("fsdp", "tensor")),  # [D, E]
    (r"probe$", ()),  # [1, 1, D]
    *partition.PARTITION_RULES,
)
