# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""A model in several safetensors files, split by huggingface_hub, is joined into one file of the library."""

import json
from pathlib import Path

import pytest
from running import Civman

torch = pytest.importorskip("torch")
hub = pytest.importorskip("huggingface_hub")

from safetensors.torch import load_file


def tensors(count: int = 7) -> dict[str, "torch.Tensor"]:
    generator = torch.Generator().manual_seed(1)
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    made = {f"block.{n}.weight": torch.randn(n + 1, 33, generator=generator).to(kinds[n % 3]) for n in range(count)}
    return made | {"scalar": torch.tensor(3.5), "nothing": torch.zeros(0, 4)}


@pytest.fixture
def index_file(tmp_path: Path) -> Path:
    """A model of at most 600 bytes a file."""
    folder = tmp_path / "unet"
    folder.mkdir()
    hub.save_torch_state_dict(
        tensors(), folder, max_shard_size=600, filename_pattern="diffusion_model{suffix}.safetensors"
    )
    found = folder / "diffusion_model.safetensors.index.json"
    assert len(list(folder.glob("*-of-*.safetensors"))) > 2
    return found


def test_the_joined_file_has_the_tensors_of_all(civman: Civman, index_file: Path, root: Path) -> None:
    done = civman("import", index_file, "--json")

    assert done.code == 0, done.err
    asset = done.json["import-shards"]
    joined = load_file(asset["path"])
    expected = tensors()
    assert joined.keys() == expected.keys()
    for name, tensor in expected.items():
        assert joined[name].dtype == tensor.dtype
        assert torch.equal(joined[name], tensor)
    assert asset["name"] == "diffusion_model.safetensors"
    assert civman("verify", "--full").code == 0
    assert len(civman("list", "--json").json["list"]["assets"]) == 1
    assert civman("import", index_file, "--quiet").out == f"{asset['blob']['sha256']}\n", "the same bytes again"
    assert not list((root / "partial").glob("*"))


def test_a_folder_with_shards_names_the_remedy(civman: Civman, index_file: Path) -> None:
    (index_file.parent / "other.safetensors").write_bytes(
        next(index_file.parent.glob("*-00001-of-*.safetensors")).read_bytes()
    )
    assert "import its .safetensors.index.json to join them" in civman("import", index_file.parent, "--offline").out


def damage(index_file: Path, how: str) -> None:
    shard = next(iter(sorted(index_file.parent.glob("*-of-*.safetensors"))))
    value = json.loads(index_file.read_text())
    if how == "missing":
        shard.unlink()
    elif how == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif how == "lies":
        value["weight_map"]["another"] = shard.name
    elif how == "lacks":
        del value["weight_map"][next(iter(value["weight_map"]))]
    elif how == "escapes":
        value["weight_map"] = {"x": f"../{index_file.parent.name}/{shard.name}"}
    elif how == "pickle":
        value["weight_map"] = {"x": "pytorch_model-00001-of-00002.bin"}
    elif how == "empty":
        value["weight_map"] = {}
    else:
        value = []
    index_file.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("how", "code"),
    [("missing", 3), ("cut", 6), ("lies", 6), ("lacks", 6), ("escapes", 6), ("pickle", 6), ("empty", 6), ("list", 6)],
)
def test_shards_that_do_not_make_a_model_are_refused_and_nothing_stays(
    civman: Civman, index_file: Path, root: Path, how: str, code: int
) -> None:
    damage(index_file, how)

    done = civman("import", index_file)

    assert done.code == code, done.err
    assert not list((root / "blobs").rglob("*.safetensors"))
    assert not list((root / "partial").glob("joined*"))
