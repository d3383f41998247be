"""Taking prompts apart, and cutting them into chunks."""

import doctest
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from civman.diffusion.transformers_tokenizer import transformers_tokenizer
from civman.errors import Incompatible, UsageError
from civman.prompts import emphasis, tokenizer
from civman.prompts.emphasis import LoraRequest, escape, parse, tags_as_words
from civman.prompts.token_chunks import Insert, cut, used
from civman.prompts.tokenizer import CHUNK, COMMA, clip_tokenizer

UP, DOWN = 1.1, 1 / 1.1
TOKENS = clip_tokenizer()
[CAT], [DOG] = TOKENS.ids("cat"), TOKENS.ids("dog")


def read(prompt):
    """Sections of (text, weight rounded to what matters)."""
    return [[(part.text, round(part.weight, 9)) for part in section] for section in parse(prompt).sections]


def flat(prompt):
    [section] = read(prompt)
    return section


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (cat)", [("a ", 1), ("cat", UP)]),
        ("a [cat]", [("a ", 1), ("cat", DOWN)]),
        ("a (cat:1.3) on", [("a ", 1), ("cat", 1.3), (" on", 1)]),
        ("(cat : 1.3 )", [("cat ", 1.3)]),
        ("(cat:.5)", [("cat", 0.5)]),
        ("(cat:-1)", [("cat", -1)]),
        ("((cat))", [("cat", UP * UP)]),
        ("(a (b:1.5) c:2)", [("a ", 2), ("b", 3), (" c", 2)]),
        ("([cat])", [("cat", 1)]),
        ("(red [cat) on a chair]", [("red ", UP), ("cat", 1), (" on a chair", DOWN)]),
        ("(open, [deep", [("open, ", UP), ("deep", 1)]),
        ("((open", [("open", UP * UP)]),
        ("shut) it]", [("shut) it]", 1)]),
        ("cat:1.3)", [("cat:1.3)", 1)]),
        (r"\(cat\) \[dog\] \\", [(r"(cat) [dog] " + "\\", 1)]),
        (r"(cat\:1.3)", [("cat:1.3", UP)]),
        ("(a:b)", [("a:b", UP)]),
        ("[a:b]", [("a:b", DOWN)]),
        ("(a|b)", [("a|b", UP)]),
        (r"[a\|b]", [("a|b", DOWN)]),
        (r"[a\:0.5]", [("a:0.5", DOWN)]),
        ("(a)(b)", [("ab", UP)]),
        ("()", []),
        ("", []),
        ("ends in \\", [("ends in ", 1)]),
        ("BRAND SAND BREAKS", [("BRAND SAND BREAKS", 1)]),
    ],
)
def test_brackets_weigh_what_they_hold(prompt, parts):
    assert flat(prompt) == [(text, round(weight, 9)) for text, weight in parts]


@pytest.mark.parametrize(
    ("prompt", "sections"),
    [
        ("a BREAK b", [[("a", 1)], [("b", 1)]]),
        ("a\nBREAK\nb", [[("a", 1)], [("b", 1)]]),
        ("BREAK a", [[], [("a", 1)]]),
        ("a BREAK BREAK b", [[("a", 1)], [], [("b", 1)]]),
        ("(a BREAK b:1.5) c", [[("a", 1.5)], [("b", 1.5), (" c", 1)]]),
    ],
)
def test_break_begins_a_section(prompt, sections):
    assert read(prompt) == sections


@pytest.mark.parametrize(
    ("tag", "request_"),
    [
        ("<lora:ink>", LoraRequest("ink", 1, 1)),
        ("<lora:ink wash v2:0.7>", LoraRequest("ink wash v2", 0.7, 0.7)),
        ("<lyco:ink:-0.5:1>", LoraRequest("ink", -0.5, 1)),
        ("<LoRA: ink : 0.5 >", LoraRequest("ink", 0.5, 0.5)),
        ("<lora:ink:te=0.2:unet=0.9>", LoraRequest("ink", 0.2, 0.9)),
        ("<lora:ink:0.5:unet=0.9>", LoraRequest("ink", 0.5, 0.9)),
    ],
)
def test_adapter_tags_are_requests_and_no_text(tag, request_):
    parsed = parse(f"a {tag}cat")

    assert parsed.loras == (request_,)
    assert parsed.text == "a cat"
    assert read(f"a {tag}cat") == [[("a cat", 1)]]


@pytest.mark.parametrize(
    ("prompt", "position", "reason"),
    [
        ("(cat:1.2.3)", 5, "not a number"),
        ("a <wildcard:x:1>", 3, "wildcard"),
        ("<lora:x:strong>", 1, "not a number"),
        ("<lora:x:nan>", 1, "not a number"),
        ("<lora::1>", 1, "contains no file name"),
        ("<lora:x:1:1:8>", 1, "only a name and the scales"),
        ("<lora:x:dyn=4>", 1, "only a name and the scales"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_and_place(prompt, position, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        parse(prompt)

    assert caught.value.facts["position"] == position
    assert caught.value.code == "prompt-syntax"


PIECES = st.lists(st.sampled_from([*"()[]:\\|,<>", "1.3", "cat", " ", "BREAK", "AND", "<lora:x:1>", "é", "\n"]))


@settings(deadline=None, max_examples=60)
@given(PIECES.map("".join) | st.text())
@example("(:1.3)")
@example("[\\")
def test_parsing_gives_a_prompt_or_says_what_is_wrong(prompt):
    try:
        parsed = parse(prompt)
    except UsageError as error:
        place = error.facts["position"]
    else:
        place = 1
        assert all(part.text for section in parsed.sections for part in section)
        assert cut(parsed, TOKENS)
    assert 1 <= place <= max(1, len(prompt))


@settings(deadline=None, max_examples=60)
@given(st.text().filter(lambda text: not any(word in text for word in ("AND", "BREAK", "<"))))
@example(r"a (b:1.3) [c|d] \ :) ")
def test_escaped_text_comes_back_at_weight_1(text):
    assert flat(escape(text)) == ([(text, 1)] if text else [])


TAGS = ("<quill_lake:0.8>", "<lora:x:1>", "<lora:x:1:IND>", "<hypernet:y>", "<BREAKER:1>", "<x:>")


@pytest.mark.parametrize("tag", TAGS)
@given(parts=st.lists(st.sampled_from(["@TAG@", "cat", " ", ", ", "(", ")", "[", "]", ":1.2)", "BREAK ", "< ", ">"])))
@settings(max_examples=60, deadline=None)
def test_a_tag_as_words_is_plain_text_between_the_same_brackets(tag, parts):
    """The other syntax acts as around an ordinary word in the place of the tag."""
    typed = "".join(parts)
    around = read(typed)
    wanted = [[(text.replace("@TAG@", tag), weight) for text, weight in section] for section in around]

    escaped = tags_as_words(typed.replace("@TAG@", tag))

    assert read(escaped) == wanted
    assert parse(escaped).loras == ()


def test_a_tag_as_words_has_the_tokens_of_its_characters():
    [[fragment]] = parse(tags_as_words("x <quill_lake:0.8> y")).sections
    assert TOKENS.ids(fragment.text) == TOKENS.ids("x <quill_lake:0.8> y")
    assert tags_as_words("a <heart-8500> b <(c)> < d:1 >") == "a <heart-8500> b <(c)> < d:1 >"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([("(", ")", UP), ("[", "]", DOWN), ("(", ":1.5)", 1.5), ("(", ":0.25)", 0.25)])))
def test_nested_weights_multiply(brackets):
    prompt, weight = "cat", 1.0
    for opening, closing, factor in brackets:
        prompt, weight = f"{opening}{prompt}{closing}", weight * factor

    [(text, found)] = [(part.text, part.weight) for [part] in parse(prompt).sections]

    assert text == "cat"
    assert found == pytest.approx(weight)


# --- chunks


def ids(prompt, **lengths):
    return [list(chunk.ids) for chunk in cut(parse(prompt), TOKENS, lengths)]


def words(count, word):
    return " ".join([word] * count)


def test_75_tokens_are_one_chunk_and_76_are_two():
    assert ids(words(75, "cat")) == [[CAT] * 75]
    assert ids(words(76, "cat")) == [[CAT] * 75, [CAT]]


@pytest.mark.parametrize(("cats", "moves"), [(74, True), (70, True), (55, True), (54, False), (10, False)])
def test_what_follows_a_comma_at_most_20_tokens_back_moves_on(cats, moves):
    dogs = 80 - cats
    kept = 0 if moves else 74 - cats

    assert ids(f"{words(cats, 'cat')}, {words(dogs, 'dog')}") == [
        [CAT] * cats + [COMMA] + [DOG] * kept,
        [DOG] * (dogs - kept),
    ]


def test_a_comma_that_does_not_fit_begins_the_next_chunk():
    assert ids(f"{words(60, 'cat')}, {words(14, 'dog')}, cat") == [
        [CAT] * 60 + [COMMA] + [DOG] * 14,
        [COMMA, CAT],
    ]


def test_break_ends_a_chunk_and_an_empty_prompt_is_one():
    assert ids("cat BREAK dog") == [[CAT], [DOG]]
    assert ids("BREAK dog") == [[], [DOG]]
    assert ids("cat BREAK") == [[CAT]]
    assert ids("") == [[]]


def test_fragments_are_tokenized_by_themselves():
    assert ids("(cat)s")[0] == [CAT, *TOKENS.ids("s")]
    assert ids("cats")[0] != ids("(cat)s")[0]


def test_weights_follow_their_tokens_into_the_next_chunk():
    first, second = cut(parse(f"{words(70, 'cat')}, (dog:1.5) {words(10, 'dog')}"), TOKENS)

    assert first.weights == (1.0,) * 71
    assert second.weights == (1.5, *(1.0,) * 10)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["cat", ",", "(dog:1.2)", "BREAK", "tinyneg", "masterpiece", "[x]"]), max_size=200))
def test_no_token_is_lost_and_no_chunk_overflows(parts):
    parsed = parse(" ".join(parts))

    chunks = cut(parsed, TOKENS, {"tinyneg": 8})

    everything = [number for section in parsed.sections for part in section for number in TOKENS.ids(part.text)]
    calls = parts.count("tinyneg")
    name = len(TOKENS.ids("tinyneg"))
    assert sum(len(chunk.ids) for chunk in chunks) == len(everything) + calls * (8 - name)
    assert sum(len(chunk.inserts) for chunk in chunks) == calls
    for chunk in chunks:
        assert len(chunk.ids) == len(chunk.weights) <= CHUNK
        assert all(chunk.ids[each.offset : each.offset + 8] == (0,) * 8 for each in chunk.inserts)


# --- embeddings in chunks


def test_an_embedding_takes_the_place_of_its_name_in_any_case():
    [chunk] = cut(parse("cat TinyNeg, dog"), TOKENS, {"tinyneg": 3})

    assert chunk.ids == (CAT, 0, 0, 0, COMMA, DOG)
    assert chunk.inserts == (Insert(1, "tinyneg", 3),)
    assert used([chunk]) == {"tinyneg"}


@pytest.mark.parametrize("text", ["tinynegx", "tiny neg", "(tiny)neg"])
def test_a_name_inside_another_word_is_none(text):
    assert not used(cut(parse(text), TOKENS, {"tinyneg": 3}))


def test_the_longest_name_wins():
    chunks = cut(parse("bad hand, bad"), TOKENS, {"bad": 1, "bad hand": 2})

    assert [each.name for each in chunks[0].inserts] == ["bad hand", "bad"]


@pytest.mark.parametrize("text", ["<cat-toy>", "a <Cat-Toy>, dog", "((<cat-toy>))!", "x<cat-toy>y"])
def test_a_name_in_pointed_brackets_is_found_next_to_punctuation(text):
    assert used(cut(parse(text), TOKENS, {"<cat-toy>": 1})) == {"<cat-toy>"}


def test_vectors_are_not_split_over_chunks():
    first, second = cut(parse(f"{words(70, 'cat')} tinyneg dog"), TOKENS, {"tinyneg": 8})

    assert first.ids == (CAT,) * 70
    assert second.inserts == (Insert(0, "tinyneg", 8),)
    assert second.ids == (*(0,) * 8, DOG)


def test_vectors_move_on_with_what_follows_a_comma():
    first, second = cut(parse(f"{words(65, 'cat')}, tinyneg dog dog"), TOKENS, {"tinyneg": 8})

    assert first.ids == (*(CAT,) * 65, COMMA)
    assert not first.inserts
    assert second.inserts == (Insert(0, "tinyneg", 8),)


def test_names_that_read_the_same_and_too_many_vectors_are_refused():
    with pytest.raises(UsageError, match="cannot distinguish"):
        cut(parse(""), TOKENS, {"Ink": 1, "ink": 1})
    with pytest.raises(UsageError, match="could not contain it"):
        cut(parse(""), TOKENS, {" ": 1})
    with pytest.raises(Incompatible, match="76 vectors"):
        cut(parse(""), TOKENS, {"ink": 76})


# --- the tokenizer


@settings(deadline=None, max_examples=60)
@given(st.text())
@example("It's 3 o'clock — <|endoftext|> naïve ﬁne ½ 猫 🐱  \t!!")
def test_token_ids_are_those_of_transformers(transformers_words, text):
    assert TOKENS.ids(text) == transformers_words(text, add_special_tokens=False).input_ids


@pytest.fixture(scope="session")
def transformers_words(tmp_path_factory):
    return transformers_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_tokenizer_files_are_written_once_and_mended(tmp_path):
    transformers_tokenizer(tmp_path)
    files = sorted(tmp_path.rglob("*.*"))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    merges = next(path for path in files if path.name == "merges.txt")
    merges.write_bytes(merges.read_bytes()[:1000])

    again = transformers_tokenizer(tmp_path)

    assert again("a photo of a cat", add_special_tokens=False).input_ids == [320, 1125, 539, 320, 2368]
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.*"))} == {p: b for p, (_, b) in before.items()}
    assert all(path.stat().st_mtime_ns == time for path, (time, _) in before.items() if path != merges)


def test_the_second_encoder_s_padding_stays_a_word_when_typed(tmp_path):
    """`!` is what OpenCLIP is padded with; transformers would read a typed one as padding (0), OpenCLIP does not."""
    ours = clip_tokenizer(tokenizer.ZERO)
    theirs = transformers_tokenizer(tmp_path, tokenizer.ZERO)

    assert theirs.pad_token_id == ours.padding == 0
    assert ours.ids("cat !") == [CAT, 256]


def test_the_examples_in_the_documentation_hold():
    for module in (emphasis, tokenizer):
        result = doctest.testmod(module)
        assert result.attempted
        assert not result.failed


def test_counting_tokens_needs_no_torch():
    code = (
        "import sys; from civman.prompts import emphasis, token_chunks, tokenizer;"
        "from civman.domain.adapters import module_fit;"
        "token_chunks.cut(emphasis.parse('a cat'), tokenizer.clip_tokenizer());"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'diffusers')))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
