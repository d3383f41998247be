"""`parameters` through four readers: the site's rules, civman's own, sd-parsers and sd-prompt-reader."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sd_parsers.parsers import AUTOMATIC1111Parser
from sd_prompt_reader.format.a1111 import A1111
from site_rules import JS_SPACE, DiscardedError, Meta, judge, linked_vaes, stored_strengths

from civman.errors import UsageError
from civman.pictures import parameters_text
from civman.pictures.parameters_text import Generation, Part, SecondPass

HEX = "0123456789abcdef"
NASTY = (
    "Steps: 20, Sampler: Euler, CFG scale: 3, Seed: 4", "Steps:", "\nSteps: 1", "\nNegative prompt: none", "\n\n",
    "\r\n", "Negative prompt:", "\nTemplate: a", "Negative Template: b", ', Hashes: {"model": 1}',
    ", Civitai resources: [{", "}]", '"', ",", ": ", "<lora:other:1>", "(word:1.2)", "\\", "😀", "猫が座っている",
    "é", "Resources: ", "Hashed prompt: ",
)  # fmt: skip
NAMES = (
    "my lora v1.2", "Steps", "Seed", "Model hash", "Resources", "a: b, c", 'say "x"', "x}]y", "Hashed prompt", "猫 v2",
    "..", " ", "<a:b>", "Civitai resources: [{", "Lora hashes", "__proto__", "a\nb", "Negative prompt",
)  # fmt: skip


def pieces(choices: tuple[str, ...]) -> st.SearchStrategy[str]:
    piece = st.one_of(st.sampled_from(choices), st.text(max_size=12), st.sampled_from(("a cat", " ", "\n")))
    return st.lists(piece, max_size=6).map("".join)


def digests(length: int) -> st.SearchStrategy[str | None]:
    return st.none() | st.text(HEX, min_size=length, max_size=length)


SCALES = st.floats(-100, 100, allow_nan=False) | st.sampled_from((-0.75, 0.1, 1.0, 0.0, 1e-7, 1 / 3))
PARTS = st.builds(
    Part, name=st.sampled_from(NAMES) | st.text(max_size=20), autov2=digests(10), autov3=digests(12),
    version_id=st.none() | st.integers(1, 10**7),
    air=st.sampled_from((None, "urn:air:sdxl:lora:civitai:1@5", "urn:air:sd1:lora:hf:a")),
    scale=SCALES, text_scale=st.none() | SCALES,
)  # fmt: skip
GENERATIONS = st.builds(
    Generation, prompt=pieces(NASTY), negative=pieces(NASTY), steps=st.integers(1, 150),
    sampler=st.sampled_from(("Euler a", "DPM++ 2M", "DPM++ 2M SDE", "UniPC")), cfg=st.floats(0, 30),
    seed=st.integers(0, 2**64 - 1), width=st.integers(1, 512).map(lambda side: side * 8), height=st.just(768),
    version=st.just("civman 0.3"), schedule=st.sampled_from(("", "Karras", "Exponential", "Normal")),
    clip_skip=st.none() | st.integers(1, 12), model=st.none() | PARTS, loras=st.lists(PARTS, max_size=4).map(tuple),
    embeddings=st.lists(PARTS, max_size=2).map(tuple), vae=st.none() | PARTS,
    hires=st.none() | st.just(SecondPass(1024, 1536, 9, 0.55, "latent")),
    denoising=st.none() | st.floats(0.01, 1), rng=st.sampled_from(("", "CPU", "NV")), ensd=st.none() | st.just(31337),
)  # fmt: skip


def plain(**changes: object) -> Generation:
    values: dict[str, object] = {
        "prompt": "a cat", "negative": "blurry", "steps": 20, "sampler": "DPM++ 2M", "schedule": "Karras", "cfg": 7.0,
        "seed": 123, "width": 512, "height": 768, "version": "civman 0.3", "clip_skip": 2,
        "model": Part("dream", autov2="0123456789", version_id=128713),
    }  # fmt: skip
    return Generation(**{**values, **changes})  # type: ignore[arg-type]


def parts_of(text: str) -> tuple[str, str]:
    """Prompt and negative prompt as they stand in the text: the marks can be nowhere else."""
    words, _, _ = text.rpartition("\nSteps: ")
    prompt, _, negative = words.partition("\nNegative prompt: ")
    return prompt.strip(), negative.strip()


def bare(words: str) -> str:
    """Without what may change: white space, the line break's kind, NUL, and the space before a defused colon."""
    return "".join(words.replace("\0", "").replace(" :", ":").split())


def without_blank_lines(words: str) -> str:
    return "\n".join(line for line in words.split("\n") if line.strip(JS_SPACE)).strip(JS_SPACE)


any_generation = lambda test: settings(max_examples=60, deadline=None)(given(GENERATIONS)(test))  # noqa: E731


@any_generation
def test_both_prompts_stand_in_the_text_with_nothing_but_tags_more(generation: Generation):
    prompt, negative = parts_of(parameters_text.text(generation))

    assert bare(prompt).startswith(bare(generation.prompt))
    assert re.fullmatch("(<lora:[^<>]+>)*", bare(prompt)[len(bare(generation.prompt)) :])
    assert bare(negative) == bare(generation.negative)


@any_generation
def test_the_site_keeps_everything_of_any_generation(generation: Generation):
    text = parameters_text.text(generation)

    meta = judge(text)

    assert (meta.prompt, meta.negative) == tuple(map(without_blank_lines, parts_of(text)))
    assert (meta.values["steps"], meta.values["seed"]) == (str(generation.steps), str(generation.seed))
    assert float(str(meta.values["cfgScale"])) == generation.cfg
    assert meta.values["Size"] == f"{generation.width}x{generation.height}"
    assert meta.values.get("clipSkip") == (None if generation.clip_skip is None else str(generation.clip_skip))


@any_generation
def test_the_site_finds_every_resource_that_has_an_id_or_a_hash(generation: Generation):
    meta = judge(parameters_text.text(generation))

    expected = []
    for part in filter(None, (generation.model, generation.vae, *generation.loras, *generation.embeddings)):
        from_air = int(part.air.rpartition("@")[2]) if part.air and "civitai" in part.air else None
        if (version := part.version_id if part.version_id is not None else from_air) is not None:
            expected.append(version)
    assert sorted(version for version, _ in meta.versions) == sorted(expected)
    assert {weight for _, weight in meta.versions} <= {None, *(lora.scale for lora in generation.loras)}
    for part in (*generation.loras, *generation.embeddings):
        assert (part.autov3 or part.autov2) in (None, *meta.hashes.values())
    assert meta.hashes.get("model") == (generation.model.autov2 if generation.model else None)


@any_generation
def test_civman_reads_back_what_it_wrote(generation: Generation):
    text = parameters_text.text(generation)

    parsed = parameters_text.read(text)

    assert (parsed.prompt, parsed.negative) == parts_of(text)
    assert (parsed.whole("Steps"), parsed.whole("Seed")) == (generation.steps, generation.seed)
    assert (parsed.size, parsed.whole("Clip skip")) == ((generation.width, generation.height), generation.clip_skip)
    assert parsed.number("CFG scale") == generation.cfg
    site = judge(text)
    assert set(parsed.hashes.values()) == set(site.hashes.values())
    assert [(entry.version_id, entry.weight) for entry in parsed.civitai] == site.versions


@any_generation
def test_sd_parsers_reads_the_same(generation: Generation):
    text = parameters_text.text(generation)

    info = AUTOMATIC1111Parser().parse({"parameters": text})

    sampler = info.samplers[0]
    assert (info.full_prompt, info.full_negative_prompt) == parts_of(text)
    assert (sampler.parameters["steps"], sampler.parameters["seed"]) == (str(generation.steps), str(generation.seed))
    assert float(sampler.parameters["cfg_scale"]) == generation.cfg
    assert sampler.name == parameters_text.sampler_name(generation.sampler, generation.schedule)
    assert (sampler.model.hash if sampler.model else None) == (generation.model.autov2 if generation.model else None)


@any_generation
def test_sd_prompt_reader_reads_the_same(generation: Generation):
    text = parameters_text.text(generation)

    reader = A1111(info={"parameters": text})
    reader.parse()

    assert reader.status is A1111.Status.READ_SUCCESS
    assert (reader.positive, reader.negative) == parts_of(text)
    assert (reader.parameter["steps"], reader.parameter["seed"]) == (str(generation.steps), str(generation.seed))
    assert float(reader.parameter["cfg"]) == generation.cfg
    assert (reader.width, reader.height) == (str(generation.width), str(generation.height))


@pytest.mark.parametrize(
    "prompt",
    [
        'a "quoted" cat, with commas: and colons', "first line\nsecond line", "😀 emoji 👩‍👩‍👧",
        "猫が座っている、窓辺で", "x" * 2000, "word " * 400, "é à ü ß", "(weight:1.2), [less], {curly}, \\(kept\\)",
        "<lora:my.lora_v1-2:0.8> cat",
    ],
)  # fmt: skip
def test_prompts_that_nothing_splits_arrive_to_the_letter_everywhere(prompt: str):
    text = parameters_text.text(plain(prompt=prompt))
    reader = A1111(info={"parameters": text})
    reader.parse()

    seen = {
        judge(text).prompt, parameters_text.read(text).prompt, reader.positive,
        AUTOMATIC1111Parser().parse({"parameters": text}).full_prompt,
    }  # fmt: skip

    assert seen == {prompt.strip()}


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        ("Steps: 20, fine", "Steps : 20, fine"),
        ("a\n  Steps: 20", "a\n  Steps : 20"),
        ("a\nNegative prompt: b", "a\nNegative prompt : b"),
        ("(Negative prompt:1.2)", "(Negative prompt :1.2)"),
        ("Template: x\nNegative Template: y", "Template : x\nNegative Template : y"),
        ("two Steps: in the middle", "two Steps: in the middle"),
    ],
)
def test_words_that_would_split_the_text_keep_only_a_space_more(typed: str, written: str):
    assert judge(parameters_text.text(plain(prompt=typed))).prompt == written


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_any_kind_upsets_no_reader(name: str):
    loras = (Part("first", autov3="a" * 12), Part(name, autov3="b" * 12, version_id=4, scale=0.1))
    text = parameters_text.text(
        plain(loras=loras, model=Part(name, autov2="c" * 10), embeddings=(Part(name, autov2="d" * 10),))
    )
    reader = A1111(info={"parameters": text})
    reader.parse()

    meta, parsed, info = judge(text), parameters_text.read(text), AUTOMATIC1111Parser().parse({"parameters": text})

    sampler = info.samplers[0]
    assert {"a" * 12, "b" * 12, "c" * 10, "d" * 10} == set(meta.hashes.values()) == set(parsed.hashes.values())
    assert [tag.scale for tag in parsed.tags] == [1.0, 0.1]
    assert (meta.values["seed"], parsed.whole("Seed"), sampler.parameters["seed"]) == ("123", 123, "123")
    assert (meta.values["steps"], sampler.parameters["steps"], reader.parameter["steps"]) == ("20", "20", "20")
    assert (sampler.model.hash if sampler.model else None, reader.negative) == ("c" * 10, "blurry")


def test_a_lora_with_spaces_dots_and_a_negative_weight_is_found_by_hash_id_and_tag():
    lora = Part("my lora v1.2", autov3="0123456789ab", version_id=9, scale=-0.75)

    text = parameters_text.text(plain(loras=(lora,)))

    meta, parsed = judge(text), parameters_text.read(text)
    assert (9, -0.75) in meta.versions
    assert meta.hashes["lora:my lora v1.2"] == "0123456789ab"
    assert [(tag.name, tag.scale) for tag in parsed.tags] == [("my lora v1.2", -0.75)]


def test_a_plain_lora_reaches_the_site_with_hash_and_weight_from_its_tag():
    meta = judge(parameters_text.text(plain(loras=(Part("detail.v2", autov2="aaaaaaaaaa", scale=0.5),))))

    assert {"type": "lora", "name": "detail.v2", "weight": 0.5, "hash": "aaaaaaaaaa"} in meta.resources


def test_a_tag_that_the_prompt_has_is_not_added_again():
    text = parameters_text.text(plain(prompt="a cat <lora:detail:0.5>", loras=(Part("detail", scale=0.5),)))

    assert text.count("<lora:") == 1


def test_two_scales_are_told_as_a1111_takes_them_text_encoder_first():
    text = parameters_text.text(plain(prompt="", loras=(Part("a", scale=0.8, text_scale=0.25),)))

    assert text.startswith("<lora:a:0.25:0.8>\n")
    assert [(tag.scale, tag.text_scale) for tag in parameters_text.read(text).tags] == [(0.8, 0.25)]


@pytest.mark.parametrize("scales", [(0.8, None), (-0.35, None), (0.8, 0.3), (0.0, None), (1e-7, None), (12.5, 12.5)])
@pytest.mark.parametrize(
    "name", ["detail", "my.lora_v1-2", "my lora", "lora (v2)", "lora [v2]", "猫 v2", "Steps", "a:b"]
)
@pytest.mark.parametrize("prompt", ["a cat", ""])
def test_the_site_stores_the_strength_of_every_lora(name: str, scales: tuple[float, float | None], prompt: str):
    lora = Part(name, autov3="0123456789ab", version_id=9, scale=scales[0], text_scale=scales[1])
    other = Part("other", autov3="ba9876543210", version_id=7, scale=0.5)

    meta = judge(parameters_text.text(plain(prompt=prompt, loras=(other, lora))))

    assert stored_strengths(meta, {"0123456789ab": 9, "ba9876543210": 7}) == {128713: None, 9: scales[0], 7: 0.5}
    assert {"0123456789ab", "ba9876543210"} <= set(meta.hashes.values())


def test_a_lora_whose_tag_in_the_prompt_has_two_scales_is_not_listed_as_plain():
    lora = Part("ink", autov3="0123456789ab", version_id=9, scale=0.3, text_scale=0.8)

    meta = judge(parameters_text.text(plain(prompt="a cat <lora:ink:0.8:0.3>", loras=(lora,))))

    assert stored_strengths(meta, {"0123456789ab": 9}) == {128713: None, 9: 0.3}


def test_a_vae_links_by_its_type_without_an_air():
    vae = Part("vae-ft", autov2="b" * 10, air="urn:air:sd1:vae:civitai:1@5")
    text = parameters_text.text(plain(vae=vae))

    entries = json.loads(text.partition("Civitai resources: ")[2])

    assert linked_vaes(entries) == [5]
    judge(text)


def test_two_loras_of_one_name_keep_both_hashes():
    meta = judge(parameters_text.text(plain(loras=(Part("a", autov2="a" * 10), Part("a", autov2="b" * 10)))))

    assert {"a" * 10, "b" * 10} <= set(meta.hashes.values())


def test_a_sampler_is_named_with_its_schedule_where_the_site_has_such_a_name():
    assert judge(parameters_text.text(plain())).values["sampler"] == "DPM++ 2M Karras"
    assert judge(parameters_text.text(plain(schedule="Beta"))).values["sampler"] == "DPM++ 2M"
    assert judge(parameters_text.text(plain(schedule="Beta"))).values["Schedule type"] == "Beta"


def test_everything_the_form_has_a_place_for_is_in_it():
    text = parameters_text.text(plain(
        vae=Part("kl-f8", autov2="b" * 10), hires=SecondPass(1024, 1536, 10, 0.6, "latent-bicubic"), rng="NV",
        ensd=31337,
        embeddings=(Part("bad hands", autov2="c" * 10, version_id=77),),
    ))  # fmt: skip

    assert text == (
        "a cat\nNegative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M Karras, Schedule type: Karras, CFG scale: 7, Seed: 123, Size: 512x768,"
        " Model hash: 0123456789, Model: dream, VAE hash: bbbbbbbbbb, VAE: kl-f8, Denoising strength: 0.6,"
        " Clip skip: 2, Hires resize: 1024x1536, Hires steps: 10, Hires upscaler: Latent (bicubic), RNG: NV,"
        " ENSD: 31337, Version: civman 0.3,"
        ' Hashes: {"model":"0123456789","vae":"bbbbbbbbbb","embed:bad hands":"cccccccccc"},'
        ' Civitai resources: [{"type":"checkpoint","modelVersionId":128713},{"type":"embedding","modelVersionId":77}]'
    )


@pytest.mark.parametrize("cfg", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused(cfg: float):
    with pytest.raises(UsageError) as caught:
        parameters_text.text(plain(cfg=cfg))

    assert caught.value.code == "bad-parameters"


@pytest.mark.parametrize(
    "spoilt",
    [
        "cat\nSteps: many, Sampler: Euler",
        'cat\nSteps: 20, Sampler: Euler, Seed: 1, Civitai resources: [{"type":"lora"}]',
        'cat\nSteps: 20, Sampler: Euler, Hashes: {"model": 5}',
        'cat\nSteps: 20, Sampler: Euler, Civitai resources: [{"modelVersionId":1,"x":[{"a":1}]}]',
        "Steps: 1\nSteps: 20, Sampler: Euler",
    ],
)  # fmt: skip
def test_the_judge_itself_discards_what_the_site_discards(spoilt: str):
    with pytest.raises(DiscardedError):
        judge(spoilt)


@given(
    st.text()
    | pieces(NASTY)
    | st.lists(st.sampled_from(("a:", '"', "{", "[", ",", "Steps: 1", "\n", ":", "}"))).map("".join)
)
def test_reading_never_fails_on_any_text(text: str):
    parsed = parameters_text.read(text)

    assert isinstance(parsed, parameters_text.Parsed)
    assert json.dumps([parsed.prompt, parsed.hashes, parsed.size, len(parsed.civitai), len(parsed.tags)])


def test_the_judge_keeps_what_civitais_own_generator_writes():
    meta = judge(
        "Peepy \nNegative prompt: bad\nSteps: 30, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 3715225534,"
        ' Size: 512x512, Clip skip: 1, Civitai resources: [{"type":"checkpoint","modelVersionId":128713},'
        '{"type":"lora","weight":1,"modelVersionId":210873}]'
    )

    assert isinstance(meta, Meta)
    assert meta.versions == [(128713, None), (210873, 1)]
