"""What a combination allows: the strictest of all its parts, and what nobody said is no yes."""

import pytest

from civman.domain.base_models import known_labels, label_key
from civman.domain.catalog import Licence
from civman.domain.licence import Answer, Part, base_licence, labels_not_for_sale, licence_words, terms_of

FREE = Licence(credit_required=False, commercial_use=("Image", "Rent"))
CREDIT = Licence(credit_required=True, commercial_use=("Image",))
CLOSED = Licence(credit_required=False, commercial_use=())


@pytest.mark.parametrize(
    ("parts", "selling", "credit"),
    [
        ([Part("a", FREE, "SD 1.5")], Answer.YES, Answer.NO),
        ([Part("a", FREE, "SD 1.5"), Part("b", CREDIT, "SD 1.5", "Ann")], Answer.YES, Answer.YES),
        ([Part("a", FREE, "SDXL 1.0"), Part("b", CLOSED, "Pony")], Answer.NO, Answer.NO),
        ([Part("a", FREE, "SDXL 1.0"), Part("b", FREE, "NoobAI")], Answer.NO, Answer.NO),
        ([Part("a", FREE, "SD 3.5 Large")], Answer.CONDITIONAL, Answer.NO),
        ([Part("a", FREE, "SD 3.5 Large"), Part("b", Licence(), "SD 3.5 Large")], Answer.UNKNOWN, Answer.UNKNOWN),
        ([Part("a", FREE, "a label of tomorrow")], Answer.UNKNOWN, Answer.NO),
        ([Part("a", FREE, None)], Answer.UNKNOWN, Answer.NO),
        ([Part("a", CLOSED, None)], Answer.NO, Answer.NO),
        ([], Answer.UNKNOWN, Answer.UNKNOWN),
    ],
)
def test_the_strictest_part_decides(parts: list[Part], selling: Answer, credit: Answer) -> None:
    terms = terms_of(parts)

    assert (terms.sell_pictures, terms.must_credit) == (selling, credit)
    assert terms_of(parts[::-1]).sell_pictures is selling
    assert terms.reasons or selling is Answer.YES or not parts


def test_words_name_whom_to_credit_and_why_not_to_sell() -> None:
    terms = terms_of([Part("Base", FREE, "Flux.1 D"), Part("Style", CREDIT, "Flux.1 D", "Ann")])

    assert terms.words == ("images may not be sold", "credit required: Style by Ann")
    assert "FLUX.1 [dev] Non-Commercial License" in terms.reasons[0]
    assert "https://" in terms.reasons[0]


def test_every_licence_belongs_to_a_known_label() -> None:
    labels = set(known_labels())

    assert {label for label in labels if base_licence(label) is not None} >= {"SD 1.5", "SDXL 1.0", "Pony", "Flux.1 D"}
    assert set(labels_not_for_sale()) <= {label_key(label) for label in labels}


def test_one_licence_in_words() -> None:
    assert licence_words(FREE) == "may sell images, use on other paid generation services; no credit required"
    assert licence_words(Licence()) == "not said"
