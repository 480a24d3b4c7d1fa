"""Which of two pictures a sentence is true of: the pairs, and towers that know colours or nothing."""

import numpy as np
import pytest

from multimodal.two_pictures import TwoPictures, most_alike
from paradigm.errors import UserError
from tests.multimodal.pairs import opened, table
from tests.multimodal.test_zero_shot import COLOURS, KNOWS, KNOWS_NOTHING, Oracle
from tests.vision import tiny as pictures
from tests.vision.pictures import folder


def test_the_other_caption_shares_most_words_and_each_has_one_of_its_own():
    captions = [
        "a red circle",
        "a red circle on white",
        "a red square",
        "a blue square",
        "a red circle",
        "a green star",
    ]
    asked, others = most_alike(captions)
    found = {captions[k]: captions[n] for k, n in zip(asked, others)}
    assert found == {
        "a red circle": "a red square",
        "a red circle on white": "a red square",
        "a red square": "a red circle",
        "a blue square": "a red square",
        "a green star": "a red circle",
    }
    assert [len(x) for x in most_alike(["one", "one two", "one two three"])] == [0, 0]


def data_of(root, captions):
    names = [f"{k}.png" for k in range(len(captions))]
    colours = [np.full((4, 4, 3), COLOURS[caption.split()[0]], np.uint8) for caption in captions]
    folder(root, dict(zip(names, colours)))
    lines = [(name, caption, "valid") for name, caption in zip(names, captions)] + [(names[0], captions[0], "train")]
    prepared = opened(table(root, ("image", "caption", "part"), *lines), split="part")
    data = pictures.Opened(prepared.source)
    data.tokenizer = prepared.tokenizer
    return data


def test_who_knows_colours_knows_which_and_who_knows_nothing_does_not(tmp_path):
    objective, data = Oracle(), data_of(tmp_path, ["Red one", "Green one", "Blue one", "Yellow one"])
    score = lambda variables: TwoPictures(random=False).run(objective, variables, data)[0]
    assert score(KNOWS) == {"two_pictures": 1.0, "chance/two_pictures": 0.5}
    assert score(KNOWS_NOTHING)["two_pictures"] == 0.0, "a tie is no answer"


def test_what_a_person_can_set_wrong(tmp_path):
    with pytest.raises(UserError, match="TwoPictures.pairs=0: 1 is the least"):
        TwoPictures(pairs=0)
    data = data_of(tmp_path, ["Red", "Red one"])
    for ask in (lambda one: one.run(Oracle(), KNOWS, data), lambda one: one.check(Oracle(), data)):
        with pytest.raises(UserError, match="no two captions of the valid split differ in a word each"):
            ask(TwoPictures(random=False))
