"""Text for the tests of objectives: windows of random bytes."""

import numpy as np

from t5like.tokenizers import ByteTokenizer

LENGTHS, ENDS = ByteTokenizer().byte_lengths, ByteTokenizer().sentence_ends


class Windows:
    """40 windows of random bytes; every third has two documents and ends in padding."""

    fingerprint = "windows"

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return 40

    def __getitem__(self, i):
        tokens = np.random.default_rng(i).integers(3, 259, self.length).astype(np.int32)
        segments = np.ones(self.length, np.int32)
        if i % 3 == 0:
            segments[self.length // 2 :] = 2
            tokens[-3:], segments[-3:] = 0, 0
        return {"tokens": tokens, "segments": segments, "byte_lengths": LENGTHS, "sentence_ends": ENDS}
