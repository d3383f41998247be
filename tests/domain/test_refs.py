"""The one parser for what a person points with: a table of examples, and the round trip for every ref."""

import string
from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from civman.domain.catalog import FileId, Model, ModelId, ModelType, ModelVersion, VersionId
from civman.domain.printed_refs import air_of
from civman.domain.refs import (
    ANY_FILE,
    LARGEST_ID,
    Air,
    FileSelector,
    HashKind,
    HashRef,
    ImageRef,
    ModelRef,
    NameRef,
    NumberRef,
    PathRef,
    PictureRef,
    PostRef,
    Ref,
    VersionRef,
    parse_ref,
)
from civman.errors import InvalidRef

SHA = "96a7fb4abc026b628ec2c28fb91086a5f5557aa14244ec329581b27cb53096cd"
M, V, F = ModelId(1), VersionId(2), FileId(33)

READS_AS = [
    # numbers and short forms
    ("123", NumberRef(123)),
    ("  123\n", NumberRef(123)),
    ("2147483647", NumberRef(LARGEST_ID)),
    ("12345@678", VersionRef(VersionId(678), ModelId(12345))),
    ("@678", VersionRef(VersionId(678))),
    ("civitai:1", ModelRef(M)),
    ("CivitAI:1@2", VersionRef(V, M)),
    ("1@2+33", VersionRef(V, M, FileSelector(F))),
    ("1@2?type=VAE&fp=fp16", VersionRef(V, M, FileSelector(type="VAE", precision="fp16"))),
    ("civitai:1@2+33.safetensor", VersionRef(V, M, FileSelector(F, format="safetensor"))),
    # AIR
    (
        "urn:air:sdxl:checkpoint:civitai:827184@2514310",
        Air(ModelId(827184), VersionId(2514310), "sdxl", "checkpoint"),
    ),
    ("URN:AIR:SDXL:LoRA:Civitai:1@2", Air(M, V, "sdxl", "lora")),
    ("air:sdxl:lora:civitai:1@2", Air(M, V, "sdxl", "lora")),
    ("sdxl:lora:civitai:1@2", Air(M, V, "sdxl", "lora")),
    ("lora:civitai:1@2", Air(M, V, "lora")),
    ("urn:air:civitai:1", Air(M)),
    ("urn:air:sdxl:lora:civitai:1", Air(M, None, "sdxl", "lora")),
    ("urn:air:sd3_5m:text_encoders:civitai:1@2+33.safetensor", Air(M, V, "sd3_5m", "text_encoders", F, "safetensor")),
    ("urn:air:sdxl:lora:civitai:1@2+33", Air(M, V, "sdxl", "lora", F)),
    ("urn:air:sdxl:lora:civitai:1@2.safetensor", Air(M, V, "sdxl", "lora", None, "safetensor")),
    # pages
    ("https://civitai.com/models/1", ModelRef(M)),
    ("http://www.civitai.com/models/1/", ModelRef(M)),
    ("civitai.com/models/1/some-slug", ModelRef(M)),
    ("www.civitai.red/models/1/été/夜", ModelRef(M)),
    ("//civitai.green/models/1?x=y#part", ModelRef(M)),
    ("HTTPS://CIVITAI.COM/models/1", ModelRef(M)),
    ("https://civitai.com/models/1?modelVersionId=2", VersionRef(V, M)),
    ("https://civitai.com/models/1/slug?foo=bar&modelVersionId=2#x", VersionRef(V, M)),
    ("https://civitai.com/model-versions/2", VersionRef(V)),
    ("https://civitai.com/models/1/model-versions/2/wizard", VersionRef(V, M)),
    # downloads
    ("https://civitai.com/api/download/models/2", VersionRef(V)),
    ("https://civitai.com/api/download/models/2?fileId=33&token=s3cret", VersionRef(V, file=FileSelector(F))),
    (
        "https://civitai.red/api/download/models/2?type=Pruned%20Model&format=SafeTensor&size=pruned&fp=fp16&quantType=Q8",
        VersionRef(V, file=FileSelector(None, "Pruned Model", "SafeTensor", "pruned", "fp16", "Q8")),
    ),
    ("civitai.com/api/download/training-data/2", VersionRef(V, file=FileSelector(type="Training Data"))),
    # API
    ("https://civitai.com/api/v1/models/1", ModelRef(M)),
    ("https://civitai.com/api/v1/model-versions/2?token=s3cret", VersionRef(V)),
    ("https://civitai.com/api/v1/model-versions/mini/2?modelFileId=33", VersionRef(V, file=FileSelector(F))),
    (f"https://civitai.com/api/v1/model-versions/by-hash/{SHA.upper()}", HashRef(SHA)),
    ("https://civitai.com/api/v1/images?imageId=7&withMeta=true", ImageRef(7)),
    ("https://civitai.com/api/v1/images?postId=8", PostRef(8)),
    # pictures
    ("https://civitai.com/images/7", ImageRef(7)),
    ("https://civitai.com/posts/8?x=1", PostRef(8)),
    ("https://image.civitai.com/xG1/7cd552a1-60fe/original=true/139439234.jpeg", ImageRef(139439234)),
    # digests
    ("96A7FB4ABC", HashRef("96a7fb4abc")),
    ("A7290BE0", HashRef("a7290be0")),
    ("9F02751CC929", HashRef("9f02751cc929")),
    (SHA, HashRef(SHA)),
    ("00012345", HashRef("00012345")),
    ("2147483648", HashRef("2147483648")),  # too large for an id, ten digits: AutoV2 after all
    ("9999999999", HashRef("9999999999")),
    ("hash:12345678", HashRef("12345678")),
    (f"SHA256:{SHA.upper()}", HashRef(SHA, HashKind.SHA256)),
    ("AutoV2: 96A7FB4ABC", HashRef("96a7fb4abc", HashKind.AUTOV2)),
    (f"blake3:{SHA}", HashRef(SHA, HashKind.BLAKE3)),
    ("crc32:12345678", HashRef("12345678", HashKind.CRC32)),
    ("autov1:a7290be0", HashRef("a7290be0", HashKind.AUTOV1)),
    (f"autov3:{SHA}", HashRef(SHA[:12], HashKind.AUTOV3)),
    (f"sha256:{SHA[:12]}", HashRef(SHA[:12], HashKind.SHA256)),
    ("picture:12", PictureRef(12)),
    # files
    ("./a b.safetensors", PathRef("./a b.safetensors")),
    ("~/models/x", PathRef("~/models/x")),
    ("/srv/civitai.com/models/1", PathRef("/srv/civitai.com/models/1")),
    ("C:\\models\\x.safetensors", PathRef("C:\\models\\x.safetensors")),
    ("c:/models/x", PathRef("c:/models/x")),
    ("\\\\server\\share\\x", PathRef("\\\\server\\share\\x")),
    ("models/x", PathRef("models/x")),
    ("Model.SafeTensors", PathRef("Model.SafeTensors")),
    (".hidden", PathRef(".hidden")),
    ("path:123", PathRef("123")),
    # names
    ("DreamShaper", NameRef("DreamShaper")),
    ("my favourite lora", NameRef("my favourite lora")),
    ("v1.5", NameRef("v1.5")),
    ("Re:Zero", NameRef("Re:Zero")),
    ("facade", NameRef("facade")),
    ("name:123", NameRef("123")),
    ("name:deadbeef", NameRef("deadbeef")),
    ("\uff11\uff12", NameRef("\uff11\uff12")),  # digits elsewhere, but no id
]


@pytest.mark.parametrize(("text", "ref"), READS_AS, ids=[text for text, _ in READS_AS])
def test_text_reads_as_the_ref_it_spells(text: str, ref: Ref) -> None:
    assert parse_ref(text) == ref


@pytest.mark.parametrize("ref", [ref for _, ref in READS_AS], ids=repr)
def test_canonical_text_of_every_example_reads_as_itself(ref: Ref) -> None:
    assert parse_ref(str(ref)) == ref


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("a\x00b", "control"),
        ("a\nb", "control"),
        ("0", "neither an id"),
        ("99999999999", "neither an id"),
        ("9" * 5000, "neither an id"),
        ("1@", "version id"),
        ("1@two", "version id"),
        ("1@0", "not an id"),
        ("1@2?token=s3cret", "cannot select a file"),
        ("civitai:", "AIR"),
        ("civitai:abc", "AIR"),
        ("civitai:1@2:safetensors", "AIR"),
        ("urn:air:sdxl:lora:civitai:1@2:safetensors", "AIR"),
        ("urn:air:sdxl:lora:civitai:1@2?x=1", "AIR"),
        ("urn:air:sdxl:lora:civitai:1@2147483648", "not an id"),
        ("urn:air:sdxl:lora:oci:registry.example/x:sha256:ab", "on oci"),
        ("urn:air:sdxl:lora:huggingface:foo/bar@main", "on huggingface"),
        ("urn:air:sdxl:lora:somewhere:1@2", "on somewhere"),
        ("huggingface:foo/bar", "on huggingface"),
        ("urn:isbn:1", "isbn"),
        ("https://example.com/models/1", "not a page of CivitAI"),
        ("https://civitai.com@example.com/models/1", "not a page of CivitAI"),
        ("https://civitai.com.example.com/models/1", "not a page of CivitAI"),
        ("ftp://civitai.com/models/1", "not a page of CivitAI"),
        ("file:///tmp/x.safetensors", "not a page of CivitAI"),
        ("https://b2.civitai.com/file/civitai-modelfiles/model/1/x?sig=s3cret", "not a page of CivitAI"),
        ("https://[::1/models/1", "not a valid URL"),
        ("https://civitai.com/", "no model id"),
        ("https://civitai.com/models", "no model"),
        ("https://civitai.com/models/abc", "not an id"),
        ("https://civitai.com/models/1?modelVersionId=x", "not an id"),
        ("https://civitai.com/api/download/attachments/1", "no model"),
        ("https://civitai.com/api/v1/model-versions/by-hash/xyz", "no model"),
        ("https://civitai.com/user/somebody", "creator's page"),
        ("https://civitai.com/collections/1", "collection"),
        ("civitai.com/articles/1/slug", "article"),
        ("https://civitai.com/bounties/1", "bounty"),
        ("https://civitai.com/3d-models/1", "3D model"),
        ("https://civitai.com/posts", "no model"),
        ("https://image.civitai.com/a/b/width=450/name.jpeg", "contains no id"),
        ("sha256:abc", "digest"),
        ("crc32:xyz12345", "digest"),
        ("hash:abc", "digest"),
    ],
)
def test_text_of_no_use_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(InvalidRef, match=words) as caught:
        parse_ref(text)

    assert caught.value.hint
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "text",
    [
        "https://civitai.com/user/x?token=s3cret",
        "https://example.com/models/1?token=s3cret",
        "https://me:s3cret@example.com/x",
        "1@2?token=s3cret",
        "https://civitai.com/api/download/models/x?token=s3cret",
        "urn:air:sdxl:lora:civitai:1@2?token=s3cret",
    ],
)
def test_refusal_never_repeats_a_secret(text: str) -> None:
    with pytest.raises(InvalidRef) as caught:
        parse_ref(text)

    assert "s3cret" not in str(caught.value) + str(caught.value.facts) + caught.value.hint


def test_download_address_keeps_its_wishes_and_loses_its_token() -> None:
    ref = parse_ref("https://civitai.com/api/download/models/2?token=s3cret&type=Model&format=SafeTensor&fileId=33")

    assert str(ref) == "@2+33?type=Model&format=SafeTensor"


@pytest.mark.parametrize(
    ("digest", "kinds"),
    [
        ("a" * 8, (HashKind.CRC32, HashKind.AUTOV1)),
        ("a" * 10, (HashKind.AUTOV2,)),
        ("a" * 12, (HashKind.AUTOV3,)),
        ("a" * 64, (HashKind.SHA256, HashKind.BLAKE3)),
    ],
)
def test_bare_digest_names_the_kinds_of_its_length(digest: str, kinds: tuple[HashKind, ...]) -> None:
    assert HashRef(digest).kinds == kinds
    assert all(HashRef(digest, kind).kinds == (kind,) for kind in kinds)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NumberRef(0),
        lambda: ModelRef(ModelId(-1)),
        lambda: VersionRef(VersionId(LARGEST_ID + 1)),
        lambda: FileSelector(type=""),
        lambda: HashRef("abc"),
        lambda: HashRef("a" * 9, HashKind.SHA256),
        lambda: HashRef("A" * 10),
        lambda: Air(M, V, None, "lora"),
        lambda: Air(M, V, "SDXL"),
        lambda: Air(M, V, "sd:xl"),
        lambda: PathRef(""),
        lambda: NameRef(" x"),
    ],
)
def test_a_ref_that_has_no_text_cannot_be_made(make: object) -> None:
    with pytest.raises(InvalidRef):
        make()  # type: ignore[operator]


def test_air_points_at_its_model_version_and_file() -> None:
    assert Air(M, None, "sdxl", "lora").target == ModelRef(M)
    assert Air(M, V, "sdxl", "lora", F, "gguf").target == VersionRef(V, M, FileSelector(F, format="gguf"))


def _version(air: str | None, kind: ModelType = ModelType.LOCON) -> ModelVersion:
    model = Model(M, "x", kind, kind.value)
    return ModelVersion(V, model, "v1", "Pony", air=air, published_at=datetime(2025, 1, 1, tzinfo=UTC))


def test_air_of_a_version_is_civitais_own_or_built_from_what_is_known() -> None:
    assert str(air_of(_version("urn:air:sd1:lycoris:civitai:1@2"), file_id=F)) == "urn:air:sd1:lycoris:civitai:1@2+33"
    assert str(air_of(_version(None), ecosystem="sdxl")) == "urn:air:sdxl:lycoris:civitai:1@2"
    assert str(air_of(_version(None, ModelType.CHECKPOINT), ecosystem="sdxl")) == "urn:air:sdxl:checkpoint:civitai:1@2"
    assert str(air_of(_version(None))) == "urn:air:civitai:1@2"


_ids = st.integers(1, LARGEST_ID)
_word = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12)
_words = st.none() | _word
_air_word = st.none() | st.text(string.ascii_lowercase + string.digits + "_-", min_size=1, max_size=8)
_wishes = st.just(ANY_FILE) | st.builds(FileSelector, st.none() | _ids, _words, _words, _words, _words, _words)
_hash_refs = st.sampled_from([8, 10, 12, 64]).flatmap(
    lambda size: st.text("0123456789abcdef", min_size=size, max_size=size).flatmap(
        lambda digest: st.builds(HashRef, st.just(digest), st.sampled_from([None, *HashRef(digest).kinds]))
    )
)
_alphabet = st.sampled_from("abc019:/\\.@~+?#%=é ") | st.characters(blacklist_categories=["Cs", "Cc"])
_tricky = st.sampled_from(
    ["", "civitai:", "urn:air:", "name:", "path:", "hash:", "sha256:", "https://", "civitai.com/", "C:\\", "hf:"]
)
_free_text = st.builds(lambda head, tail: (head + tail).strip(), _tricky, st.text(_alphabet, max_size=30)).filter(bool)
REFS: st.SearchStrategy[Ref] = st.one_of(
    st.builds(NumberRef, _ids),
    st.builds(ModelRef, _ids, _wishes),
    st.builds(VersionRef, _ids, st.none() | _ids, _wishes),
    st.builds(
        lambda model, version, eco, kind, file, ending: Air(model, version, eco, kind if eco else None, file, ending),
        *(_ids, st.none() | _ids, _air_word, _air_word, st.none() | _ids, _air_word),
    ),
    _hash_refs,
    st.builds(ImageRef, _ids),
    st.builds(PostRef, _ids),
    st.builds(PictureRef, _ids),
    st.builds(PathRef, _free_text),
    st.builds(NameRef, _free_text),
)


@settings(deadline=None)
@given(REFS)
@example(ModelRef(M, FileSelector(type="0.")))
def test_every_ref_reads_back_from_its_text(ref: Ref) -> None:
    assert parse_ref(str(ref)) == ref


@settings(deadline=None)
@given(_free_text)
def test_any_text_gives_a_ref_or_a_refusal_and_nothing_else(text: str) -> None:
    try:
        ref = parse_ref(text)
    except InvalidRef:
        return

    assert parse_ref(str(ref)) == ref
