"""Two precisions of one version, from the download to the picture."""

import json

import pytest
from running import Civman

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import safetensors.torch

from civman.demo.demo_catalog import Catalogue, Content, DemoFile
from civman.demo.server import CivitaiServer

VERSION = 191010
VERSION_REF = f"@{VERSION}"
QUICK = ("--steps", 2, "--size", "64x64", "--device", "cpu", "--threads", 1, "--seed", 1)


@pytest.fixture
def two_files(catalogue: Catalogue, online: CivitaiServer) -> list[int]:
    """The file ids of a version that has its model in half and in single precision."""
    found = catalogue.version(VERSION)
    assert found is not None
    half = found[1].files[0]
    tensors = safetensors.torch.load(half.content.data)
    data = safetensors.torch.save(
        {name: tensor.float() for name, tensor in tensors.items()}, metadata={"civman.config": _config(half)}
    )
    single = DemoFile(98_999, "tiny-shapes-fp32.safetensors", Content.of(data), fp="fp32", size="full")
    catalogue.change_version(VERSION, files=(half, single))
    return [half.id, single.id]


def _config(file: DemoFile) -> str:
    length = int.from_bytes(file.content.data[:8], "little")
    return str(json.loads(file.content.data[8 : 8 + length])["__metadata__"]["civman.config"])


def test_each_precision_is_rendered_by_the_ref_that_list_prints(two_files: list[int], civman: Civman) -> None:
    for number in two_files:
        assert civman("download", VERSION_REF, "-f", number).code == 0
    listed = {asset["file_id"]: asset["ref"] for asset in civman("list", "--json").json["list"]["assets"]}
    assert sorted(listed) == sorted(two_files)

    made = {
        number: civman("render", listed[number], "a large red circle", *QUICK, "--json").json["render"][0]
        for number in two_files
    }

    for number, rendering in made.items():
        assert [file["file_id"] for file in rendering["recipe"]["files"]] == [number]
        assert civman("replay", rendering["path"], "--json").json["replay"]["pictures"][0]["verdict"] == "identical"
    by_option = civman("render", VERSION_REF, "x", "-f", "fp32", *QUICK, "--dry-run", "--json").json["plan"][0]
    assert [file["file_id"] for file in by_option["recipe"]["files"]] == [98_999]
