# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Hypernetworks change keys and values as in A1111: the modules built of torch's own layers, the attention by hand."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from rendering_stock import QUICK
from safetensors.torch import save_file

from civman.diffusion.hypernetworks import acting, load_hypernetwork
from civman.diffusion.loader import load
from civman.errors import Incompatible, InvalidModelFile
from civman.pictures import image_text, infotext
from civman.store.read_pickle import read_pickle, write_safetensors

STRUCTURES: dict[str, dict[str, Any]] = {
    "usual": {},
    "relu": {"layer_structure": [1, 2, 1], "activation_func": "relu", "activate_output": False},
    "deep": {"layer_structure": [1, 1.5, 2, 1], "activation_func": "swish", "is_layer_norm": True},
    "dropout": {"layer_structure": [1, 2, 2, 1], "activation_func": "softsign", "use_dropout": True,
                "is_layer_norm": True, "activate_output": False},
    "linear": {"layer_structure": [1, 2, 1], "activation_func": "linear"},
}  # fmt: skip
FUNCTIONS = {"relu": torch.nn.ReLU, "swish": torch.nn.Hardswish, "softsign": torch.nn.Softsign}


def module(width: int, facts: dict[str, Any]) -> Any:
    """A network as A1111 builds it: the numbers in its tensors' names count activations and dropout."""
    layers: list[Any] = []
    sizes = [int(width * factor) for factor in facts.get("layer_structure", [1, 2, 1])]
    for number, (before, after) in enumerate(pairwise(sizes)):
        layers.append(torch.nn.Linear(before, after))
        is_last = number == len(sizes) - 2
        function = FUNCTIONS.get(facts.get("activation_func", ""))
        if function is not None and not (is_last and not facts.get("activate_output", True)):
            layers.append(function())
        if facts.get("is_layer_norm"):
            norm = torch.nn.LayerNorm(after)
            torch.nn.init.normal_(norm.weight)
            layers.append(norm)
        if facts.get("use_dropout") and not is_last:
            layers.append(torch.nn.Dropout(0.3))
    return torch.nn.Sequential(*layers).eval()


class Network:
    """A whole hypernetwork for some widths, and the file that A1111 would write of it."""

    def __init__(self, widths: tuple[int, ...], facts: dict[str, Any], seed: int = 1) -> None:
        torch.manual_seed(seed)
        self.facts, self.pairs = facts, {width: (module(width, facts), module(width, facts)) for width in widths}

    def save(self, path: Path, *, is_old: bool = False) -> Path:
        def named(each: Any) -> dict[str, Any]:
            found = {f"linear.{name}": value for name, value in each.state_dict().items()}
            if is_old:  # the first files called the two layers linear1 and linear2
                found = {
                    name.replace("linear.0", "linear1").replace("linear.1", "linear2"): v for name, v in found.items()
                }
            return found

        pairs = {width: tuple(map(named, pair)) for width, pair in self.pairs.items()}
        torch.save({"step": 7, "name": "n", "sd_checkpoint": "abc", **self.facts, **pairs}, path)
        return path

    def changed(self, context: Any, side: int, strength: float) -> Any:
        pair = self.pairs.get(context.shape[-1])
        return context if pair is None else context + strength * pair[side](context)


class ByHand:
    """Attention written out, with the contexts that A1111's hypernetworks give it."""

    def __init__(self, uses: list[tuple[Network, float]]) -> None:
        self.uses = uses

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **_: Any) -> Any:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        keys = values = context
        for network, strength in self.uses:
            keys, values = network.changed(keys, 0, strength), network.changed(values, 1, strength)
        parts = (attn.to_q(hidden_states), attn.to_k(keys), attn.to_v(values))
        q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in parts)
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
        return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


def copied(path: Path) -> Path:
    """The safetensors copy of a pickle."""
    place = path.with_suffix(".safetensors")
    with place.open("wb") as file:
        write_safetensors(path, read_pickle(path), file, {})
    return place


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_unet_attends_as_with_a1111_s_hypernetwork(
    tiny_files: dict[str, Path], tmp_path: Path, kind: str, structure: str
) -> None:
    unet: Any = load(tiny_files[kind], device="cpu", dtype=torch.float32).unet
    width = int(unet.config.cross_attention_dim)
    networks = [Network((width, 32), STRUCTURES[structure]), Network((width, 16), {}, seed=2)]
    mine = [
        (load_hypernetwork(copied(network.save(tmp_path / f"{number}.pt")), "n"), strength)
        for number, (network, strength) in enumerate(zip(networks, (0.8, -0.5), strict=True))
    ]
    more: dict[str, Any] = {}
    if kind == "sdxl":
        pooled = int(unet.config.projection_class_embeddings_input_dim) - 6 * int(unet.config.addition_time_embed_dim)
        more["added_cond_kwargs"] = {"text_embeds": torch.ones(2, pooled), "time_ids": torch.ones(2, 6)}
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 77, width)

    def run() -> Any:
        with torch.no_grad():
            return unet(x, torch.tensor(500.0), encoder_hidden_states=context, return_dict=False, **more)[0]

    plain = run()
    with acting(unet, mine):
        changed = run()
    assert torch.equal(run(), plain), "nothing stays behind"
    unet.set_attn_processor(ByHand(list(zip(networks, (0.8, -0.5), strict=True))))
    theirs = run()

    assert torch.allclose(changed, theirs, atol=1e-4)
    assert not torch.allclose(changed, plain, atol=1e-2)


def test_the_first_files_named_their_layers_differently(tmp_path: Path) -> None:
    network = Network((24,), {})
    old = load_hypernetwork(copied(network.save(tmp_path / "old.pt", is_old=True)), "n")
    new = load_hypernetwork(copied(network.save(tmp_path / "new.pt")), "n")
    context = torch.randn(1, 5, 24)

    for side in (0, 1):
        made = old.change(context, side)
        assert made is not None
        assert torch.equal(made, new.change(context, side))
        assert torch.allclose(made, network.pairs[24][side](context), atol=1e-6)


def test_what_fits_no_model_or_is_no_hypernetwork_is_refused(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    unet: Any = load(tiny_files["sd1"], device="cpu", dtype=torch.float32).unet
    other = load_hypernetwork(copied(Network((48,), {}).save(tmp_path / "other.pt")), "other")
    with pytest.raises(Incompatible, match="width 48"), acting(unet, [(other, 1.0)]):
        pass
    save_file({"24.0.linear.0.weight": torch.ones(2, 2)}, tmp_path / "half.safetensors")
    with pytest.raises(InvalidModelFile):
        load_hypernetwork(tmp_path / "half.safetensors", "half")
    wrong = Network((24,), {"activation_func": "wobble"}).save(tmp_path / "wrong.pt")
    with pytest.raises(InvalidModelFile, match="wobble"):
        load_hypernetwork(copied(wrong), "wrong")


def test_a_hypernetwork_acts_from_a_tag_and_from_an_option_and_is_replayed(
    tiny_files: dict[str, Path], civman: Civman, tmp_path: Path
) -> None:
    del tiny_files
    import tiny_models

    checkpoint = tiny_models.write(tmp_path / "tiny.safetensors", "sd1")
    Network((24, 16, 32), STRUCTURES["relu"]).save(tmp_path / "dream.pt")
    assert civman("import", "--offline", checkpoint, tmp_path / "dream.pt").code == 0
    size = ("--hires", "1.5", "--hires-steps", "2")

    made = {}
    for name, options in {
        "plain": ("a cat",), "tag": ("a cat <hypernet:dream:0.7>",), "option": ("a cat", "--hypernetwork", "dream:0.7"),
    }.items():  # fmt: skip
        ran = civman("render", "tiny", *options, *QUICK, *size, "-o", tmp_path / f"{name}.png", "--json")
        assert ran.code == 0, ran.err
        made[name] = image_text.pixels(tmp_path / f"{name}.png")

    assert (made["tag"] == made["option"]).all()
    assert (made["tag"] != made["plain"]).any()
    read = infotext.read(image_text.read(tmp_path / "tag.png").entries["parameters"])
    assert read.prompt == "a cat <hypernet:dream:0.7>"
    assert len(json.loads(read.details["Hashes"])["hypernet:dream"]) == 10
    assert civman("replay", tmp_path / "tag.png").code == 0
    weaker = civman("replay", tmp_path / "tag.png", "--set", "cfg=2", "-o", tmp_path / "weaker.png")
    assert weaker.code == 0, weaker.err
    refused = civman("render", "tiny", "a <hypernet:dream:0.7:1>", *QUICK)
    assert refused.code != 0
    assert "one strength" in refused.err
