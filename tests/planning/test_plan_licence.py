"""`render --require commercial`: only what all licences permit passes."""

import pytest

from civman.domain.catalog import Licence
from civman.domain.licence import Answer, Part, terms_of
from civman.errors import NotAllowed
from civman.planning.plan_licence import require_use

FREE = Part("Free", Licence(False, ("Image", "Sell")), "SD 1.5", "somebody")
STRICT = Part("Strict", Licence(True, ()), "SD 1.5", "somebody")
UNKNOWN = Part("Unknown", Licence(), "SD 1.5")
RESTRICTED_BASE = Part("Base", Licence(False, ("Image",)), "Flux.1 D")
UPSCALER = Part("4x", stated=Answer.NO, reason="4x: its licence (CC-BY-NC-SA-4.0) excludes commercial use")


def test_what_all_licences_permit_is_allowed() -> None:
    require_use(terms_of([FREE, Part("also", stated=Answer.YES)]), "commercial")


@pytest.mark.parametrize("part", [STRICT, UNKNOWN, RESTRICTED_BASE, UPSCALER], ids=lambda part: part.name)
def test_one_file_whose_licence_does_not_permit_it_is_enough_to_refuse(part: Part) -> None:
    with pytest.raises(NotAllowed) as error:
        require_use(terms_of([FREE, part]), "commercial")
    assert error.value.code == "licence"
    assert part.name in error.value.message


def test_without_known_terms_it_is_refused() -> None:
    with pytest.raises(NotAllowed, match="not known"):
        require_use(None, "commercial")
