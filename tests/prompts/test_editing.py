"""Prompts that change during the steps, against A1111's rules written a second time in another way."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from civman.errors import UsageError
from civman.prompts.editing import (
    Part,
    Rule,
    Timing,
    changes,
    is_composed,
    is_plain_because_of_bar,
    parts,
    stages,
    timings,
)

OLD, MIDDLE, NEW = Rule.V1_0, Rule.V1_3, Rule.V1_6


def used(prompt, timing, calls):
    """The text of each evaluation, by the rule of `Stage.last`."""
    found = stages(prompt, timing)
    return [next((each.text for each in found if call <= each.last), found[0].text) for call in range(calls)]


def expected(prompt, call, last):
    """The text at one evaluation by replacing innermost brackets; `last(number)` is where a change ends."""
    entry = max(call, 1)  # the entry that serves evaluation 0 is the first one
    edit = re.compile(r"\[(?:([^][|:]*):)?([^][|:]*):\s*([-+]?[0-9.]+)\s*\]")
    either = re.compile(r"\[([^][:|]*(?:\|[^][:|]*)+)\]")
    while True:
        text = edit.sub(lambda m: (m[1] or "") if entry <= last(m[3]) else m[2], prompt, count=1)
        if text == prompt:
            text = either.sub(lambda m: (o := m[1].split("|"))[(entry - 1) % len(o)], prompt, count=1)
        if text == prompt:
            return prompt
        prompt = text


@pytest.mark.parametrize(
    ("rule", "calls_per_step", "when", "first"),
    [
        # the number of evaluations without the change: those from 0 up to the end, of 20 steps
        (OLD, 1, "0.5", 11), (OLD, 2, "0.5", 11), (OLD, 1, "5", 6), (OLD, 2, "5", 6), (OLD, 1, "1.0", 2),
        (OLD, 1, "0.99", 20), (MIDDLE, 1, "0.5", 11), (MIDDLE, 2, "0.5", 21), (MIDDLE, 2, "10", 11),
        (MIDDLE, 1, "1.0", 2), (NEW, 1, "0.5", 11), (NEW, 2, "0.5", 21), (NEW, 1, "1.0", 20), (NEW, 1, "1", 2),
        (NEW, 2, "10", 11), (NEW, 1, "0", 0), (NEW, 1, "0.0", 0), (NEW, 1, "-3", 0), (NEW, 1, "2.5", 20),
        (NEW, 1, "99", 20), (NEW, 1, "1e1", 11), (OLD, 1, "1e400", 20),
    ],
)  # fmt: skip
def test_when_counts_steps_or_evaluations_by_the_rule(rule, calls_per_step, when, first):
    timing, _ = timings(rule, steps=20, calls_per_step=calls_per_step, hires_steps=None)
    texts = used(f"[a:b:{when}]", timing, 20 * (calls_per_step if rule is not OLD else 1))

    assert texts[:first] == ["a"] * first
    assert set(texts[first:]) <= {"b"}


@pytest.mark.parametrize(
    ("when", "first_texts", "second_texts"),
    [
        ("0.5", "aaaaaabbbb", "bbbbbb"),
        ("1.0", "aaaaaaaaaa", "bbbbbb"),
        ("1.5", "aaaaaaaaaa", "aaaabb"),
        ("12", "aaaaaaaaaa", "aaabbb"),
        ("10", "aaaaaaaaaa", "bbbbbb"),
        ("5", "aaaaaabbbb", "bbbbbb"),
    ],
)
def test_numbers_go_on_counting_in_the_second_pass_since_1_6(when, first_texts, second_texts):
    first, second = timings(NEW, steps=10, calls_per_step=1, hires_steps=6)

    assert "".join(used(f"[a:b:{when}]", first, 10)) == first_texts
    assert "".join(used(f"[a:b:{when}]", second, 6)) == second_texts


@pytest.mark.parametrize(("rule", "hires_steps", "texts"), [(OLD, 6, "aaaaaab"[:6]), (MIDDLE, 14, "aaaaaabbbbbaaa")])
def test_before_1_6_the_second_pass_follows_the_schedule_of_the_first(rule, hires_steps, texts):
    """And what goes beyond its last entry begins again with the first one."""
    first, second = timings(rule, steps=10, calls_per_step=1, hires_steps=hires_steps)

    assert second == first
    assert "".join(used("[a:b:0.5]", second, hires_steps)) == texts


def test_a_two_call_sampler_of_the_oldest_rule_draws_its_second_half_with_the_first_text():
    timing, _ = timings(OLD, steps=4, calls_per_step=2, hires_steps=None)

    assert "".join(used("[a:b:0.5]", timing, 7)) == "aaabbaa"


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("[a|b]", ["a", "a", "b", "a", "b"]),
        ("[a|b|]c", ["ac", "ac", "bc", "c", "ac"]),
        ("[|a]", ["", "", "a", "", "a"]),
        ("[a:2]", ["", "", "", "a", "a"]),
        ("[a::2]", ["a", "a", "a", "", ""]),
        ("[::2]", [""] * 5),
        ("[ a : b : 2 ]", [" a ", " a ", " a ", " b ", " b "]),
        ("([a:b:2]:1.2)", ["(a:1.2)"] * 3 + ["(b:1.2)"] * 2),
        ("(x:[1.2:1.4:2])", ["(x:1.2)"] * 3 + ["(x:1.4)"] * 2),
        ("[[a|b]:c:2]", ["a", "a", "b", "c", "c"]),
        ("[a[b:c:3]:d:2]", ["ab"] * 3 + ["d"] * 2),
        (r"[a\:1:b:2]", [r"a\:1"] * 3 + ["b"] * 2),
        ("[a BREAK b:c:2]", ["a BREAK b"] * 3 + ["c"] * 2),
        # a bracket that is not closed, or fits no form, is text, and so are those around it
        ("((a [b:c:2]", ["((a b"] * 3 + ["((a c"] * 2),
        ("a] [b:c:2]", ["a] b"] * 3 + ["a] c"] * 2),
        ("[a:b]", ["[a:b]"] * 5),
        ("[a:b:c:2]", ["[a:b:c:2]"] * 5),
        ("[a:b:x]", ["[a:b:x]"] * 5),
        ("[a (b:c] 2)", ["[a (b:c] 2)"] * 5),
        # a bar outside an alternation makes all of it text
        ("(a|b) [c:d:2]", ["(a|b) [c:d:2]"] * 5),
        ("a | b [c:d:2]", ["a | b [c:d:2]"] * 5),
        ("[a|b:2]", ["[a|b:2]"] * 5),
        ("[c:d:2] \\", ["[c:d:2] \\"] * 5),
        ("", [""] * 5),
    ],
)
def test_each_evaluation_has_the_text_of_a1111_s_grammar(prompt, texts):
    assert used(prompt, Timing(NEW, 5), 5) == texts
    assert changes(prompt) is (len(set(texts)) > 1 or texts[0] != prompt)


WORDS = st.sampled_from(["a", "b ", "", " c", "(d:1.2)", "e\\)"])
NUMBERS = st.sampled_from(["0.5", ".25", "3", "0", "1.5", "8", " 4 ", "1.0"])
NESTED = st.recursive(
    WORDS,
    lambda inner: st.one_of(
        st.tuples(inner, inner, NUMBERS).map(lambda x: f"[{x[0]}:{x[1]}:{x[2]}]"),
        st.tuples(inner, NUMBERS).map(lambda x: f"[{x[0]}:{x[1]}]"),
        st.lists(inner, min_size=2, max_size=3).map(lambda x: f"[{'|'.join(x)}]"),
        st.lists(inner, min_size=1, max_size=3).map("".join),
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=80)
@given(NESTED, st.sampled_from(["old", "new", "second"]))
def test_nested_changes_are_those_of_repeated_replacement(prompt, kind):
    length, before = 12, 7
    timing = {"old": Timing(OLD, length), "new": Timing(NEW, length), "second": Timing(NEW, length, before)}[kind]

    def last(text):
        number = float(text)
        if kind == "old":
            return min(length, int(number * length if number < 1 else number))
        if kind == "new":
            return min(length, int(number * length) if "." in text else int(number))
        return min(length, int((number - 1) * length) if "." in text else int(number - before))

    prompt = prompt.replace("(d:1.2)", "{d 1.2}")  # a colon inside would be another form to the regular expressions
    assert used(prompt, timing, length + 1) == [expected(prompt, call, last) for call in range(length + 1)]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([*"()[]:|\\ab ", "0.5", "[a:b:2]", "\n"])).map("".join))
def test_any_text_has_a_schedule_and_unchanged_texts_stay_as_they_are(text):
    found = stages(text, Timing(NEW, 6))

    assert found[-1].last == 6
    assert [each.last for each in found] == sorted({each.last for each in found})
    if not changes(text):
        assert [each.text for each in found] == [text]


def test_deep_brackets_end_in_words_and_not_in_the_interpreter():
    with pytest.raises(UsageError, match="nested brackets") as caught:
        stages("[" * 3000 + "a" + ":1]" * 3000, Timing(NEW, 6))
    assert caught.value.code == "prompt-syntax"
    assert changes("(" * 100_000) is False


def test_a_bar_that_spoils_editing_is_noticed():
    assert is_plain_because_of_bar("(a|b) [c:d:4]")
    assert not is_plain_because_of_bar("(a|b)")
    assert not is_plain_because_of_bar("[a|b] [c:d:4]")


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a cat", [("a cat", 1)]),
        ("a AND b", [("a ", 1), (" b", 1)]),
        ("a :1.2 AND b: .5 AND c :-1", [("a", 1.2), (" b", 0.5), (" c", -1)]),
        ("a cat : 1.5", [("a cat", 1.5)]),
        ("(a cat:1.5)", [("(a cat:1.5)", 1)]),
        ("at 12:30 am", [("at 12:30 am", 1)]),
        ("BRAND SANDY", [("BRAND SANDY", 1)]),
    ],
)
def test_parts_and_their_weights(prompt, found):
    assert parts(prompt) == tuple(Part(text, weight) for text, weight in found)
    assert is_composed(prompt) is (len(found) > 1 or found[0][1] != 1)
