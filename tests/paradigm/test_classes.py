"""Which labels are the same classes; which are classes at all: the readers' tests."""

import pytest

from paradigm.classes import check_same
from paradigm.errors import UserError


def test_names_in_order_are_the_classes_and_numbers_say_nothing():
    for trained, found in ((("a", "b"), ("a", "b")), ((), ("a", "b")), (("0", "1"), ("a", "b")), (("a", "b"), ())):
        check_same(trained, found, "the data")
    for found in (("b", "a"), ("a", "c")):
        with pytest.raises(UserError, match="the run tells apart a, b, and the data has"):
            check_same(("a", "b"), found, "the data")
