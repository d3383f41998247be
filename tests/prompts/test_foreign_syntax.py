"""What other programs read as syntax is said; hints about refused syntax help when they are followed."""

import pytest

from civman.errors import UsageError
from civman.prompts.emphasis import parse
from civman.prompts.foreign_syntax import foreign_notices


@pytest.mark.parametrize(
    ("prompt", "near"),
    [
        ("a {red|blue} ball", "{red|blue}"), ("a __colours/warm__ ball", "__colours/warm__"),
        ("embedding:my_style.pt, ball", "embedding:my_style.pt"), ("a {{red}} ball", "{red}"),
        ("1.3::red ball::", "1.3::red ball::"), ("a (red)1.4 ball", ")1.4"), ("a red++ ball", "red++"),
        ("a ball --ar 16:9 --v 6", "--ar 16:9"), ("# a plan\na ball", "# a plan"),
        ("a (red ball", "`(` at character 3"), ("a red] ball", "`]` at character 6"),
    ],
)  # fmt: skip
def test_syntax_of_other_programs_is_said(prompt, near):
    [notice] = foreign_notices(prompt)

    assert near in notice


@pytest.mark.parametrize(
    "prompt",
    ["a red ball", r"a \{red|blue\} ball \(", "(a [red) ball]", "score_8_up, :3, ^__^", "well--known", "(red:1.2) [x]",
     "<lora:a__b__c:1> a ball", "3:2, 16:9, 1990s"],
)  # fmt: skip
def test_plain_prompts_get_no_notice(prompt):
    assert foreign_notices(prompt) == ()


@pytest.mark.parametrize(
    ("refused", "followed", "in_hint"),
    [
        ("a <lora:x:1:start=5> cat", "a <lora:x:1> cat", "<lora:x:1>"),
        ("a <lora:x:1:2:3> cat", "a <lora:x:1:2> cat", "<lora:x:1:2>"),
        ("a <wildcard:y:1> cat", "a  cat", "<wildcard:y:1>"),
        ("a (red:1.2.3)", r"a \(red:1.2.3\)", r"`\)`"), ("a (red:1.2.3)", "a (red:1.2)", "(word:1.2)"),
        ("a <lora:x:much>", "a <lora:x:0.8>", "<lora:NAME:SCALE>"),
    ],
)  # fmt: skip
def test_hints_help_when_they_are_followed(refused, followed, in_hint):
    with pytest.raises(UsageError, match=r"supported|number") as caught:
        parse(refused)

    assert in_hint in caught.value.hint
    parse(followed)
